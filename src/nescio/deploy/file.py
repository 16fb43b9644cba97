"""The ``.nescio`` file: tensors and JSON in one safetensors file. Opening one runs nothing that it carries.

Its tensors are the detector's (``detector.``), the calibration scores (``calibration.``) and, unless left out, the
network's weights (``model.``). All else is JSON, the one entry of the metadata: the order of two, and the file's hash
with it, would change from one writing to the next. One hash over both stands in it. What is said of thresholds follows
from the scores, whatever the JSON says: where the two disagree, the file is refused.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nescio.calibration.conformal import Calibration, ClassTally, Group
from nescio.calibration.posterior import ProxyCalibrator
from nescio.core.artifact import Artifact, Kind, hash_tensors, read, write
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.data.hashing import combine
from nescio.data.transform import Transform
from nescio.models import Classifier, load_classifier
from nescio.models.classifier import FITTED
from nescio.models.outputs import unwrapped
from nescio.models.runs import HEAD_PREFIX, MOST_CLASSES, is_names, state_of
from nescio.models.trusted import trusted_architecture
from nescio.models.zoo.clip import PREFIX
from nescio.run.engines import FLOAT32, engine_of
from nescio.run.engines.choice import TORCH
from nescio.run.passes import pass_of
from nescio.run.session import Session

if TYPE_CHECKING:
    from nescio.deploy.deployed import Deployed

KIND = Kind("deployed", 3, "a file that 'nescio fit' wrote", "make it again (nescio fit)")
log = logging.getLogger(__name__)

_MODEL, _DETECTOR, _CALIBRATION = "model.", "detector.", "calibration."


def save(deployed: Deployed, path: str | Path, *, weights: bool = True) -> None:
    """As ``Deployed.save``. Raises InputError for a calibration that ``load`` would refuse: one of infinite scores."""
    deployed.detector.check_storable()
    check_transform(deployed.classifier)
    deployed.calibration.check(deployed.classifier.head.n_classes)
    if not weights and deployed.classifier.head_name == FITTED:
        raise InputError("its head was fitted here and is in no file of weights: save it with the weights")
    tensors = _learned(deployed) | (_under(_MODEL, state_of(deployed.classifier)) if weights else {})
    about = record(deployed, embedded=weights)
    del about["calibration"]["promise"]  # it follows from the rest
    write(Path(path), KIND, about, tensors)


def check_transform(classifier: Classifier) -> None:
    """Refuse images that are prepared by code: a file cannot say which code is run.

    Raises:
        InputError: they are.
    """
    if not isinstance(classifier.transform, Transform):
        raise InputError(
            f"the images of {classifier.name} are prepared by code ({classifier.transform!s:.60}), which cannot be "
            "saved: give a nescio.Transform, or a torchvision Compose of Resize, CenterCrop, ToTensor and Normalize"
        )


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
        "engine": {"spec": repr(deployed.session.running), "precision": deployed.session.precision},
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
    kind: type[Deployed],
    path: str | Path,
    *,
    model: Any = None,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
) -> Deployed:
    """Read what ``save`` wrote.

    Args:
        kind: the class, which this file must not import: it saves itself with ``save``.
        path: the file.
        model: what makes the network, as ``load_classifier`` takes it, where no library knows it by the file's name; or
            the network, a classifier or a session, whose weights are taken where the file holds none.
        weights: where the file holds but their hash.
        device: as for ``load_classifier``.

    Raises:
        InputError: the file is missing, damaged, of a later version, or names a network that is not a library's; or
            the network is not the one it was made with.
    """
    file = read(Path(path), KIND)
    about = file.meta
    with file.taken_apart():
        calibration = _checked(about, file)
        calibrator = about["calibrator"] and ProxyCalibrator(**about["calibrator"])
        detector = Detector(about["detector"]["spec"])
        classifier = _classifier(about["model"], file.under(_MODEL), model, weights, device)
        head = classifier.head.to("cpu")  # as fitting leaves it
        if about["detector"]["head"] != head.fingerprint:
            raise InputError("it was made with another model's weights; give weights= (--weights), or fit it again")
        detector.restore(file.under(_DETECTOR), head.fingerprint, head, head.weight.shape[1])
        rest = {k: v for k, v in about.items() if k not in ("model", "engine", "detector", "calibration", "calibrator")}
        made = kind(_session(classifier, about), detector, calibration, calibrator=calibrator, about=rest)
        _try(made)
    return made


def describe(path: str | Path) -> dict[str, Any]:
    """What a file says of itself. Thresholds, numbers of images and the promise are those of its calibration scores.

    Raises:
        InputError: as ``load``.
    """
    file = read(Path(path), KIND)
    about = file.meta
    with file.taken_apart():
        calibration = _checked(about, file)
        Detector(about["detector"]["spec"])
        about["calibrator"] and ProxyCalibrator(**about["calibrator"])
    about["calibration"]["promise"] = calibration.promise()
    return about


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Of all weights and statistics by name, whatever library version made the network."""
    # the counters play no part in inference
    return hash_tensors({key: t for key, t in state.items() if not key.endswith("num_batches_tracked")})


