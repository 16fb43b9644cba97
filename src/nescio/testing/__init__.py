"""What every stage promises, as a test: ``nescio.testing.check_stage(MyScore)`` for one of your own."""

from __future__ import annotations

from nescio.core.features import Features
from nescio.core.stage import Stage
from nescio.testing.made import cases, example, fitted, made_up, scored
from nescio.testing.promises import ALWAYS, ONCE, Check

__all__ = ["ALWAYS", "ONCE", "Check", "cases", "check_stage", "example", "fitted", "made_up", "scored"]


def check_stage(stage: type[Stage], features: Features | None = None, new: Features | None = None) -> None:
    """Try a registered stage on features: fitted, scored, saved and loaded, in any batch, type and order.

    Args:
        stage: its class.
        features: labelled features to fit on, for a stage that reads columns of a network's own heads; without, they
            are made up, several kinds of them.
        new: features to score, given along with these.

    Raises:
        AssertionError: it breaks a promise; the message says which.
    """
    own = features is not None and new is not None
    for case in [features] if features is not None and own else cases(stage):
        for check in ALWAYS:
            check(stage, case, case)
    fit, score = (features, new) if own else (made_up(stage), made_up(stage, seed=5))
    for check in ONCE:
        check(stage, fit, score)  # type: ignore[arg-type]
