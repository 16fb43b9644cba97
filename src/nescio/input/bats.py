"""Truncated batch norms."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nescio.errors import InputError, check_positive
from nescio.features import Features
from nescio.stage import Chain, InputStage, Network


class BATS(InputStage, name="bats"):
    """Truncate what the network's batch norms put out to the bulk of its distribution in training.

    ``min(max(BN(z), β - λ |γ|), β + λ |γ|)`` per channel: by construction β and |γ| are mean and standard deviation of
    the output over the training images. Images ``(B, 3, H, W) -> h (B, L)``. Training images go through the same
    network, so that other stages are fitted on truncated features.

    Args:
        lam: λ, in standard deviations, above 0. 3.25 is the authors' for CIFAR, 1.05 for a ViT on ImageNet.
        last: how many batch norms are truncated, counted from the last; 0 for all of them.

    Source: Zhu et al., "Boosting Out-of-distribution Detection with Typical Features", NeurIPS 2022. Their public code
    truncates the penultimate features instead: the stage ``typical``.
    """

    reads = "options"

    def __init__(self, *, lam: float = 3.25, last: int = 0) -> None:
        super().__init__()
        self.lam = check_positive("lam", lam)
        if last < 0:
            raise InputError(f"last={last} must be 0 (all batch norms) or more")
        self.last = last

    def prepare(self, body: nn.Module) -> nn.Module:
        """Exchange the batch norms."""
        norms = [(n, m) for n, m in body.named_modules() if isinstance(m, _BatchNorm) and m.affine]
        if not norms:
            raise InputError("the network has no batch norms that 'bats' could truncate; drop it for this model")
        for name, norm in norms[-self.last :]:
            owner, _, attribute = name.rpartition(".")
            setattr(body.get_submodule(owner), attribute, _Truncated(norm, self.lam))
        return body

    def forward(self, f: Features) -> Features:
        """Change nothing: the pass has done it."""
        return f

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features from the truncated network."""
        del chain
        return network(x)


class _Truncated(nn.Module):
    """A batch norm in evaluation mode, then the truncation, then what timm's batch norms do after (an activation)."""

    low: Tensor
    high: Tensor

    def __init__(self, norm: _BatchNorm, lam: float) -> None:
        super().__init__()
        plain = nn.BatchNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.BatchNorm2d
        self.norm = plain(norm.num_features, eps=norm.eps).eval()
        self.norm.load_state_dict(norm.state_dict())
        self.norm.to(norm.weight.device)
        shape = (1, -1) if plain is nn.BatchNorm1d else (1, -1, 1, 1)
        spread = lam * norm.weight.detach().abs()
        self.register_buffer("low", (norm.bias.detach() - spread).view(shape))
        self.register_buffer("high", (norm.bias.detach() + spread).view(shape))
        self.after = nn.Sequential(*[getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.norm(x).clamp(self.low, self.high))
        return out
