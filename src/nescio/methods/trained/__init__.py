"""What training minimises. An objective owns its heads and never the loop."""

from nescio.methods.objective import OBJECTIVES, Objective, View, parse_objective
from nescio.methods.trained import bal, ce, cider, conf, contrast, csi, flyp, godin, logitnorm, mos, oe, ssod, vos

__all__ = [
    "OBJECTIVES",
    "Objective",
    "View",
    "bal",
    "ce",
    "cider",
    "conf",
    "contrast",
    "csi",
    "flyp",
    "godin",
    "logitnorm",
    "mos",
    "oe",
    "parse_objective",
    "ssod",
    "vos",
]
