"""How a network is run over images: one file an engine, and the choice of one."""

from nescio.run.engines import openvino, torch
from nescio.run.engines.engine import AUTO, ENGINES, FLOAT32, PRECISIONS, Engine, engine_of

__all__ = ["AUTO", "ENGINES", "FLOAT32", "PRECISIONS", "Engine", "engine_of", "openvino", "torch"]
