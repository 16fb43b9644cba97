"""The site, built as a user builds it: strictly and offline. Code that fails, or a broken link, fails the build."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Built by the process of pytest-xdist that comes first; the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "docs"
    folder.mkdir(exist_ok=True)
    said = folder / "said.txt"
    with FileLock(folder / ".lock"):
        if not said.exists():
            said.write_text(build(folder), encoding="utf-8")
    assert not said.read_text(encoding="utf-8"), said.read_text(encoding="utf-8")
    return folder / "site"


def build(folder: Path) -> str:
    """What a build that fails says."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder / "site")]
    env = os.environ | {"NESCIO_DOCS_SCRATCH": str(folder / "scratch"), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture
def page(browser: Any, site: Path) -> Iterator[tuple[Any, list[str]]]:
    """The first page, and the addresses that it and those after it ask for beyond the folder."""
    page, asked = browser.new_page(), []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.goto(f"file://{site}/index.html")
    yield page, asked
    page.close()


def test_no_page_is_empty_and_none_shows_a_traceback(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 50
    for path in pages:
        text = path.read_text(encoding="utf-8")
        body = re.sub(r"<[^>]+>", "", text.split("<article")[1].split("</article>")[0])
        assert len(body) > 300, path
        assert "Traceback" not in body, path


@pytest.mark.parametrize(
    ("words", "where", "found"),
    [
        ("FPR95", "glossary.html", "FPR95"),
        ("threshold", "guides/threshold.html", "threshold"),
        ("own model", "guides/own-model.html", "own model"),
        ("CUDA out of memory", "guides/own-model.html", "memory"),
    ],
)
def test_the_search_finds_it_offline(page: tuple[Any, list[str]], words: str, where: str, found: str) -> None:
    here, asked = page
    here.locator("input[name=query]").fill(words)
    first = here.locator(".md-search-result__item").first
    first.wait_for(timeout=60_000)
    assert found.lower() in first.inner_text().lower()
    links = here.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
    assert any(where in link for link in links)
    assert not asked


def test_a_page_with_formulas_and_figures_asks_the_network_for_nothing(page: tuple[Any, list[str]], site: Path) -> None:
    here, asked = page
    here.goto(f"file://{site}/methods/fm.html")
    assert here.locator("math").count() > 0
    assert not asked


def test_the_links_of_the_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_table_of_methods_filters_and_sorts(page: tuple[Any, list[str]], site: Path) -> None:
    shown, _ = page
    shown.goto(f"file://{site}/methods/index.html")
    rows = "[...document.querySelectorAll('article tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    every = shown.evaluate(rows)
    shown.fill("#methods-filter", "logits hendrycks, iclr")
    assert shown.evaluate(rows) == ["msp"]
    shown.fill("#methods-filter", "")
    shown.click("button:has-text('name')")
    assert shown.evaluate(rows)[:3] == sorted(every)[:3] == ["ashb", "ashp", "ashs"]
    shown.click("button:has-text('name')")
    assert shown.evaluate(rows)[0] == "vra"
