"""How a network is run over images: engines behind one protocol, each known by its name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, check_choice
from nescio.core.needs import Probe
from nescio.core.options import Optioned, parse_named, register
from nescio.core.plugins import ENGINES as PLUGINS
from nescio.core.plugins import load_group
from nescio.core.stage import Network
from nescio.models import Classifier

FLOAT32, TF32, BF16, FP16 = PRECISIONS = ("float32", "tf32", "bf16", "fp16")
"""What a network computes in. TF32 is float32 with products of 10 bits, as NVIDIA's GPUs make them."""
TOLERANCES = {FLOAT32: 1e-5, TF32: 1e-2, BF16: 0.3, FP16: 0.1}
"""Largest distance of features from those of plain PyTorch in float32, relative to the largest feature."""
AUTO = "auto"
"""In the place of an engine's name: the fastest one, by a trial."""
ENGINES: dict[str, type[Engine]] = {}


class CannotRun(InputError):
    """An engine cannot run this network as it should."""


class Engine(Optioned, ABC):
    """Makes a classifier run faster. A subclass with ``name=`` is an engine of that name.

    A subclass overrides ``prepare``, which sees the whole classifier, or ``compiled``, which sees a function of images:
    the network up to its penultimate features, or, where probes read its feature maps, up to these.

    Attributes:
        precision: what the network computes in, one of ``precisions``. Features, head and scores stay float32.
    """

    kind = "engine"
    precisions: ClassVar[tuple[str, ...]] = (FLOAT32,)
    setup: ClassVar[float | None] = None
    """Seconds that it takes to make a usual network ready, where ``auto`` may take it."""
    forks: ClassVar[bool] = False
    """Whether it works in a fork of this process: it has no threads but PyTorch's, and compiles nothing."""
    precision: str = FLOAT32

    def __init_subclass__(cls, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            register(cls, name, ENGINES)

    @property
    def is_exact(self) -> bool:
        """Whether it runs PyTorch's own float32, so that nothing needs to be compared."""
        return False

    def unusable(self, device: torch.device) -> str | None:  # noqa: ARG002 - subclasses read it
        """Why it cannot run on this machine: a package, a processor or a device is missing."""
        return None

    def prepare(self, classifier: Classifier) -> Classifier:
        """The classifier for inference alone; the original is unchanged."""
        return classifier

    def compiled(self, module: nn.Module, example: Tensor) -> nn.Module:  # noqa: ARG002 - as above
        """The same function of images ``(B, C, H, W)``, to one tensor or a tuple of them.

        Args:
            module: what is run.
            example: two images, where they will be.

        Raises:
            InputError: it cannot run this network; the message is the reason.
        """
        return module

    def network(self, classifier: Classifier, probes: Mapping[str, Probe]) -> Network:
        """The classifier as a function of images to features, with probes in it.

        Raises:
            CannotRun: as ``compiled``.
        """
        made, noise = self.prepare(classifier), classifier.noise()

        def compiled(module: nn.Module) -> nn.Module:
            try:
                return self.compiled(module, noise)
            except InputError as e:
                raise CannotRun(str(e)) from None

        return made.probed(probes, compiled) if probes else made.compiled(compiled)


def engine_of(spec: str, precision: str = FLOAT32) -> Engine:
    """The engine that a spec names, such as ``openvino`` or ``openvino:device=GPU``, in a precision.

    Raises:
        InputError: there is none, or not in this precision.
    """
    load_group(PLUGINS)
    check_choice("precision", precision, PRECISIONS)
    engine = parse_named(spec, ENGINES)
    if precision not in engine.precisions:
        others = " or ".join(sorted(name for name, kind in ENGINES.items() if precision in kind.precisions))
        raise InputError(
            f"engine '{engine.name}' does not run in {precision}, only in {', '.join(engine.precisions)}; give another "
            f"engine: engine= (--engine {others})"
        )
    engine.precision = precision
    return engine


class PlainEngine(Engine, name="plain"):
    """The network as it is: for one that is being trained."""

    forks = True

    @property
    def is_exact(self) -> bool:
        """It is the same network."""
        return True
