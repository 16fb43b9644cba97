"""Equations 1-10 of the SSOD paper, and the calibrator."""

from __future__ import annotations

import pytest
import torch

from nescio.calibration.posterior import ProxyCalibrator, binary_posterior, hard_factor, posterior
from nescio.core.errors import InputError


def test_posterior_is_equation_7() -> None:
    """A softmax over M + 1 classes is the softmax over M times the share of the M (6)."""
    logits = torch.randn(20, 6, dtype=torch.float64)
    whole = logits.softmax(1)
    p_id = logits[:, :5].exp().sum(1) / logits.exp().sum(1)
    torch.testing.assert_close(posterior(logits[:, :5].softmax(1), p_id), whole)
    torch.testing.assert_close(whole[:, 5], 1 - p_id)


def test_binary_posterior_is_dempster_and_shafer() -> None:
    """Equations 1-3 written out."""
    g = torch.randn(30, 4, dtype=torch.float64) * 2
    p = 1 / (1 + (-g).exp())
    rest = torch.stack([(1 - p[:, [j for j in range(4) if j != i]]).prod(1) for i in range(4)], dim=1)
    each, none = p * rest, (1 - p).prod(1, keepdim=True)
    Z = each.sum(1, keepdim=True) + none
    torch.testing.assert_close(binary_posterior(g), torch.cat([each, none], 1) / Z)


def test_hard_factor_accepts_at_the_threshold() -> None:
    factor = hard_factor(torch.tensor([0.1, 0.5, 0.9]), 0.5)
    assert factor.tolist() == [0, 1, 1]
    combined = posterior(torch.full((3, 2), 0.5), factor)
    assert combined[:, 2].tolist() == [1, 0, 0]


def test_posterior_refuses_scores() -> None:
    with pytest.raises(ValueError, match="a score is not a probability"):
        posterior(torch.full((2, 3), 1 / 3), torch.tensor([0.5, 4.0]))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        posterior(torch.full((2, 3), 1 / 3), torch.zeros(3))


def test_calibrator_finds_the_true_logistic() -> None:
    """Scores of two normals of equal spread: the posterior is logistic with a = 2m/s² at equal priors."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, generator=generator, dtype=torch.float64) * 3 + 7
    b = torch.randn(50_000, generator=generator, dtype=torch.float64) * 3 + 1
    for prior in (0.5, 0.9):
        fitted = ProxyCalibrator.fit(a, b, proxy="shifted", prior=prior)
        assert fitted.a == pytest.approx(6 / 9, rel=0.02)
        x = torch.linspace(-5, 12, 30, dtype=torch.float64)
        own, other = (torch.distributions.Normal(m, 3).log_prob(x).exp() for m in (7, 1))
        expected = prior * own / (prior * own + (1 - prior) * other)
        torch.testing.assert_close(fitted(x), expected, rtol=0, atol=0.01)
        assert (fitted.proxy, fitted.prior) == ("shifted", prior)


def test_calibrator_stays_finite_where_the_sets_do_not_overlap() -> None:
    fitted = ProxyCalibrator.fit(torch.linspace(5, 6, 50), torch.linspace(-1, 0, 40), proxy="far")
    low, high = fitted(torch.tensor([-1.0, 5.5])).tolist()
    assert 0 < low < 0.1
    assert 0.9 < high < 1


@pytest.mark.parametrize(
    ("ids", "oods", "prior", "message"),
    [
        ([1.0, 2.0], [3.0, 4.0], 0.5, "proxy 'p' scores as high as ID"),
        ([1.0, float("nan")], [0.0], 0.5, "finite"),
        ([], [0.0], 0.5, "finite scores"),
        ([1.0], [0.0], 1.0, r"prior=1 must be in \(0, 1\)"),
    ],
)
def test_calibrator_refuses(ids: list[float], oods: list[float], prior: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProxyCalibrator.fit(torch.tensor(ids), torch.tensor(oods), proxy="p", prior=prior)
