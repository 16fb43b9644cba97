"""Thresholds with a guarantee or of least cost, probabilities, drift."""
