"""All OOD metrics as one torchmetrics ``Metric``: the array functions' numbers, whatever way the scores come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nescio
from nescio.evaluation import metrics

RNG = np.random.default_rng(0)
N = 1200
IS_ID = RNG.random(N) < 0.6
SCORES = (RNG.normal(0, 1, N) + IS_ID).round(2)  # ties
CORRECT = RNG.random(N) < 1 / (1 + np.exp(-SCORES - 1))


def expected(
    scores: np.ndarray, is_id: np.ndarray, correct: np.ndarray, tpr: float = 0.95, ood_share: float = 0.5
) -> dict[str, float]:
    ids, oods = scores[is_id], scores[~is_id]
    return {
        f"fpr{100 * tpr:g}": metrics.fpr_at_tpr(ids, oods, tpr),
        f"fpr{100 * tpr:g}_ood_positive": metrics.fpr_at_tpr_ood_positive(ids, oods, tpr),
        "auroc": metrics.auroc(ids, oods),
        "aupr_in": metrics.aupr_in(ids, oods),
        "aupr_out": metrics.aupr_out(ids, oods),
        "detection_accuracy": metrics.detection_accuracy(ids, oods, ood_share),
        "aurc": metrics.aurc(ids, correct[is_id]),
        "augrc": metrics.augrc(ids, correct[is_id]),
    }


def batches(metric: Any, size: int = 100) -> Any:
    for at in range(0, N, size):
        part = slice(at, at + size)
        metric.update(SCORES[part], IS_ID[part], CORRECT[part])
    return metric


def same(found: dict[str, torch.Tensor], wanted: dict[str, float]) -> None:
    assert {k for k in found if not k.endswith("_error")} == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == torch.float64
        assert found[name].item() == pytest.approx(value, abs=1e-12), name


def test_batches_give_the_numbers_of_the_array_functions_and_reset_forgets_them() -> None:
    metric = batches(nescio.OODMetrics(tpr=0.9, ood_share=0.2))
    same(metric.compute(), expected(SCORES, IS_ID, CORRECT, 0.9, 0.2))
    metric.reset()
    with pytest.raises(nescio.InputError, match="OOD"):
        metric.compute()
    metric.update(torch.tensor(SCORES), torch.tensor(IS_ID))  # without correct: no risk over coverage
    plain = expected(SCORES, IS_ID, CORRECT, 0.9, 0.2)
    same(metric.compute(), {k: v for k, v in plain.items() if k not in {"aurc", "augrc"}})


def test_scores_that_differ_in_float64_alone_are_told_apart() -> None:
    metric = nescio.OODMetrics()
    metric.update([1 + 2e-16 * k for k in range(1, 5)], True)
    metric.update([1.0, 1.0], False)
    assert metric.compute()["auroc"] == 1


def test_a_call_gives_the_batch_and_keeps_it() -> None:
    metric = nescio.OODMetrics()
    halves = [slice(0, 600), slice(600, N)]
    for half in halves:
        parts = (SCORES[half], IS_ID[half], CORRECT[half])
        same(metric(*parts), expected(*parts))
    same(metric.compute(), expected(SCORES, IS_ID, CORRECT))


def test_a_bin_for_each_score_is_exact() -> None:
    found = batches(nescio.OODMetrics(bins=1002, limits=(-5.005, 4.995))).compute()  # scores have two decimals
    same(found, expected(SCORES, IS_ID, CORRECT))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(-40, 40), st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.integers(3, 12),
    st.sampled_from([0.5, 0.8, 0.95]),
)
def test_bins_are_as_near_as_they_say(rows: list[tuple[int, bool, bool]], bins: int, tpr: float) -> None:
    rows += [(3, True, True), (5, False, False)]  # some of each
    scores, is_id, correct = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores / 10
    metric = nescio.OODMetrics(bins=bins, limits=(-2, 2), tpr=tpr, ood_share=0.3)
    metric.update(scores, is_id, correct)
    found = {k: v.item() for k, v in metric.compute().items()}
    exact = expected(scores, is_id, correct, tpr, 0.3)
    edges = np.append(np.linspace(-2, 2, bins - 1), np.inf)
    largest = max(
        np.bincount(np.searchsorted(edges, scores[kind] + 1e-9, "left")).max() / kind.sum() for kind in (is_id, ~is_id)
    )
    most = {"auroc": largest / 2, "detection_accuracy": largest / 2, "augrc": largest / 8}
    most |= {k: largest for k in exact if k.startswith("fpr")}
    for name, value in exact.items():
        assert abs(found[name] - value) <= found[f"{name}_error"] + 1e-12, name
        assert found[f"{name}_error"] <= most.get(name, 1) + 1e-12, name


def test_many_scores_in_bins_take_no_memory_and_little_error() -> None:
    metric = nescio.OODMetrics(bins=4096, limits=(-6, 7))
    scores = np.random.default_rng(1).normal(0, 1, 200_000)
    is_id = np.arange(len(scores)) % 2 == 0
    scores[is_id] += 1
    correct = scores > -1.5
    for at in range(0, len(scores), 10_000):
        part = slice(at, at + 10_000)
        metric.update(scores[part], is_id[part], correct[part])
    found = metric.compute()
    for name, value in expected(scores, is_id, correct).items():
        assert found[name].item() == pytest.approx(value, abs=found[f"{name}_error"].item())
        assert found[f"{name}_error"] < 0.002
    assert metric.counts.numel() == 4 * 4096


def one_of_two(rank: int, folder: Path, options: dict[str, Any]) -> None:
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    uneven, idle = nescio.OODMetrics(**options), nescio.OODMetrics(**options)
    part = slice(0, 500) if rank == 0 else slice(500, N)
    uneven.update(SCORES[part], IS_ID[part], CORRECT[part])
    if rank == 0:  # the other has no batch at all
        idle.update(SCORES, IS_ID, CORRECT)
    for metric in (uneven, idle):
        same(metric.compute(), expected(SCORES, IS_ID, CORRECT))
    uneven.reset()
    uneven.update(SCORES, IS_ID, CORRECT)
    doubled = (np.tile(a, 2) for a in (SCORES, IS_ID, CORRECT))
    same(uneven.compute(), expected(*doubled))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"bins": 1002, "limits": (-5.005, 4.995)}])
def test_two_processes_give_the_numbers_of_all_scores(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path, options), nprocs=2)


def test_what_cannot_be_is_refused_by_name() -> None:
    metric = nescio.OODMetrics()
    for given_, told in (
        (([[1.0]], True), r"\(B,\)"),
        (([1.0, float("nan")], True), "1 of the scores are NaN"),
        (([1.0, 2.0], [True]), "is_id"),
        (([1.0, 2.0], [3, -1]), "true or false"),
        (([1.0, 2.0], True, [True]), "correct"),
    ):
        with pytest.raises(nescio.InputError, match=told):
            metric.update(*given_)
    metric.update([1.0, 2.0], True, True)
    metric.update([1.0], True)
    metric.update([0.0], False)
    with pytest.raises(nescio.InputError, match="2 of 3 ID images"):
        metric.compute()
    for options, told in (
        ({"bins": 100}, "limits"),
        ({"bins": 100, "limits": (1, 0)}, "lower first"),
        ({"bins": 2, "limits": (0, 1)}, "bins=2"),
        ({"tpr": 95}, r"tpr=0\.95"),
    ):
        with pytest.raises(nescio.InputError, match=told):
            nescio.OODMetrics(**options)


@pytest.mark.parametrize("options", [{}, {"bins": 100, "limits": (-3, 3)}])
def test_it_plots_itself(options: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    figure, _ = batches(nescio.OODMetrics(**options)).plot()
    shown = {text for ax in figure.axes for text in ax.get_legend_handles_labels()[1]}
    assert "auroc" in shown
    assert not any("error" in text for text in shown)


def test_without_the_library_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import nescio\n"
        "try: nescio.OODMetrics()\n"
        "except nescio.InputError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'nescio[metrics]'" in done.stdout
