"""OOD metrics after each epoch of a Lightning trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nescio.core.errors import InputError
from nescio.integrations.watch import DETECTORS, AnyDetectors, Watch
from nescio.run.session import Images

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:

    class Callback:  # type: ignore[no-redef]
        """Stands in where the library is missing, so that the name can be imported and says what it lacks."""

        def __init__(self) -> None:
            raise InputError("OODCallback needs an extra: pip install 'nescio[lightning]'")


class OODCallback(Callback):
    """Measures detectors on the module's features, and logs the metrics to all of the trainer's loggers.

    ::

        ood = OODCallback(id=val_loader, ood={"svhn": svhn_loader}, detectors=["fmls"], train=train_loader)
        best = ModelCheckpoint(monitor="ood/svhn/fmls/auroc", mode="max")
        Trainer(callbacks=[ood, best]).fit(module, train_loader, val_loader)

    It measures after each validation, or after each training epoch where there is no validation. ``ModelCheckpoint``
    and ``EarlyStopping`` can monitor each metric. ``values`` are those of the last measurement.

    Args:
        id: as for ``Watch``, which also says what the metrics are called.
        ood: as for ``Watch``.
        detectors: as for ``Watch``.
        train: as for ``Watch``.
        every_n_steps: measure after every so many optimizer steps, and at no other time.
        options: ``held_out``, ``network`` and the options of a session, as for ``Watch``.

    Raises:
        InputError: the extra ``nescio[lightning]`` is not installed; or as ``Watch``.
    """

    def __init__(
        self,
        *,
        id: Images,  # noqa: A002 - the field's word for it
        ood: Mapping[str, Images],
        detectors: AnyDetectors = DETECTORS,
        train: Images | None = None,
        every_n_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.watch = Watch(id=id, ood=ood, detectors=detectors, train=train, **options)
        self.every_n_steps = every_n_steps
        self.values: dict[str, float] = {}
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be measured."""
        self._step = trainer.global_step
        self.watch.check(pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure."""
        if not trainer.sanity_checking and self.every_n_steps is None:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure, where there is no validation."""
        if not trainer.enable_validation and self.every_n_steps is None:
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Measure, where enough steps were taken since."""
        if self.every_n_steps is not None and trainer.global_step - self._step >= self.every_n_steps:
            self._step = trainer.global_step
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        self.values = self.watch(pl_module)
        pl_module.log_dict(self.values, logger=False)  # for callbacks that monitor one of them
        for logger in trainer.loggers:  # now: the trainer logs values of a step only at some steps
            logger.log_metrics(self.values, step=trainer.global_step)
