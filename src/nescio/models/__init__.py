"""Classifiers: any PyTorch image classifier as backbone → feature map → pool → neck → h → head."""

from nescio.models.classifier import Classifier
from nescio.models.load import load_classifier
from nescio.models.probe import fit_probe

__all__ = ["Classifier", "fit_probe", "load_classifier"]
