"""Stages that end a detector with a score: float64, higher means more in-distribution."""
