"""The files that nescio writes for itself: tensors and JSON, or JSON alone, that say what they are and are read whole.

A file of tensors is a safetensors file whose metadata has one entry, ``nescio``: JSON. A file without tensors is that
JSON as text. Its entry ``format`` names the kind and the version (``nescio-detector/2``), its entry ``hash`` is over
everything else. Nothing that a file carries is ever run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nescio.core.errors import InputError
from nescio.core.files import HINT, whole
from nescio.core.reading import parse_json, plain, read_json

AnyTensor = Tensor | npt.NDArray[Any]
_ENTRY, _FORMAT, _HASH = "nescio", "format", "hash"
_TAKING_APART = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What it may raise to take apart contents that are not what was written."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: as the file says it.
        version: of what is written. Raised when an earlier version of nescio could not read it; older ones are read.
        called: what messages call it.
        hint: what to do about a file that cannot be read.
        unmarked: whether the first files did not say what they are.
        finite: whether every number in its JSON is finite: what is not is written as null, and refused when read.
    """

    name: str
    version: int
    called: str
    hint: str
    unmarked: bool = False
    finite: bool = True


@dataclass(frozen=True)
class Artifact:
    """What a file holds. Its hash was right, where it has one."""

    path: Path
    kind: Kind
    version: int
    meta: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin like this, without the prefix."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @contextmanager
    def taken_apart(self) -> Iterator[None]:
        """Whatever fails within, as an InputError that names the file and the way out."""
        try:
            yield
        except InputError as e:
            raise InputError(f"{self.path}: {e}") from None
        except _TAKING_APART as e:
            raise damaged(self.path, self.kind, f"{type(e).__name__}: {e}") from None


def as_text(kind: Kind, meta: Mapping[str, Any]) -> str:
    """A file without tensors, as JSON."""
    return _encoded(_described(kind, meta, {}), indent=1) + "\n"


def write(
    path: Path,
    kind: Kind,
    meta: Mapping[str, Any],
    tensors: Mapping[str, AnyTensor] | None = None,
    hint: str = HINT,
) -> None:
    """Write a file, whole; without ``tensors`` it is JSON.

    Raises:
        InputError: it cannot be written; it ends in ``hint``. What stood there before stays.
    """
    with whole(path, hint) as partial:
        put(partial, kind, meta, tensors)


def put(path: Path, kind: Kind, meta: Mapping[str, Any], tensors: Mapping[str, AnyTensor] | None = None) -> None:
    """Write to a path that ``whole`` gave: for files that take their places together."""
    if tensors is None:
        path.write_text(as_text(kind, meta), encoding="utf-8", newline="\n")
        return
    own = _of_its_own(tensors)
    save_file(own, path, {_ENTRY: _encoded(_described(kind, meta, own))})


def read(path: Path, kind: Kind) -> Artifact:
    """What ``write`` wrote; a name that ends in ``.json`` is one without tensors.

    Raises:
        InputError: the file is missing, damaged, of another kind, or of a later version.
    """
    try:
        if path.suffix == ".json":
            about, tensors = read_json(path, finite=kind.finite), dict[str, Tensor]()
        else:
            metadata, tensors = read_tensors(path)
            about = _about(metadata, finite=kind.finite)
        name, version = _format(about, kind)
        if name != kind.name:
            what = f": nescio wrote it as '{name}'" if name else ""
            raise InputError(f"{path} is not {kind.called}{what}; give another file")
        if version > kind.version:
            raise InputError(f"{path} was written by a later version of nescio (format {version}); update nescio")
        _check_hash(about, tensors, version, by_hand=path.suffix == ".json")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, ValueError) as e:
        raise e if isinstance(e, InputError) else damaged(path, kind, str(e)) from None
    meta = {key: value for key, value in about.items() if key not in (_FORMAT, _HASH)}
    return Artifact(path, kind, version, meta, tensors)


