"""Which engine runs a network: the one that is asked for, or the fastest in a trial."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nescio.core.errors import InputError
from nescio.core.features import Features
from nescio.core.needs import Probe
from nescio.core.stage import Network
from nescio.models import Classifier
from nescio.run.engines.engine import AUTO, ENGINES, TOLERANCES, CannotRun, Engine, engine_of
from nescio.run.engines.memory import recall, remember
from nescio.run.passes import PLAIN, Pass

TORCH = "torch"
WORTH = 10.0
"""Seconds of work by PyTorch from which on a trial is worth it; an engine's setup may take a tenth of the work."""
TRIAL = 0.75
"""Seconds that the trial of an engine may take, beside its setup."""
LEAST_GAIN = 1.05
_COLUMNS = 100
"""How much further apart the columns of probes may be than features: some are high powers of feature maps."""

log = logging.getLogger(__name__)


@dataclass
class Choice:
    """How one network is run.

    Attributes:
        spec: the engine that was asked for, or ``auto``.
        precision: what the network computes in.
        settled: the engine that runs it; None until ``auto`` has decided.
        fell: passes that it cannot run, by key: PyTorch runs them.
    """

    spec: str
    precision: str
    settled: Engine | None = None
    fell: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        engine_of(TORCH, self.precision)  # refuses an unknown precision
        if self.spec != AUTO:
            self.settled = engine_of(self.spec, self.precision)

    def engine(self, network_pass: Pass = PLAIN) -> Engine:
        """The engine that runs a pass."""
        engine = self.settled or engine_of(TORCH, self.precision)
        if network_pass.gradients and not engine.is_exact:
            return engine_of(TORCH)  # in float32: the signs of gradients follow from their last bits
        return engine_of(TORCH, self.precision) if network_pass.key in self.fell else engine

    def fall(self, network_pass: Pass, name: str, why: CannotRun) -> None:
        """Let PyTorch run a pass that the engine cannot run, and say so.

        Raises:
            InputError: it is PyTorch that cannot.
        """
        engine = self.engine(network_pass)
        if engine.name == TORCH:
            raise InputError(f"{name} does not run in {self.precision}: {why}; leave out precision= (--precision)")
        what = "" if network_pass.key == PLAIN.key else ", in another pass than the plain one"
        log.warning("engine '%s' cannot run %s%s (%s): PyTorch runs it", engine, name, what, why)
        self.fell.add(network_pass.key)


def check_usable(engine: Engine, device: torch.device) -> None:
    """Raise InputError where an engine cannot run on this machine."""
    if why := engine.unusable(device):
        raise InputError(f"engine '{engine!r}' cannot be used: {why}; or another engine= (--engine torch)")


@torch.no_grad()
def ready(engine: Engine, classifier: Classifier, probes: Mapping[str, Probe], x: Tensor | None = None) -> Network:
    """The network as an engine runs it, compared with plain PyTorch on noise, and on a batch of images ``x`` if given.

    Raises:
        CannotRun: it cannot, or its features are too far from those of plain PyTorch.
    """
    network = engine.network(classifier, probes)
    if not engine.is_exact:
        plain = classifier.probed(probes)
        for what, batch in (("noise", classifier.noise()), ("the first images", x)):
            if batch is not None:
                _compare(_seeded(network, batch), _seeded(plain, batch), TOLERANCES[engine.precision], what)
    return network


def _seeded(network: Network, x: Tensor) -> Features:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what a pass draws (dropout), it draws alike for both
        return network(x)


def _compare(made: Features, exact: Features, tolerance: float, what: str) -> None:
    columns = {name: (t, exact.aux[name], _COLUMNS * tolerance) for name, t in made.aux.items()}
    for name, (ours, theirs, most) in {"features": (made.h, exact.h, tolerance), **columns}.items():
        known = theirs.isfinite()
        off = (ours - theirs)[known].abs().max() / theirs[known].abs().max() if known.any() else torch.zeros(())
        if not off <= most:
            raise CannotRun(
                f"on {what} its {name} are {float(off):.2g} of the largest one from plain PyTorch's, more than {most:g}"
            )


def candidates(precision: str, device: torch.device, seconds: float) -> list[Engine]:
    """The engines beside PyTorch's own that are worth a trial for so much work."""
    able = [name for name, kind in ENGINES.items() if kind.setup is not None and precision in kind.precisions]
    worth = [engine_of(name, precision) for name in able if WORTH * (ENGINES[name].setup or 0) <= seconds]
    return [engine for engine in worth if engine.unusable(device) is None]


def fastest(classifier: Classifier, precision: str, first: Callable[[], Tensor | None], n: int, folder: Path) -> Engine:
    """The engine for ``n`` images like a batch ``first() (B, C, H, W)``: that of an earlier trial, or of one now.

    What trials find is kept in ``folder``.
    """
    own = engine_of(TORCH, precision)
    networks = {repr(own): ready(own, classifier, {})}
    if _work(networks[TORCH], classifier.noise(), n) < WORTH or (x := first()) is None:
        return own
    work = _work(networks[TORCH], x, n)
    others = {repr(engine): engine for engine in candidates(precision, classifier.device, work)}
    if (known := recall(folder, classifier, precision)) is not None:
        log.info("engine %s runs %s, as in an earlier trial", known if known in others else own, classifier.name)
        return others.get(known, own)
    for name, engine in others.items():
        try:
            networks[name] = ready(engine, classifier, {}, x)
        except CannotRun as e:
            log.info("engine '%s' cannot run %s (%s)", name, classifier.name, e)
    if len(networks) == 1:
        return own
    rates = {name: len(x) / s for name, s in _medians({n: _runs(net, x) for n, net in networks.items()}).items()}
    best = max(rates, key=lambda name: rates[name])
    best = best if rates[best] > LEAST_GAIN * rates[TORCH] else TORCH
    listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    log.info("engine %s runs %s; images/s in a trial: %s", best, classifier.name, listed)
    remember(folder, classifier, precision, best)
    return others.get(best, own)


def _work(network: Network, x: Tensor, n: int) -> float:
    """Seconds that ``n`` images take, by a batch of them."""
    return min(_medians({"": _runs(network, x)}, budget=0.0).values()) / len(x) * n


def _runs(network: Network, x: Tensor) -> Callable[[], Any]:
    def run() -> Tensor:
        return network(x).h.cpu()  # a GPU has finished when its results are here

    return run


@torch.no_grad()
def _medians(runs: Mapping[str, Callable[[], Any]], budget: float | None = None) -> dict[str, float]:
    """Median seconds of each, in turns, after one round that does not count."""
    budget = TRIAL * len(runs) if budget is None else budget
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    while True:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
        rounds = min(map(len, times.values()))
        if rounds > 1 and time.perf_counter() - began > budget:
            return {name: statistics.median(values[1:]) for name, values in times.items()}
