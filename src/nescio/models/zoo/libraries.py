"""The networks that are known by name: how each library makes one, its weights, transform and class names."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, nearest
from nescio.data.transform import INTERPOLATIONS, Transform
from nescio.models.weights import load_into
from nescio.models.zoo.cifar import CIFAR_MODELS, CIFAR_TRANSFORM
from nescio.models.zoo.own import find_factory, refuse_a_file

QUICKSTART = "nescio.quickstart:network"


@dataclass
class Architecture:
    """How to make a network: ``build(classes, pretrained)``, and what is known of it.

    ``class_names(network, pretrained)``: of other weights than the library's own it often cannot know them.
    ``load(network, state, told)``: put weights into it, which a message calls ``told``.
    ``heads``: how to make those that its name asks for, from the network with its weights and the device to do it on.
    ``is_users``: it is made by a function that is no library's, so its weights may be random.
    ``accuracy``: of the library's own weights, a share in [0, 1], and who says so.
    """

    name: str
    build: Callable[[int | None, bool], nn.Module]
    transform: Callable[[nn.Module], Transform | None]
    has_pretrained: bool = True
    class_names: Callable[[nn.Module, bool], list[str] | None] = lambda *_: None
    load: Callable[[nn.Module, dict[str, Tensor], str], None] = load_into
    heads: Mapping[str, Callable[[nn.Module, torch.device], nn.Module]] = field(default_factory=dict)
    is_users: bool = False
    accuracy: tuple[float, str] | None = None


def architecture_of(model: str, names: Sequence[str] | None = None) -> Architecture:
    """How to make the network of this name, for classes of these names where it reads them.

    Raises:
        InputError: no library knows it; the nearest name is given.
    """
    library, colon, rest = model.partition(":")
    if library == "timm":
        return _timm(rest)
    if library == "torchvision":
        return _torchvision(rest)
    if library == "hf":
        return _hugging_face(rest)
    if library == "clip":
        from nescio.models.zoo.clip import clip_architecture

        return clip_architecture(rest, names)
    if colon:
        return factory_architecture(library, rest)
    if model in CIFAR_MODELS:
        build = CIFAR_MODELS[model]
        return Architecture(model, lambda c, _: build(c or 10), lambda _: CIFAR_TRANSFORM, has_pretrained=False)
    if model == "efficientnet-lite0":
        return _lite0()
    import timm
    import torchvision

    if timm.is_model(model):
        return _timm(model)
    theirs = torchvision.models.list_models(module=torchvision.models)
    if model in theirs:
        return _torchvision(model)
    refuse_a_file(model)
    known = {*CIFAR_MODELS, "efficientnet-lite0", *timm.list_models(), *theirs}
    hint = nearest(model, known) if len(nearest(model, known)) < 80 else ""
    raise InputError(f"unknown model '{model}'{hint or ': neither a CIFAR variant nor known to timm or torchvision'}")


def downloaded(make: Callable[[], nn.Module], name: str) -> nn.Module:
    """The network that ``make`` makes, perhaps with weights from a hub. Raises InputError where that fails."""
    try:
        return make()
    except Exception as e:  # noqa: BLE001 - each hub client raises errors of its own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(
            f"pretrained weights of '{name}' cannot be had ({reason}); give a file (--weights FILE)"
        ) from None


def _lite0() -> Architecture:
    import timm

    from nescio.models.zoo.lite0 import LITE0_TRANSFORM, efficientnet_lite0

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        if pretrained:
            return efficientnet_lite0()
        options = {} if classes is None else {"num_classes": classes}
        made: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, **options)
        return made

    return Architecture("efficientnet-lite0", build, lambda _: LITE0_TRANSFORM, class_names=_imagenet_names)


def _timm(text: str) -> Architecture:
    import timm

    name, _, given = text.partition(":")
    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())[:80]}")
    own = literals(given, text)

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        options = own if classes is None else own | {"num_classes": classes}
        try:
            return downloaded(lambda: timm.create_model(name, pretrained=pretrained, **options), name)
        except TypeError as e:  # an option that this architecture lacks
            raise InputError(f"model 'timm:{text}': {e}") from None

    return Architecture(f"timm:{text}", build, _timm_transform, class_names=_imagenet_names)


def _imagenet_names(network: nn.Module, pretrained: bool) -> list[str] | None:
    """Where the weights are of ImageNet or of a part of it that timm knows."""
    import timm

    subset = timm.data.infer_imagenet_subset(network) if pretrained else None
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(i).partition(",")[0] for i in range(info.num_classes())]


def literals(text: str, name: str) -> dict[str, Any]:
    """``global_pool=avg,img_size=64`` as keyword arguments: numbers and True/False as such, the rest as words.

    Raises:
        InputError: an option has no value.
    """
    options: dict[str, Any] = {}
    for item in text.split(",") if text else ():
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()):
            raise InputError(f"model option '{item}' of '{name}' cannot be read; write option=value")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two where it is nested too deep
            options[key] = value
    return options


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


def _torchvision(name: str) -> Architecture:
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
        return downloaded(lambda: torchvision.models.get_model(name, weights=chosen, **options), name)

    def transform(_: nn.Module) -> Transform:
        t = published.transforms()
        return Transform(
            crop=t.crop_size[0],
            resize=t.resize_size[0],
            interpolation=t.interpolation.value,
            mean=tuple(t.mean),
            std=tuple(t.std),
        )

    def class_names(_: nn.Module, pretrained: bool) -> list[str] | None:
        return list(published.meta["categories"]) if pretrained else None

    said = published.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    accuracy = None if said is None else (said / 100, "torchvision states for ImageNet's validation images")
    return Architecture(f"torchvision:{name}", build, transform, class_names=class_names, accuracy=accuracy)


def drop_auxiliary(network: nn.Module) -> None:
    """Take away the classifiers that GoogLeNet and Inception carry half way: they have a loss of their own."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(network, name):
                setattr(network, name, None)


