"""What goes with an exported graph, so that its users need nothing else: classes, transform, p-values, promise."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nescio.data.preprocess import AnyTransform
from nescio.deploy.deployed import Deployed
from nescio.deploy.file import record
from nescio.deploy.graph import IMAGE, THRESHOLD
from nescio.deploy.lower import FP32

FORMAT = "nescio-onnx/2"


def metadata(
    deployed: Deployed, outputs: Mapping[str, str], preprocess: str | None = None, precision: str = FP32
) -> dict[str, str]:
    """What goes with the graph, by name: text that its users must know, and ``about``, JSON with everything else."""
    about = record(deployed, embedded=True)
    model, calibration, transform = about["model"], about["calibration"], deployed.classifier.transform
    groups = deployed.calibration.groups
    return {
        "format": FORMAT,
        "model": model["name"],
        "classes": json.dumps(model["classes"] or [str(c) for c in range(model["n_classes"])], ensure_ascii=False),
        "transform": model["transform"],
        "inputs": json.dumps(_inputs(transform, len(groups), preprocess)),
        "outputs": json.dumps(outputs),
        "precision": precision,
        "detector": about["detector"]["spec"],
        "thresholds": json.dumps([{k: g[k] for k in ("classes", "threshold", "n")} for g in calibration["groups"]]),
        "p_values": json.dumps([{"classes": g.classes, "scores": g.reached.tolist()} for g in groups]),
        "promise": calibration["promise"],
        "about": json.dumps(about, ensure_ascii=False),
    }


def _inputs(transform: AnyTransform, groups: int, preprocess: str | None) -> dict[str, str]:
    side, channels = transform.crop, transform.channels
    shape = f"batch, {side}, {side}, {channels}" if preprocess == "nhwc" else f"batch, {channels}, {side}, {side}"
    kind = "float32 ({}): pixels in [0, 1] less mean, by std" if preprocess is None else "uint8 ({}): pixels"
    colour = "grey" if channels == 1 else "RGB"
    return {
        IMAGE: f"{kind.format(shape)}, {colour}, resized (antialiased) and cropped as 'transform' says",
        THRESHOLD: f"float64 ({groups},): the least score that is accepted, for each entry of 'thresholds'; optional, "
        "the calibrated one by default",
    }
