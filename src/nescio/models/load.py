"""From a name and a file of weights to a ``Classifier``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nescio.data.transforms import INTERPOLATIONS, Transform
from nescio.errors import InputError, nearest, some
from nescio.models.cifar import CIFAR_MODELS, CIFAR_TRANSFORM
from nescio.models.classifier import Classifier
from nescio.models.weights import read_weights, strip_prefixes


@dataclass
class _Recipe:
    """How to make a network: ``build(classes, pretrained)``, and what is known of it."""

    name: str
    build: Callable[[int | None, bool], nn.Module]
    transform: Callable[[nn.Module], Transform | None]
    has_pretrained: bool = True
    class_names: Callable[[nn.Module], list[str] | None] = lambda _: None


def load_classifier(
    model: str,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    head: str | None = None,
    transform: str | Transform | None = None,
    device: str | torch.device = "auto",
) -> Classifier:
    """A classifier by name, with its weights and test transform.

    Args:
        model: ``densenet-bc-100-12`` or ``resnet18-cifar`` (CIFAR variants); a timm or torchvision name, as
            ``timm:NAME``, ``torchvision:NAME`` or bare (timm is asked first); ``efficientnet-lite0`` (its ImageNet
            weights are a Python package, the extra ``nescio[lite0]``); ``hf:ID_OR_FOLDER`` (Hugging Face; needs
            the extra ``nescio[hf]``); or ``package.module:factory``, your own function that returns an ``nn.Module``.
        weights: a safetensors file or a checkpoint (loaded with ``weights_only=True``; ``state_dict`` wrappers and
            ``module.`` prefixes are removed); None for the library's pretrained weights, which it may download. For
            torchvision these are the first published ones (``IMAGENET1K_V1``: those that the papers use).
        classes: number of classes; by default that of the weights.
        head: name of the last linear layer, where it cannot be found.
        transform: options that replace the model's own, e.g. ``resize=256,crop=224,mean=0.5,std=0.5``.
        device: ``auto`` takes a GPU where there is one.

    Raises:
        InputError: the name is not known, the weights do not fit, or there is no linear head.
    """
    recipe = _recipe(model)
    if weights is None and not recipe.has_pretrained:
        raise InputError(f"model '{model}' has no pretrained weights; give a file of them (--weights FILE)")
    # pretrained weights bring their own classes: a head of another size would be a random one
    network = recipe.build(None if weights is None else classes, weights is None)
    own = recipe.transform(network)
    if isinstance(transform, Transform):
        own = transform
    elif transform is not None:
        own = Transform.parse(transform, own)
    if own is None:
        raise InputError(
            f"model '{model}' brings no test transform; give one, e.g. --transform resize=256,crop=224,mean=0.5,std=0.5"
        )
    if weights is not None:
        network = _load_weights(network, recipe, Path(weights), classes, head, own)
    names = recipe.class_names(network)
    classifier = Classifier(network, own, name=recipe.name, head=head, classes=names)
    if classes is not None and classifier.head.n_classes != classes:
        raise InputError(f"model '{model}' has {classifier.head.n_classes} classes, not {classes}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return classifier.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise InputError(f"device '{device}' cannot be used: {str(e).splitlines()[0]}") from None


def _load_weights(
    network: nn.Module,
    recipe: _Recipe,
    path: Path,
    classes: int | None,
    head: str | None,
    transform: Transform,
) -> nn.Module:
    own = network.state_dict()
    state = strip_prefixes(read_weights(path), own)
    layer = Classifier(network, transform, name=recipe.name, head=head).head_name
    key = f"{layer}.weight" if layer else "weight"
    rows, built = state.get(key), own[key]
    if rows is not None and rows.ndim and len(rows) != len(built):
        if classes is not None:
            raise InputError(
                f"{path} has {len(rows)} classes (rows of '{key}'), not {classes}; drop --classes or give {len(rows)}"
            )
        network = recipe.build(len(rows), False)
        own = network.state_dict()
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    # BatchNorm counters play no part in inference, and old checkpoints lack them
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or wrong:
        told = [
            f"{what}: {some(keys, 3)}"
            for what, keys in (("missing", missing), ("not in the model", unexpected), ("other shape", wrong))
            if keys
        ]
        raise InputError(f"{path} does not fit model '{recipe.name}' ({'; '.join(told)})")
    network.load_state_dict(state, strict=False)
    return network


def _recipe(model: str) -> _Recipe:
    library, colon, rest = model.partition(":")
    if library == "timm":
        return _timm(rest)
    if library == "torchvision":
        return _torchvision(rest)
    if library == "hf":
        return _hugging_face(rest)
    if colon:
        return _factory(library, rest)
    if model in CIFAR_MODELS:
        build = CIFAR_MODELS[model]
        return _Recipe(model, lambda c, _: build(c or 10), lambda _: CIFAR_TRANSFORM, has_pretrained=False)
    if model == "efficientnet-lite0":
        return _lite0()
    import timm
    import torchvision

    if timm.is_model(model):
        return _timm(model)
    theirs = torchvision.models.list_models(module=torchvision.models)
    if model in theirs:
        return _torchvision(model)
    known = {*CIFAR_MODELS, "efficientnet-lite0", *timm.list_models(), *theirs}
    hint = nearest(model, known) if len(nearest(model, known)) < 80 else ""
    raise InputError(f"unknown model '{model}'{hint or ': neither a CIFAR variant nor known to timm or torchvision'}")


def _downloaded(make: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return make()
    except Exception as e:  # noqa: BLE001 - each hub client raises errors of its own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(
            f"pretrained weights of '{name}' cannot be had ({reason}); give a file (--weights FILE)"
        ) from None


def _lite0() -> _Recipe:
    import timm

    from nescio.models.lite0 import LITE0_TRANSFORM, efficientnet_lite0

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        if pretrained:
            return efficientnet_lite0()
        options = {} if classes is None else {"num_classes": classes}
        made: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, **options)
        return made

    return _Recipe("efficientnet-lite0", build, lambda _: LITE0_TRANSFORM)


def _timm(name: str) -> _Recipe:
    import timm

    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())[:80]}")

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        return _downloaded(lambda: timm.create_model(name, pretrained=pretrained, **options), name)

    return _Recipe(f"timm:{name}", build, _timm_transform)


def _timm_transform(network: nn.Module) -> Transform | None:
    """From timm's data config; None for a network that timm did not make."""
    if not hasattr(network, "pretrained_cfg"):
        return None
    import timm

    config = timm.data.resolve_model_data_config(network)
    crop = config["input_size"][-1]
    interpolation = config["interpolation"]
    return Transform(
        crop=crop,
        resize=math.floor(crop / config["crop_pct"]),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _torchvision(name: str) -> _Recipe:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"torchvision has no classifier '{name}'{nearest(name, known)}")
    published = next(iter(torchvision.models.get_model_weights(name)))

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False, "aux_logits": True}
        chosen = published if pretrained else None
        return _downloaded(lambda: torchvision.models.get_model(name, weights=chosen, **options), name)

    def transform(_: nn.Module) -> Transform:
        t = published.transforms()
        return Transform(
            crop=t.crop_size[0],
            resize=t.resize_size[0],
            interpolation=t.interpolation.value,
            mean=tuple(t.mean),
            std=tuple(t.std),
        )

    return _Recipe(f"torchvision:{name}", build, transform)


