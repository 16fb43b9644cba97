"""Getting the data sets of a suite: archives with resumption and checksums, Hugging Face files, torchvision's sets."""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import logging
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

from nescio.core.errors import InputError
from nescio.core.files import whole, write_whole
from nescio.core.progress import progress_bar
from nescio.data.decode import decode
from nescio.data.formats.parquet import write_parquet
from nescio.data.source import open_source
from nescio.evaluation.suites.sets import SUFFIXES, DataSet

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TIMEOUT = 60


def fetch(data: DataSet, split: str, root: Path, *, progress: bool = True) -> Path:
    """Get a split of a data set to where a suite looks for it.

    Returns:
        its folder or file, ``NAME/SPLIT…`` below ``root``.

    Raises:
        InputError: no program may get it (the message says where a person can), the transfer fails, or what came is
            not what was announced. What has come of an archive stays, and the next call goes on from there.
    """
    part = data.splits[split]
    if not part.fetch:
        hint = f"get it from {data.address}" if data.address else "get it from its authors"
        raise InputError(
            f"{data.title} cannot be downloaded automatically: {hint} and put it at {root / data.name / split}"
        )
    folder = root / data.name
    staging = root / f".{data.name}-{split}.partial"  # where nobody looks for the data set
    kind, _, rest = part.fetch.partition(":")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if kind == "torchvision":
            return _from_torchvision(part.fetch, folder / f"{split}.parquet")
        if kind == "hf":
            return _from_hugging_face(rest, folder / split, staging)
        suffix = next(s for s in sorted(SUFFIXES, key=len, reverse=True) if part.fetch.lower().endswith(s))
        return _download(part.fetch, folder / f"{split}{suffix}", staging, part.sha256, progress=progress)
    except (OSError, http.client.HTTPException) as e:
        raise InputError(
            f"{data.title} could not be downloaded: {e}; run the same command again: it continues where it stopped"
        ) from None


def _from_torchvision(spec: str, path: Path) -> Path:
    """A torchvision set as one parquet file: the form that every other reader takes, too."""
    source = open_source(spec)
    path.parent.mkdir(exist_ok=True)
    with whole(path) as partial:
        write_parquet(partial, (decode(source.read(i)) for i in range(len(source))), source.labels, source.classes)
    return path


def _from_hugging_face(text: str, folder: Path, staging: Path) -> Path:
    """The parquet files of a repository that match a pattern; the hub's client resumes and checks them."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, pattern = text.partition(":")
    try:
        # asked first: without the hub its client would hand out whatever an interrupted call left
        there = HfApi().list_repo_files(repository, repo_type="dataset")
        came = snapshot_download(repository, repo_type="dataset", allow_patterns=pattern, local_dir=staging)
    except HfHubHTTPError as e:
        raise InputError(
            f"{repository} could not be downloaded: {str(e).splitlines()[0]}; if it asks for consent, give it on its "
            "page and log in with 'hf auth login'"
        ) from None
    wanted = [name for name in there if fnmatch.fnmatch(name, pattern)]
    if not wanted:
        raise InputError(f"the data set {repository} no longer has files {pattern}")
    missing = [name for name in wanted if not (Path(came) / name).is_file()]
    if missing:
        raise OSError(f"{missing[0]} of {repository} was not downloaded")
    together = staging / ".together"
    together.mkdir(exist_ok=True)
    for name in wanted:
        (Path(came) / name).replace(together / Path(name).name)
    folder.parent.mkdir(exist_ok=True)
    together.rename(folder)  # all of it at once: half a set is never found
    shutil.rmtree(staging)
    return folder


def _download(address: str, path: Path, partial: Path, sha256: str, *, progress: bool) -> Path:
    """An archive, whose checksum is checked, or written down where none is known."""
    joined = _transfer(address, partial, path.name, checked=bool(sha256), progress=progress)
    digest = _digest(partial)
    if sha256 and digest != sha256 and joined:  # of two archives, perhaps: the server did not say which it has
        partial.unlink()
        _transfer(address, partial, path.name, checked=True, progress=progress)
        digest = _digest(partial)
    if sha256 and digest != sha256:
        partial.unlink()
        raise InputError(f"{address} has the checksum {digest}, not {sha256}: it is not the expected archive")
    if not (tarfile.is_tarfile(partial) or zipfile.is_zipfile(partial)):
        partial.unlink()
        raise InputError(
            f"{address} is not an archive (perhaps a web page): download it with a browser and put it at {path}"
        )
    if not sha256:
        log.info("%s has the SHA-256 %s; there is no published one to compare it with", path.name, digest)
    path.parent.mkdir(exist_ok=True)
    write_whole(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n")
    partial.replace(path)
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transfer(address: str, partial: Path, name: str, *, checked: bool, progress: bool) -> bool:
    """Get a file, and tell whether it was joined to what an earlier call left.

    It goes on only where the server has the same file still, by its tag or date, or where a checksum will show it;
    else it begins anew.
    """
    done = partial.stat().st_size if partial.exists() else 0
    version = partial.with_name(partial.name + ".version")  # of the file on the server, so that no two are joined
    known = version.read_text(encoding="utf-8") if done and version.exists() else ""
    if not (known or checked):
        done = 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    if headers and known:
        headers["If-Range"] = known
    try:
        response = _opened(address, headers)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not headers:
            raise
        if e.headers.get("Content-Range") == f"bytes */{done}" and _version(e.headers) in ("", known):
            version.unlink(missing_ok=True)
            return True  # the part is the whole: nothing is left to ask for
        done, response = 0, _opened(address, {})
    if done and not _goes_on(response, done, known):
        done = 0
        if response.status == 206:  # with another part, or one of another file
            response.close()
            response = _opened(address, {})
    if not done:
        partial.unlink(missing_ok=True)  # before the new file's version stands beside it
    write_whole(version, _version(response.headers))
    with response:
        _append(response, partial, done, name, progress=progress)
    version.unlink(missing_ok=True)
    return done > 0


def _append(response: Any, partial: Path, done: int, name: str, *, progress: bool) -> None:
    """Write what comes behind the ``done`` bytes that are there."""
    announced = int(response.headers.get("Content-Length") or 0)
    with progress_bar(show=progress, of_bytes=True) as bar, partial.open("ab") as file:
        task = bar.add_task(name, total=(announced + done) or None, completed=done)
        while block := response.read(_BLOCK):
            file.write(block)
            bar.advance(task, len(block))
    if announced and partial.stat().st_size != announced + done:
        raise OSError(f"{response.url} ended after {partial.stat().st_size:,} of {announced + done:,} bytes")


def _opened(address: str, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - as below
    return urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310 - addresses come from the data file


def _goes_on(response: Any, done: int, known: str) -> bool:
    """Whether this is the rest of the file. Some servers send one of a newer file, whatever they were asked."""
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
    return response.status == 206 and begins and known in ("", _version(response.headers))


def _version(headers: Message) -> str:
    """What tells the files of a server apart; nothing where it does not say. A weak tag names no bytes."""
    tag = headers.get("ETag") or "W/"
    return str(tag if not tag.startswith("W/") else headers.get("Last-Modified") or "")
