"""Ensembles beside their formulas, their grammar, and what they hold out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from conftest import random_features, training
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.fitting import held_out

F, HELD, NEW = random_features(), random_features(n=90, seed=7), random_features(n=60, seed=8)
DATA = training(F).with_held_out(training(HELD))


def members(*specs: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the held-out and of new features by members fitted on all training features."""
    fitted = [Detector(s).fit(training(F)) for s in specs]
    return np.stack([d(HELD).numpy() for d in fitted]), np.stack([d(NEW).numpy() for d in fitted])


@pytest.mark.parametrize("name", ["mean", "max"])
def test_members_are_standardised_by_held_out_scores(name: str) -> None:
    held, new = members("energy", "fm+ls+msp", "knn:k=3,alpha=0.5")
    z = (new - held.mean(1, keepdims=True)) / held.std(1, keepdims=True)
    got = Detector(f"{name}(energy,fm+ls+msp,knn:k=3,alpha=0.5)").fit(DATA)(NEW)
    np.testing.assert_allclose(got, getattr(z, name)(axis=0), rtol=1e-6, atol=1e-9)


def test_fisher_adds_log_p_values() -> None:
    held, new = members("energy", "cosine")
    got = Detector("fisher(energy,cosine)").fit(DATA)
    p = [np.interp(s, np.sort(h), np.arange(1, 91) / 91) for h, s in zip(held, new, strict=True)]
    np.testing.assert_allclose(got(NEW), np.log(p).sum(0), rtol=1e-9)
    own = np.log([rankdata(h, method="max") / 91 for h in held]).sum(0)
    np.testing.assert_allclose(got(HELD), own, rtol=1e-6)


def test_without_calibration_images_a_fifth_of_the_training_images_is_kept_from_the_members() -> None:
    fit, held = held_out(training(F), 0.2)
    kept, rest = torch.cat([f.h for f in fit.chunks()]), torch.cat([f.h for f in held.chunks()])
    assert 20 < len(rest) < 60
    assert sorted(map(tuple, torch.cat([kept, rest]).tolist())) == sorted(map(tuple, F.h.tolist()))
    fit, held = held_out(training(F, chunk=7), 0.2)
    assert torch.equal(torch.cat([f.h for f in held.chunks()]), rest)
    member = Detector("mean(knn:k=1,energy)").fit(training(F)).stages[0].chains[0].stages[0]
    assert len(member.bank) == len(kept)


def test_members_see_what_stages_before_the_ensemble_produce_and_fit_on_raw_features() -> None:
    before = Detector("react:clip=0.5+mean(energy,fm+vra:high=0.9+ls+energy)").fit(DATA)
    inner = before.stages[-1].chains[1].stages
    assert float(inner[1].ceiling) == pytest.approx(np.quantile(F.h.numpy(), 0.9), rel=1e-6)
    torch.testing.assert_close(
        before.stages[-1].chains[0](before.pipeline(NEW)), Detector("react:clip=0.5+energy").fit(DATA)(NEW)
    )


def test_ensembles_nest_and_round_trip(tmp_path) -> None:
    spec = "fm:p=0.3+mean(energy,fisher(knn:k=3,alpha=0.5,ls+msp),react:clip=1e+3+odd)".replace("+odd", "+energy")
    detector = Detector(spec)
    assert repr(detector) == "fm:p=0.3+mean(energy,fisher(knn:k=3,alpha=0.5,ls+msp),react:clip=1000+energy)"
    assert repr(Detector(repr(detector))) == repr(detector)
    detector.fit(DATA).save(tmp_path / "d.safetensors")
    assert torch.equal(Detector.load(tmp_path / "d.safetensors")(NEW), detector(NEW))
    assert detector.settings()["mean"]["members"][1]["fisher"]["members"][0]["knn"]["k"] == 3


def test_calibration_images_suffice_where_no_member_is_fitted_and_their_lack_is_explained() -> None:
    only_held = FeatureSet(head=F.head).with_held_out(training(HELD))
    assert Detector("mean(energy,msp)").fit(only_held)(NEW).isfinite().all()
    assert Detector("temperature+msp").fit(only_held)(NEW).isfinite().all()
    with pytest.raises(InputError, match="no training features"):
        Detector("mean(energy,knn)").fit(only_held)
    few = random_features(n=5)
    with pytest.raises(InputError, match=r"none of class .*keeps a fifth .*--held-out"):
        Detector("mean(ls+energy,msp)").fit(training(few))


def test_presets_may_be_members_and_follow_an_input_stage() -> None:
    detector = Detector("mean( fmls , knn )", "densenet-bc-100-12")
    assert repr(detector) == "mean(fm+react:clip=1.6+ls+energy,knn)"
    assert repr(Detector("odin:T=1+fmls@cifar10-resnet18")) == "odin:T=1+fm+react:clip=1+ls+energy"
    assert repr(Detector("odin:T=1+dice+react", "densenet-bc-100-12")) == "odin:T=1+react:clip=1.6+dice+energy"
    assert repr(Detector("dice+react@imagenet-resnet50")) == "react:clip=1+dice:p=0.1+energy"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("mean(energy)", "two or more members"),
        ("mean(energy,odin+msp)", r"odin\+mean\(msp,…\)"),
        ("mean", r"mean\(energy,knn\)"),
        ("meen(energy,knn)", "did you mean 'mean'"),
        ("mean(energy,fm)", "no score stage"),
        ("mean(energy,knn", "a closing bracket is missing"),
        ("mean(energy,knn)+energy", "2 score stages"),
        ("fmls+energy", "unknown stage 'fmls'"),
        ("ls+mean(ls+energy,knn)", "follows 'ls'.*twice"),
        ("ls+mean(fm+energy,msp)", "follows 'ls'.*out of order"),
        ("odin+fisher(energy,mean(odin+msp,knn))", "needs its own pass"),
        ("mcdropout+fm+msp", "would discard"),
        ("mcdropout+mean(msp,react:clip=1+msp)", "would discard"),
        ("fmls@imagnet-resnet50", "did you mean 'fmls@imagenet-resnet50'"),
    ],
)
def test_mistakes_are_named(spec: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Detector(spec)
