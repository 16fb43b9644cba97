"""Training a classifier: one loop for every objective."""

from nescio.training.hardware import Hardware, Interrupted
from nescio.training.recipe import Recipe, recipes
from nescio.training.training import Sets, Start, train

__all__ = ["Hardware", "Interrupted", "Recipe", "Sets", "Start", "recipes", "train"]
