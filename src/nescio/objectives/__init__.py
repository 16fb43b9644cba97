"""What training minimises. An objective owns its heads and never the loop."""

from nescio.objectives import ce, cider, conf, contrast, flyp, godin, logitnorm, mos, oe, ssod, vos
from nescio.objectives.base import OBJECTIVES, Objective, View, parse_objective

__all__ = [
    "OBJECTIVES",
    "Objective",
    "View",
    "ce",
    "cider",
    "conf",
    "contrast",
    "flyp",
    "godin",
    "logitnorm",
    "mos",
    "oe",
    "parse_objective",
    "ssod",
    "vos",
]
