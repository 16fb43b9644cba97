"""Images in: sources, decoding, transforms."""

from nescio.data.sources import Source, open_source
from nescio.data.transforms import Transform

__all__ = ["Source", "Transform", "open_source"]
