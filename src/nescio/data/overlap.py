"""Whether two sets share images, by the bytes that hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from nescio.data.hashing import hash_files
from nescio.data.sources import Source
from nescio.errors import BadImage

_GROUP = 1024


def shared_images(one: Source, other: Source) -> list[int]:
    """Positions in ``one`` of the images that are in ``other``, too, whatever holds them and what they are called.

    Encoded images are compared by their bytes (files that were hashed before are not read again), others by their
    pixels. An image that cannot be read is like no other.
    """
    mine = list(_digests(one))
    theirs = {d for d in _digests(other) if d}
    return [i for i, digest in enumerate(mine) if digest in theirs]


def _digests(source: Source) -> Iterator[str]:
    for start in range(0, len(source), _GROUP):
        paths: dict[int, Path] = {}
        found = [""] * min(_GROUP, len(source) - start)
        for i in range(len(found)):
            try:
                raw = source.read(start + i)
            except (BadImage, OSError):
                continue
            if isinstance(raw, Path):
                paths[i] = raw
            else:
                data = raw if isinstance(raw, bytes) else f"{raw.mode}{raw.size}".encode() + raw.tobytes()
                found[i] = hashlib.blake2b(data, digest_size=16).hexdigest()
        for i, digest in zip(paths, hash_files(list(paths.values())), strict=True):
            found[i] = digest if paths[i].is_file() else ""
        yield from found
