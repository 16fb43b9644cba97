"""Whether two sets share images, by the bytes that hold them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nescio.core.errors import BadImage
from nescio.core.files import whole
from nescio.data.hashing import cache_root, hash_images
from nescio.data.source import Source

MOST_SHARED = 0.5
"""Share of a set's images that may turn out to be another's by accident; more is a mistake of the user's."""
Digests = npt.NDArray[np.bytes_]


def shared_images(one: Source, other: Source) -> list[int]:
    """Positions in ``one`` of the images that are in ``other``, too, whatever holds them and what they are called.

    Encoded images are compared by their bytes, others by their pixels; what was hashed before is not read again. An
    image that cannot be read is like no other.
    """
    mine, theirs = _remembered(one), _remembered(other)
    found: list[int] = np.flatnonzero((mine != b"") & np.isin(mine, theirs)).tolist()
    return found


def _remembered(source: Source) -> Digests:
    """A hash of each image ``(N,)``, kept in the cache for sets whose images are not files of their own."""
    path = cache_root() / "images" / f"{source.identity}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
        known: Digests = np.load(path)
        if known.shape == (len(source),) and known.dtype == np.dtype("S32"):
            return known
    found = np.array([digest.encode() for digest in hash_images(source)], dtype="S32")
    if not _is_of_files(source):  # whose hashes are remembered one by one
        with contextlib.suppress(OSError):  # a cache that cannot be written: then it is hashed again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial, partial.open("wb") as file:
                np.save(file, found)
    return found


def _is_of_files(source: Source) -> bool:
    try:
        return isinstance(source.read(0), Path)
    except (BadImage, OSError, IndexError):
        return False
