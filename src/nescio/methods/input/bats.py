"""Truncated batch norms."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nescio.core.bounds import AtLeast, Positive
from nescio.core.errors import InputError
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Chain, InputStage, Network


class BATS(InputStage, name="bats"):
    """Truncate the outputs of the network's batch norms to the bulk of their training distribution.

    ``min(max(BN(z), β - λ |γ|), β + λ |γ|)`` per channel: by construction β and |γ| are mean and standard deviation of
    the output over the training images. Images ``(B, 3, H, W) -> h (B, L)``. Training images go through the same
    network, so that other stages are fitted on truncated features.

    Args:
        lam: λ, in standard deviations, above 0. 3.25 is the authors' for CIFAR, 1.05 for a ViT on ImageNet.
        last: how many batch norms are truncated, counted from the last; 0 for all of them.

    Source: Zhu et al., "Boosting Out-of-distribution Detection with Typical Features", NeurIPS 2022. Their public code
    truncates the penultimate features instead: the stage ``typical``.
    """

    needs = Needs(features=False, rerun="options")

    def __init__(self, *, lam: Annotated[float, Positive] = 3.25, last: Annotated[int, AtLeast(0)] = 0) -> None:
        super().__init__()
        self.lam, self.last = lam, last

    def prepare(self, body: nn.Module) -> nn.Module:
        """Exchange the batch norms."""
        norms = [
            (name, m)
            for name, m in body.named_modules()
            if isinstance(m, _BatchNorm) and m.affine and m.running_mean is not None
        ]
        if not norms:
            raise InputError("the network has no batch norms, which 'bats' truncates; drop it for this model")
        for name, norm in norms[-self.last :]:
            owner, _, attribute = name.rpartition(".")
            setattr(body.get_submodule(owner), attribute, _Truncated(norm, self.lam))
        return body

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features from the truncated network."""
        return network(x)


class _Truncated(nn.Module):
    """A batch norm in evaluation mode, then the truncation, then what timm's batch norms do after (an activation)."""

    low: Tensor
    high: Tensor
    traced_whole = True
    """Its shapes are none that tracing could follow."""

    def __init__(self, norm: _BatchNorm, lam: float) -> None:
        super().__init__()
        plain = next((kind for kind in (nn.BatchNorm1d, nn.BatchNorm3d) if isinstance(norm, kind)), nn.BatchNorm2d)
        self.norm = plain(norm.num_features, eps=norm.eps, device=norm.weight.device).eval()
        own = norm.state_dict()
        self.norm.load_state_dict({name: own[name] for name in self.norm.state_dict() if name in own}, strict=False)
        spread = lam * norm.weight.detach().abs()
        self.register_buffer("low", norm.bias.detach() - spread)
        self.register_buffer("high", norm.bias.detach() + spread)
        self.after = nn.Sequential(*[getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)])

    def forward(self, x: Tensor) -> Tensor:
        low, high = (limit.view(1, -1, *[1] * (x.ndim - 2)) for limit in (self.low, self.high))
        out: Tensor = self.after(self.norm(x).clamp(low, high))
        return out
