"""OOD metrics in an ignite engine's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nescio.core.errors import InputError
from nescio.integrations.watch import DETECTORS, AnyDetectors, Watch
from nescio.run.session import Images


class OODHandler:
    """Measures detectors on a network's features, and puts the metrics into ``engine.state.metrics``.

    ::

        ood = OODHandler(id=val_loader, ood={"svhn": svhn_loader}, detectors=["fmls"], train=train_loader)
        ood.attach(trainer, net)  # after each epoch; event=Events.ITERATION_COMPLETED(every=500) for steps
        score = Checkpoint.get_default_score_fn("ood/svhn/fmls/auroc")

    Loggers (``OutputHandler(metric_names="all")``), ``Checkpoint`` and ``EarlyStopping`` read them there. Attach it
    before these.

    Args:
        id: as for ``Watch``, which also says what the metrics are called.
        ood: as for ``Watch``.
        detectors: as for ``Watch``.
        train: as for ``Watch``.
        options: ``held_out``, ``network`` and the options of a session, as for ``Watch``.

    Raises:
        InputError: as ``Watch``.
    """

    def __init__(
        self,
        *,
        id: Images,  # noqa: A002 - the field's word for it
        ood: Mapping[str, Images],
        detectors: AnyDetectors = DETECTORS,
        train: Images | None = None,
        **options: Any,
    ) -> None:
        self.watch = Watch(id=id, ood=ood, detectors=detectors, train=train, **options)
        self.values: dict[str, float] = {}

    def attach(self, engine: Any, network: nn.Module, event: Any = None) -> None:
        """Measure the network at an event of an engine: after each epoch by default.

        Raises:
            InputError: the extra ``nescio[ignite]`` is not installed; or as ``Watch.check``.
        """
        try:
            from ignite.engine import Events
        except ImportError:
            raise InputError("OODHandler needs an extra: pip install 'nescio[ignite]'") from None
        self.watch.check(network)
        engine.add_event_handler(Events.EPOCH_COMPLETED if event is None else event, self, network)

    def __call__(self, engine: Any, network: nn.Module) -> None:
        """Measure now."""
        self.values = self.watch(network)
        engine.state.metrics.update(self.values)
