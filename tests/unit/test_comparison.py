"""Results in files and back, as tables, and one run against another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from conftest import TINY_TRANSFORM, coloured, small_disk, tiny_net
from nescio.core.errors import InputError
from nescio.evaluation.bench import bench
from nescio.evaluation.compare import compare
from nescio.evaluation.results import Results
from nescio.evaluation.rows import Published
from nescio.evaluation.suites.suite import AVERAGE
from nescio.evaluation.tables import latex, lines, markdown
from nescio.models import Classifier
from nescio.run.session import Session

DETECTORS = ["msp", "fm:p=0.5+energy"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for i, name in enumerate(("id", "near", "far")):
        coloured(root, name, per_class=40 if name == "id" else 20, classes=4, seed=i, side=8 + i)
    return root


def run(folders: Path, seed: int = 0, **options: object) -> Results:
    net = tiny_net()
    net.conv.weight.data += seed * 0.5
    classifier = Classifier(net, TINY_TRANSFORM, name="tiny")
    oods = {name: str(folders / name) for name in ("near", "far")}
    return bench(
        Session(classifier, workers=0, progress=False), id=str(folders / "id"), ood=oods, detectors=DETECTORS, **options
    )


@pytest.fixture(scope="module")
def results(folders: Path) -> Results:
    return run(folders, resamples=30)


def published(results: Results) -> Results:
    beside = {
        ("msp", "near"): Published(0.5, 0.75, "FM + LS, Table I: MSP"),
        ("msp", AVERAGE): Published(0.6, 0.7, "FM + LS, Table I: MSP"),
    }
    return dataclasses.replace(results, published=beside)


def test_saved_results_come_back_whole(results: Results, tmp_path: Path) -> None:
    published(results).save(tmp_path)
    back = Results.load(tmp_path, images=True)
    assert back.detectors == results.detectors
    for ours, theirs in zip(back.rows, results.rows, strict=True):
        assert (ours.detector, ours.ood, ours.n_id, ours.n_ood) == (
            theirs.detector,
            theirs.ood,
            theirs.n_id,
            theirs.n_ood,
        )
        assert ours.fpr95 == pytest.approx(theirs.fpr95, abs=1e-6)
        assert ours.intervals["auroc"] == pytest.approx(theirs.intervals["auroc"], abs=1e-6)
    for ours, theirs in zip((back.id_set, *back.ood_sets), (results.id_set, *results.ood_sets), strict=True):
        for d in DETECTORS:
            assert np.array_equal(ours.scores[d], theirs.scores[d])
            assert np.array_equal(ours.rows[d], theirs.rows[d])
        assert ours.source.name(3) == theirs.source.name(3)
    assert np.array_equal(back.correct, results.correct)
    assert back.published == published(results).published


def test_images_that_changed_are_not_shown_for_the_old_ones(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    content["manifest"]["data"]["near"]["identity"] = "another"
    content["manifest"]["data"]["far"]["opened"] = str(tmp_path / "gone")
    del content["hash"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    back = Results.load(tmp_path, images=True)
    assert [s.source is None for s in back.ood_sets] == [True, True]
    assert back.id_set.source is not None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.json", None, "no results in"),
        ("scores.safetensors", None, r"scores\.safetensors is missing"),
        ("results.json", "{", "damaged and cannot be read as results"),
        ("results.json", "{}", "damaged and cannot be read as results"),
        ("results.json", '{"rows": []}', "an earlier version wrote"),
        ("scores.safetensors", "x" * 100, r"scores\.safetensors does not match results\.json"),
    ],
)
def test_a_folder_without_results_says_what_is_wrong(
    results: Results, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    results.save(tmp_path)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        Results.load(tmp_path)


@pytest.mark.parametrize("moved", range(5))
def test_a_run_killed_while_it_writes_never_mixes_with_an_earlier_one(
    results: Results, tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    old, new = tmp_path / "reused", tmp_path / "new"
    halved = {d: s / 2 for d, s in results.id_set.scores.items()}
    other = dataclasses.replace(results, id_set=dataclasses.replace(results.id_set, scores=halved))
    results.save(old)
    other.save(new)
    replace, calls = Path.replace, []

    def killed_at(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > moved:
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_at)
        with contextlib.suppress(Killed):
            other.save(old)
    try:
        back = Results.load(old)
    except InputError as e:
        assert "does not match results.json" in str(e)  # noqa: PT017 - or it is one of the two, whole
        assert moved > 0
        return
    expected = other if len(calls) <= moved else results
    assert all(np.array_equal(back.id_set.scores[d], expected.id_set.scores[d]) for d in DETECTORS)


def test_results_that_do_not_fit_on_the_disk_leave_the_old_ones(results: Results, tmp_path: Path) -> None:
    many = {d: np.zeros(100_000) for d in results.id_set.scores}
    rows = {d: np.arange(100_000) for d in results.id_set.rows}
    large = dataclasses.replace(results, id_set=dataclasses.replace(results.id_set, rows=rows, scores=many))
    with small_disk(tmp_path / "disk", 1 << 19):
        folder = tmp_path / "disk/results"
        results.save(folder)
        (folder / "report.html").write_text("a page")
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(InputError, match=r"scores\.safetensors cannot be written: .*No space left"):
            large.save(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_lines_stand_for_ours_intervals_published_and_difference(results: Results) -> None:
    found = lines(published(results))
    assert [(line.detector, line.kind) for line in found] == [
        ("msp", ""),
        ("msp", "95 % interval"),
        ("msp", "FM + LS"),
        ("msp", "difference"),
        (DETECTORS[1], ""),
        (DETECTORS[1], "95 % interval"),
    ]
    row = results.row("msp", "near")
    assert found[0].cells["near"].fpr95 == f"{row.fpr95 * 100:.2f}"
    assert found[3].cells["near"].fpr95 == f"{(row.fpr95 - 0.5) * 100:+.2f}"
    assert set(found[2].cells) == {"near", AVERAGE}
    assert sum(line.cells["far"].best[1] for line in found if line.kind == "") == 1


def test_markdown_and_latex_hold_every_number(results: Results) -> None:
    text, tex = markdown(published(results)), latex(published(results))
    for r in results.rows:
        assert f"{r.fpr95 * 100:.2f}" in text
        assert f"{r.auroc * 100:.2f}" in tex
    rows = text.splitlines()
    assert len({line.count("|") for line in rows}) == 1
    assert rows[0] == "| detector | near | far | average |"
    assert tex.count(r"\\") == len(rows) - 1  # a line each, but for the rule
    assert "50.00 / 75.00" in tex
    assert r"\texttt{fm:p=0.5+energy}" in tex


def test_near_and_far_sets_have_averages_of_their_own(results: Results) -> None:
    groups = {"near average": ["near"], "far average": ["far"]}
    grouped = dataclasses.replace(results, manifest=results.manifest | {"groups": groups})
    assert grouped.average("msp", "auroc", "near average") == results.row("msp", "near").auroc
    assert grouped.average("msp", "auroc") == results.average("msp", "auroc")
    assert markdown(grouped).splitlines()[0] == "| detector | near | far | near average | far average | average |"
    cells = lines(grouped)[0].cells
    assert cells["far average"].fpr95 == cells["far"].fpr95


def test_a_run_against_itself_has_not_changed(results: Results, folders: Path) -> None:
    changes = compare(results, run(folders), resamples=100)
    assert len(changes) == 2 * 2 * 2
    assert all(c.paired and c.verdict == "same" and c.difference.value == 0 for c in changes)


def test_a_worse_detector_is_found_image_by_image(results: Results) -> None:
    sets = [dataclasses.replace(s, scores=dict(s.scores)) for s in results.ood_sets]
    sets[0].scores["msp"] = sets[0].scores["msp"] + 0.05  # OOD images score higher
    worse = dataclasses.replace(results, ood_sets=sets)
    changes = {(c.first, c.ood, c.metric): c.verdict for c in compare(results, worse, resamples=200)}
    assert changes["msp", "near", "auroc"] == "worse"
    assert {v for k, v in changes.items() if k[:2] != ("msp", "near")} == {"same"}
    back = {(c.first, c.ood, c.metric): c.verdict for c in compare(worse, results, resamples=200)}
    assert back["msp", "near", "auroc"] == "better"
    tolerant = compare(results, worse, resamples=200, tolerance=1.0)
    assert {c.verdict for c in tolerant} == {"same"}


def test_other_images_are_compared_without_pairing(results: Results, folders: Path) -> None:
    halves = [
        bench(
            Session(Classifier(tiny_net(), TINY_TRANSFORM, name="tiny"), workers=0, progress=False),
            id=f"{folders / 'id'}[{part}]",
            ood={"near": str(folders / "near")},
            detectors=["msp"],
        )
        for part in (":80", "80:")
    ]
    changes = compare(*halves, resamples=200)
    assert not any(c.paired for c in changes)
    assert all(c.difference.low < c.difference.high for c in changes)


def test_two_detectors_of_one_run(results: Results) -> None:
    changes = compare(results, results, pairs={"msp": DETECTORS[1]}, resamples=100)
    near = next(c for c in changes if (c.ood, c.metric) == ("near", "auroc"))
    assert near.difference.value == pytest.approx(
        results.row(DETECTORS[1], "near").auroc - results.row("msp", "near").auroc
    )
    with pytest.raises(InputError, match="no detector 'mps'; did you mean 'msp'"):
        compare(results, results, pairs={"mps": "msp"})


def test_equal_numbers_of_id_and_ood_images(folders: Path, results: Results) -> None:
    equal = run(folders, equal=True)
    assert {r.n_id for r in equal.rows} == {80}
    assert {r.n_id for r in results.rows} == {160}
    assert [r.auroc for r in equal.rows] == [r.auroc for r in run(folders, equal=True).rows]
    assert equal.rows[0].auroc == pytest.approx(results.rows[0].auroc, abs=0.1)


def test_equal_runs_are_compared_by_the_numbers_that_they_print(folders: Path, results: Results) -> None:
    equal = run(folders, equal=True)
    changes = compare(equal, equal, pairs={"msp": DETECTORS[1]}, resamples=100)
    for c in changes:
        printed = [getattr(equal.row(d, c.ood), c.metric) for d in ("msp", DETECTORS[1])]
        assert c.difference.value == pytest.approx(printed[1] - printed[0], abs=1e-12)
    with pytest.raises(InputError, match="equal numbers"):
        compare(results, equal)
