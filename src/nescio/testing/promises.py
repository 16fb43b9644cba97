"""Each promise of a stage, as a function that raises where it is broken."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from nescio.core.detector import Detector
from nescio.core.errors import InputError, NotFitted
from nescio.core.feature_set import FeatureSet
from nescio.core.features import NO_HEAD, Features, Head
from nescio.core.stage import Stage
from nescio.testing.made import example, fitted, scored

Check = Callable[[type[Stage], Features, Features], None]


def _promise(kept: bool, promise: str, stage: type[Stage]) -> None:
    if not kept:
        raise AssertionError(f"stage '{stage.name}': {promise}")


def scores_are_finite_numbers(stage: type[Stage], f: Features, new: Features) -> None:
    """Finite, one for each row."""
    scores = scored(fitted(example(stage), f), new)
    _promise(scores.shape == (len(new),) and scores.dtype == torch.float64, "scores are float64, (B,)", stage)
    _promise(bool(scores.isfinite().all()), "scores of finite features are finite", stage)


def scores_do_not_depend_on_the_batch(stage: type[Stage], f: Features, new: Features) -> None:
    """Neither on its size nor on its order."""
    detector = fitted(example(stage), f)
    whole = scored(detector, new)
    order = torch.randperm(len(new), generator=torch.Generator().manual_seed(0))
    few = range(min(5, len(new)))
    single = torch.cat([scored(detector, new.rows(torch.tensor([i]))) for i in few])
    assert_close(scored(detector, new.rows(order)), whole[order], rtol=1e-4, atol=1e-6)  # products round by their shape
    assert_close(single, whole[: len(single)], rtol=1e-4, atol=1e-6)


def fitting_does_not_depend_on_the_chunks(stage: type[Stage], f: Features, new: Features) -> None:
    """Training features may come in parts of any size."""
    few, whole = (scored(fitted(example(stage), f, chunk), new) for chunk in (7, 10_000))
    assert_close(few, whole, rtol=1e-5, atol=1e-6)


def scoring_changes_nothing(stage: type[Stage], f: Features, new: Features) -> None:
    """Neither the features nor what was learned."""
    detector = fitted(example(stage), f)
    held = {f.name: getattr(new, f.name) for f in dataclasses.fields(new)} | detector.state_dict()
    before = {name: t.clone() for name, t in held.items() if isinstance(t, Tensor)}
    first = scored(detector, new)
    _promise(torch.equal(first, scored(detector, new)), "the same features have the same scores", stage)
    held |= detector.state_dict()
    _promise(all(torch.equal(held[k], t) for k, t in before.items()), "scoring changes nothing", stage)


def a_saved_detector_scores_the_same(stage: type[Stage], f: Features, new: Features) -> None:
    """And is refused for another head."""
    detector = fitted(example(stage), f)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "d.nescio")
        detector.save(path)
        loaded = Detector.load(path)
    _promise(repr(loaded) == repr(detector), "a loaded detector has the same spec", stage)
    _promise(torch.equal(scored(loaded, new), scored(detector, new)), "a loaded detector scores the same", stage)


def an_unfitted_stage_is_named(stage: type[Stage], f: Features, new: Features) -> None:
    """Whoever scores without fitting is told so."""
    del f
    detector = example(stage)
    if not any(detector.steps[0].declared()):
        scored(detector, new)
        return
    try:
        scored(detector, new)
    except NotFitted as e:
        _promise(f"'{stage.name}' is not fitted" in str(e), "an unfitted stage is named", stage)
    else:
        raise AssertionError(f"stage '{stage.name}': scores before it is fitted")


def specs_round_trip(stage: type[Stage], f: Features, new: Features) -> None:
    """With every option at its default, and at other values that it declares."""
    del f, new
    for options in ({}, *({name: v} for name, option in stage.options().items() for v in option.examples)):
        try:
            detector = example(stage, **options)
        except InputError:  # a value that does not go with the other options' defaults
            continue
        else:
            again = Detector(repr(detector))
            same = repr(again) == repr(detector) and again.settings() == detector.settings()
            _promise(same, f"{detector!r} is read as it is printed", stage)


def every_option_matters(stage: type[Stage], f: Features, new: Features) -> None:
    """Some declared value changes the scores, or the pass, at some value of the others."""

    def changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        try:
            a, b = (fitted(example(stage, **options), f) for options in (one, other))
            return (stage.place == "input" and a.pass_key != b.pass_key) or not torch.allclose(
                scored(a, new), scored(b, new)
            )
        except InputError:  # options that exclude each other, or columns that are not here
            return False

    options = stage.options()
    for name, option in options.items():
        rest = [{}, *({o: v} for o in options if o != name for v in options[o].examples)]
        tried = option.examples
        matters = any(changes(others, {**others, name: value}) for others in rest for value in tried)
        _promise(matters or not tried, f"option {name} changes the scores", stage)


def scores_follow_the_type_of_the_features(stage: type[Stage], f: Features, new: Features) -> None:
    """Fitted in float32, a stage scores float64 features alike."""
    detector = fitted(example(stage), f)
    double = dataclasses.replace(
        new, h=new.h.double(), head=Head(new.head.weight.double(), new.head.bias.double()), _logits=None
    )
    assert_close(scored(detector, double), scored(detector, new), rtol=1e-4, atol=1e-5)


def rows_that_are_not_finite_score_nan(stage: type[Stage], f: Features, new: Features) -> None:
    """And the others what they do without them."""
    h = new.h.clone()
    h[1, 0] = torch.nan
    detector = fitted(example(stage), f)
    scores = scored(detector, dataclasses.replace(new, h=h))
    others = torch.arange(len(new)) != 1
    _promise(scores.isnan().nonzero().flatten().tolist() == [1], "NaN scores NaN, and nothing else does", stage)
    _promise(torch.equal(scores[others], scored(detector, new.rows(others))), "NaN changes no other score", stage)


def arrays_score_as_features_do(stage: type[Stage], f: Features, new: Features) -> None:
    """NumPy arrays in either type, and tensors: the same scores, of the same kind as what was given."""
    if stage.place == "input":  # its features come from a pass of its own
        return
    head = (f.head.weight.numpy(), f.head.bias.numpy())
    expected = fitted(example(stage), f, len(f))(new)
    data = FeatureSet(f.h.numpy(), f.labels, head=head, columns=f.aux)
    arrays = FeatureSet(new.h.numpy(), head=head, columns=new.aux)
    _promise(torch.equal(example(stage).fit(data)(arrays), expected), "arrays score as features do", stage)
    if not example(stage).columns:
        detector = example(stage).fit(f.h.numpy(), f.labels.numpy(), head=head)  # type: ignore[union-attr]
        _promise(torch.equal(torch.from_numpy(detector(new.h.numpy())), expected), "arrays in, arrays out", stage)
        _promise(torch.equal(detector(new.h), expected), "tensors in, tensors out", stage)
        assert_close(torch.from_numpy(detector(new.h.double().numpy())), expected)


def needs_are_what_it_reads(stage: type[Stage], f: Features, new: Features) -> None:
    """With what it declares and nothing else, the scores are the same; without any of that, a message names it."""
    detector = _alone(stage)
    needs, own = detector.needs, detector.steps[0]
    kinds = {"features": needs.features, "head": needs.head, "logits": needs.logits and not needs.head}
    kinds |= {"train": needs.fitting, "labels": needs.labels}
    declared = {name for name, needed in kinds.items() if needed}
    full = fitted(_alone(stage), f, len(f))
    try:
        scores = _with(_alone(stage), declared, f, new)
    except InputError as e:
        raise AssertionError(f"stage '{stage.name}' declares too little: {e}") from None
    _promise(torch.equal(scores, scored(full, new)), "what it declares to need suffices", stage)
    mine = {n for n in declared if n == "train" or getattr(own.needs, n)} if stage.place != "input" else set()
    names = {own.name, *(s.name for chain in own.chains for s in chain.steps)}
    for missing in mine:
        try:
            _with(_alone(stage), declared - {missing}, f, new, missing)
        except InputError as e:
            _promise(any(f"'{name}'" in str(e) for name in names), f"what lacks {missing} is named in: {e}", stage)
        else:
            raise AssertionError(f"stage '{stage.name}': says that it needs {missing}, and scores without")


def _alone(stage: type[Stage]) -> Detector:
    """A detector that needs little beside the stage."""
    detector = example(stage)
    own = detector.steps[0]
    return Detector([own, lambda f: f.h.norm(dim=1)]) if stage.place == "shape" and not own.needs.head else detector


def _with(detector: Detector, kinds: set[str], f: Features, new: Features, missing: str = "") -> Tensor:
    """Scores by these kinds of features alone; logits stand for the rows where there are no features."""
    has_h = "features" in kinds or missing == "logits"

    def reduced(of: Features, key: str, *, labels: bool) -> FeatureSet:
        record = Features.of(
            of.h if has_h else None,
            head=of.head if "head" in kinds else NO_HEAD,
            logits=of.logits if "logits" in kinds or not has_h else None,
            labels=of.labels if labels else None,
            aux={n: t for n, t in of.aux.items() if n.rpartition(".")[0] in detector.columns},
        ).with_fields(network_pass=key)
        return FeatureSet.stream(lambda: iter([record]), record.head)

    train = reduced(f, detector.training_pass_key, labels="labels" in kinds)
    detector.fit(train if "train" in kinds else FeatureSet(head=train.head))
    return detector.usable_scores(reduced(new, detector.pass_key, labels=False).record())


def no_training_features_are_needed_or_asked_for(stage: type[Stage], f: Features, new: Features) -> None:
    """A stage fits on the head alone, or says that it cannot."""
    detector, without = example(stage), FeatureSet(head=f.head)
    needs = detector.needs
    try:
        scores = scored(detector.fit(without), new)
    except InputError as e:
        _promise(
            (needs.train or needs.held_out) and "no training features" in str(e), f"it says what it lacks: {e}", stage
        )
    else:
        _promise(not (needs.train or needs.held_out), "what needs training features asks for them", stage)
        _promise(torch.equal(scores, scored(fitted(example(stage), f), new)), "it learns from the head alone", stage)


ALWAYS: tuple[Check, ...] = (
    scores_are_finite_numbers,
    scores_do_not_depend_on_the_batch,
    fitting_does_not_depend_on_the_chunks,
    scoring_changes_nothing,
    a_saved_detector_scores_the_same,
)
"""What holds for features of every kind."""
ONCE: tuple[Check, ...] = (
    an_unfitted_stage_is_named,
    specs_round_trip,
    every_option_matters,
    scores_follow_the_type_of_the_features,
    rows_that_are_not_finite_score_nan,
    arrays_score_as_features_do,
    needs_are_what_it_reads,
    no_training_features_are_needed_or_asked_for,
)
