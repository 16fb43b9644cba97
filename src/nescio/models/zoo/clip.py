"""CLIP networks by name (open_clip): which weights and prompts a name stands for, captions, preprocessing."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, nearest
from nescio.core.progress import quiet
from nescio.data.transform import INTERPOLATIONS, Transform
from nescio.models.heads import known_heads
from nescio.models.weights import load_into
from nescio.models.zoo.architecture import Architecture, downloaded, never, no_bare_names
from nescio.models.zoo.zeroshot import Tower, ZeroShot

knows, bare_names = never, no_bare_names
PREFIX = "clip:"
_OPTIONS = {"pretrained", "negatives"}
NEGATIVES = "neglabel"
"""The head that reads negative labels."""
PROMPT = "a photo of a {}."
_SETS = {"imagenet80": "OPENAI_IMAGENET_TEMPLATES", "imagenet7": "SIMPLE_IMAGENET_TEMPLATES"}
"""Ensembles of prompts that open_clip carries."""
_HEAD, _TEXT, _VISUAL = "fc.weight", "text.", "visual."
"""Names of a ``ZeroShot`` network's weights; open_clip's own are those of the image tower, and the text's bare."""

log = logging.getLogger(__name__)
Weights = TypeVar("Weights")


@dataclass(frozen=True)
class Spec:
    """``ARCH:pretrained=TAG,negatives=FILE,prompt=A|B``, or less of it; the prompts are the rest of the text.

    Attributes:
        arch: open_clip's name of the network.
        tag: open_clip's name of the weights, where it is said: activation and normalisation follow from it, too.
        negatives: a file of words, of which those far from all classes become negative labels.
        prompts: what a class's name is put into at ``{}``, separated by ``|``; or ``imagenet80``, ``imagenet7``.
    """

    arch: str
    tag: str | None = None
    negatives: str | None = None
    prompts: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what follows ``clip:``.

        Raises:
            InputError: open_clip knows no such network or weights, or an option or prompt cannot be read.
        """
        arch, _, options = text.partition(":")
        arch = arch.replace("/", "-")
        before, prompt, prompts = options.partition("prompt=")
        pairs = [option.partition("=")[::2] for option in before.rstrip(",").split(",") if option]
        chosen = dict(pairs)
        if not chosen.keys() <= _OPTIONS or not all(chosen.values()) or len(pairs) > len(chosen):
            raise InputError(
                f"option '{before.rstrip(',')}' of '{PREFIX}{text}' cannot be read; write "
                "pretrained=TAG,negatives=FILE, each at most once, and no comma in FILE"
            )
        if any(f",{option}=" in prompts for option in _OPTIONS):
            raise InputError(f"prompt= must be the last option of '{PREFIX}{text}'")
        tag = chosen.get("pretrained")
        known = library().list_models()
        if arch not in known:
            raise InputError(f"open_clip has no model '{arch}'{nearest(arch, known)[:80]}")
        if tag and tag not in tags(arch):
            raise InputError(f"open_clip has no weights '{tag}' of {arch}{nearest(tag, tags(arch))}")
        if prompt and prompts not in _SETS and not all("{}" in p for p in prompts.split("|")):
            raise InputError(f"prompt '{prompts}' of '{PREFIX}{text}' has no place {{}} for a name; e.g. '{PROMPT}'")
        return cls(arch, tag, chosen.get("negatives"), prompts if prompt else None)

    @property
    def templates(self) -> list[str]:
        """The prompts, one by one."""
        if self.prompts in _SETS:
            return [template("{}") for template in getattr(library(), _SETS[self.prompts])]
        return (self.prompts or PROMPT).split("|")

    def __str__(self) -> str:
        options = {"pretrained": self.tag, "negatives": self.negatives, "prompt": self.prompts}
        shown = ",".join(f"{key}={value}" for key, value in options.items() if value is not None)
        return f"{PREFIX}{self.arch}" + (f":{shown}" if shown else "")


def library() -> Any:
    """open_clip. Raises InputError where it is not installed."""
    try:
        import open_clip
    except ImportError:
        raise InputError("CLIP models need the extra: pip install 'nescio[clip]'") from None
    return open_clip


def tags(arch: str) -> list[str]:
    """Names of the weights that open_clip knows of a network."""
    found: list[str] = library().list_pretrained_tags_by_model(arch)
    return found


def resolved(text: str, weights: Weights) -> tuple[str, Weights | None]:
    """As ``Library`` says: a tag of open_clip's goes into the name, so that it is made alike wherever the name goes.

    Args:
        text: ``ARCH``, with options.
        weights: one of the tags; None for the one in the name, or open_clip's first. All else is left as it is.
    """
    spec, tag = Spec.parse(text), None
    if weights is None:
        tag = spec.tag or next(iter(tags(spec.arch)), None)
    elif isinstance(weights, str | Path) and str(weights) in tags(spec.arch) and not Path(weights).exists():
        tag = str(weights)
    if tag is None:
        return text, weights
    return str(dataclasses.replace(spec, tag=tag)).removeprefix(PREFIX), None


def captions(model: str, names: Sequence[str] | None) -> Tensor:
    """The prompts of a model's name, with each class's name in them, as tokens ``(C, P, context)``.

    An underscore is read as a space, and the WordNet numbers of ImageNet's folders as the names that CLIP's authors
    gave to its classes.

    Raises:
        InputError: there are no names, or no tokenizer.
    """
    spec = Spec.parse(model.removeprefix(PREFIX))
    if not names:
        raise InputError(
            f"{model} needs the names of the classes; give classes= (--classes FILE, one name per line), or images in "
            "class folders; or use only its image tower: head='none' (--head none)"
        )
    try:
        with quiet():
            tokenize = library().get_tokenizer(spec.arch)
        tokens: Tensor = tokenize([t.replace("{}", name) for name in _spoken(names) for t in spec.templates])
    except Exception as e:  # noqa: BLE001 - those of other languages are a hub's, with errors of their own
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        raise InputError(f"the tokenizer of '{spec.arch}' cannot be loaded: {reason}") from None
    return tokens.reshape(len(names), len(spec.templates), -1)


def _spoken(names: Sequence[str]) -> list[str]:
    """How names are said in a caption."""
    import timm

    numbers = timm.data.ImageNetInfo("imagenet-1k").label_names()
    known = dict(zip(numbers, library().IMAGENET_CLASSNAMES, strict=True))
    return [known[n] for n in names] if set(names) <= set(known) else [n.replace("_", " ") for n in names]


def architecture(text: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says. Weights without a head need the classes' names."""
    spec = Spec.parse(text)

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        tokens = captions(str(spec), names) if pretrained else None  # before anything is downloaded
        width = library().get_model_config(spec.arch)["embed_dim"]
        network = ZeroShot(_made(spec, pretrained=pretrained), width, len(names) if names else classes or 1)
        if tokens is not None:
            network.fc.weight.data.copy_(network.rows(tokens))
        return network

    return Architecture(
        str(spec),
        build,
        _transform,
        bool(tags(spec.arch)),
        load=functools.partial(_load, spec, names),
        load_alone=functools.partial(_load_with_head, spec, names) if _of_hub(spec, "hf_tokenizer_name") else None,
        heads={NEGATIVES: functools.partial(_negatives, spec)} if spec.negatives else {},
        build_encoder=lambda pretrained: Tower(_made(spec, pretrained=pretrained)),
        finish=_forget_text,
    )


