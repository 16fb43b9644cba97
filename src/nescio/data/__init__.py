"""Images in: sources, decoding, transforms."""

from nescio.data.source import Source, open_source
from nescio.data.transform import Transform

__all__ = ["Source", "Transform", "open_source"]
