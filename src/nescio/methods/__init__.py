"""Every method: stages of a detector, and ways to train.

Each stage is here under its class's name, each score as a function, too: ``from nescio.methods import FM, KNN, knn``.
They come from their files on first use.
"""

from __future__ import annotations

from typing import Any


def _public() -> dict[str, Any]:
    import nescio.core.detector  # noqa: F401 - it says what + makes of stages
    from nescio.core.arrays import FUNCTIONS
    from nescio.core.plugins import load_methods
    from nescio.core.stage import REGISTRY
    from nescio.methods.objective import OBJECTIVES, Objective, View

    load_methods()
    known = {kind.__name__: kind for kind in (Objective, View, *OBJECTIVES.values(), *REGISTRY.values())}
    return FUNCTIONS | known


def __getattr__(name: str) -> Any:
    if name.startswith("__") or (value := _public().get(name)) is None:
        raise AttributeError(f"module 'nescio.methods' has no attribute '{name}'")
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})
