"""From a name and a file of weights to a ``Classifier``, or to a network that is about to be trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.core.features import Head
from nescio.data.preprocess import AnyTransform, Function, as_transform
from nescio.data.transform import Transform
from nescio.models import last_layer
from nescio.models.classifier import FITTED, NONE, PROBE, Classifier
from nescio.models.heads import restore_heads
from nescio.models.inputs import channels_of
from nescio.models.outputs import Key
from nescio.models.runs import RUN, WEIGHTS, Run, split_heads
from nescio.models.trusted import trusted_architecture
from nescio.models.weights import read_weights, strip_prefixes
from nescio.models.zoo.architecture import Architecture, drop_auxiliary
from nescio.models.zoo.own import made_by
from nescio.models.zoo.registry import architecture_of, resolved

Weights = str | Path | Mapping[str, Tensor]
Model = str | Architecture | Callable[[], nn.Module]
_UNWANTED = (NONE, PROBE, FITTED)
"""What ``head`` is where the network's own is not to be used."""


def load_classifier(
    model: Model,
    *,
    weights: Weights | None = None,
    classes: int | Sequence[str] | None = None,
    head: str | None = None,
    output: Key | None = None,
    transform: str | AnyTransform | Function | None = None,
    device: str | torch.device = "auto",
    untrained: bool = False,
) -> Classifier:
    """A classifier by name, with its weights and test transform; an encoder, where the network has no head.

    Args:
        model: a folder that ``nescio train`` wrote; ``densenet-bc-100-12`` or ``resnet18-cifar`` (CIFAR variants); a
            timm or torchvision name, as ``timm:NAME``, ``timm:NAME:option=value``, ``torchvision:NAME`` or bare (timm
            is asked first); ``efficientnet-lite0`` (its ImageNet weights are a Python package, the extra
            ``nescio[lite0]``); ``hf:ID_OR_FOLDER`` (Hugging Face; needs the extra ``nescio[hf]``); ``clip:NAME`` or
            ``clip:NAME:pretrained=TAG,negatives=FILE,prompt=PROMPT`` (open_clip; needs the extra ``nescio[clip]``), a
            classifier made of class names; or ``package.module:factory`` or ``path/file.py:factory``, your own
            function that returns an ``nn.Module``, with options as timm's; or that function itself.
        weights: a safetensors file or a checkpoint (loaded with ``weights_only=True``; ``state_dict`` wrappers and
            ``module.`` prefixes are removed), or a state dict; or a folder that ``nescio train`` wrote, whose transform
            and classes are taken too; None for the library's pretrained weights, which it may download. For torchvision
            these are the first published ones (``IMAGENET1K_V1``: those that the papers use); for open_clip ``weights``
            may be their tag, and the first is meant without. Your own function may bring its weights: it is called
            twice, and must give the same ones.
        classes: number of classes, by default that of the weights; or their names in label order, which ``clip:`` asks
            for where the weights do not hold a head.
        head: name of the last linear layer, where it cannot be found; ``none`` for an encoder, whose features are the
            network's output, or what the head reads that is not wanted; ``probe`` for one that ``fit_probe`` gives a
            head. Weights with such a head bring it.
        output: as for ``Classifier``.
        transform: options that replace the model's own, e.g. ``resize=256,crop=224,mean=half`` (``Transform.parse``);
            a ``Transform``; or a preprocessing function from a PIL image to a tensor.
        device: ``auto`` takes a GPU where there is one.
        untrained: random weights are meant, which are refused otherwise.

    Raises:
        InputError: the name is not known, the weights do not fit or would be random, there is no linear head, or a
            run's folder names a network that is not a library's.
    """
    opened = _opened(model, weights, classes, head)
    model, weights, run = _of_run(model, weights)
    if run is not None:
        own_transform = run.test_transform
        transform = (
            Transform.parse(transform, own_transform) if isinstance(transform, str) else transform or own_transform
        )
    names = None if classes is None or isinstance(classes, int) else list(classes)
    if names is None and run is not None:
        names, classes = run.classes, classes or run.n_classes
    classes = classes if classes is None or isinstance(classes, int) else len(classes)
    architecture, weights = _resolved(model, weights, names)
    stored = None if weights is None else _Stored.read(weights)
    if stored is not None and stored.fitted is not None:
        head = FITTED
    network = _built(architecture, weights, classes, head, untrained=untrained)
    own = _chosen_transform(network, architecture, transform)
    if stored is not None:
        network = _load_weights(network, architecture, stored, classes, head, own)
    device = usable(device)
    beside = restore_heads(stored.beside if stored else {})
    beside |= {name: make(network, device) for name, make in architecture.heads.items() if name not in beside}
    architecture.finish(network)
    classifier = Classifier(network, own, name=architecture.name, head=head, output=output, classes=names, heads=beside)
    if stored is not None and stored.fitted is not None:
        classifier = classifier.with_head(stored.fitted, names)
    if classifier.has_head and names is None and run is None:  # a run's are those of its training images, or none
        classifier.classes = architecture.class_names(network, weights is None and not untrained)
    classifier.untrained = untrained
    known_accuracy = architecture.accuracy if classifier.has_head and not (weights or untrained) else None
    classifier.recorded = _recorded(run, weights) if run else known_accuracy
    known = run.settings if run else {}
    classifier.opened = opened
    classifier.objective = run.objective if run else ""
    classifier.seen = {name: known[name] for name in ("train", "val", "outliers") if name in known}
    if classes is not None and classifier.has_head and classifier.head.n_classes != classes:
        raise InputError(f"model '{architecture.name}' has {classifier.head.n_classes} classes, not {classes}")
    return classifier.to(device)


