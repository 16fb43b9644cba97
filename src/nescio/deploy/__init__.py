"""From a detector on the bench to one in use: a calibrated file, and verdicts on images."""

from nescio.deploy.build import fit
from nescio.deploy.deployed import Deployed, Judged, Verdict
from nescio.deploy.file import describe
from nescio.deploy.hub import push
from nescio.deploy.loading import load
from nescio.deploy.onnx import export
from nescio.deploy.recalibration import Lowered
from nescio.deploy.scoring import ScoringDone, score_images

__all__ = [
    "Deployed",
    "Judged",
    "Lowered",
    "ScoringDone",
    "Verdict",
    "describe",
    "export",
    "fit",
    "load",
    "push",
    "score_images",
]
