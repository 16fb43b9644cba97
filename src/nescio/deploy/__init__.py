"""From a detector on the bench to one in use: a calibrated file, and verdicts on images."""

from nescio.deploy.build import fit
from nescio.deploy.deployed import Deployed, Judged, Verdict
from nescio.deploy.file import describe, load, save
from nescio.deploy.onnx_graph import export

__all__ = ["Deployed", "Judged", "Verdict", "describe", "export", "fit", "load", "save"]
