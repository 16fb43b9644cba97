"""WebDataset's shards by name: tar files in which members of one key are one sample, as ``a.jpg`` and ``a.cls``."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from nescio.core.errors import InputError
from nescio.data.formats.archive import TarSource
from nescio.data.formats.files import is_image_name
from nescio.data.formats.remote import local_path, remote_files
from nescio.data.hashing import combine
from nescio.data.labels import numbered
from nescio.data.registry import register
from nescio.data.source import Concatenated, Source
from nescio.data.storage import AnyFile

_LABEL = ".cls"
_MOST = 1 << 10
"""Bytes of a label, which is a number or a name."""


class Shard(TarSource):
    """One shard: its images, and their labels from ``KEY.cls``."""

    classes: list[str] | None = None

    def keeps(self, name: str) -> bool:
        """Images and labels."""
        return is_image_name(name) or name.endswith(_LABEL)

    @cached_property
    def written(self) -> list[str | None]:
        """The label of each image as it is written, None where there is none."""
        known = {_key(name): name for name in self.others}
        return [self._label(known.get(_key(member))) for member in self.members]

    def _label(self, member: str | None) -> str | None:
        if member is None:
            return None
        offset, size = self.others[member]
        try:
            return self.bytes_of(offset, min(size, _MOST)).decode().strip()
        except UnicodeDecodeError as e:
            raise InputError(f"{self.path}/{member} has no label: {e}") from None


class Shards(Concatenated):
    """Shards in order, as one set with the labels of all."""

    def __init__(self, shards: list[Shard]) -> None:
        super().__init__(shards)
        self.labels, self.classes = numbered([label for shard in shards for label in shard.written], "a shard")

    @cached_property
    def identity(self) -> str:
        """Of the shards' bytes, and the labels."""
        return combine(super().identity, self.labels.tobytes())


def _key(member: str) -> str:
    """What the members of one sample have in common: the path up to the first dot of the file's name."""
    folder, stroke, name = member.rpartition("/")
    return folder + stroke + name.partition(".")[0]


@register("webdataset:")
def open_shards(text: str) -> Source:
    """The images of shards: ``DIR/shard-{000..010}.tar``, several such names joined with ``::``, here or behind URLs.

    Shards of this machine are read in place; those behind a URL are copied to a temporary file first.

    Raises:
        InputError: the extra ``nescio[webdataset]`` is not installed, a shard is not there, or there are no images.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise InputError("webdataset: needs an extra: pip install 'nescio[webdataset]'") from None
    source = Shards([Shard(file) for name in expand_urls(text) for file in _files(name)])
    if not len(source):
        raise InputError(f"webdataset:{text} contains no images")
    return source


def _files(name: str) -> Sequence[AnyFile]:
    """The shard of this name, or those that a glob matches.

    Raises:
        InputError: there is none.
    """
    if "://" in name:
        here = local_path(name)
        return remote_files(name) if here is None else _files(here)
    found = sorted(Path(match) for match in glob.glob(str(Path(name).expanduser())))  # noqa: PTH207 - also from the root
    if not found:
        raise InputError(f"no such shard: {name}")
    return found
