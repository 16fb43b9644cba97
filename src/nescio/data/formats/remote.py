"""Images behind URLs: object stores, web servers, whatever fsspec reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nescio.core.errors import InputError
from nescio.data.formats.files import is_image_name, of_file, of_files, of_matches, open_local, suffix_of
from nescio.data.registry import register
from nescio.data.source import Source
from nescio.data.storage import Remote

_VERSIONS = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")
"""What the listings of stores call the size, content tag or time of a file; none has them all."""
_HERE = ("file://", "local://")


@register("://")
def open_remote(url: str) -> Source:
    """Open a file, a folder (a prefix) or a glob behind a URL, as ``open_source`` does here.

    Images and row groups of parquet files are fetched as they are read. A zip or tar file is copied once to a temporary
    file, since finding its members reads all of it anyway.

    Raises:
        InputError: the protocol is not known or its package not installed, the store does not answer, or there are no
            images.
    """
    import fsspec

    here = local_path(url)
    if here is not None:
        return open_local(here)
    try:
        system, path = fsspec.url_to_fs(url)
        if "*" in path:
            return of_matches(_files(system, system.glob(path, detail=True)), url)
        name = Remote(url).name
        if is_image_name(name) or suffix_of(name):
            return of_file(_remote(url, system.info(path)))
        # a folder below that cannot be listed must not be left out in silence
        strict = {"on_error": "raise"} if url.startswith(("http://", "https://")) else {}
        found = system.find(path, detail=True, **strict)
        return of_files(_files(system, found), system.unstrip_protocol(path))
    except InputError:
        raise
    except ImportError as e:
        raise InputError(f"{url} cannot be opened: {e}") from None
    except Exception as e:  # noqa: BLE001 - every store has errors of its own
        raise InputError(f"{url} cannot be opened ({type(e).__name__}: {e})") from None


def remote_files(url: str) -> list[Remote]:
    """The file behind a URL, or those that a glob there matches.

    Raises:
        InputError: as ``open_remote``; or there is none.
    """
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url)
        if "*" not in path:
            return [_remote(url, system.info(path))]
        found = _files(system, system.glob(path, detail=True))
    except Exception as e:  # noqa: BLE001 - every store has errors of its own
        raise InputError(f"{url} cannot be opened ({type(e).__name__}: {e})") from None
    if not found:
        raise InputError(f"no files match '{url}'")
    return found


def local_path(url: str) -> str | None:
    """The path on this machine that a ``file://`` URL names; None for any other."""
    import fsspec

    return str(fsspec.url_to_fs(url)[1]) if url.startswith(_HERE) else None


def _files(system: Any, found: Mapping[str, Mapping[str, Any]]) -> list[Remote]:
    files = {name: info for name, info in found.items() if info.get("type", "file") == "file"}
    return [_remote(system.unstrip_protocol(name), files[name]) for name in sorted(files)]


def _remote(url: str, info: Mapping[str, Any]) -> Remote:
    size = info.get("size")
    version = ",".join(f"{key}={info[key]}" for key in _VERSIONS if info.get(key) is not None)
    return Remote(url, version, size if isinstance(size, int) else None)
