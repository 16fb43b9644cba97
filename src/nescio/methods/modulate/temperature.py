"""Temperature on the logits."""

from __future__ import annotations

import logging
import math
from typing import Annotated

import torch
from torch import Tensor

from nescio.core.bounds import Positive
from nescio.core.feature_set import BLOCK, FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import labelled, subsample
from nescio.core.needs import Needs
from nescio.core.stage import Modulate

log = logging.getLogger(__name__)

_ENOUGH = 50_000
_STEPS = 24
"""Halvings of the range of log T: to a part in a million."""
_FARTHEST = 6.9
"""Of log T: temperatures from 0.001 to 1,000."""


class Temperature(Modulate, name="temperature"):
    """Divide the logits by a temperature: ``f̂ = f / T``. ``logits (B, C) -> (B, C)``.

    Args:
        T: temperature, above 0; 1 changes nothing, larger makes the softmax flatter. By default, the T with the least
            negative log-likelihood of the labels on ``--held-out`` images, or on the training images where there are
            none: on these it is too low, since the network was trained on them. At most about 50,000 count.
            It is the temperature of the network's own logits, whatever stages come before this one.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Liang et al., "Enhancing the
    Reliability of Out-of-distribution Image Detection in Neural Networks", ICLR 2018 (T = 1000).
    """

    temperature: Tensor

    def __init__(self, *, T: Annotated[float, Positive] | None = None) -> None:
        super().__init__()
        self.T = T

    @property
    def needs(self) -> Needs:
        """By its options."""
        return Needs(features=False, logits=True, held_out=self.T is None, labels=self.T is None)

    def fit(self, data: FeatureSet) -> None:
        """Take T as given, or find it by bisection: the likelihood has one maximum in 1/T."""
        temperature = self.T
        if temperature is None:
            held = data if data.held_out is None else data.held_out
            n = sum(len(f) for f in held.chunks())
            some = FeatureSet.stream(lambda: subsample(held, min(1, _ENOUGH / n)), data.head)
            pairs = labelled(some.map(lambda f: f.with_h(f.logits)), self.name)
            temperature = _most_likely(*(torch.cat(part) for part in zip(*pairs, strict=True)))
            if abs(math.log(temperature)) > _FARTHEST:
                log.warning(
                    "%r: the best temperature is not finite (are all of these images classified correctly?), so it "
                    "stays 1; give images that the network was not trained on, held_out= (--held-out), or T",
                    self,
                )
                temperature = 1.0
            log.info("%r: T = %.4g", self, temperature)
        self.temperature = torch.tensor(temperature, device=data.device)

    def forward(self, f: Features) -> Features:
        """Divide a batch's logits."""
        return f.with_logits(f.logits / self.temperature.to(f.logits.dtype))


def _most_likely(logits: Tensor, labels: Tensor) -> float:
    few = torch.split(logits, max(1, BLOCK // logits.shape[1]))  # in the caches from one operation to the next
    true = logits.gather(1, labels[:, None])[:, 0].to(torch.float64).mean()
    low, high = -7.0, 7.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        expected = torch.cat([_expected(z.to(torch.float64), math.exp(middle)) for z in few]).mean()
        low, high = (middle, high) if expected > true else (low, middle)  # too confident: T must rise
    return math.exp((low + high) / 2)


def _expected(logits: Tensor, temperature: float) -> Tensor:
    """Mean logit under the softmax at a temperature ``(B,)``."""
    return ((logits / temperature).softmax(dim=1) * logits).sum(dim=1)
