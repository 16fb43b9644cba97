from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nescio.core import numerics
from nescio.core.quantiles import count, quantile, quantiles

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS), st.floats(0, 1), st.integers(1, 7))
def test_quantile_equals_numpy_for_any_chunking(values: np.ndarray, q: float, chunk: int) -> None:
    x = torch.from_numpy(values)
    got, top = quantiles(lambda: x.split(chunk), [q, 1.0])
    assert top == values.max()
    assert got == pytest.approx(float(np.quantile(values.astype(np.float64), q)), rel=1e-6, abs=1e-30)


def test_quantile_of_many_values_with_ties_and_both_signs() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).relu() - 0.1
    for q in (0.0, 0.3, 0.9, 0.98, 1.0):
        (got,) = quantiles(lambda: x.view(100, 500).split(7), [q])
        assert got == pytest.approx(float(np.quantile(x.numpy(), q)), rel=1e-6)


@pytest.mark.parametrize("halves", [0, 3, 9, 20])
def test_quantiles_of_float16_values_and_others(halves: int) -> None:
    x = torch.randn(20, 700, generator=torch.Generator().manual_seed(0))
    x[:halves] = x[:halves].half().float()
    x[0, :5] = torch.tensor([-0.0, 0.0, -6e-8, 65504.0, 1.0]).half().float()
    assert (count(x).of_float16 is None) == (halves < 20)
    shares = [0.0, 0.013, 0.5, 0.98, 1.0]
    expected = np.quantile(x.double().numpy(), shares)
    assert quantiles(lambda: x, shares) == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("values", [torch.rand(300, 2048), torch.rand(300, 2048).mul(3).round(), torch.ones(1 << 19)])
def test_quantile_of_many_values_at_once(values: torch.Tensor) -> None:
    for share in (0.0, 0.1, 0.5, 0.999, 1.0):
        assert float(quantile(values, share)) == pytest.approx(float(np.quantile(values.numpy(), share)), rel=1e-6)


def test_quantile_refuses_nothing_and_nan() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantiles(list, [0.5])
    with pytest.raises(ValueError, match="not finite"):
        quantiles(lambda: [torch.tensor([1.0, float("nan")])], [0.5])


def test_class_means_stream_and_count() -> None:
    h, y = torch.randn(90, 4), torch.arange(90) % 3
    means, counts = numerics.class_means(zip(h.split(17), y.split(17), strict=True), 4)
    assert counts.tolist() == [30, 30, 30, 0]
    for c in range(3):
        torch.testing.assert_close(means[c], h[y == c].double().mean(0))
    assert means[3].eq(0).all()


def test_cosine_by_hand_and_of_zero() -> None:
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])
    b = torch.tensor([[1.0, 1.0], [3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(numerics.cosine(a, b), torch.tensor([2**-0.5, 1.0, 0.0, -1.0]))
