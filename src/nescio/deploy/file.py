"""The ``.nescio`` file: tensors and JSON in one safetensors file. Opening one runs nothing that it carries.

Its tensors are the detector's (``detector.``), the calibration scores (``calibration.``) and, unless left out, the
network's weights (``model.``). All else is JSON, the one entry of the metadata: the order of two, and the file's hash
with it, would change from one writing to the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nescio.conformal import Calibration, ClassTally, Group
from nescio.data.hashing import combine
from nescio.data.transforms import Transform
from nescio.deploy.deployed import Deployed
from nescio.detector import Detector
from nescio.errors import InputError
from nescio.files import whole
from nescio.framework import ProxyCalibrator
from nescio.models import Classifier, load_classifier
from nescio.models.libraries import architecture_of, is_known
from nescio.models.runs import state_of

FORMAT = 1
"""Raised when a file of this version could not be read by an earlier one."""
_ABOUT = "nescio"
_MODEL, _DETECTOR, _CALIBRATION = "model.", "detector.", "calibration."


def save(deployed: Deployed, path: str | Path, *, weights: bool = True) -> None:
    """As ``Deployed.save``."""
    tensors = _learned(deployed) | (_under(_MODEL, state_of(deployed.classifier)) if weights else {})
    about = {"format": FORMAT, **record(deployed, embedded=weights)}
    with whole(Path(path)) as partial:
        # tied weights are one tensor under two names, which the format does not know
        own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        save_file(own, partial, {_ABOUT: json.dumps(about, ensure_ascii=False)})


def record(deployed: Deployed, *, embedded: bool) -> dict[str, Any]:
    """All that is known of a detector ready for use but its tensors, as JSON can hold it.

    Args:
        deployed: what is described.
        embedded: whether the network's weights go into the file that this goes into.
    """
    facts = _facts(deployed)
    facts["model"]["embedded"] = embedded
    calibration = deployed.calibration
    facts["calibration"] |= {"promise": calibration.promise(), "by_class": [asdict(t) for t in calibration.by_class]}
    return deployed.about | facts


def fingerprint(deployed: Deployed) -> str:
    """A hash of all that verdicts follow from, wherever it was loaded from."""
    return combine(json.dumps(_facts(deployed), sort_keys=True), weights_hash(_learned(deployed)))


def _learned(deployed: Deployed) -> dict[str, Tensor]:
    """The detector's and the calibration's tensors."""
    scores = {f"{_CALIBRATION}{i}": torch.from_numpy(g.scores) for i, g in enumerate(deployed.calibration.groups)}
    return _under(_DETECTOR, deployed.detector.state_dict()) | scores


def _facts(deployed: Deployed) -> dict[str, Any]:
    """All else that verdicts follow from; of the network its hash alone."""
    c, calibration = deployed.classifier, deployed.calibration
    return {
        "model": {
            "name": c.name,
            "head": c.head_name,
            "n_classes": c.head.n_classes,
            "classes": c.classes,
            "transform": str(c.transform),
            "heads": sorted(c.heads),
            "weights": weights_hash(state_of(c)),
        },
        "detector": {"spec": repr(deployed.detector), "head": deployed.detector.fitted_to},
        "calibration": {
            "accept": calibration.accept,
            "confidence": calibration.confidence,
            "groups": [
                {"classes": g.classes, "rank": g.rank, "threshold": g.threshold, "n": len(g.scores)}
                for g in calibration.groups
            ],
        },
        "calibrator": deployed.calibrator and asdict(deployed.calibrator),
    }


def load(
    path: str | Path,
    *,
    model: str | Callable[[], nn.Module] | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
) -> Deployed:
    """Read what ``save`` wrote.

    Args:
        path: the file.
        model: what makes the network, as ``load_classifier`` takes it, where no library knows it by the file's name.
        weights: where the file holds but their hash.
        device: as for ``load_classifier``.

    Raises:
        InputError: the file is missing, damaged, of a later version, or the network is not the one it was made with.
    """
    path = Path(path)
    about, tensors = _read(path)
    try:
        of_model, of_detector, of_calibration = (about[key] for key in ("model", "detector", "calibration"))
        state = _from_under(_MODEL, tensors)
        classifier = _classifier(of_model, state, model, weights, device)
        detector = Detector.parse(of_detector["spec"])
        detector.restore(_from_under(_DETECTOR, tensors), of_detector["head"])
        calibration = Calibration(
            of_calibration["accept"],
            of_calibration["confidence"],
            tuple(
                Group(g["classes"] and tuple(g["classes"]), tensors[f"{_CALIBRATION}{i}"].numpy(), g["rank"])
                for i, g in enumerate(of_calibration["groups"])
            ),
            tuple(ClassTally(**t) for t in of_calibration.get("by_class", ())),  # not in the first files
        )
        calibrator = about["calibrator"] and ProxyCalibrator(**about["calibrator"])
    except (KeyError, TypeError, ValueError, IndexError) as e:
        if isinstance(e, InputError):
            raise InputError(f"{path}: {e}") from None
        raise InputError(f"{path} is damaged ({type(e).__name__}: {e}); make it again (nescio fit)") from None
    if detector.fitted_to != classifier.head.fingerprint:
        raise InputError(f"{path} was made with another model's weights; give those (--weights), or fit it again")
    rest = {k: v for k, v in about.items() if k not in ("model", "detector", "calibration", "calibrator")}
    return Deployed(classifier, detector, calibration, calibrator=calibrator, about=rest)


def describe(path: str | Path) -> dict[str, Any]:
    """What a file says of itself, without its tensors.

    Raises:
        InputError: as ``load``.
    """
    return _read(Path(path), tensors=False)[0]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Of all weights and statistics by name, whatever library version made the network."""
    digest = hashlib.blake2b(digest_size=16)
    for key, t in sorted(state.items()):
        if not key.endswith("num_batches_tracked"):  # plays no part in inference
            digest.update(f"{key}{t.dtype}{tuple(t.shape)}".encode())
            digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ABOUT)
            if text is None:
                raise InputError(f"{path} is not a file that 'nescio fit' wrote")
            about = json.loads(text)
            number = about.pop("format") if isinstance(about, dict) else None
            if not isinstance(number, int):
                raise ValueError("it does not say its format")
            if number > FORMAT:
                raise InputError(f"{path} was written by a later version of nescio (format {number}); update nescio")
            found = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{path} cannot be read: {e}; make it again (nescio fit)") from None
    return about, found


def _classifier(
    about: dict[str, Any],
    state: dict[str, Tensor],
    model: str | Callable[[], nn.Module] | None,
    weights: str | Path | None,
    device: str | torch.device,
) -> Classifier:
    name, transform = about["name"], Transform.parse(about["transform"])
    if model is None and not is_known(name):
        # a file must not say which code is run
        raise InputError(f"its network is made by '{name}', which is not run unasked; name it (model=, --model {name})")
    if model is None and ":" not in name:
        _check_known(name)
    given = weights or state or None
    if given is None:
        raise InputError("it holds no weights, but their hash alone; give them (weights=, --weights FILE)")
    classes = about["classes"] or about["n_classes"]
    classifier = load_classifier(
        model or name, weights=given, classes=classes, head=about["head"], transform=transform, device=device
    )
    classifier.name, classifier.classes = name, about["classes"]
    if weights_hash(state_of(classifier)) != about["weights"]:
        raise InputError("it was made with another model's weights")
    return classifier


def _check_known(name: str) -> None:
    try:
        architecture_of(name)
    except InputError:
        raise InputError(
            f"no library knows its network '{name}'; name what makes it (model=, --model FILE.py:FUNCTION)"
        ) from None


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": t for name, t in tensors.items()}


def _from_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