def _hugging_face(name: str) -> Architecture:
    try:
        import transformers
    except ImportError:
        raise InputError("Hugging Face models need the extra: pip install 'nescio[hf]'") from None

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        options = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
        auto = transformers.AutoModelForImageClassification
        # without the word, transformers asks on the terminal whether to run the code that a repository brings
        options |= {"trust_remote_code": False}
        if pretrained:
            return downloaded(lambda: auto.from_pretrained(name, **options), name)
        return downloaded(lambda: auto.from_config(transformers.AutoConfig.from_pretrained(name, **options)), name)

    def transform(_: nn.Module) -> Transform | None:
        try:
            p = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
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

    def class_names(network: nn.Module, _: bool) -> list[str] | None:
        labels: dict[int, str] = network.config.id2label  # type: ignore[assignment,union-attr]
        return [str(labels[i]) for i in range(len(labels))]

    return Architecture(f"hf:{name}", build, transform, class_names=class_names)


def factory_architecture(module: str, rest: str) -> Architecture:
    """How to make the network of ``module:factory`` or ``FILE.py:factory``, with options behind another colon."""
    name, _, given = rest.partition(":")
    options = literals(given, f"{module}:{rest}")
    factory = find_factory(module, name)
    return made_by(functools.partial(factory, **options) if options else factory, f"{module}:{rest}")


def made_by(factory: nn.Module | Callable[[], Any], name: str | None = None) -> Architecture:
    """How to make the network that a function of the user's makes."""
    told = name or str(getattr(factory, "__name__", type(factory).__name__))

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        del classes, pretrained
        try:
            network = factory if isinstance(factory, nn.Module) else factory()
        except Exception as e:  # noqa: BLE001 - the user's own code
            raise InputError(f"{told}() failed: {type(e).__name__}: {e}") from None
        if not isinstance(network, nn.Module):
            raise InputError(f"{told} returned {type(network).__name__}, not an nn.Module")
        return network

    return Architecture(told, build, _timm_transform, is_users=not isinstance(factory, nn.Module))