def _checked(about: dict[str, Any], file: Artifact) -> Calibration:
    """The calibration, once the JSON has been held against the tensors, entry by entry.

    Raises:
        InputError, KeyError, TypeError, AttributeError: something is missing, of another kind, or does not follow.
    """
    model, stored = about["model"], about["calibration"]
    n, names = model["n_classes"], model["classes"]
    if type(n) is not int or not 1 < n <= MOST_CLASSES or not (names is None or is_names(names, n)):
        raise InputError("its number of classes and its class names do not match")
    texts = [model["weights"], model["transform"], about["detector"]["spec"], about["detector"]["head"], model["name"]]
    if not all(isinstance(text, str) for text in texts):
        raise InputError("some of its entries are not text")
    _check_weights(model, file.under(_MODEL))
    groups = tuple(
        Group(None if g["classes"] is None else tuple(g["classes"]), scores.numpy(), g["rank"])
        for i, g in enumerate(stored["groups"])
        for scores in [file.tensors[f"{_CALIBRATION}{i}"]]
    )
    tallies = tuple(ClassTally(**t) for t in stored.get("by_class", ()))  # not in the first files
    calibration = Calibration(stored["accept"], stored["confidence"], groups, tallies)
    calibration.check(n)
    stored_thresholds = [(g["threshold"], g["n"]) for g in stored["groups"]]
    if stored_thresholds != [(g.threshold, len(g.scores)) for g in groups]:
        raise InputError("its thresholds do not match its calibration scores")
    return calibration


def _check_weights(model: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    if model["embedded"] is not bool(state):
        raise InputError("its record of having the network's weights or not is wrong")
    if not state:
        return
    if weights_hash(state) != model["weights"]:
        raise InputError("it was made with another model's weights")
    # before a network with as many classes is made
    head = state[f"{model['head']}.weight" if model["head"] else "weight"]
    heads = {key.removeprefix(HEAD_PREFIX).partition(".")[0] for key in state if key.startswith(HEAD_PREFIX)}
    if len(head) != model["n_classes"] or sorted(heads) != model["heads"]:
        raise InputError("its classes or heads do not match its weights")


@torch.no_grad()
def _try(deployed: Deployed) -> None:
    """Judge one image: tensors of another shape or kind than the stages read show here, and not in use."""
    classifier, detector = deployed.classifier, deployed.detector
    stage, blank = detector.input_stage, torch.zeros(1, *classifier.size, dtype=torch.uint8, device=classifier.device)
    x = classifier.transform.normalise(blank)
    plain, own = classifier.probed(deployed.plain_probes)(x), None
    if stage is not None:
        network = classifier.with_body(stage.prepare).probed(detector.needs.probes)
        own = pass_of(detector, classifier.device).run(network, x)
    deployed.judged(plain, own)


def _session(classifier: Classifier, about: Mapping[str, Any]) -> Session:
    """The network, run by the engine that it was calibrated with; by PyTorch where that cannot be used here."""
    wanted = about.get("engine", {"spec": TORCH, "precision": FLOAT32})  # not in the first files
    engine = engine_of(wanted["spec"], wanted["precision"])
    if why := engine.unusable(classifier.device):
        own = engine_of(TORCH, engine.precision)
        own = own if own.unusable(classifier.device) is None else engine_of(TORCH)
        log.warning(
            "it was calibrated with the network in %s by the engine '%r', which cannot be used here (%s): PyTorch runs "
            "it in %s%s",
            engine.precision,
            engine,
            why,
            own.precision,
            "" if engine.precision == FLOAT32 else "; calibrate it again here for its promise to hold (nescio fit)",
        )
        engine = own
    return Session(classifier, engine=repr(engine), precision=engine.precision)


def _classifier(
    about: dict[str, Any],
    state: dict[str, Tensor],
    model: Any,
    weights: str | Path | None,
    device: str | torch.device,
) -> Classifier:
    name, classes, transform = about["name"], about["classes"], Transform.parse(about["transform"])
    source = weights or state or None
    model = getattr(model, "classifier", model)
    if isinstance(model, Classifier):
        return _held(model, about)
    if isinstance(model, nn.Module):
        network = unwrapped(model)
        source, model = source or network.state_dict(), lambda: copy.deepcopy(network)
    try:
        made = model or trusted_architecture(name, classes)
    except InputError as e:
        raise InputError(f"{e}; if you trust it, name the network yourself: model= (--model)") from None
    if model is None and weights is not None and name.startswith(PREFIX) and not Path(weights).exists():
        raise InputError(
            f"no such weights file: {weights}; to download released weights, give the network too: model='{name}' "
            f"(--model {name})"
        )
    if source is None:
        raise InputError("it has no weights, only their hash; give weights= (--weights FILE)")
    classifier = load_classifier(
        made,
        weights=source,
        classes=classes or about["n_classes"],
        head=about["head"],
        transform=transform,
        device=device,
    )
    classifier.name, classifier.classes = name, about["classes"]
    if weights_hash(state_of(classifier)) != about["weights"]:
        raise InputError("it was made with another model's weights")
    return classifier


def _held(classifier: Classifier, about: dict[str, Any]) -> Classifier:
    """A classifier in memory, once it is the one that the file is of."""
    if weights_hash(state_of(classifier)) != about["weights"]:
        raise InputError("it was made with another model's weights")
    if not classifier.has_transform or str(classifier.transform) != about["transform"]:
        raise InputError(
            f"it needs images prepared differently: make the classifier with transform='{about['transform']}'"
        )
    return classifier


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": t for name, t in tensors.items()}
