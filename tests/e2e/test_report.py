"""The report page: what it says, what it carries, and how it behaves in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from conftest import TINY_TRANSFORM, picture, tiny_net
from nescio.data import open_source
from nescio.evaluation import metrics
from nescio.evaluation.bench import bench
from nescio.evaluation.results import Results
from nescio.evaluation.results_files import DRAWN
from nescio.evaluation.rows import Published, Row, Scored
from nescio.models import Classifier
from nescio.report import curves, data, page, pictures, words, write_report
from nescio.run.session import Session

SETS = ("far", "near")
DETECTORS = ("msp", "energy", "fm:p=0.5+ls+energy", "ssod")


class Page(HTMLParser):
    """The page as a browser without scripts sees it: text, tags with their attributes, cells of the table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.text, self.inside = html, [], "", []
        self.embedded = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = [tag] if tag in ("script", "style") else []

    def handle_data(self, text: str) -> None:
        if not self.inside:
            self.text += text

    def handle_endtag(self, tag: str) -> None:
        self.inside = [t for t in self.inside if t != tag]

    def values(self, tag: str, attribute: str) -> list[str]:
        return [a[attribute] or "" for t, a in self.tags if t == tag and attribute in a]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A small run with everything that a page can show."""
    root = tmp_path_factory.mktemp("images")
    for s, (name, classes) in enumerate((("train", "abcd"), ("id", "abcd"), ("far", "ab"), ("near", "ab"))):
        for c, label in enumerate(classes):
            (root / name / label).mkdir(parents=True)
            for i in range(30):
                picture(1000 * s + 100 * c + i).save(root / name / label / f"{i}.png")
    torch.manual_seed(0)
    network = Classifier(tiny_net(), TINY_TRANSFORM, name="tiny", heads={"ood": nn.Conv2d(6, 1, 1)})
    found = bench(
        Session(network, cache=root / "cache", workers=0, progress=False),
        train=root / "train",
        id=root / "id",
        ood={name: root / name for name in SETS},
        detectors=DETECTORS,
        resamples=20,
    )
    published = {("msp", "far"): Published(0.5, 0.75, "Paper & Co, Table 1: MSP")}
    return dataclasses.replace(found, published=published)


def written(results: Results, folder: Path) -> Page:
    write_report(results, folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_what_the_results_say(results: Results, report: Path) -> None:
    shown = Page(report.read_text(encoding="utf-8"))
    best = max(results.detectors, key=lambda d: results.average(d, "auroc"))
    assert f"Of 4 detectors, {best} separates" in shown.words
    for ood in SETS:
        share = results.row(best, ood).fpr95
        assert f"{ood} {share * 100:.1f} % accepted, {100 - round(share * 100, 1):.1f} % rejected" in shown.words
    gap = abs(results.row("msp", "far").fpr95 - 0.5)
    assert "1 of these results has a published value beside it (Paper & Co)." in shown.words
    assert f"The average difference is {gap * 100:.2f} points of FPR95" in shown.words
    cells = shown.values("td", "data-value")
    expected = []
    for d in words.ranked(results):
        averages = [results.average(d, m) for m in ("fpr95", "auroc")]
        each = [getattr(results.row(d, o), m) for o in SETS for m in ("fpr95", "auroc")]
        expected += [*(v * 100 for v in (*averages, *each)), results.average(d, "seconds")]
    assert np.allclose([float(c) for c in cells], expected, atol=0.006)
    low, high = results.row("energy", "near").intervals["auroc"]
    assert f"{low * 100:.1f}–{high * 100:.1f}" in shown.text
    assert "nescio bench \\ --model MODEL --weights WEIGHTS \\ --transform resize=8,crop=8" in shown.words
    assert "MODEL stands for the network, which was made in Python" in shown.words
    assert results.manifest["model"]["weights"] in shown.text
    headings = re.findall(r"<h2>(.*?)</h2>", shown.html)
    assert [h.split()[0] for h in headings] == ["All", "Scores,", "ROC", "What", "Features", "What", "Cost", "How"]
    mapped = [s for s in shown.values("img", "src") if s.startswith("data:image/png")]
    assert len(mapped) == 3 * 6  # the OOD head's maps


def test_the_page_needs_nothing_else_and_is_small(report: Path) -> None:
    shown = Page(report.read_text(encoding="utf-8"))
    assert len(shown.html.encode()) < 5_000_000
    assert "http://" not in shown.html
    assert "https://" not in shown.html
    assert not [t for t, a in shown.tags if t in ("link", "iframe", "object", "base")]
    assert not shown.values("script", "src")
    assert not re.search(r"@import|url\((?!#)|\beval\(|\bfetch\(|XMLHttpRequest|new Function", shown.html)
    assert all(s.startswith("data:") for s in shown.values("img", "src"))
    assert all(h.startswith("#") for h in shown.values("a", "href"))
    ids = [a["id"] for _, a in shown.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert all(f"#{i}" in shown.html or f'"{i}"' in shown.html for i in ids)
    assert {h[1:] for h in shown.values("a", "href")} <= set(ids)


def test_near_and_far_sets_have_averages_of_their_own(results: Results, tmp_path: Path) -> None:
    groups = {"near average": ["near"], "far average": ["far"]}
    about = {"groups": groups, "warnings": ["it knows nothing of <these> classes"]}
    shown = written(dataclasses.replace(results, manifest=results.manifest | about), tmp_path)
    assert "Warning: it knows nothing of <these> classes." in shown.text
    heads = re.findall(r'<th scope="colgroup" colspan="2">(.*?)</th>', shown.html)
    assert heads == ["average", "near average", "far average", "far", "near"]
    assert shown.embedded["columns"] == heads
    assert shown.embedded["views"] == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 4], [0, 2, 3]]
    options = re.findall(r"<option>(.*?)</option>", shown.html)
    assert options == ["all", "averages", "near", "far"]
    first = [float(v) for v in shown.values("td", "data-value")[:10]]
    assert first[2:4] == first[8:10]  # one set is its own average
    assert first[4:6] == first[6:8]


def test_page_and_figures_come_out_the_same_from_the_files(results: Results, report: Path, tmp_path: Path) -> None:
    results.save(tmp_path)
    loaded = Results.load(tmp_path, images=True)
    kept, again = results.as_kept(), loaded.as_kept()
    assert (again.rows, again.manifest, again.published) == (kept.rows, kept.manifest, kept.published)
    assert (
        max(
            abs(getattr(a, m) - getattr(b, m))
            for a, b in zip(results.rows, kept.rows, strict=True)
            for m in ("fpr95", "auroc")
        )
        < 1e-6
    )
    write_report(loaded, tmp_path / "report.html")
    files = {str(p.relative_to(report.parent)) for p in report.parent.rglob("*") if p.is_file()}
    assert files == {"report.html", *DRAWN}
    for name in files:
        assert (report.parent / name).read_bytes() == (tmp_path / name).read_bytes(), name
    kinds = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert all((tmp_path / name).read_bytes().startswith(kinds[Path(name).suffix]) for name in DRAWN)


def test_results_without_features_or_images_still_make_a_page(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path)
    written(results, tmp_path)
    assert (tmp_path / "figures/cosine.pdf").is_file()
    (tmp_path / "features.safetensors").unlink()  # as an earlier version left it
    shown = written(Results.load(tmp_path), tmp_path)
    assert "hold no features" in shown.words
    assert "nescio report RUN --images" in shown.words
    assert not shown.values("img", "src")
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {"scores", "roc", "risk-coverage"}
    results.save(tmp_path)
    assert not list(tmp_path.rglob("*.pdf"))  # they showed what was there before


def test_images_without_a_label_are_no_errors(results: Results, tmp_path: Path) -> None:
    """Neither with the images at hand nor without them."""
    correct = np.arange(len(results.correct), dtype=np.int8) % 3 - 1
    mixed = dataclasses.replace(results, correct=correct)
    mixed.save(tmp_path)
    ends = []
    for found in (mixed, Results.load(tmp_path)):
        ax = Figure().subplots()
        curves.risk_coverage(found, ["msp"]).panels[0].draw(ax)
        ends.append(ax.lines[0].get_ydata()[-1])
    assert np.array_equal(Results.load(tmp_path).correct, correct)
    labelled = correct[results.id_set.rows["msp"]]
    assert ends == [pytest.approx((labelled == 0).sum() / (labelled >= 0).sum() * 100)] * 2


def test_without_scikit_learn_the_map_is_of_principal_components(
    results: Results, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    assert "t-SNE of the penultimate features" in report.read_text(encoding="utf-8")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert "The first two principal components" in written(results, tmp_path).words


def test_names_are_text_whatever_is_in_them(results: Results, tmp_path: Path) -> None:
    evil = '</script><evil a="1">&\'$x$'
    rename = {"msp": f"_{evil}"}
    sets = {"far": f"set {evil}"}
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(60):
        picture(i).save(folder / f"<evil>&\"'{i}.png")

    def renamed(s: Scored) -> Scored:
        scores = {rename.get(d, d): v for d, v in s.scores.items()}
        rows = {rename.get(d, d): v for d, v in s.rows.items()}
        source = open_source(folder) if s.name == "far" else s.source
        return Scored(sets.get(s.name, s.name), source, rows, scores)

    changed = dataclasses.replace(
        results,
        rows=[
            dataclasses.replace(r, detector=rename.get(r.detector, r.detector), ood=sets.get(r.ood, r.ood))
            for r in results.rows
        ],
        id_set=renamed(results.id_set),
        ood_sets=[renamed(s) for s in results.ood_sets],
        sample=dataclasses.replace(results.sample, sets={sets.get(n, n): s for n, s in results.sample.sets.items()}),
        published={},
    )
    shown = written(changed, tmp_path)
    assert "evil" not in {tag for tag, _ in shown.tags}
    assert f"_{evil}" in shown.text
    assert f"set {evil}" in shown.text
    assert shown.embedded["sets"][0] == f"set {evil}"
    assert any(name.startswith("images/<evil>&\"'") for name in shown.values("img", "title"))
    assert sum(tag == "script" for tag, _ in shown.tags) == 2
    assert evil.replace("<", "&lt;").replace(">", "&gt;").replace("&'", "&amp;'") in (
        (tmp_path / "figures/scores.svg").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize(("n_id", "n_ood"), [(48, 30), (3000, 700)])
def test_each_position_of_the_threshold_accepts_what_the_metrics_say(n_id: int, n_ood: int, equal: bool) -> None:
    rng = np.random.default_rng(0)
    scores = {
        "id": rng.normal(1, 1, n_id).round(2),
        "far": rng.normal(0, 1, n_ood),
        "near": rng.normal(1, 1, n_ood + 9),
    }
    scores["far"][0] = -np.inf
    id_set, *oods = (Scored(n, None, {"d": np.arange(len(s))}, {"d": s}) for n, s in scores.items())
    row = {
        "aupr_in": 0.0,
        "aupr_out": 0.0,
        "aurc": 0.0,
        "id_accuracy": 0.9,
        "n_id": n_id,
        "n_ood": n_ood,
        "seconds": 0.0,
    }
    rows = [Row(detector="d", ood=o, fpr95=0.5, auroc=0.5, **row) for o in ("far", "near")]
    results = Results(rows, {"equal": equal}, id_set, list(oods))
    found = data.embedded(results)
    assert len(found["rejected"]) == min(1000, n_id if not equal else n_ood + 9)
    assert found["rejected"][found["default"]] == 0.05
    (detector,) = found["detectors"]
    assert len(detector["cuts"]) == (2 if equal else 1)
    for i, name in enumerate(("far", "near")):
        ids = results.id_scores("d", name)
        assert len(ids) == (min(n_id, len(scores[name])) if equal else n_id)
        cut, s = detector["cuts"][i if equal else 0], detector["sets"][i]
        accepted = np.cumsum(s["accepted"]) / s["images"]
        expected = [metrics.fpr_at_tpr(ids, scores[name], 1 - r) for r in found["rejected"]]
        np.testing.assert_allclose(accepted, expected)
        own = [np.mean(ids >= metrics.threshold_at_tpr(ids, 1 - r)) for r in found["rejected"]]
        np.testing.assert_allclose(np.cumsum(cut["accepted"]) / cut["images"], own)
        assert (sum(s["id"]), sum(s["ood"])) == (len(ids), len(scores[name]))


def test_scores_that_are_nearly_all_equal_are_drawn_by_rank() -> None:
    rng = np.random.default_rng(0)
    even = data.bin_edges(rng.normal(1, 1, 1000), rng.normal(0, 1, 100))
    assert len(even) == data.BINS + 1
    assert data.is_even(even)
    ids, oods = 1 - 10 ** rng.uniform(-12, -1, 1000), 1 - 10 ** rng.uniform(-3, 0, 500)
    edges = data.bin_edges(ids, oods)
    assert not data.is_even(edges)
    shares = sum(data.counts(s, edges) / len(s) for s in (ids, oods))
    assert shares.max() < 2.5 * shares.min()
    assert not data.is_even(data.bin_edges(1 - 1e-6 * (1 - ids), oods))  # however close together
    tied = data.bin_edges(np.ones(50), np.r_[np.ones(40), 0.5])
    assert (np.diff(tied) > 0).all()
    assert data.counts(np.ones(50), tied).sum() == 50
    assert data.is_even(data.bin_edges(np.full(3, -np.inf), np.full(3, np.inf)))


def test_pictures_stop_where_the_page_would_grow_too_large(
    results: Results, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Page(report.read_text(encoding="utf-8"))
    every = len(whole.embedded["pictures"])
    ranked = words.ranked(results)
    wrong = {d: pictures.mistakes(results, d) for d in ranked}
    assert every == len({m.place for found in wrong.values() for ms in found.values() for m in ms})
    size = sum(len(p["source"]) for p in whole.embedded["pictures"] if "source" in p)
    monkeypatch.setattr(page, "LIMIT", len(whole.html.encode()) - size // 2)
    small = written(results, tmp_path)
    assert len(small.html.encode()) <= page.LIMIT
    left_out = [d for d in ranked if d not in small.embedded["wrong"]]
    assert left_out
    assert ranked[0] not in left_out
    assert all(d in small.words.partition("the pictures of these detectors are left out:")[2][:200] for d in left_out)


def test_shares_are_rounded_as_the_script_rounds_them() -> None:
    assert words.percent(279 / 1200, 1) == "23.3"  # 23.25: halves go up
    assert words.rest(279 / 1200, 1) == "76.7"  # and the two make 100
    assert words.percent(0.99999) == "100.00"
    assert [words.size(n) for n in (0, 4, 13_680, 2_500_000)] == ["nothing", "4 bytes", "13.7 kB", "2.5 MB"]


# --- in a browser


@pytest.fixture(scope="module")
def report(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(results, path)
    return path


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page in a window of its own; at the end nothing may have gone wrong in any of them."""
    problems: list[str] = []
    contexts = []

    def open_page(width: int = 1280, height: int = 900, page: Path = report, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        view = contexts[-1].new_page()
        view.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.on("request", lambda r: problems.append(r.url[:80]) if not r.url.startswith(("file:", "data:")) else None)
        view.goto(page.as_uri())
        return view

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def column(view: Any, number: int) -> list[str]:
    rows = "[...document.querySelectorAll('#results tbody tr')]"
    return view.evaluate(f"{rows}.map(row => row.cells[{number}].dataset.value)")


def test_the_table_sorts_by_mouse_and_by_keyboard(opened: Callable[..., Any], results: Results) -> None:
    view = opened()
    assert column(view, 0) == words.ranked(results)  # the best first
    first = view.locator("th[aria-sort=descending]")
    assert first.inner_text().startswith("AUROC")
    view.get_by_role("button", name="FPR95 on far").click()
    values = [float(v) for v in column(view, 3)]
    assert values == sorted(values)
    assert sorted(values) == sorted(float(f"{results.row(d, 'far').fpr95 * 100:.2f}") for d in DETECTORS)
    heading = view.locator("th", has=view.get_by_role("button", name="FPR95 on far"))
    assert heading.get_attribute("aria-sort") == "ascending"

    view.get_by_role("button", name="AUROC on near").focus()
    view.keyboard.press("Enter")  # the better end first
    values = [float(v) for v in column(view, 6)]
    assert values == sorted(values, reverse=True)
    assert heading.get_attribute("aria-sort") is None
    assert "AUROC on near, descending" in view.locator("#sorted").inner_text()
    view.keyboard.press("Space")
    assert [float(v) for v in column(view, 6)] == sorted(values)
    view.keyboard.press("Shift+Tab")
    assert view.evaluate("document.activeElement.getAttribute('aria-label')") == "FPR95 on near"
    view.get_by_role("button", name="detector").click()
    assert column(view, 0) == sorted(DETECTORS)


def told(view: Any) -> dict[str, float]:
    text = view.locator("#verdict").inner_text()
    return {name: float(share) for share, name in re.findall(r"([\d.]+)\s% of (\w+)", text)}


def test_the_threshold_moves_and_says_what_it_accepts(opened: Callable[..., Any], results: Results) -> None:
    view = opened()
    best = words.ranked(results)[0]
    slider, place = view.locator("#threshold"), "document.querySelector('.cut').getAttribute('d')"

    def expected(detector: str, rejected: int) -> dict[str, float]:
        ids = np.sort(results.id_set.scores[detector])
        threshold = ids[rejected]
        sets = (results.id_set, *results.ood_sets)
        return {"ID" if s.name == "id" else s.name: np.mean(s.scores[detector] >= threshold) * 100 for s in sets}

    assert told(view) == pytest.approx(expected(best, 6), abs=0.06)  # 5 % of 120
    for ood in SETS:
        assert told(view)[ood] == pytest.approx(results.row(best, ood).fpr95 * 100, abs=0.06)
    before = view.evaluate(place)
    slider.focus()
    for _ in range(30):
        view.keyboard.press("ArrowRight")
    assert told(view) == pytest.approx(expected(best, 36), abs=0.06)
    assert view.evaluate(place) != before
    assert slider.get_attribute("aria-valuetext") == f"accepts {told(view)['ID']:.1f}\N{NO-BREAK SPACE}% of ID"
    view.keyboard.press("Home")
    assert told(view)["ID"] == 100
    view.keyboard.press("End")
    assert told(view) == pytest.approx(expected(best, 119), abs=0.06)

    view.locator("#detector").select_option(label="msp")  # at the same position
    assert told(view) == pytest.approx(expected("msp", 119), abs=0.06)
    assert view.locator("#mistaken").input_value() == "0"
    view.get_by_role("button", name="accept 95 %").click()
    assert told(view) == pytest.approx(expected("msp", 6), abs=0.06)
    assert (
        view.locator("#panels figcaption span")
        .first.inner_text()
        .startswith(f"accepts {told(view)['far']:.1f}\N{NO-BREAK SPACE}%")
    )


def test_the_mistakes_are_those_of_the_chosen_detector(opened: Callable[..., Any], results: Results) -> None:
    view = opened()
    for detector in ("energy", "msp", words.ranked(results)[0]):
        view.locator("#mistaken").select_option(label=detector)
        for name, found in pictures.mistakes(results, detector).items():
            shown = view.locator(f'#wrong [data-set="{name}"] img')
            assert shown.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")
            names = [pictures.short_name(_source(results, name), m.place[1]) for m in found]
            assert shown.evaluate_all("images => images.map(image => image.alt)") == names
            scores = view.locator(f'#wrong [data-set="{name}"] li > span:first-of-type').all_inner_texts()
            assert [float(s) for s in scores] == pytest.approx([m.score for m in found], rel=0.01)
            scored = results.id_set if name == "id" else next(s for s in results.ood_sets if s.name == name)
            taken = view.locator(f'#wrong [data-set="{name}"] .taken').all_inner_texts()
            assert taken == [f"predicted: {'abcd'[scored.pred[m.place[1]]]}" for m in found]


@pytest.fixture(scope="module")
def many(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on thirty detectors, with groups of OOD sets, one of them of a kind that no suite has."""
    names = [f"{d}-{i}" if i else d for i in range(8) for d in DETECTORS][:30]
    kept = {n: n.rpartition("-")[0] or n for n in names}

    def repeated(s: Scored) -> Scored:
        return dataclasses.replace(
            s,
            rows={n: s.rows[d] for n, d in kept.items()},
            scores={n: s.scores[d] for n, d in kept.items()},
        )

    rows = [dataclasses.replace(results.row(d, ood), detector=n) for n, d in kept.items() for ood in SETS]
    changed = dataclasses.replace(
        results,
        rows=rows,
        id_set=repeated(results.id_set),
        ood_sets=[repeated(s) for s in results.ood_sets],
        manifest=results.manifest | {"groups": {"csid": ["near"], "far average": ["far"]}},
        published={},
        sample=None,
    )
    path = tmp_path_factory.mktemp("many") / "report.html"
    write_report(changed, path)
    return path


def shown_rows(view: Any) -> list[str]:
    rows = "[...document.querySelectorAll('#results tbody tr')].filter(row => row.checkVisibility())"
    return view.evaluate(f"{rows}.map(row => row.cells[0].dataset.value)")


def test_the_table_is_filtered_by_name(opened: Callable[..., Any], many: Path) -> None:
    view = opened(page=many)
    assert len(shown_rows(view)) == 30
    assert view.locator("#counted").inner_text() == ""
    view.get_by_label("Filter").fill("Energy")
    assert all("energy" in name for name in shown_rows(view))
    assert view.locator("#counted").inner_text() == f"{len(shown_rows(view))} of 30 detectors"
    view.get_by_label("Filter").fill("energy fm -2")
    assert shown_rows(view) == ["fm:p=0.5+ls+energy-2"]
    view.get_by_role("button", name="AUROC on average").click()  # sorting keeps the filter
    assert shown_rows(view) == ["fm:p=0.5+ls+energy-2"]
    view.get_by_label("Filter").fill("nothing")
    assert view.locator("#counted").inner_text() == "0 of 30 detectors"
    view.get_by_label("Filter").fill("")
    assert len(shown_rows(view)) == 30


def test_the_table_shows_the_columns_of_a_group(opened: Callable[..., Any], many: Path) -> None:
    view = opened(page=many)
    heads = view.locator("#results th[colspan]:visible")
    assert heads.all_inner_texts() == ["average", "csid", "far average", "far", "near"]
    assert view.locator("#view option").all_inner_texts() == ["all", "averages", "csid", "far"]
    for name, expected in (("csid", ["average", "csid", "near"]), ("averages", ["average", "csid", "far average"])):
        view.get_by_label("Columns").select_option(name)
        assert heads.all_inner_texts() == expected
        assert view.locator("#results tbody tr:first-child td:visible").count() == 2 * len(expected) + 1
        assert view.locator("#results thead tr:last-child th:visible").count() == 2 * len(expected)
    assert view.locator("#results td small:visible").count() == 0  # averages have no intervals
    view.get_by_label("Columns").select_option("all")
    assert view.locator("#results td small:visible").count() > 0
    view.get_by_label("intervals").uncheck()
    assert view.locator("#results td small:visible").count() == 0


def test_a_curve_is_highlighted_by_mouse_and_by_keyboard(opened: Callable[..., Any], many: Path) -> None:
    view = opened(page=many)
    last = 29
    assert view.locator("#curves .legend button").count() == last + 1
    curves = view.locator(f"#curves [data-line='{last}']")
    assert curves.count() == len(SETS) + 1  # ROC by set, and risk against coverage
    button = view.locator(f"#curves .legend button[value='{last}']")
    name = button.inner_text()

    def lit() -> set[str]:
        return set(view.locator("#curves .lit[data-line]").evaluate_all("lines => lines.map(l => l.dataset.line)"))

    def strength(number: int) -> float:
        return float(view.locator(f"#curves [data-line='{number}']").first.evaluate("l => getComputedStyle(l).opacity"))

    assert lit() == set()
    button.hover()
    assert lit() == {str(last)}
    row = view.locator("#results tbody tr", has=view.locator(f"th[data-value='{name}']"))
    numbers = row.locator("td").evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    caption = view.locator("#curves figcaption .line").first
    assert caption.inner_text() == f"AUROC {numbers[7]}, FPR95 {numbers[6]}: {name}"  # of the set 'far'
    view.mouse.move(0, 0)
    assert lit() == set()
    assert caption.inner_text() == ""

    button.focus()
    view.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert view.locator("#curves .plate > [role=status]").inner_text() == f"Highlighted: {name}."
    first = view.locator("#curves [data-line='0'] .hit").first
    first.dispatch_event("pointerenter")
    assert lit() == {"0", str(last)}
    first.dispatch_event("pointerleave")
    assert lit() == {str(last)}
    view.emulate_media(reduced_motion="reduce")
    assert strength(last) == 1
    assert strength(0) < 0.5
    view.keyboard.press("Escape")
    assert lit() == set()
    assert button.get_attribute("aria-pressed") == "false"


def test_specs_and_the_command_are_copied(opened: Callable[..., Any]) -> None:
    view = opened()
    view.evaluate("void (navigator.clipboard.writeText = async (text) => { window.copied = text; })")
    view.get_by_role("button", name="Copy the spec of fm:p=0.5+ls+energy").click()
    assert view.evaluate("copied") == "fm:p=0.5+ls+energy"
    assert view.locator("#said").inner_text() == "Copied: fm:p=0.5+ls+energy"
    view.evaluate("void (navigator.clipboard.writeText = async () => { throw new Error('not here'); })")
    view.evaluate("document.addEventListener('copy', () => { window.copied = String(getSelection()); })")
    view.get_by_role("button", name="Copy the command").focus()
    view.keyboard.press("Enter")
    view.locator("#said", has_text="nescio bench").wait_for(state="attached")
    assert view.evaluate("copied").startswith("nescio bench")
    assert view.evaluate("document.activeElement.dataset.from") == "command"


def test_thirty_detectors_fit_a_small_window(opened: Callable[..., Any], many: Path) -> None:
    view = opened(390, 800, page=many)
    assert view.evaluate("document.documentElement.scrollWidth") == 390
    assert not view.get_by_label("intervals").is_checked()
    box = view.locator("#curves .legend").bounding_box()
    assert box["height"] < 250


def test_print_shows_all_in_black_on_white_and_no_controls(opened: Callable[..., Any], many: Path) -> None:
    view = opened(page=many, color_scheme="dark")
    view.emulate_media(media="print")
    background = view.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')")
    assert background == "#fcfcfa"
    assert view.locator("nav:visible, .tools:visible, .copy:visible, input:visible, #reset:visible").count() == 0
    assert view.locator("#results").is_visible()
    assert view.locator(".wide").evaluate("box => getComputedStyle(box).overflow") == "visible"
    assert view.locator("#curves svg:visible").count() == len(SETS) + 1


def test_files_of_figures_name_the_coloured_curves(many: Path) -> None:
    svg = (many.parent / "figures/roc.svg").read_text(encoding="utf-8")
    ids = re.findall(r' id="(.*?)"', svg)
    assert len(ids) == len(set(ids))
    assert "22 more" in svg


def test_the_heading_of_a_long_table_stays_in_sight(opened: Callable[..., Any]) -> None:
    view = opened(1280, 900)
    table = view.locator("#table .wide")
    table.evaluate("box => { box.style.maxHeight = '140px'; box.scrollTop = 60; }")
    assert table.evaluate("box => box.scrollTop") > 0
    above = "box => box.querySelector('thead').getBoundingClientRect().top - box.getBoundingClientRect().top"
    assert table.evaluate(above) == pytest.approx(0, abs=1)
    assert table.evaluate("box => getComputedStyle(box.querySelector('thead')).zIndex") == "2"  # above names


@pytest.mark.parametrize(
    ("values", "digits"),
    [((0.10012, 0.10013, 0.10031), 6), ((1.0, 2.0, 3.0), 3), ((5.0, 5.0), 3), ((), 3), ((1.0, 1 + 1e-15), 10)],
)
def test_scores_have_as_many_digits_as_tell_them_apart(values: tuple[float, ...], digits: int) -> None:
    assert words.digits(values) == digits


def test_scores_that_are_close_are_told_apart() -> None:
    found = [pictures.Mistake(("far", i), score) for i, score in enumerate((0.100123, 0.100234, 0.100345))]
    assert [score for _, score in pictures.with_scores(found)] == ["0.10012", "0.10023", "0.10035"]


def _source(results: Results, name: str) -> Any:
    return next(s.source for s in (results.id_set, *results.ood_sets) if s.name == name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 800)])
def test_it_fits_the_window_in_light_and_dark(opened: Callable[..., Any], width: int, height: int, scheme: str) -> None:
    view = opened(width, height, color_scheme=scheme, reduced_motion="reduce")
    assert view.evaluate("document.documentElement.scrollWidth") == width
    background = view.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(c) for c in re.findall(r"\d+", background)[:3]) / 3
    assert (brightness > 200) == (scheme == "light")
    assert view.evaluate("getComputedStyle(document.querySelector('.chart rect')).transitionDuration") == "0s"


def test_without_scripts_table_and_figures_are_there(opened: Callable[..., Any], results: Results) -> None:
    view = opened(java_script_enabled=False)
    shown = view.locator("noscript svg:visible, section svg:visible")
    assert shown.count() >= 2 * 3 + 2  # histograms, ROC, cosines or map by set; coverage, activation
    assert view.locator("noscript figure").first.is_visible()
    assert view.locator("#threshold").is_hidden()
    assert view.locator("#results").is_visible()
    assert view.locator("#wrong img").count() > 0
