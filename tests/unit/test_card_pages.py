"""The pages that are made of the code: a card for each method, the table of all, the reference of every public name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import nescio
from nescio.methods.cards import cards as all_cards

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str | bytes]:
    sys.path.insert(0, str(DOCS / "_build"))
    try:
        import cards
    finally:
        sys.path.remove(str(DOCS / "_build"))
    made: dict[str, str | bytes] = cards.pages()
    return made


def text(pages: dict[str, str | bytes], path: str) -> str:
    page = pages[path]
    assert isinstance(page, str)
    return page


def test_each_method_has_one_with_all_sections(pages: dict[str, str | bytes]) -> None:
    for card in all_cards():
        page = text(pages, f"methods/{card.name.replace('+', '-')}.md")
        assert page.startswith(f"# {card.name}\n")
        sections = ["Formula", "Needs and costs", "When it works, when it fails", "Paper"]
        sections += ["Options"] if card.options else []
        for section in sections:
            assert re.search(rf"^###? {section}", page, re.MULTILINE), f"{card.name} lacks {section}"
        assert f"$${card.formula}$$" in page
        assert all(f"`{option.name}` |" in page for option in card.options)
        for paper in card.papers:
            assert f"    {paper.bibtex.splitlines()[0]}" in page
        for drawing in re.findall(r"!\[.*\]\((.+svg)\)", page):
            assert pages[f"methods/{drawing}"].startswith(b"<?xml"), drawing  # type: ignore[arg-type]


def test_numbers_are_those_of_the_stored_tables_and_of_the_papers(pages: dict[str, str | bytes]) -> None:
    react = text(pages, "methods/react.md").replace("\u00a0", " ")
    assert "| `react:clip=1.6+energy` | 41.50 / 92.55 | 41.11 / 92.91 |" in react
    assert "| *to compare:* `energy` | 55.00 / 87.56 |" in react
    published = "| `densenet-bc-100-12` | ReAct | `react:clip=1.6+energy` | average 23.47 / 95.54 |"
    assert f"| FM + LS, Table I | `cifar10` {published}" in react
    assert "| torchvision:resnet50, 1,000 classes | `clip=0.8` |" in react
    best = text(pages, "methods/fisher.md")
    assert "*rank of* `fisher(fmls,knn:k=50)` *by AUROC, of 51 detectors* | 2 | 8 | 12 | 12 | 10 |" in best
    assert "`ssod:start=3`" in text(pages, "methods/ssod.md")
    assert "`fmls@imagenet-resnet50`" in text(pages, "methods/fmls.md")


def test_the_table_lists_every_method_and_links_to_it(pages: dict[str, str | bytes]) -> None:
    index = text(pages, "methods/index.md")
    rows = [line for line in index.splitlines() if line.startswith("| [`")]
    assert len(rows) == len(all_cards())
    linked = {f"methods/{target}" for target in re.findall(r"^\| \[`[^`]+`\]\((\S+)\)", index, re.MULTILINE)}
    cards = {path for path in pages if path.startswith("methods/") and path.endswith(".md")}
    assert linked == cards - {"methods/index.md"}


def test_the_reference_has_every_public_name(pages: dict[str, str | bytes]) -> None:
    written = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    made = "\n".join(text(pages, path) for path in pages if path.startswith("reference/"))
    named = {name.rpartition(".")[2] for name in re.findall(r"^::: (nescio\.\S+)", f"{written}\n{made}", re.MULTILINE)}
    assert set(nescio.__all__) <= named
    for card in all_cards():
        if card.kind is not None:
            assert f"::: {card.kind.__module__}.{card.kind.__name__}\n" in made
