"""Each method has a card: formula, papers, needs, options, when it works; and the terminal shows it."""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib import resources
from typing import Annotated

import pytest
from click.testing import CliRunner
from latex2mathml.converter import convert

from nescio import InputError, Score
from nescio.cli import main
from nescio.core.bounds import AtLeast, Positive, Share
from nescio.core.options import Option
from nescio.core.spec import presets
from nescio.core.stage import REGISTRY
from nescio.methods import cards, catalogue, printed
from nescio.methods.objective import OBJECTIVES
from nescio.methods.papers import papers

CARDS = cards.cards()


def by_place(place: str, name: str) -> cards.Card:
    (card,) = (c for c in CARDS if (c.place, c.name) == (place, name))
    return card


def test_there_is_one_for_every_stage_preset_and_objective() -> None:
    expected = [*REGISTRY, *(name for name in presets() if "@" not in name), *OBJECTIVES]
    assert sorted(c.name for c in CARDS) == sorted(expected)
    assert [c.name for c in CARDS] == [e.name for e in catalogue.entries()]


@pytest.mark.parametrize("card", CARDS, ids=[f"{c.place}-{c.name}" for c in CARDS])
def test_it_says_everything(card: cards.Card) -> None:
    assert "\\" not in re.sub(r"<annotation.*?</annotation>", "", convert(card.formula)), "LaTeX that was not drawn"
    assert card.papers
    assert card.needs
    assert card.works.endswith(".")
    assert card.fails.endswith(".")
    assert card.gist
    assert card.spec
    assert sorted(card.described) == sorted(o.name for o in card.options), "the docstring's Args are the options"
    for option in card.options:
        assert cards.values_of(option) != "value", f"{option.name} has an annotation"


@pytest.mark.parametrize("card", [c for c in CARDS if c.kind], ids=str)
def test_the_docstring_names_the_same_papers(card: cards.Card) -> None:
    text = " ".join((inspect.getdoc(card.kind) or "").split()).casefold()
    assert all(f'"{paper.title}'.casefold() in text for paper in card.papers)


def test_no_paper_and_no_entry_is_left_over() -> None:
    written = tomllib.loads(resources.files("nescio.methods").joinpath("cards.toml").read_text())
    groups = {"stages": REGISTRY, "presets": presets(), "objectives": OBJECTIVES}
    for group, known in groups.items():
        assert written[group].keys() <= known.keys()
    used = {id(paper) for card in CARDS for paper in card.papers}
    assert {key for key, paper in papers().items() if id(paper) not in used} == set()
    for key, paper in papers().items():
        assert paper.fields["title"] in paper.bibtex
        assert {"title", "author", "year"} <= paper.fields.keys()
        assert re.fullmatch(r"(\d{4}\.\d{5}|)", paper.fields.get("eprint", "")), key
        family = paper.fields["author"].partition(",")[0].casefold()
        assert key.startswith(family)


def test_a_paper_reads_as_a_reference() -> None:
    (react,) = by_place("shape", "react").papers
    assert react.reference == (
        "Yiyou Sun, Chuan Guo and Yixuan Li. "
        "ReAct: Out-of-distribution Detection With Rectified Activations. NeurIPS 2021."
    )
    assert react.url == "https://arxiv.org/abs/2111.12797"
    (ssod,) = by_place("objective", "ssod").papers
    assert ssod.reference.startswith("Sen Pei. Image Background")


def test_needs_and_options_are_in_words() -> None:
    assert by_place("shape", "react").needs == [
        "penultimate features",
        "training features",
        "with clip given: penultimate features",
    ]
    assert "with prototypes=head" in by_place("modulate", "ls").needs[-1]
    assert by_place("objective", "oe").needs[1] == "outliers= (--outliers), 2 for each training image"
    assert by_place("score", "godin").needs == [
        "a network with the head 'godin' (nescio train --objective godin trains one)"
    ]
    (p,) = by_place("shape", "fm").options
    assert (cards.values_of(p), cards.default_of(p)) == ("number, a share in [0, 1)", "0.6")
    assert [str(b) for b in (Share(above_zero=True), Positive(), AtLeast(2))] == [
        "a share in (0, 1]",
        "above 0",
        "2 or more",
    ]
    asked = Option("k", inspect.Parameter.empty, int)
    assert (cards.values_of(asked), cards.default_of(asked)) == ("whole number", "must be given")


def test_where_it_differs_follows_the_reference() -> None:
    assert by_place("score", "knn").differs == ""
    assert by_place("shape", "fm").differs == "Eqs. 1-3."
    assert by_place("score", "mahalanobis").differs.startswith("Its penultimate layer, without input perturbation")
    assert by_place("objective", "ssod").differs.endswith("No code is published.")


def test_the_terminal_shows_the_same() -> None:
    shown = CliRunner().invoke(main, ["methods", "react"]).output
    assert "``" not in shown
    for line in (
        "react (shape)",
        "  clip = none: number, above 0",
        "Needs: penultimate features; training features; with clip given: penultimate features",
        "Costs: fit: 0.08 s on 50,000 training features of 342 numbers; score: 0.3 µs per image, beside the",
        "  Activations. NeurIPS 2021. https://arxiv.org/abs/2111.12797",
    ):
        assert line in shown.splitlines()
    preset = CliRunner().invoke(main, ["methods", "fmls@imagenet-resnet50"]).output
    assert preset.splitlines()[-1] == "fm:p=0.3+react:clip=0.8+ls+energy"
    with pytest.raises(InputError, match="did you mean 'fmls'"):
        printed.describe("fmsl")


def test_a_stage_of_a_users_own_is_described_too() -> None:
    """Without formula and papers, which only come with the package."""

    class Length(Score, name="length-of-mine"):
        """Length of the features.

        Args:
            k: a number.
        """

        def __init__(self, *, k: Annotated[int, AtLeast(1)] = 3) -> None:
            super().__init__()
            self.k = k

    try:
        shown = printed.describe("length-of-mine")
        assert "  k = 3: whole number, 1 or more" in shown.splitlines()
        assert "Paper" not in shown
    finally:
        REGISTRY.pop("length-of-mine")