def _opened(
    model: Model, weights: Weights | None, classes: int | Sequence[str] | None, head: str | None
) -> dict[str, str]:
    """What to give a command for the same classifier; words in capitals stand for what has no name of its own."""
    if not isinstance(model, str):
        return {}
    options = {"weights": weights if isinstance(weights, str | Path | None) else "WEIGHTS", "head": head}
    options["classes"] = str(classes) if isinstance(classes, int) else None
    return {"model": model} | {name: str(value) for name, value in options.items() if value is not None}


def _of_run(model: Model, weights: Weights | None) -> tuple[Model, Weights | None, Run | None]:
    """The network and its weights, and what is known of them where one of the two is a folder of a run.

    A folder may come from anyone: its network must be one that a file may name, unless the user names it as well.
    """
    folder = _run_folder(model)
    if folder is None:
        beside = _run_folder(weights)
        return model, weights, Run.read(beside) if beside else None
    run = Run.read(folder)
    try:
        architecture = trusted_architecture(run.model, run.classes)
    except InputError as e:
        raise InputError(
            f"{folder}: {e}; if you trust it, name the network yourself: model=NAME, weights={folder} (--model NAME "
            f"--weights {folder})"
        ) from None
    return architecture, weights or folder / WEIGHTS, run


def _run_folder(path: object) -> Path | None:
    folder = Path(path).expanduser() if isinstance(path, str | Path) else None
    return folder if folder and (folder / RUN).is_file() else None


def _built(
    architecture: Architecture, weights: Weights | None, classes: int | None, head: str | None, *, untrained: bool
) -> nn.Module:
    """The network, with its library's weights where none are given.

    Raises:
        InputError: its weights would be random, and nobody said that they are meant to be.
    """
    what = architecture.name
    if untrained and weights is not None:
        raise InputError(
            f"'{what}' has weights, so it is not untrained; drop weights= (--weights) or untrained= (--untrained)"
        )
    if weights is None and not untrained and not architecture.has_pretrained:
        raise InputError(
            f"model '{what}' has no pretrained weights; give weights=FILE (--weights FILE), or untrained=True "
            "(--untrained) for random weights"
        )
    pretrained = weights is None and not untrained
    if head in _UNWANTED and architecture.build_encoder is not None:
        return architecture.build_encoder(pretrained)
    # pretrained weights bring their own classes: a head of another size would be a random one
    network = architecture.build(None if pretrained or head in _UNWANTED else classes, pretrained)
    if pretrained and architecture.is_users:
        with torch.random.fork_rng():
            again = architecture.build(None, True)
        if not _same_weights(network, again):
            raise InputError(
                f"'{what}' gives different weights each time it is called: they are random, and the network is "
                "untrained; give weights=FILE (--weights FILE), or untrained=True (--untrained) for random weights"
            )
    return network


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    try:
        return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[k].to(t.device)) for k, t in mine.items())
    except (RuntimeError, ValueError):  # a lazy layer has no weights yet
        return False


def _recorded(run: Run, weights: Weights | None) -> tuple[float, str] | None:
    """The validation accuracy of the epoch that a run keeps, where the weights are those."""
    if not isinstance(weights, str | Path) or not (Path(weights).name == WEIGHTS or _run_folder(weights)):
        return None
    kept = (run.selected or {}).get("kept")
    share = kept.get("val_accuracy") if isinstance(kept, dict) else None
    return (share, "its training recorded") if isinstance(share, float) and 0 <= share <= 1 else None


def usable(device: str | torch.device) -> torch.device:
    """The device that is meant, once something was put there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun has started a process for each GPU
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise InputError(f"device '{device}' cannot be used: {str(e).splitlines()[0]}") from None


def _resolved(
    model: Model, weights: Weights | None, names: Sequence[str] | None
) -> tuple[Architecture, Weights | None]:
    """The architecture; and the weights, None where they are the library's and the architecture says which."""
    if isinstance(model, Architecture):
        return model, weights
    if not isinstance(model, str):
        return made_by(model), weights
    model, weights = resolved(model, weights)
    return architecture_of(model, names), weights


