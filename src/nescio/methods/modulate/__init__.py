"""Stages that change the logits."""
