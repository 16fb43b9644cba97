"""A classifier or an encoder as it is run: on which device, by which engine, on which batches."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, check_share, nearest
from nescio.core.features import Features
from nescio.core.needs import Probe
from nescio.core.progress import Clock
from nescio.core.stage import Network
from nescio.data.coerce import is_stream
from nescio.data.hashing import cache_root
from nescio.models import Classifier
from nescio.models.coerce import as_classifier
from nescio.models.load import usable
from nescio.run.bank import DTYPES, Bank
from nescio.run.batches import Batches, batches_of, streamed
from nescio.run.devices.places import check_devices
from nescio.run.engines import AUTO, FLOAT32, Engine, engine_of
from nescio.run.engines.choice import TORCH, Choice, check_usable, fastest, ready
from nescio.run.engines.engine import CannotRun
from nescio.run.engines.memory import recall
from nescio.run.passes import PLAIN, Pass

CPU_BATCH, GPU_BATCH = 32, 256
"""Default batch sizes. On a CPU small batches keep the activations in the caches: measured in benchmarks/."""


@dataclass(eq=False)
class Runner:
    """A network and how it is run; ``Session`` says what each argument means.

    Raises:
        InputError: the model is none, or an option is no choice.
    """

    model: Any
    _: KW_ONLY
    transform: Any = None
    head: str | None = None
    output: str | int | None = None
    size: Sequence[int] | None = None
    classes: list[str] | None = None
    device: str | torch.device | None = None
    devices: int | str = 1
    engine: str = AUTO
    precision: str = FLOAT32
    batch_size: int | None = None
    workers: int | None = None
    cache: str | Path | None = None
    dtype: str = "float32"
    max_bad: float = 0.01
    progress: bool = True
    clock: Clock = field(default_factory=Clock, repr=False)

    def __post_init__(self) -> None:
        check_share("max_bad", self.max_bad)
        if self.dtype not in DTYPES:
            raise InputError(f"unknown bank dtype '{self.dtype}'{nearest(self.dtype, DTYPES)}")
        check_devices(self.devices)
        self._choice = Choice(self.engine, self.precision)
        self._made: dict[Any, Any] = {}
        self._weights: tuple[int, ...] = ()
        self.banks: dict[str, Bank] = {}
        self.expected = 0
        """Images that the network will be run on, where somebody knows: how much a faster engine would save."""
        self.encoder: Any = None
        """The same session without the head that ``ready`` fitted: its banks serve whatever head is fitted."""

    @cached_property
    def classifier(self) -> Classifier:
        """The network, wrapped."""
        return self._wrapped(self.size)

    def _wrapped(self, size: Sequence[int] | None) -> Classifier:
        options: dict[str, Any] = {"head": self.head, "output": self.output, "classes": self.classes}
        made = as_classifier(self.model, self.transform, size=size, **options)
        return made if self.device is None else made.to(usable(self.device))

    @property
    def prepared(self) -> bool:
        """Whether images come as the network takes them, since nobody says how to prepare them."""
        if isinstance(self.model, Classifier):
            return not self.model.has_transform
        return self.transform is None and isinstance(self.model, nn.Module)

    @property
    def batch(self) -> int:
        """Images per step."""
        return self.batch_size or (CPU_BATCH if self.classifier.device.type == "cpu" else GPU_BATCH)

    @property
    def _is_wrapped(self) -> bool:
        return "classifier" in vars(self)

    def batches(self, images: Any) -> Batches | None:
        """Batches that the network takes as they are; None for images that a transform prepares."""
        size = self.batch if self._is_wrapped else self.batch_size or CPU_BATCH
        if is_stream(images) and not self.prepared:
            return streamed(images, self.classifier, self.batch)
        batches = batches_of(images, size, prepared=self.prepared)
        if batches is None or self._is_wrapped:
            return batches
        first = next(batches, None)
        if first is None:
            raise InputError("there are no images: give at least one")
        self._meet(first[0])
        return itertools.chain([first], batches)

    def meet(self, *images: Any) -> Self:
        """The same, its network wrapped: the first batch of these says how large its images are, if nobody has."""
        for some in images:
            if some is not None and not self._is_wrapped:
                self.batches(some)
        return self

    def _meet(self, x: Tensor) -> None:
        """Wrap a network of which nobody has said how large its images are."""
        if not self._is_wrapped:
            self.classifier = self._wrapped(self.size or (tuple(x.shape[1:]) if self.prepared else None))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made on first use: traced networks cannot be pickled."""
        state = vars(self) | {"_made": {}, "banks": {}, "_weights": ()}
        if self._is_wrapped:
            state["classifier"] = self.classifier.with_body(lambda body: body)
            state["model"] = state["classifier"] if isinstance(self.model, Classifier) else self.model
        return state

    def __repr__(self) -> str:
        if self._is_wrapped:
            return f"{type(self).__name__}({self.classifier.name} on {self.classifier.device})"
        name = self.model if isinstance(self.model, str | Path) else type(self.model).__name__
        return f"{type(self).__name__}({name}, not run yet)"  # to show it must not load a network

    def of(self, classifier: Classifier) -> Self:
        """The same session of the same network under other names of its classes."""
        twin = copy.copy(self)
        twin.model = twin.classifier = classifier
        return twin

    def on(self, device: torch.device | str, workers: int | None) -> Self:
        """The same in another process: on its device, with its decoding processes, its own clock and no bar."""
        twin = copy.copy(self)
        twin.workers, twin.progress, twin.clock = workers, False, Clock()
        if self.classifier.device == torch.device(device):
            vars(twin).update(classifier=self.classifier, _made=self._made, _weights=self._weights)
        else:
            twin.classifier = copy.deepcopy(twin.classifier).to(device)
        return twin

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Features:
        """Features of normalised images ``(B, C, H, W)``, or of one ``(C, H, W)``, on the network's device."""
        if not isinstance(x, Tensor | np.ndarray):
            raise InputError(
                f"expected normalised images (B, C, H, W), got {type(x).__name__}; for images in other forms, call "
                "features(…)"
            )
        x = torch.as_tensor(x)
        x = x if x.ndim == 4 else x[None]
        self._meet(x)
        return self.network()(x.to(self.classifier.device))

    @property
    def running(self) -> Engine:
        """The engine that runs the plain pass."""
        return self._choice.engine()

    def forks(self, network_pass: Pass) -> bool:
        """Whether the network as a pass runs it works in a fork of this process."""
        if network_pass.gradients:  # a fork cannot take any, once its parent has
            return False
        return self.classifier.device.type == "cpu" and self._choice.engine(network_pass).forks

    @property
    def folder(self) -> Path:
        """Where banks, and what trials of engines found, are kept."""
        return Path(self.cache or cache_root()).expanduser()

    def engines(self, network_pass: Pass = PLAIN) -> list[Engine]:
        """The engines whose features of a pass serve. The first one is taken where none are known yet."""
        own = self._choice.engine(network_pass)
        if self.engine != AUTO or network_pass.gradients:
            return [own]
        known = self.once("recalled", lambda: recall(self.folder, self.classifier, self.precision))
        engines = [own, *(engine_of(spec, self.precision) for spec in (known, TORCH) if spec is not None)]
        return list({repr(engine): engine for engine in engines}.values())

    def settle(self, n: int, first: Callable[[], Tensor | None]) -> None:
        """Decide which engine runs the network, if nobody has; ``expected`` counts where it is more.

        Args:
            n: number of images that it will be run on.
            first: gives a batch of them as the network takes them ``(B, C, H, W)``; None where there are none.
        """
        n = max(n, self.expected)
        if self._choice.settled is None and n > 1:
            found = fastest(self.classifier, self.precision, first, n, self.folder)
            if self.expected or found.name != TORCH:  # else more images may come, for which a trial is worth it
                self._choice.settled = found

    def run_by(
        self, network_pass: Pass, probes: Mapping[str, Probe], first: Callable[[], Tensor | None] = lambda: None
    ) -> tuple[Engine, Network]:
        """The network as a pass runs it, with probes in it, made once for these weights; and the engine that runs it.

        Where another engine than PyTorch cannot run it, PyTorch does, and a line says so.

        Args:
            network_pass: how the network is run.
            probes: what is computed from its feature maps, by name.
            first: gives images on which an engine's features are compared with PyTorch's.

        Raises:
            InputError: the engine cannot run on this machine, or the network has no feature maps to probe.
        """
        engine = self._choice.engine(network_pass)

        def made() -> Network:
            check_usable(engine, self.classifier.device)
            changed = self.classifier.with_body(network_pass.prepare)
            return ready(engine, changed, probes, None if engine.is_exact else first())

        try:
            key = (repr(engine), engine.precision, network_pass.key, *sorted(probes))
            return engine, self.once(key, made)
        except CannotRun as e:
            self._choice.fall(network_pass, self.classifier.name, e)
            return self.run_by(network_pass, probes, first)

    def network(self, network_pass: Pass = PLAIN, probes: Mapping[str, Probe] | None = None) -> Network:
        """The network as a pass runs it, with probes in it; made once for these weights."""
        return self.run_by(network_pass, probes or {})[1]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, which holds as long as no weight changes."""
        state = self.classifier.state_dict(keep_vars=True).values()
        if self._weights != (now := tuple(n for t in state for n in (t.data_ptr(), t._version))):  # noqa: SLF001 - as in detector.py
            self._made.clear()
            self._weights = now
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