def _hugging_face(name: str) -> _Recipe:
    try:
        import transformers
    except ImportError:
        raise InputError("Hugging Face models need the extra: pip install 'nescio[hf]'") from None

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        options = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
        auto = transformers.AutoModelForImageClassification
        if pretrained:
            return _downloaded(lambda: auto.from_pretrained(name, **options), name)
        return _downloaded(lambda: auto.from_config(transformers.AutoConfig.from_pretrained(name, **options)), name)

    def transform(_: nn.Module) -> Transform | None:
        try:
            p = transformers.AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError):
            return None
        if not ({"shortest_edge", "height"} & set(dict(p.size))):
            return None
        size, crop = dict(p.size), dict(getattr(p, "crop_size", None) or {})
        resize = size.get("shortest_edge") or size["height"]
        return Transform(
            crop=crop.get("height") or resize,
            resize=resize,
            interpolation={0: "nearest", 2: "bilinear", 3: "bicubic"}[int(p.resample)],
            mean=tuple(p.image_mean),
            std=tuple(p.image_std),
        )

    def class_names(network: nn.Module) -> list[str] | None:
        labels: dict[int, str] = network.config.id2label  # type: ignore[assignment,union-attr]
        return [str(labels[i]) for i in range(len(labels))]

    return _Recipe(f"hf:{name}", build, transform, class_names=class_names)


def _factory(module: str, attribute: str) -> _Recipe:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the user's own module stands where they call from
    try:
        made = getattr(importlib.import_module(module), attribute)
    except Exception as e:  # noqa: BLE001 - importing runs the user's own code
        raise InputError(f"model '{module}:{attribute}' cannot be imported: {type(e).__name__}: {e}") from None

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        del classes, pretrained
        try:
            network = made if isinstance(made, nn.Module) else made()
        except Exception as e:  # noqa: BLE001 - the user's own code
            raise InputError(f"{module}:{attribute}() failed: {type(e).__name__}: {e}") from None
        if not isinstance(network, nn.Module):
            raise InputError(f"{module}:{attribute} returned {type(network).__name__}, not an nn.Module")
        return network

    return _Recipe(f"{module}:{attribute}", build, _timm_transform)
