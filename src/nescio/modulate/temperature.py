"""Temperature on the logits."""

from __future__ import annotations

from nescio.errors import check_positive
from nescio.features import Features
from nescio.stage import Stage


class Temperature(Stage, name="temperature", place="modulate"):
    """Divide the logits by a fixed temperature: ``f̂ = f / T``. ``logits (B, C) -> (B, C)``.

    Args:
        T: temperature, above 0; 1 changes nothing, larger makes the softmax flatter.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Liang et al., "Enhancing the
    Reliability of Out-of-distribution Image Detection in Neural Networks", ICLR 2018 (T = 1000).
    """

    def __init__(self, *, T: float) -> None:
        super().__init__()
        self.T = check_positive("T", T)

    def forward(self, f: Features) -> Features:
        """Divide a batch's logits."""
        return f.with_logits(f.logits / self.T)
