"""Images in: sources, decoding, transforms."""

from nescio.data.preprocess import Preprocess, as_transform
from nescio.data.registry import register
from nescio.data.source import Source, as_source, open_source
from nescio.data.transform import Transform

__all__ = ["Preprocess", "Source", "Transform", "as_source", "as_transform", "open_source", "register"]