def kind_of(path: Path) -> str | None:
    """The name of the kind that a file of tensors says it is of; None where it is none of ours."""
    if not path.is_file():  # to open a named pipe would wait for ever
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return _format(_about(file.metadata() or {}, finite=False))[0]
    except (SafetensorError, OSError, ValueError):
        return None


def damaged(path: Path, kind: Kind, why: str) -> InputError:
    """For contents that are not what was written."""
    return InputError(f"{path} is damaged and cannot be read as {kind.called} ({why}); {kind.hint}")


def _described(kind: Kind, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    about = {_FORMAT: f"nescio-{kind.name}/{kind.version}", **(plain(meta) if kind.finite else meta)}
    return {**about, _HASH: seal(tensors, about)}


def _encoded(about: Mapping[str, Any], indent: int | None = None) -> str:
    # a file's name may hold what is no letter; as JSON escapes it, it comes back
    text = json.dumps(about, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _of_its_own(named: Mapping[str, AnyTensor]) -> dict[str, Tensor]:
    """In main memory, each in a place of its own: tied weights are one tensor with two names, a view part of one."""
    own: dict[str, Tensor] = {}
    storages = set()
    for name, value in named.items():
        t = value if isinstance(value, Tensor) else torch.from_numpy(np.require(value, requirements=["C", "W"]))
        t = t.detach().cpu().contiguous()
        storage = t.untyped_storage().data_ptr()
        if storage in storages or t.untyped_storage().nbytes() != t.numel() * t.element_size():
            t = t.clone(memory_format=torch.contiguous_format)
        storages.add(storage)
        own[name] = t
    return own


def _about(metadata: Mapping[str, str], *, finite: bool) -> Any:
    """The JSON of a file of tensors; the first detectors and samples had theirs entry by entry."""
    return parse_json(metadata[_ENTRY], finite=finite) if _ENTRY in metadata else dict(metadata)


def _format(about: Any, kind: Kind | None = None) -> tuple[str | None, int]:
    """The name of the kind, and the version.

    Raises:
        ValueError: it should say them, and does not.
    """
    if not isinstance(about, dict):
        raise ValueError("its format is missing")
    stated = about.get(_FORMAT)
    marked = re.fullmatch(r"nescio-([a-z]+)/([0-9]{1,9})", stated) if isinstance(stated, str) else None
    if marked:
        return marked[1], int(marked[2])
    if type(stated) is int and stated in (1, 2):  # as the first two versions of deployed files say it
        return "deployed", stated
    if _FORMAT not in about:
        return (kind.name, 1) if kind is not None and kind.unmarked else (None, 0)
    raise ValueError("its format is missing")


def _check_hash(about: dict[str, Any], tensors: Mapping[str, Tensor], version: int, *, by_hand: bool) -> None:
    """Files of the first version may have none, and JSON may be changed by hand, if its hash is then taken out.

    Raises:
        ValueError: the contents do not match it.
    """
    stored = about.get(_HASH)
    if stored is None and (version == 1 or by_hand):
        return
    rest = {key: value for key, value in about.items() if key != _HASH}
    without = {key: value for key, value in rest.items() if key != _FORMAT}  # the first runs' was over these
    if stored not in (seal(tensors, rest), seal({}, without)):
        mine = "; if you changed it yourself, delete its entry 'hash'" if by_hand else ""
        raise ValueError(f"its contents do not match its hash: it was changed after it was written{mine}")


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is no safetensors file, damaged, or no regular file.
    """
    if path.exists() and not path.is_file():  # to open a named pipe would wait for ever
        raise ValueError("it is not a regular file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, RuntimeError, TypeError, AttributeError, KeyError) as e:  # the rest: of odd dtypes
        raise ValueError(str(e)) from None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes, in whatever order they come."""
    digest = hashlib.blake2b(digest_size=16)
    for key, t in sorted(tensors.items()):
        digest.update(f"{key}{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def seal(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """One hash over tensors and the JSON that goes with them, however it is spaced and ordered.

    It shows damage, not malice: who writes a file can write its hash.
    """
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(f"{text}{hash_tensors(tensors)}".encode(), digest_size=16).hexdigest()
