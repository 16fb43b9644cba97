from __future__ import annotations

import pytest
import torch

from _card import feature_methods
from nescio.core.detector import Detector
from nescio.core.feature_set import FeatureSet
from nescio.testing.made import made_up
from pretended_card import pretended_card


@pytest.mark.parametrize("spec", feature_methods())
def test_what_is_fitted_on_a_card_scores_there_and_alike(spec: str) -> None:
    f, test = made_up(n=400), made_up(n=50, seed=1).h
    weight, bias = f.head.weight, f.head.bias
    expected = Detector(spec).fit(FeatureSet(f.h, f.labels, head=(weight, bias)))(test)
    with pretended_card() as on_card:
        features = FeatureSet(on_card(f.h), on_card(f.labels), head=(on_card(weight), on_card(bias)))
        scores = Detector(spec).fit(features)(on_card(test))
        assert isinstance(scores, on_card)
        torch.testing.assert_close(scores.here, expected, rtol=1e-6, atol=1e-8)


def test_the_pretended_card_refuses_what_a_card_would() -> None:
    with pretended_card() as on_card:
        x = on_card(torch.ones(3))
        with pytest.raises(RuntimeError, match="same device"):
            _ = x + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        assert (x + torch.tensor(1.0)).cpu().numpy().tolist() == [2, 2, 2]