def _chosen_transform(
    network: nn.Module, architecture: Architecture, wanted: str | AnyTransform | Function | None
) -> AnyTransform:
    own = architecture.transform(network)
    if wanted is not None:
        return as_transform(wanted, own, channels=channels_of(network))
    if own is None:
        raise InputError(
            f"model '{architecture.name}' has no test transform; "
            "give transform= (e.g. --transform resize=256,crop=224,mean=0.5,std=0.5)"
        )
    return own


@dataclass(frozen=True)
class _Stored:
    """What a file of weights, or a state dict, holds: the network's own, a fitted head, and heads beside it."""

    path: str
    state: dict[str, Tensor]
    fitted: Head | None
    beside: dict[str, Tensor]

    @classmethod
    def read(cls, weights: Weights) -> Self:
        """Of a file, the folder of a run, or what is in memory."""
        if isinstance(weights, Mapping):
            return cls("the state dict", *split_heads(dict(weights)))
        path = Path(weights)
        return cls(str(weights), *split_heads(read_weights(path / WEIGHTS if (path / RUN).is_file() else path)))


def _load_weights(
    network: nn.Module,
    architecture: Architecture,
    stored: _Stored,
    classes: int | None,
    head: str | None,
    transform: AnyTransform,
) -> nn.Module:
    """The network with these weights; of one whose head is not wanted, all but that head's."""
    own = network.state_dict()
    state = strip_prefixes(stored.state, own)
    what = f"{stored.path} does not fit model '{architecture.name}'"
    found = Classifier(network, transform, name=architecture.name, head=head)
    if not found.has_head:
        unwanted = own.keys() - found.body.state_dict().keys()
        architecture.load(found.body, {k: t for k, t in state.items() if k not in unwanted}, what)
        return network  # the body shares its parameters
    layer = found.head_name
    key = f"{layer}.weight" if layer else "weight"
    rows, built = state.get(key), own[key]
    if rows is not None and rows.ndim and len(rows) != len(built):
        if classes is not None and classes != len(rows):
            raise InputError(
                f"{stored.path} has {len(rows)} classes (rows of '{key}'), not {classes}; drop classes= (--classes) or "
                f"give {len(rows)}"
            )
        network = architecture.build(len(rows), False)
        if len(network.state_dict()[key]) != len(rows):  # a factory makes what it makes
            last_layer.resize(network, layer, len(rows))
    if not any(k.lower().startswith("aux") for k in state):
        drop_auxiliary(network)
    architecture.load(network, state, what)
    return network


@dataclass(frozen=True)
class NewNetwork:
    """A network to be trained: its test transform, its architecture's full name, and heads that its weights bring."""

    network: nn.Module
    transform: Transform
    name: str
    heads: dict[str, nn.Module]


def new_network(
    model: str,
    n_classes: int,
    *,
    classes: Sequence[str] | None = None,
    init: str = "scratch",
    transform: str | None = None,
    size: int | None = None,
) -> NewNetwork:
    """A network to be trained.

    Args:
        model: as for ``load_classifier``, but no trained folder.
        n_classes: number of classes. Where the initial weights have another number, the last layer is made anew.
        classes: their names, where known, for a network that reads them.
        init: ``scratch``; ``pretrained``, the library's own weights; or a file of weights, or a trained folder.
        transform: options that replace the model's own.
        size: side in pixels of the square that the network sees; resizing keeps the model's share of crop to resize.

    Raises:
        InputError: the name is not known, the weights do not fit, or there is no linear head.
    """
    if init == "pretrained":
        model, _ = resolved(model, None)
    architecture = architecture_of(model, classes)
    if init == "pretrained" and not architecture.has_pretrained:
        raise InputError(
            f"model '{model}' has no pretrained weights; start from scratch (--init scratch) or give a file of weights"
        )
    if architecture.heads:
        made = ", ".join(architecture.heads)
        raise InputError(f"'{made}' is for inference, not for training; leave it out of '{model}'")
    network = architecture.build(None if init == "pretrained" else n_classes, init == "pretrained")
    own = architecture.transform(network)
    if size is not None:
        own = own.at(size) if own else Transform(crop=size)
    own = Transform.parse(transform, own) if transform else own
    if own is None:
        raise InputError(f"model '{model}' has no test transform; give the image size, size= (e.g. --size 224)")
    stored = None if init in ("scratch", "pretrained") else _Stored.read(Path(init).expanduser())
    if stored is not None:
        network = _load_weights(network, architecture, stored, None, None, own)
    drop_auxiliary(network)
    with_head = Classifier(network, own, name=architecture.name)
    if not with_head.has_head:
        raise InputError(f"model '{model}' has no classification head to train")
    if with_head.head.n_classes != n_classes:
        last_layer.resize(network, with_head.head_name, n_classes)
    return NewNetwork(network, own, architecture.name, restore_heads(stored.beside if stored else {}))
