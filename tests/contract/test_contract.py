"""One set of promises, kept by every stage there is: a new method is tested by being registered."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from conftest import random_features, training
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features, Head
from nescio.core.plugins import load_methods
from nescio.core.stage import PLACES, REGISTRY

REQUIRED = {name: f"{name}(energy,fm+knn:k=3)" for name in ("mean", "max", "fisher")}
OTHER = {  # another value for each option, and options it needs beside it
    ("fm", "p"): "fm:p=0.2",
    ("react", "clip"): "react:clip=0.7",
    ("react", "q"): "react:q=0.5",
    ("temperature", "T"): "temperature:T=5",
    ("typical", "lam"): "typical:lam=0.5",
    ("line", "p_a"): "line:p_a=0.3",
    ("line", "p_w"): "line:p_w=0.3",
    ("line", "clip"): "line:clip=0.4",
    ("ls", "prototypes"): "ls:prototypes=head",
    ("ssod", "pool"): "ssod:pool=top",
    ("godin", "read"): "godin:read=g",
    ("cosine", "prototypes"): "cosine:prototypes=head",
    ("openmax", "tail"): "openmax:tail=5",
    ("openmax", "alpha"): "openmax:alpha=2",
    ("gmm", "covariance"): "gmm:covariance=tied",
    ("gmm", "shrink"): "gmm:shrink=0.3",
    ("pnml", "shrink"): "pnml:shrink=0.3",
    ("gram", "orders"): "gram:orders=3",
    ("multimahalanobis", "shrink"): "multimahalanobis:shrink=0.3",
    ("knn", "index"): "knn:k=20,index=ivf",
    ("odin", "T"): "odin:T=7",
    ("ashb", "p"): "ashb:p=0.3",
    ("ashp", "p"): "ashp:p=0.3",
    ("ashs", "p"): "ashs:p=0.3",
    ("scale", "p"): "scale:p=0.3",
    ("dice", "p"): "dice:p=0.4",
    ("vra", "low"): "vra:low=0.8",
    ("vra", "high"): "vra:high=0.7",
    ("lts", "p"): "lts:p=0.5",
    ("mahalanobis", "shrink"): "mahalanobis:shrink=0.3",
    ("rmd", "shrink"): "rmd:shrink=0.3",
    ("mcm", "T"): "mcm:T=0.1",
    ("knn", "k"): "knn:k=3",
    ("knn", "alpha"): "knn:alpha=0.4",
    ("nnguide", "k"): "nnguide:k=3",
    ("nnguide", "alpha"): "nnguide:alpha=0.4",
    ("vim", "dim"): "vim:dim=2",
    ("residual", "dim"): "residual:dim=2",
    ("gradnorm", "T"): "gradnorm:T=4",
    ("gen", "gamma"): "gen:gamma=0.7",
    ("gen", "M"): "gen:M=2",
    ("nci", "alpha"): "nci:alpha=0.5",
}
BY_PASS = {  # these
    ("odin", "eps"), ("odin", "per_std"), ("perturb", "eps"), ("bats", "lam"), ("bats", "last"), ("mcdropout", "n"),
    ("mcdropout", "p"),
}  # fmt: skip
# these change the pass: tests/unit/test_methods.py


def spec_of(name: str, text: str | None = None) -> str:
    text = text or REQUIRED.get(name, name)
    if REGISTRY[name].place == "score":
        return text
    return f"{text}+entropy" if name == "mcdropout" else f"{text}+energy"


def fitted(spec: str, f: Features, chunk: int = 64) -> Detector:
    """The detector, fitted on features that say what it must hear: that the right pass made them."""
    detector = Detector(spec)
    return detector.fit(training(dataclasses.replace(f, network_pass=detector.training_pass_key), chunk))


def scored(detector: Detector, f: Features) -> torch.Tensor:
    return detector(dataclasses.replace(f, network_pass=detector.pass_key))


load_methods()
STAGES = sorted(REGISTRY)
CASES = {
    "features of a ReLU": random_features(),
    "negative features": random_features(negative=True),
    "two classes": random_features(classes=2),
    "more classes than features": random_features(width=3, classes=8),
    "far more features than images": random_features(n=15, width=300),
    "one image a class": random_features(n=5),
}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Features:
    return CASES[request.param]


@pytest.mark.parametrize("name", STAGES)
def test_scores_are_finite_float64_for_any_features(name: str, case: Features) -> None:
    scores = scored(fitted(spec_of(name), case), case)
    assert scores.shape == (len(case),)
    assert scores.dtype == torch.float64
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", STAGES)
def test_constant_zero_and_unbiased_features_have_a_score(name: str) -> None:
    base = random_features()
    head = Head(base.head.weight, torch.zeros(5))
    for h in (torch.zeros_like(base.h), torch.ones_like(base.h)):
        f = Features(h, head, torch.zeros(len(h), dtype=torch.int64), base.labels, base.aux)
        assert scored(fitted(spec_of(name), f), f).isfinite().all()


@pytest.mark.parametrize("name", STAGES)
def test_scores_do_not_depend_on_the_batch_or_its_order(name: str, case: Features) -> None:
    detector = fitted(spec_of(name), case)
    whole = scored(detector, case)
    order = torch.randperm(len(case), generator=torch.Generator().manual_seed(0))
    shuffled = scored(detector, case.rows(order))
    single = torch.cat([scored(detector, case.rows(torch.tensor([i]))) for i in range(5)])
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-4, atol=1e-6)  # float32 products round by their shape
    torch.testing.assert_close(single, whole[:5], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", STAGES)
def test_fitting_does_not_depend_on_the_chunks(name: str, case: Features) -> None:
    a = scored(fitted(spec_of(name), case, chunk=7), case)
    b = scored(fitted(spec_of(name), case, chunk=10_000), case)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STAGES)
def test_scoring_changes_neither_its_input_nor_its_state(name: str, case: Features) -> None:
    detector = fitted(spec_of(name), case)
    before = {f.name: getattr(case, f.name) for f in dataclasses.fields(case)}
    copies = {k: v.clone() for k, v in before.items() if isinstance(v, torch.Tensor)}
    state = {k: v.clone() for k, v in detector.state_dict().items()}
    first = scored(detector, case)
    assert torch.equal(first, scored(detector, case))
    assert all(torch.equal(before[k], copies[k]) for k in copies)
    assert all(torch.equal(v, state[k]) for k, v in detector.state_dict().items())


@pytest.mark.parametrize("name", STAGES)
def test_an_unfitted_stage_is_named(name: str) -> None:
    detector = Detector(spec_of(name))
    if any(b is None for b in detector.stages[0]._buffers.values()):
        with pytest.raises(RuntimeError, match=f"'{name}' is not fitted"):
            scored(detector, random_features())
    else:
        assert scored(detector, random_features()).isfinite().all()


@pytest.mark.parametrize("name", STAGES)
def test_a_saved_detector_scores_the_same(name: str, case: Features, tmp_path) -> None:
    detector = fitted(spec_of(name), case)
    detector.save(tmp_path / "d.safetensors")
    loaded = Detector.load(tmp_path / "d.safetensors")
    assert repr(loaded) == repr(detector)
    assert torch.equal(scored(loaded, case), scored(detector, case))
    other = dataclasses.replace(case, head=Head(case.head.weight + 1, case.head.bias))
    with pytest.raises(InputError, match="another model's head"):
        scored(loaded, other)


@pytest.mark.parametrize(("name", "option"), [(n, o) for n in STAGES for o in REGISTRY[n].options()])
def test_every_hyperparameter_changes_the_score(name: str, option: str) -> None:
    if (name, option) in BY_PASS:
        assert REGISTRY[name].place == "input"
        return
    f, new = random_features(), random_features(seed=5)
    spec = spec_of(name, OTHER[name, option])
    default = scored(fitted(spec_of(name), f), new)
    assert not torch.allclose(scored(fitted(spec, f), new), default)


@pytest.mark.parametrize("name", STAGES)
def test_stages_that_need_no_training_images_fit_without_and_say_so(name: str) -> None:
    f = random_features()
    detector = Detector(spec_of(name))
    without = FeatureSet(head=f.head)
    if detector.needs.train or detector.needs.held_out:
        with pytest.raises(InputError, match="no training images"):
            detector.fit(without)
    else:
        assert torch.equal(scored(detector.fit(without), f), scored(fitted(spec_of(name), f), f))


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
def test_scores_follow_the_dtype_of_the_features(name: str) -> None:
    f = random_features()
    detector = fitted(spec_of(name), f)
    double = dataclasses.replace(f, h=f.h.double(), head=Head(f.head.weight.double(), f.head.bias.double()))
    torch.testing.assert_close(scored(detector, double), scored(detector, f), rtol=1e-4, atol=1e-5)
