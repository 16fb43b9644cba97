"""What every detector promises of features that a caller hands over: of any type of number, some of them not finite."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from conftest import random_features, training
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Columns, Features, Head
from nescio.core.spec import all_specs

SPECS = [*all_specs(), "mean(energy,fm+knn:k=3)", "max(energy,gram)", "fisher(energy,mahalanobis)"]
F, NEW = random_features(), random_features(n=40, seed=5)
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def fitted(spec: str, f: Features = F) -> Detector:
    detector = Detector(spec)
    return detector.fit(training(dataclasses.replace(f, network_pass=detector.training_pass_key)))


def scored(detector: Detector, f: Features) -> torch.Tensor:
    return detector(dataclasses.replace(f, network_pass=detector.pass_key))


def of_type(f: Features, kind: torch.dtype, *, head: bool = False) -> Features:
    aux = Columns.of({name: column.to(kind) for name, column in f.aux.items()})
    cast = Head(f.head.weight.to(kind), f.head.bias.to(kind)) if head else f.head
    return Features(f.h.to(kind), cast, f.pred, f.labels, aux)


def rounded(f: Features, kind: torch.dtype, *, head: bool = False) -> Features:
    return of_type(of_type(f, kind, head=head), torch.float32, head=head)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_features_of_any_type_score_as_the_same_numbers_in_float32(spec: str, kind: torch.dtype) -> None:
    detector, new = fitted(spec, of_type(F, kind)), of_type(NEW, kind)
    scores = scored(detector, new)
    assert scores.dtype == torch.float64
    assert torch.equal(scores, scored(fitted(spec, rounded(F, kind)), rounded(NEW, kind)))
    torch.testing.assert_close(scored(fitted(spec), new), scored(fitted(spec), rounded(NEW, kind)))


@pytest.mark.parametrize("spec", SPECS)
def test_a_head_in_half_precision_is_the_same_head_in_float32(spec: str) -> None:
    half = fitted(spec, of_type(F, torch.float16, head=True))
    full = fitted(spec, rounded(F, torch.float16, head=True))
    assert torch.equal(
        scored(half, rounded(NEW, torch.float16, head=True)), scored(full, of_type(NEW, torch.float16, head=True))
    )


@pytest.mark.parametrize("spec", SPECS)
def test_what_was_fitted_in_float64_scores_float32(spec: str) -> None:
    detector = fitted(spec, of_type(F, torch.float64, head=True))
    torch.testing.assert_close(scored(detector, NEW), scored(fitted(spec), NEW), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_scores_nan_and_the_others_what_they_do_alone(spec: str, value: float) -> None:
    h = NEW.h.clone()
    h[3, 2], h[17] = value, value
    detector = fitted(spec)
    scores = scored(detector, dataclasses.replace(NEW, h=h))
    assert scores.isnan().nonzero().flatten().tolist() == [3, 17]
    good = torch.arange(len(NEW)) != 3
    good[17] = False
    assert torch.equal(scores[good], scored(detector, NEW.rows(good)))
    assert scored(detector, dataclasses.replace(NEW, h=torch.full_like(h, value))).isnan().all()


@pytest.mark.parametrize("spec", SPECS)
def test_a_column_that_is_not_finite_counts_for_those_who_read_it(spec: str) -> None:
    detector, plain = fitted(spec), scored(fitted(spec), NEW)
    for name in NEW.aux:
        columns = {n: c.clone() for n, c in NEW.aux.items()}
        columns[name][5] = torch.nan
        scores = scored(detector, dataclasses.replace(NEW, aux=Columns.of(columns)))
        reads = name.rpartition(".")[0] in detector.columns
        assert scores.isnan().nonzero().flatten().tolist() == [5] * reads
        others = torch.arange(len(NEW)) != 5
        torch.testing.assert_close(scores[others], plain[others], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_training_features_that_are_not_finite_are_counted_and_refused(spec: str) -> None:
    h = F.h.clone()
    h[70, 2], h[71], h[199, 0] = torch.nan, -torch.inf, torch.inf
    poisoned = dataclasses.replace(F, h=h)
    if Detector(spec).needs.train or Detector(spec).needs.held_out:
        with pytest.raises(
            InputError, match=r"3 of 200 training features have NaN or infinity \(the first is row 70\); "
        ):
            fitted(spec, poisoned)
    else:
        assert torch.equal(scored(fitted(spec, poisoned), NEW), scored(fitted(spec), NEW))


@pytest.mark.parametrize("spec", SPECS)
def test_huge_features_have_a_score(spec: str) -> None:
    assert scored(fitted(spec), dataclasses.replace(NEW, h=NEW.h * 1e30)).isfinite().all()
    huge = dataclasses.replace(F, h=F.h * 1e30)
    assert scored(fitted(spec, huge), huge).isfinite().all()


@pytest.mark.parametrize("spec", ["cosine", "knn:k=5", "pnml", "mcm"])
def test_scores_of_directions_do_not_change_with_the_length(spec: str) -> None:
    detector = fitted(spec)
    huge = dataclasses.replace(NEW, h=NEW.h * 1e30)
    torch.testing.assert_close(scored(detector, huge), scored(detector, NEW), rtol=1e-4, atol=1e-5)


def test_logit_smoothing_of_huge_features_is_that_of_their_direction() -> None:
    f = fitted("ls+energy").steps[0](dataclasses.replace(NEW, h=NEW.h * 1e30))
    centres = torch.stack([F.h[F.labels == c].double().mean(0) for c in range(5)])
    cosine = torch.cosine_similarity(NEW.h.double(), centres[NEW.pred], dim=1)
    factor = f.logits / f.raw.logits
    expected = cosine.clamp(min=0)[:, None].expand_as(factor).float()
    torch.testing.assert_close(factor, expected, rtol=1e-4, atol=1e-5)


def test_a_score_in_float32_comes_out_in_float64_and_a_wrong_width_is_refused() -> None:
    detector = fitted("msp")
    detector.steps[-1].forward = lambda f: f.h.norm(dim=1)
    assert detector(NEW).dtype == torch.float64
    with pytest.raises(InputError, match=r"expected features of shape \(B, 12\), which the head reads, got \(40, 7\)"):
        detector(dataclasses.replace(NEW, h=NEW.h[:, :7]))
    with pytest.raises(InputError, match=r"expected features of shape \(B, 12\), which the head reads, got \(64, 7\)"):
        fitted("knn", dataclasses.replace(F, h=F.h[:, :7]))


@pytest.mark.parametrize("spec", [s for s in SPECS if Detector(s).needs.train])
def test_no_training_features_at_all_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="there are no training features, and detector "):
        Detector(spec).fit(FeatureSet.stream(lambda: iter([]), F.head))
