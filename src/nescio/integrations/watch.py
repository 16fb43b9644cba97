"""What a training loop asks for: how well detectors on its network tell ID from OOD images, as named numbers."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nescio.core.detector import AnyDetector, Detector
from nescio.core.errors import InputError
from nescio.data.source import by_name
from nescio.evaluation import metrics
from nescio.evaluation.checks import check_sets
from nescio.integrations.processes import Processes, SharedSession, all_processes, in_order, undisturbed
from nescio.models.outputs import unwrapped
from nescio.run.session import Images

log = logging.getLogger(__name__)

DETECTORS = ("msp", "energy")
"""They need no training images."""
REPORTED = ("fpr95", "auroc")
AVERAGE = "average"
_UNFIT = re.compile(r"[^\w.-]+")
"""What TensorBoard or MLflow does not take in a name."""

AnyDetectors = AnyDetector | Sequence[AnyDetector] | Mapping[str, AnyDetector]
AnyNetwork = str | Callable[[nn.Module], nn.Module]


class Watch:
    """Measures a network that is being trained: detectors on its features, ID against OOD images.

    >>> watch = Watch(id=test_loader, ood={"svhn": svhn_loader}, detectors=["fmls", "knn:k=5"], train=train_loader)
    >>> sorted(watch(net))
    ['ood/svhn/fmls/auroc', 'ood/svhn/fmls/fpr95', 'ood/svhn/knn_k_5/auroc', 'ood/svhn/knn_k_5/fpr95']

    Each call runs the network once over each set, however many detectors there are, and fits the detectors anew. It is
    run as it is stored: in evaluation mode, in the type of its parameters, without autocast. Modes, gradients and the
    state of all random number generators stay as they were.

    Values are shares in [0, 1]: ``fpr95`` (lower is better) and ``auroc`` (higher is better). With several OOD sets,
    ``ood/average/DETECTOR/…`` are their means. In a name, a detector is its spec with ``_`` for each group of
    characters that loggers refuse.

    In a distributed run every process must call it. Each runs the network on every n-th batch of the same order as one
    process would, so the numbers are the same; all processes get them. Parameters must be whole in each process
    (DistributedDataParallel, not FSDP).

    Args:
        id: ID validation images, see ``nescio.run.session.Images``: most often a ``DataLoader`` of normalised batches
            as the network takes them. One that shuffles is read in order.
        ood: OOD images by name, in the same forms.
        detectors: spec strings, presets or detectors; with names of their own as a dict.
        train: training images, with labels, where a detector is fitted on them. A few thousand will do for most.
        held_out: ID images that are neither, for ensembles and a fitted temperature.
        network: which part of the trained module is the classifier: the name of a submodule, or a function of the
            module. By default the module itself.
        session: options of ``nescio.Session``: ``head``, ``output``, ``transform``, ``batch_size``, ….

    Raises:
        InputError: a set has no name, or a loader chooses its images.
    """

    def __init__(
        self,
        *,
        id: Images,  # noqa: A002 - the field's word for it
        ood: Mapping[str, Images],
        detectors: AnyDetectors = DETECTORS,
        train: Images | None = None,
        held_out: Images | None = None,
        network: AnyNetwork | None = None,
        **session: Any,
    ) -> None:
        self.id, self.train, self.held_out = in_order(id), in_order(train), in_order(held_out)
        self.ood = {name: in_order(images) for name, images in by_name(ood, "ood").items()}
        self.detectors, self.network = detectors, network
        self.options: dict[str, Any] = {"engine": "plain", "progress": False} | session

    def check(self, module: nn.Module) -> None:
        """Refuse what cannot be measured, before any time is spent on training.

        Raises:
            InputError: the network or a detector cannot be used, or a set that a detector needs is missing.
        """
        network = self._network(module)
        with undisturbed(_device(network)):
            self._found(self._session(network, Processes()))

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """The metrics of the network as it is now; NaN where its features are not finite any more.

        Raises:
            InputError: as ``check``; or images cannot be read, or a detector cannot be fitted on them.
        """
        network = self._network(module)
        with undisturbed(_device(network)), all_processes() as processes:
            network = network if processes.count == 1 else processes.with_first_buffers(network)
            values: dict[str, float] = processes.first(self._measured(network, processes))
        return values

    def _measured(self, network: nn.Module, processes: Processes) -> dict[str, float]:
        if not all(bool(t.isfinite().all()) for t in (*network.parameters(), *network.buffers())):
            log.warning("the network's weights are no longer finite: its OOD metrics are NaN")
            names = [name for name, _ in self._named()]
            return _by_name({ood: {name: dict.fromkeys(REPORTED, np.nan) for name in names} for ood in self.ood})
        session = self._session(network, processes)
        found = session.fit(self._found(session), self.train, self.held_out)
        ids = session.scores(found, self.id, title="ID images").usable
        table = {}
        for ood, images in self.ood.items():
            oods = session.scores(found, images, title=ood).usable
            table[ood] = {name: _judged(ids[name], oods[name]) for name in found}
        return _by_name(table)

    def _network(self, module: nn.Module) -> nn.Module:
        module = unwrapped(module)
        if self.network is None:
            return module
        return module.get_submodule(self.network) if isinstance(self.network, str) else self.network(module)

    def _session(self, network: nn.Module, processes: Processes) -> SharedSession:
        session = SharedSession(network, **self.options)
        session.processes = processes
        session.meet(self.id)
        if session.prepared:
            self.options["size"] = session.classifier.size  # the next one need not look at a batch for it
        return session

    def _found(self, session: SharedSession) -> dict[str, Detector]:
        """The detectors, not fitted, by their names in metrics."""
        found: dict[str, Detector] = {}
        for name, given in self._named():
            detector = next(iter(session.detectors([copy.deepcopy(given)]).values()))
            detector.fitted_to = None
            if found.setdefault(name, detector) is not detector:
                raise InputError(
                    f"two detectors are called '{name}' in metrics: name them, detectors={{'a': …, 'b': …}}"
                )
        sets = {"train": self.train, "calibrate": self.held_out, "id": self.id, **self.ood}
        check_sets(sets, list(self.ood), found)
        return found

    def _named(self) -> list[tuple[str, AnyDetector]]:
        given: Any = self.detectors
        if isinstance(given, Mapping):
            return [(_UNFIT.sub("_", str(name)), one) for name, one in given.items()]
        several = given if isinstance(given, list | tuple) else [given]
        return [(_UNFIT.sub("_", str(one)), one) for one in several]


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def _judged(ids: npt.NDArray[np.float64], oods: npt.NDArray[np.float64]) -> dict[str, float]:
    if not (np.isfinite(ids).all() and np.isfinite(oods).all()):
        return dict.fromkeys(REPORTED, np.nan)
    return {metric: metrics.METRICS[metric](ids, oods) for metric in REPORTED}


def _by_name(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """``ood/SET/DETECTOR/METRIC``, and the means over several sets."""
    rows = dict(table)
    if len(rows) > 1:
        detectors = next(iter(rows.values()))
        rows[AVERAGE] = {
            d: {m: float(np.mean([one[d][m] for one in table.values()])) for m in REPORTED} for d in detectors
        }
    return {
        f"ood/{_UNFIT.sub('_', ood)}/{d}/{m}": float(value)
        for ood, row in rows.items()
        for d, pair in row.items()
        for m, value in pair.items()
    }