def untrusted(text: str) -> str | None:
    """As ``Library`` says."""
    return "its text tower comes from Hugging Face's hub" if _of_hub(Spec.parse(text), "hf_model_name") else None


def _of_hub(spec: Spec, key: str) -> bool:
    """Whether a network takes a part of this name in its configuration from Hugging Face's hub."""
    config = library().get_model_config(spec.arch)
    return any(isinstance(part, dict) and part.get(key) for part in config.values())


def _made(spec: Spec, *, pretrained: bool) -> nn.Module:
    """open_clip's network, both towers."""
    settings = _settings(spec)

    def make() -> nn.Module:
        with quiet():
            made: nn.Module = library().create_model(
                spec.arch,
                pretrained=spec.tag if pretrained else None,
                pretrained_text=False,
                force_quick_gelu=bool(settings.get("quick_gelu")),
                force_preprocess_cfg=settings,
            )
        return made

    return downloaded(make, str(spec))


def _forget_text(network: nn.Module) -> None:
    """The heads hold all that it said."""
    if isinstance(network, ZeroShot):
        network.text = None


def _negatives(spec: Spec, network: nn.Module, device: torch.device) -> nn.Module:
    """Those of the words that its name gives which are far from the classes, read on a device."""
    if not isinstance(network, ZeroShot) or spec.negatives is None:
        raise TypeError(f"expected a ZeroShot network and words, got {type(network).__name__} and {spec.negatives}")
    if network.text is None:
        raise InputError(
            f"the weights of {spec} have no text tower, which negative labels need; give the original CLIP weights"
        )
    network.text.to(device)
    kind: Any = known_heads()[NEGATIVES]
    made: nn.Module = kind.of_words(
        spec.negatives, lambda words: network.rows(captions(str(spec), words)), network.fc.weight.detach()
    )
    return made


