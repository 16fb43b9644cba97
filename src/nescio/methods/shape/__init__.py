"""Stages that change the penultimate features or the head."""
