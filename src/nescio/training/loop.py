"""The loop: one for every objective."""

from __future__ import annotations

import hashlib
import logging
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.options import parse_named
from nescio.core.progress import progress_bar
from nescio.methods.objective import Objective
from nescio.models.runs import STATE, WEIGHTS, Run
from nescio.training.augment import AUGMENTS
from nescio.training.hardware import Interrupted, stop_on_signal
from nescio.training.images import RunImages, Stream
from nescio.training.log import Log
from nescio.training.recipe import OPTIMIZERS, SCHEDULES, Recipe
from nescio.training.state import HINT, State, save_tensors
from nescio.training.trainee import Trainee, try_step
from nescio.training.validation import Judgement, is_better, judge

log = logging.getLogger(__name__)

PAPERS_CHOICE = "papers-choice.safetensors"
"""The weights of the epoch that did best on the watched OOD sets: the way to choose of Pei, ICLR 2024."""
_LOOK = 20
"""Steps on a GPU after which losses are looked at: each look waits for the device."""


class Loop:
    """Everything that stays the same from step to step."""

    def __init__(
        self,
        fabric: Any,
        run: Run,
        out: Path,
        state: State,
        objective: Objective,
        recipe: Recipe,
        images: RunImages,
        *,
        keep: bool = False,
    ) -> None:
        self.keep = keep
        self.fabric, self.run, self.out, self.state, self.recipe = fabric, run, out, state, recipe
        self.images = images
        self.objective, self.needs = objective.to(fabric.device), objective.needs
        self.labels = images.train.labels.to(fabric.device)
        self.detector = Detector(objective.detector)
        state.classifier.probed(self.detector.needs.probes)  # refuses a network that it cannot judge
        self.size = recipe.batch_size
        if len(images.train) < self.size:
            raise InputError(f"{len(images.train):,} readable training images do not fill a batch of {self.size}")
        self.per_epoch = len(images.train) // self.size
        trainee = Trainee(state.classifier, objective)
        try_step(fabric, trainee, state, min(2, self.size // (fabric.world_size * recipe.accumulate)))
        used = [p for p in trainee.parameters() if p.requires_grad]
        state.optimizer = parse_named(recipe.optimizer, OPTIMIZERS).over(used)
        self.base_lr = state.optimizer.param_groups[0]["lr"]
        self.trainee, self.optimizer = fabric.setup(trainee, state.optimizer)
        self.schedule = parse_named(recipe.schedule, SCHEDULES)
        self.augment = parse_named(recipe.augment, AUGMENTS)
        self.losses: list[Tensor] = []
        self.shown: dict[str, float] = {}

    def run_epochs(self, *, resume: bool, progress: bool) -> None:
        """All epochs, or those that are left."""
        alone = self.fabric.is_global_zero
        spent = self.run.made_with.get("seconds", 0)
        self.begun = monotonic() - (spent if isinstance(spent, int | float) else 0)
        if resume:
            self.state.load(self.out / STATE)
        self.log = Log(self.out, len(self.state.lines), write=alone)
        if alone:
            for left in self.out.glob(".*.partial"):  # of a killed process
                left.unlink(missing_ok=True)
            self._write_down()
        with stop_on_signal() as asked, progress_bar(show=progress and alone) as bar, self.log:
            task = bar.add_task("training", total=self.recipe.epochs * self.per_epoch * self.size)
            bar.advance(task, self.state.step * self.size)
            for epoch in range(self.state.step // self.per_epoch, self.recipe.epochs):
                stop = False
                for _ in self.steps(epoch):
                    bar.update(task, advance=self.size, description=self._progress(epoch))
                    stop = self._agree(asked)
                    if stop:
                        break
                self._look()
                if self.state.step == (epoch + 1) * self.per_epoch:
                    self._end(epoch)
                if stop:
                    self._save()
                    raise Interrupted(asked[0] if asked else signal.SIGTERM)

    def steps(self, epoch: int) -> Iterator[None]:
        """The epoch's steps that are left. All that is drawn follows from seed, epoch and step."""
        seed = self.run.settings["seed"]
        draws = torch.Generator().manual_seed(hash_of(seed, epoch))
        streams = [Stream(self.images.train, draws, self.per_epoch, self.size, self.needs.views)]
        if self.images.outliers is not None:
            streams.append(Stream(self.images.outliers, draws, self.per_epoch, self.size * self.needs.outliers))
        rank, done = self.fabric.global_rank, self.state.step - epoch * self.per_epoch
        shares = (done, rank, self.fabric.world_size, self.recipe.accumulate)
        feeds = [stream.micro_batches(*shares, self.augment, self.state.classifier.transform) for stream in streams]
        for _ in range(done, self.per_epoch):
            torch.manual_seed(hash_of(seed, self.state.step, rank))  # dropout, resampled patches
            self._step(feeds)
            yield

    def _step(self, feeds: Sequence[Iterator[tuple[Tensor, Tensor]]]) -> None:
        epoch = (self.state.step + 0.5) / self.per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr * self.schedule.at(epoch, self.recipe.epochs)
        accumulate = self.recipe.accumulate
        for micro_step in range(accumulate):
            (own, numbers), *others = (next(feed) for feed in feeds)
            x = torch.cat([own, *(images for images, _ in others)]) if others else own
            labels = self.labels[numbers].repeat(self.needs.views)
            with self.fabric.no_backward_sync(self.trainee, enabled=micro_step < accumulate - 1):
                loss, watched = self.trainee(x, labels, epoch)
                self.fabric.backward(loss / accumulate)
            self._watch(watched, 1 / accumulate)
        if self.recipe.clip:
            self.fabric.clip_gradients(
                self.trainee, self.optimizer, max_norm=self.recipe.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(self.state.classifier)
        self.state.advance()
        if len(self.losses) >= _LOOK or self.fabric.device.type == "cpu":
            self._look()

    def _watch(self, watched: dict[str, Tensor], weight: float) -> None:
        names = list(watched)
        self.names = names
        self.losses.append(torch.stack([watched[n].float() for n in names]) * weight)

    def _look(self) -> None:
        """Add what was watched to the epoch's sums, over all processes; stop if a loss is not finite."""
        if not self.losses:
            return
        seen = self.fabric.all_reduce(torch.stack(self.losses), reduce_op="mean").tolist()
        first = self.state.step - len(self.losses) // self.recipe.accumulate
        self.losses = []
        for i, values in enumerate(seen):
            if not all(map(math.isfinite, values)):
                step = first + i // self.recipe.accumulate
                epoch, batch = divmod(step, self.per_epoch)
                raise InputError(
                    f"the loss is not finite ({values[0]}) at batch {batch + 1} of epoch {epoch + 1}; the last "
                    f"checkpoint is in {self.out}; {HINT}"
                )
            for name, value in zip(self.names, values, strict=True):
                self.state.sums[name] = self.state.sums.get(name, 0.0) + value
        self.shown = dict(zip(self.names, seen[-1], strict=True))

    def _agree(self, asked: list[int]) -> bool:
        """Whether some process was asked to stop; several agree on it every few steps."""
        if self.fabric.world_size == 1:
            return bool(asked)
        if self.state.step % _LOOK:
            return False
        flag = torch.tensor(float(bool(asked)), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op="sum") > 0)

    def _progress(self, epoch: int) -> str:
        texts = [f"epoch {epoch + 1}/{self.recipe.epochs}"]
        shown = {"loss": "loss {:.3f}", "accuracy": "accuracy {:.0%}", **self.objective.shown}
        texts += [text.format(self.shown[name]) for name, text in shown.items() if name in self.shown]
        return "  ".join(texts)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            self.state.save(self.out / STATE)
            self._write_down()

    def _write_down(self) -> None:
        """What people read follows from the checkpoint, so that the two agree whenever training was killed."""
        self.run.selected = self.state.selected or None
        self.run.made_with["seconds"] = round(monotonic() - self.begun, 3)
        self.run.write(self.out)
        self.log.write(self.state.lines)

    def _end(self, epoch: int) -> None:
        """Judge, log and store; by one process, for all."""
        means = {k: v / self.per_epoch for k, v in self.state.sums.items()}
        self.state.sums = {}
        if self.fabric.is_global_zero:
            self.state.check_finite()
            self.state.exchange()
            self.objective.after_step(self.state.classifier)  # an average of layers need not be in that form
            try:
                self.objective.before_save(self.state.classifier)
                judged = judge(self.state.classifier, self.detector, self.images.val, self.images.watched)
            finally:
                self.state.exchange()
            of_training = {f"train_{name}": value for name, value in means.items()}
            numbers = {"epoch": epoch + 1, "step": self.state.step, **of_training, **judged.numbers()}
            if warning := self.objective.warning(means):
                log.warning("epoch %d: %s", epoch + 1, warning)
            if self.keep:
                save_tensors(self.out / f"epoch-{epoch + 1}.safetensors", self.state.weights())
            self._select(judged, numbers)
            self.state.lines.append(numbers | {"lr": self.optimizer.param_groups[0]["lr"]})
            self._save()
            self.log.add(self.state.lines[-1])
        self.fabric.barrier()

    def _select(self, judged: Judgement, numbers: Mapping[str, Any]) -> None:
        selected = self.state.selected
        best = max([judged.accuracy, *(line["val_accuracy"] for line in self.state.lines)])
        if is_better(numbers, selected.get("kept"), best, len(self.images.val)):
            save_tensors(self.out / WEIGHTS, self.state.weights())
            selected["kept"] = {"by": _RULES["kept"], **numbers}
        if judged.ood and judged.mean_fpr95 < selected.get("papers_choice", {}).get("mean_fpr95", math.inf):
            save_tensors(self.out / PAPERS_CHOICE, self.state.weights())
            selected["papers_choice"] = {"by": _RULES["papers_choice"], "mean_fpr95": judged.mean_fpr95, **numbers}


_RULES = {
    "kept": "AUROC against shuffled ID validation images, among epochs within one standard error of the best ID "
    "validation accuracy; no OOD image was used",
    "papers_choice": "mean FPR95 on the watched OOD sets; this looks at the test sets, as Pei, ICLR 2024, does",
}


def hash_of(*numbers: int) -> int:
    """One seed from several numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
