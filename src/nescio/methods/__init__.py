"""Every method: stages of a detector, and ways to train."""

from nescio.methods.objective import Objective, View

__all__ = ["Objective", "View"]