def _load(spec: Spec, names: Sequence[str] | None, network: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Weights of ours, with the head and perhaps a text tower; or open_clip's own, and the head from these."""
    ours = _HEAD in state or all(key.startswith(_VISUAL) for key in state)
    if not ours and "quick_gelu" not in _settings(spec):
        log.warning(
            "released weights of %s differ in their activation; these run with GELU: for OpenAI's weights, write "
            "%s%s:pretrained=openai",
            spec.arch,
            PREFIX,
            spec.arch,
        )
    if isinstance(network, Tower):
        load_into(network, {key: t for key, t in state.items() if key.startswith(_VISUAL)}, what)
        return
    if not isinstance(network, ZeroShot):
        raise TypeError(f"expected a ZeroShot network, got {type(network).__name__}")
    if _HEAD in state:
        if not any(key.startswith(_TEXT) for key in state):
            network.text = None
        load_into(network, state, what)
        return
    tokens = captions(str(spec), names)
    own = {key if key.startswith(_VISUAL) else f"{_TEXT}{key}": t for key, t in state.items()}
    load_into(network, own | {_HEAD: network.fc.weight}, what)
    network.fc.weight.data.copy_(network.rows(tokens))


def _load_with_head(
    spec: Spec, names: Sequence[str] | None, network: nn.Module, state: dict[str, Tensor], what: str
) -> None:
    """As ``_load``, but no head is made of the classes' names: the tokenizer would come from a hub."""
    if isinstance(network, ZeroShot) and _HEAD not in state:
        raise InputError(
            f"{what}: these are open_clip's own weights, but this network's tokenizer comes from Hugging Face's hub; "
            "name the network again: model= (--model clip:…)"
        )
    _load(spec, names, network, state, what)


def _settings(spec: Spec) -> dict[str, Any]:
    """Activation and preprocessing that belong to the weights; where they are not named, what all released ones share.

    ``quick_gelu`` is there unless they differ in it.
    """
    found = library().pretrained.get_pretrained_cfg
    released = [{"quick_gelu": False} | found(spec.arch, tag) for tag in ([spec.tag] if spec.tag else tags(spec.arch))]
    first = released[0] if released else {"quick_gelu": False}
    return {key: value for key, value in first.items() if all(r.get(key) == value for r in released)}


def _transform(network: nn.Module) -> Transform | None:
    """From open_clip's settings; None where its images are not cropped but squashed or padded into a square."""
    config: dict[str, Any] = network.visual.preprocess_cfg  # type: ignore[assignment,union-attr]
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width or config["resize_mode"] != "shortest":
        log.warning("the images are resized to %s × %s with '%s'", height, width, config["resize_mode"])
        return None
    interpolation = config["interpolation"]
    return Transform(
        crop=height,
        resize=height,
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
