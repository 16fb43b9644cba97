"""What a number may be: said in an option's annotation, ``k: Annotated[int, AtLeast(1)]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from nescio.core.errors import check_at_least, check_positive, check_share


class Bound(Protocol):
    """What a number may be; as text, in words: ``above 0``."""

    def check(self, name: str, value: Any) -> object:
        """Refuse a value outside, with an ``InputError``."""

    @property
    def examples(self) -> Sequence[float]:
        """Some values inside."""


@dataclass(frozen=True)
class Share:
    """A share, quantile or probability: in [0, 1], or without one of the ends."""

    above_zero: bool = False
    below_one: bool = False
    examples: ClassVar[Sequence[float]] = (0.3, 0.8, 0.05)

    def check(self, name: str, value: float) -> None:
        """Refuse what is no share, with a hint where percent were meant."""
        check_share(name, value, above_zero=self.above_zero, below_one=self.below_one)

    def __str__(self) -> str:
        return f"a share in {'(' if self.above_zero else '['}0, 1{')' if self.below_one else ']'}"


@dataclass(frozen=True)
class Positive:
    """A finite number above 0."""

    examples: ClassVar[Sequence[float]] = (0.3, 0.7, 5.0)

    def check(self, name: str, value: float) -> None:
        """Refuse any other."""
        check_positive(name, value)

    def __str__(self) -> str:
        return "above 0"


@dataclass(frozen=True)
class AtLeast:
    """A finite number of ``least`` or more."""

    least: int

    def check(self, name: str, value: float) -> None:
        """Refuse any other."""
        check_at_least(name, value, self.least)

    def __str__(self) -> str:
        return f"{self.least} or more"

    @property
    def examples(self) -> Sequence[float]:
        """The least, and a little more."""
        return (self.least, self.least + 2, self.least + 4)
