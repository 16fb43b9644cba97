"""Hugging Face's networks: ``hf:ID_OR_FOLDER``. One that is no image classifier there is an encoder here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nescio.core.errors import InputError
from nescio.data.transform import Transform
from nescio.models.zoo.architecture import Architecture, as_they_are, downloaded, never, no_bare_names

resolved, knows, bare_names = as_they_are, never, no_bare_names
_PLAIN = {"trust_remote_code": False}
"""Without the word, transformers asks on the terminal whether to run the code that a repository brings."""


def architecture(name: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says."""
    library = _library()

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        def make() -> nn.Module:
            known = library.AutoConfig.from_pretrained(name, **_PLAIN)
            options = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
            # what was never a classifier would get a random head, silently
            has_head = classes is not None or any(
                "ForImageClassification" in kind for kind in known.architectures or ()
            )
            auto = library.AutoModelForImageClassification if has_head else library.AutoModel
            if pretrained:
                made: nn.Module = auto.from_pretrained(name, **options, **_PLAIN)
            else:
                made = auto.from_config(library.AutoConfig.from_pretrained(name, **options, **_PLAIN))
            return made

        return downloaded(make, name)

    def class_names(network: nn.Module, _: bool) -> list[str] | None:
        labels: dict[int, str] = network.config.id2label  # type: ignore[assignment,union-attr]
        return [str(labels[i]) for i in range(len(labels))]

    return Architecture(f"hf:{name}", build, lambda _: _transform(name), class_names=class_names)


def untrusted(name: str) -> str | None:
    """As ``Library`` says."""
    return "it would be looked up at Hugging Face's hub or in a folder"


def _library() -> Any:
    """The package. Raises InputError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise InputError("Hugging Face models need the extra: pip install 'nescio[hf]'") from None
    return transformers


def _transform(name: str) -> Transform | None:
    try:
        p = _library().AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
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
