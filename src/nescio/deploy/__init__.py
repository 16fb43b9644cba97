"""From a detector on the bench to one in use: a calibrated file, and verdicts on images."""

from nescio.deploy.build import fit
from nescio.deploy.deployed import Deployed, Judged, Verdict
from nescio.deploy.file import describe, load, save
from nescio.deploy.onnx_graph import export
from nescio.deploy.scoring import Scored, score_images

__all__ = ["Deployed", "Judged", "Scored", "Verdict", "describe", "export", "fit", "load", "save", "score_images"]
