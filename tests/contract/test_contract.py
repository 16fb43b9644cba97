"""One set of promises, kept by every stage there is: a new method is tested by being registered."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import nescio
from conftest import random_features
from nescio import InputError, methods
from nescio.core.arrays import FUNCTIONS
from nescio.core.features import Features, Head
from nescio.core.plugins import load_methods
from nescio.core.stage import PLACES, REGISTRY
from nescio.testing import ALWAYS, ONCE, Check, cases, example, fitted, scored

load_methods()
STAGES = sorted(REGISTRY)
CASES = dict(
    zip(
        (
            "features of a ReLU",
            "negative features",
            "two classes",
            "more classes than features",
            "far more features than images",
            "one image a class",
        ),
        cases(None, lambda _, **kind: random_features(**kind)),
        strict=True,
    )
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("check", ALWAYS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", STAGES)
def test_of_any_features(name: str, check: Check, case: Features) -> None:
    check(REGISTRY[name], case, case)


@pytest.mark.parametrize("check", ONCE, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", STAGES)
def test_of_plain_features(name: str, check: Check) -> None:
    check(REGISTRY[name], random_features(), random_features(seed=5))


@pytest.mark.parametrize("name", STAGES)
def test_constant_zero_and_unbiased_features_have_a_score(name: str) -> None:
    base = random_features()
    head = Head(base.head.weight, torch.zeros(5))
    for h in (torch.zeros_like(base.h), torch.ones_like(base.h)):
        f = Features(h, head, torch.zeros(len(h), dtype=torch.int64), base.labels, base.aux)
        assert scored(fitted(example(REGISTRY[name]), f), f).isfinite().all()


@pytest.mark.parametrize("name", STAGES)
def test_a_detector_is_refused_for_another_head(name: str) -> None:
    f = random_features()
    detector = fitted(example(REGISTRY[name]), f)
    other = Features(f.h, Head(f.head.weight + 1, f.head.bias), f.pred, f.labels, f.aux)
    with pytest.raises(InputError, match="the head of another model"):
        scored(detector, other)


@pytest.mark.parametrize("name", STAGES)
def test_the_docstring_says_what_shapes_and_whence(name: str) -> None:
    stage = REGISTRY[name]
    text = inspect.getdoc(stage) or ""
    assert stage.place in PLACES
    assert "Source:" in text
    assert "(B, " in text
    for option in stage.options():
        assert f"{option}:" in text, f"{name} does not explain its option {option}"


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_is_a_public_class(name: str) -> None:
    assert getattr(methods, REGISTRY[name].__name__) is REGISTRY[name]


def of_function(name: str, f: Features) -> dict[str, torch.Tensor]:
    """What a function reads of features, by the names of its arguments."""
    stage = fitted(example(REGISTRY[name]), random_features()).steps[0]
    learned = dict(stage.named_buffers())
    given = {"h": f.h, "z": f.logits, "pred": f.pred, "weight": f.head.weight, "rows": f.head.weight[f.pred]} | learned
    if name == "knn":
        given["bank"] = random_features().h
    if name == "pnml":
        given["z"] = f.head.linear(torch.nn.functional.normalize(f.h))
    for means, whitening in (("means", "whitening"), ("mean", "total_whitening")):
        if name in ("mahalanobis", "rmd") and whitening in learned:
            given[means] = learned[means] @ torch.linalg.inv(learned[whitening])
    return {name: given[name] for name in inspect.signature(FUNCTIONS[name]).parameters if name in given}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_each_score_is_a_function_that_gives_what_its_stage_does(name: str) -> None:
    new = random_features(seed=5)
    expected, given = scored(fitted(example(REGISTRY[name]), random_features()), new), of_function(name, new)
    function = getattr(nescio, name)
    scores = function(**given)
    if name in ("mahalanobis", "rmd"):  # their means are multiplied by a matrix here
        torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    else:
        assert torch.equal(scores, expected)
    arrays = function(**{name: t.numpy() for name, t in given.items()})
    assert isinstance(arrays, np.ndarray)
    np.testing.assert_array_equal(arrays, scores.numpy())
    with pytest.raises(InputError, match=f"{name}: expected . with one row per image"):
        function(*[t[0] if t.ndim else t for t in given.values()])


def test_every_logit_and_feature_score_is_a_function() -> None:
    without = {n for n, s in REGISTRY.items() if s.place == "score" and n not in FUNCTIONS}
    for name in without - {n for n in without if REGISTRY[n].takes_members}:
        assert example(REGISTRY[name]).columns, f"{name} reads features or logits alone: give it a function, too"
    assert {name: getattr(methods, name) for name in FUNCTIONS} == FUNCTIONS
