"""Averaging over dropout masks."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from nescio.core.bounds import AtLeast, Share
from nescio.core.errors import InputError
from nescio.core.features import Columns, Features
from nescio.core.needs import Needs
from nescio.core.stage import Chain, InputStage, Network

_FLOOR = 1e-300
"""Keeps the logarithm of a probability finite."""


class MCDropout(InputStage, name="mcdropout"):
    """Average the softmax over networks thinned by dropout (Monte Carlo dropout).

    ``p = mean_s softmax(f_s(x))``, ``log p`` takes the place of the logits: ``mcdropout+msp`` is the largest mean
    probability, ``mcdropout+entropy`` the predictive entropy (the energy of probabilities is always 0). The s-th mask
    is the same for every image, so that scores do not depend on the batch. Features and probes are means over the
    masks; a stage that changes features would discard the mean softmax, so it is refused.
    Images ``(B, 3, H, W) -> log p (B, C)``; ``n`` forward passes per image.

    Args:
        n: number of masks, 1 or more. 30 is common.
        p: rate of one more dropout, on the penultimate features, in [0, 1): for networks that have none.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
    ICML 2016. They draw a new mask per image and sample.
    """

    needs = Needs(head=True, rerun="options")

    replaces_logits = True

    def __init__(
        self, *, n: Annotated[int, AtLeast(1)] = 30, p: Annotated[float, Share(below_one=True)] | None = None
    ) -> None:
        super().__init__()
        self.n, self.p = n, p

    def prepare(self, body: nn.Module) -> nn.Module:
        """Exchange the dropouts for some that work in evaluation mode."""
        dropouts = [(n, m) for n, m in body.named_modules() if isinstance(m, _DropoutNd) and m.p > 0]
        if not dropouts and not self.p:
            raise InputError(
                "the network has no dropout, which 'mcdropout' needs; give a rate for dropout on the penultimate "
                "features (mcdropout:p=0.5), or drop it for this model"
            )
        for name, dropout in dropouts:
            owner, _, attribute = name.rpartition(".")
            setattr(body.get_submodule(owner), attribute, _Thinned(dropout))
        return body

    def forward(self, f: Features) -> Features:
        """Read the mean log-probabilities."""
        return f.with_logits(f.probed(self.name)[0].to(f.h.dtype))

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Mean features, prediction of the mean softmax, and its logarithm as a column."""
        total = mean_h = torch.zeros((), device=x.device)
        columns: dict[str, Tensor] = {}
        thinned = isinstance(network, nn.Module) and any(isinstance(m, _Thinned) for m in network.modules())
        with torch.random.fork_rng():
            for sample in range(self.n):
                torch.manual_seed(sample)
                if thinned or sample == 0:  # without a dropout inside, every sample would run the same network
                    f = network(x)
                h = f.h if self.p is None else _thin(f.h, self.p, f.h.shape[1:])
                total = total + f.head.linear(h).to(torch.float64).softmax(dim=1) / self.n
                mean_h = mean_h + h / self.n
                columns = {name: columns.get(name, 0) + column / self.n for name, column in f.aux.items()}
        log_p = total.clamp(min=_FLOOR).log()
        return Features(mean_h, f.head, total.argmax(dim=1), aux=Columns.of({**columns, f"{self.name}.0": log_p}))


class _Thinned(nn.Module):
    draws = True
    """Its masks are PyTorch's: no other engine draws the same."""

    def __init__(self, dropout: _DropoutNd) -> None:
        super().__init__()
        self.p = dropout.p
        self.whole_maps = not isinstance(dropout, nn.Dropout | nn.AlphaDropout)

    def forward(self, x: Tensor) -> Tensor:
        return _thin(x, self.p, (x.shape[1], *[1] * (x.ndim - 2)) if self.whole_maps else x.shape[1:])


def _thin(x: Tensor, p: float, shape: tuple[int, ...]) -> Tensor:
    """Dropout with one mask of ``shape`` for the whole batch, drawn from the global generator."""
    return x * (torch.rand(shape) >= p).to(x.device) / (1 - p)  # drawn on the CPU: the same on every device
