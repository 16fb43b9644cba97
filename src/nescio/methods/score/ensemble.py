"""Several detectors as one: their scores on a common scale, combined."""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nescio.core import numerics
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import held_out
from nescio.core.joint_fit import fit_chains
from nescio.core.needs import Needs
from nescio.core.stage import Chain, Score, Stage

HELD_OUT = 0.2
"""Share of the training images that puts the members on a common scale, where no others are given."""


class Ensemble(Score):
    """Members are whole detectors without an input stage; one before the ensemble serves all of them.

    They are fitted on one part of the data, and their scale is taken from ID features that none of them was fitted on:
    those given for calibration, or a random share of the training images. (Members that themselves take a scale from
    given images, an ensemble or ``gram``, share these with the ensemble around them.) In Python, members are given as
    detectors are: ``Mean(FM() + LS() + Energy(), "knn:k=50")``.
    """

    takes_members: ClassVar[bool] = True

    def __init__(self, *members: Chain | Stage | str) -> None:
        super().__init__()
        chains = [m if type(m) is Chain else _whole(m) for m in members]
        if len(chains) < 2:
            raise InputError(f"{self.name}({', '.join(map(repr, chains))}) needs two or more members")
        for member in chains:
            if member.steps[0].place == "input":
                own, rest = member.steps[0], "+".join(map(repr, member.steps[1:]))
                raise InputError(
                    f"'{member!r}' in an ensemble needs its own pass; put the input stage before the ensemble, for all "
                    f"members: {own!r}+{self.name}({rest},…)"
                )
        self.members = nn.ModuleList(chains)

    @property
    def chains(self) -> list[Chain]:
        """The members, typed."""
        return [m for m in self.members if isinstance(m, Chain)]

    def __repr__(self) -> str:
        return f"{self.name}({','.join(map(repr, self.chains))})"

    def learned(self) -> dict[str, Any]:
        """The members' settings and what they learnt."""
        return {"members": [chain.settings() for chain in self.chains]}

    @property
    def needs(self) -> Needs:
        """What some member needs, and held-out features."""
        return functools.reduce(operator.or_, (chain.needs for chain in self.chains), Needs(held_out=True))

    def unexportable(self) -> str | None:
        """What holds for the first member that cannot be exported."""
        return next((f"has a member that {why}" for m in self.chains if (why := m.unexportable())), None)

    def fit(self, data: FeatureSet) -> None:
        """Fit the members, then score the held-out features with them."""
        fit, held = held_out(data, HELD_OUT)
        try:
            fit_chains(self.chains, fit)
        except InputError as e:
            if data.held_out is not None:
                raise
            raise InputError(
                f"{e} ({self.name}(…) keeps a fifth of the training images apart; give other images instead: held_out= "
                "(--held-out))"
            ) from None
        self.scale(torch.cat([self.scores(f) for f in held.chunks()]))

    def scores(self, f: Features) -> Tensor:
        """The members' scores ``(B, members)``."""
        return torch.stack([chain(f) for chain in self.chains], dim=1)

    @abstractmethod
    def scale(self, scores: Tensor) -> None:
        """Learn the common scale from held-out scores ``(N, members)``."""


def _whole(member: Chain | Stage | str) -> Chain:
    detector = Stage.join([member])
    detector.check_complete()
    return Chain(detector.steps)


class _Standardised(Ensemble):
    centre: Tensor
    spread: Tensor

    def scale(self, scores: Tensor) -> None:
        """Learn mean and standard deviation of each member's held-out scores; a constant one counts as it is."""
        self.centre = scores.mean(dim=0)
        spread = scores.std(dim=0, correction=0)
        self.spread = torch.where(spread > 0, spread, 1)

    def standardised(self, f: Features) -> Tensor:
        """The members' scores on the common scale ``(B, members)``."""
        return (self.scores(f) - self.centre) / self.spread


class Mean(_Standardised, name="mean"):
    """Mean of the members' scores, each standardised by held-out ID scores. ``h (B, L) -> score (B,)``.

    ``mean(fm+ls+energy,knn:k=50)``. Members are fitted on training features; mean and standard deviation come from
    ``--held-out`` images, or from a fifth of the training images, which no member is then fitted on.

    Source: Dadalto et al., "Combine and Conquer: A Meta-Analysis on Data Shift
    and Out-of-Distribution Detection", 2024.
    """

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return self.standardised(f).mean(dim=1)


class Max(_Standardised, name="max"):
    """The largest of the members' scores, each standardised by held-out ID scores. ``h (B, L) -> score (B,)``.

    One member with a high score is enough. The scale is that of ``mean``.

    Source: Dadalto et al., "Combine and Conquer: A Meta-Analysis on Data Shift and Out-of-Distribution Detection",
    2024, among its combination rules.
    """

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return self.standardised(f).amax(dim=1)


class Fisher(Ensemble, name="fisher"):
    """Fisher's combination of the members' p-values: ``Σ_j log p_j``. ``h (B, L) -> score (B,)``.

    ``p_j`` is the share of held-out ID images that member j finds as strange: ``i / (1 + N)`` at the i-th lowest of
    their N scores, linear in between, and constant outside: below the lowest all images look alike to a member, so many
    held-out images are of use.

    Source: Haroush et al., "A Statistical Framework for Efficient Out of Distribution Detection in Deep Neural
    Networks", ICLR 2022. Without Brown's correction for correlated members, which rescales all scores alike.
    """

    reference: Tensor

    def scale(self, scores: Tensor) -> None:
        """Keep each member's held-out scores in order ``(members, N)``."""
        if len(scores) < 2:
            raise InputError(f"'{self!r}' needs two or more held-out ID images; give held_out= (--held-out)")
        self.reference = scores.T.sort(dim=1).values.contiguous()

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        scores = self.scores(f).T.contiguous()
        n = self.reference.shape[1]
        above = numerics.at_most(self.reference, scores).clamp(1, n - 1)
        low, high = self.reference.gather(1, above - 1), self.reference.gather(1, above)
        part = torch.where(high > low, (scores - low) / torch.where(high > low, high - low, 1), 1).clamp(0, 1)
        return ((above + part) / (1 + n)).log().sum(dim=0)
