"""Classifiers: any PyTorch image classifier as backbone → feature map → pool → neck → h → head."""

from nescio.models.classifier import Classifier
from nescio.models.load import load_classifier

__all__ = ["Classifier", "load_classifier"]
