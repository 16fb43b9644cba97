"""Fits that read the same rows: one read serves all, and each learns what it learns alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from conftest import random_features, training
from nescio.core.detector import Detector, fit_all
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import PLAIN_PASS, Features
from nescio.core.spec import all_specs
from nescio.core.stage import Score
from nescio.core.together import Source, Together

BEHIND_OTHERS = ["react+vim", "typical+gmm:covariance=full", "dice+klm", "gmm:covariance=tied"]
ENSEMBLES = ["mean(energy,fm+knn:k=3)", "max(energy,gram)", "fisher(vim,react+gmm,mahalanobis)"]
F = random_features()


def of_one_pass(specs: list[str]) -> dict[str, list[Detector]]:
    """Detectors by the pass that they are fitted on."""
    groups: dict[str, list[Detector]] = {}
    for detector in map(Detector, specs):
        groups.setdefault(detector.training_pass_key, []).append(detector)
    return groups


def assert_same(one: Detector, other: Detector) -> None:
    mine, yours = one.state_dict(), other.state_dict()
    assert mine.keys() == yours.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, yours[name]), f"{one!r}: {name}"


@pytest.mark.parametrize("held_out", [False, True], ids=["", "held-out"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_all_that_are_fitted_together_learn_what_they_do_alone_to_the_last_bit(held_out: bool, half: bool) -> None:
    specs = [*all_specs(), *BEHIND_OTHERS, *ENSEMBLES]
    f = dataclasses.replace(F, h=F.h.half()) if half else F
    for key, detectors in of_one_pass(specs).items():
        data = training(dataclasses.replace(f, network_pass=key))
        if held_out:
            data = data.with_held_out(training(dataclasses.replace(random_features(seed=3), network_pass=key)))
        fit_all(detectors, data)
        for detector in detectors:
            alone = Detector(repr(detector))
            fit_all([alone], data)
            assert_same(detector, alone)


def test_one_read_serves_all_that_are_fitted_together() -> None:
    reads = 0

    def counted() -> Iterator[Features]:
        nonlocal reads
        reads += 1
        return training(F).chunks()

    plain = [d for d in map(Detector, all_specs()) if d.training_pass_key == PLAIN_PASS and not d.columns]
    assert len(plain) > 30
    fit_all(plain, FeatureSet.stream(counted, F.head))
    assert reads == 2  # several need a mean or a quantile first
    reads = 0
    fit_all([Detector("react+vim"), Detector("typical+gmm")], FeatureSet.stream(counted, F.head))
    assert reads == 4  # and then as many for what follows


def test_what_cannot_be_fitted_stops_no_other_and_is_named_in_order() -> None:
    h, y = F.h, F.labels.clone()
    y[y == 2] = 1
    detectors = [Detector(s) for s in ("mahalanobis", "knn:k=3", "ls+energy", "residual:dim=99", "vim", "she")]
    told: list[tuple[str, str]] = []
    fit_all(detectors, FeatureSet(h, y, head=F.head), lambda d, e: told.append((repr(d), str(e))))
    assert [name for name, _ in told] == ["mahalanobis", "ls+energy", "residual:dim=99", "she"]
    for (_, message), stage in zip(told, ("mahalanobis", "ls", "residual", "she"), strict=True):
        assert f"'{stage}'" in message  # also where several asked for the same means
    assert_same(detectors[1], Detector("knn:k=3").fit(h, head=F.head))
    with pytest.raises(InputError, match="stage 'ls'"):
        fit_all([Detector("ls+energy"), Detector("vim")], FeatureSet(h, y, head=F.head))


class Peeks(Score):
    """Looks at the first rows, at all, and at two copies in turns, as nobody here does."""

    seen: torch.Tensor

    def fit(self, data: FeatureSet) -> None:
        """Count rows."""
        first = len(next(data.chunks()))
        total = sum(len(f) for f in data.chunks())
        with torch.enable_grad():
            pairs = sum(torch.equal(a.h, b.h) for a, b in zip(data.chunks(), data.chunks(), strict=True))
            assert torch.is_grad_enabled()
        self.seen = torch.tensor([first, total, pairs])

    def forward(self, f: Features) -> torch.Tensor:
        """Score nothing."""
        return f.h.sum(dim=1)


def test_a_stage_may_read_the_rows_as_it_likes() -> None:
    detectors = [Detector([Peeks()]), Detector("vim"), Detector([Peeks()])]
    fit_all(detectors, training(F, 64))
    for detector in detectors[::2]:
        assert detector.steps[0].seen.tolist() == [64, len(F), 4]
    assert_same(detectors[1], Detector("vim").fit(training(F, 64)))


def test_tasks_learn_where_a_source_fails_and_what_another_task_raised() -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the disk is gone")

    source, together = Source(broken), Together()
    first, _ = together.task(lambda: next(source()))
    whole, _ = together.task(lambda: list(source()), "all")
    same, new = together.task(list, "all")
    assert same is whole
    assert not new
    waits, _ = together.task(whole.result)
    together.run([first])
    assert first.result() == 1
    assert isinstance(waits.error, OSError)
    closed = []

    def never_ends() -> None:
        try:
            list(source())
        finally:
            closed.append(True)

    together = Together()
    together.task(never_ends)
    bad, _ = together.task(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        together.run([bad])
    assert closed == [True]
