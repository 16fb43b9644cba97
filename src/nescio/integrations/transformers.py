"""OOD metrics at each evaluation of a Hugging Face ``Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nescio.core.errors import InputError
from nescio.integrations.watch import DETECTORS, AnyDetectors, Watch
from nescio.run.session import Images

try:
    from transformers import TrainerCallback
except ImportError:

    class TrainerCallback:  # type: ignore[no-redef]
        """Stands in where the library is missing, so that the name can be imported and says what it lacks."""

        def __init__(self) -> None:
            raise InputError("OODCallback needs an extra: pip install 'nescio[trainer]'")


class OODCallback(TrainerCallback):  # type: ignore[misc]  # theirs has no types here
    """Measures detectors on the model's features, and logs the metrics as the trainer logs its own.

    ::

        arguments = TrainingArguments("run", eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
                                      metric_for_best_model="ood/svhn/fmls/auroc", greater_is_better=True)
        trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=val)
        OODCallback(id=val_loader, ood={"svhn": svhn_loader}, detectors=["fmls"], train=train_loader).attach(trainer)
        trainer.train()

    It measures at each evaluation, or after each epoch where there is none (``eval_strategy="no"``). Names of metrics
    begin with ``eval_``, as the trainer's own do. ``metric_for_best_model`` and ``EarlyStoppingCallback`` can use each.
    ``values`` are those of the last measurement.

    Args:
        id: as for ``Watch``, which also says what the metrics are called. A ``DataLoader`` of the batches that the
            model is trained on: dicts of ``pixel_values`` and ``labels``.
        ood: as for ``Watch``.
        detectors: as for ``Watch``.
        train: as for ``Watch``.
        options: ``held_out``, ``network`` and the options of a session, as for ``Watch``.

    Raises:
        InputError: the extra ``nescio[trainer]`` is not installed; or as ``Watch``.
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
        super().__init__()
        self.watch = Watch(id=id, ood=ood, detectors=detectors, train=train, **options)
        self.values: dict[str, float] = {}
        self.trainer: Any = None
        self._step = -1

    def attach(self, trainer: Any) -> OODCallback:
        """Add the callback to a trainer, before those that read the metrics. Gives the callback."""
        self.trainer = trainer
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002 - as they call it
        """Refuse what cannot be measured."""
        if self.trainer is None:
            raise InputError(
                "OODCallback logs through the trainer: use OODCallback(…).attach(trainer), not callbacks=[…]"
            )
        self._step = -1
        self.watch.check(given["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Measure, and add the metrics to those of the evaluation."""
        self._measure(state, given["model"])
        given["metrics"].update(self.values)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Measure, where there is no evaluation."""
        if args.eval_strategy == "no":
            self._measure(state, given["model"])

    def _measure(self, state: Any, model: Any) -> None:
        if self._step == state.global_step:  # several evaluation sets, one after the other
            return
        self._step = state.global_step
        self.values = {f"eval_{name}": value for name, value in self.watch(model).items()}
        self.trainer.log(dict(self.values))
