"""Detectors on the Hugging Face Hub: ``hf:user/name``, or ``hf:user/name@revision``.

A repository holds one detector, ``detector.nescio``, and a model card made from it. What is downloaded is read like any
other file: nothing in it is run. Tokens, private repositories and the cache are huggingface_hub's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import nescio
from nescio.core.artifact import kind_of
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.deploy.card import card_of
from nescio.deploy.file import describe

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf:"
FILE = "detector.nescio"
CARD = "README.md"


@dataclass(frozen=True)
class Repository:
    """A repository on the hub.

    Attributes:
        name: ``user/name``.
        revision: a branch, a tag or a commit; None for the main branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``hf:user/name`` or ``hf:user/name@revision``. Raises InputError where it is neither."""
        found = re.fullmatch(rf"{PREFIX}(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", text)
        if found is None:
            raise InputError(f"'{text}' does not name a repository; write hf:USER/NAME or hf:USER/NAME@REVISION")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_on_hub(path: str | Path) -> bool:
    """Whether this names a repository on the hub rather than a file."""
    return str(path).startswith(PREFIX)


def fetched(text: str | Path) -> Path:
    """Download the detector of ``hf:user/name[@revision]``, unless the hub's cache has it.

    Raises:
        InputError: there is no such repository or revision, it holds no detector, or the hub cannot be reached.
    """
    repository = Repository.parse(str(text))
    with _asking(repository) as hub:
        return Path(hub.hf_hub_download(repository.name, FILE, revision=repository.revision))


def push(
    path: str | Path,
    to: str,
    *,
    private: bool | None = None,
    card: bool = True,
    license: str | None = None,  # noqa: A002 - the hub's word
    message: str | None = None,
) -> str:
    """Upload a file that ``nescio fit`` or ``Detector.save`` wrote, with a model card, in one commit.

    Args:
        path: the file. It is read and checked first.
        to: ``hf:user/name``, or with ``@branch``. The repository and the branch are made if needed.
        private: of a repository that is made: whether others may not see it. The hub's default for you if None.
        card: write the card, in place of the repository's README. Without it, the README stays as it is.
        license: of what is uploaded, as the hub abbreviates it (``apache-2.0``); goes onto the card.
        message: of the commit.

    Returns:
        the commit's address.

    Raises:
        InputError: the file is damaged or none of these, ``to`` names no repository, or the hub refuses or cannot be
            reached.
    """
    from huggingface_hub import CommitOperationAdd

    repository, path = Repository.parse(to), Path(path)
    files = {FILE: CommitOperationAdd(FILE, path)} if _checked(path) else {}
    if card:
        files[CARD] = CommitOperationAdd(CARD, card_of(path, str(repository), license).encode())
    with _asking(repository) as hub:
        hub.create_repo(repository.name, private=private, exist_ok=True)
        if repository.revision:
            hub.create_branch(repository.name, branch=repository.revision, exist_ok=True)
        commit = hub.create_commit(
            repository.name,
            list(files.values()),
            commit_message=message or f"Upload {path.name} with nescio {nescio.__version__}",
            revision=repository.revision,
        )
    return str(commit.commit_url)


def _checked(path: Path) -> bool:
    """Read the file as its users will. Raises InputError where that fails."""
    return bool(Detector.load(path) if kind_of(path) == "detector" else describe(path))


@contextmanager
def _asking(repository: Repository) -> Iterator[HfApi]:
    """The hub; its refusals become InputErrors that say what to do."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as e

    try:
        yield HfApi(library_name="nescio", library_version=nescio.__version__)
    except e.GatedRepoError:
        raise InputError(f"{repository} is gated; ask for access on its page, then log in (hf auth login)") from None
    except e.RepositoryNotFoundError:
        raise InputError(
            f"the hub has no repository {repository.name}, or you may not see it; check the name, and log in for a "
            "private one (hf auth login)"
        ) from None
    except e.RevisionNotFoundError:
        raise InputError(f"{repository.name} has no revision '{repository.revision}'; give another") from None
    except e.LocalEntryNotFoundError:
        raise InputError(f"the hub cannot be reached, and its cache does not hold {repository}; try again") from None
    except e.EntryNotFoundError:
        raise InputError(f"{repository} has no {FILE}; give a repository that nescio push made") from None
    except (e.LocalTokenNotFoundError, e.HFValidationError, e.HfHubHTTPError, OSError) as fault:
        first = str(fault).strip().partition("\n")[0]
        raise InputError(
            f"the hub refused {repository}: {first or type(fault).__name__}; check the name, your connection and your "
            "token (hf auth whoami)"
        ) from None
