"""The published benchmarks as data: which sets, models and detectors, and the numbers that the papers print."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from nescio.core.errors import InputError, nearest
from nescio.core.reading import read_toml
from nescio.evaluation.suites.sets import DataSet, known_set

AVERAGE = "average"
"""What stands for the mean over the OOD sets where one of them is named."""


@dataclass(frozen=True)
class Model:
    """A network that a suite is run with.

    ``weights``: ``library`` downloads them, ``user`` must bring them. ``recipe``, ``init``: how one is trained for it.
    """

    name: str
    title: str = ""
    weights: str = "user"
    recipe: str = ""
    init: str = ""


@dataclass(frozen=True)
class PublishedRow:
    """A line of a published table.

    Attributes:
        paper, table: where it stands.
        model: the network's name here.
        method: as the paper calls it.
        detector: what it is here; empty where there is none.
        values: FPR95 and AUROC, shares in [0, 1], by OOD set or ``average``.
        id_accuracy: a share in [0, 1], where it is printed.
        training: the objective, where the detector does not say it.
        init: what that training begins with, where it is not what the model says.
    """

    paper: str
    table: str
    model: str
    method: str
    detector: str = ""
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    id_accuracy: float | None = None
    training: str = ""
    init: str = ""


@dataclass(frozen=True)
class Need:
    """A data set that a suite needs: its role (``id``, ``train`` or the OOD set's name), and where it was found."""

    role: str
    data: DataSet
    split: str
    images: int | None
    found: str | None


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    Attributes:
        id, train: names of data sets; their splits ``test`` and ``train`` are meant.
        ood: names of the OOD sets; ``near`` says which of them are near.
        transform: replaces parts of the model's own.
        equal: draw at most this many images of each OOD set, and as many ID images.
        counts: images of a set where they are not those of the full set.
        detectors: those of the published tables.
        errata: what the papers print wrong, and what is taken here.
        file: the user's own, where it is not one that comes with the package.
    """

    name: str
    title: str
    about: str
    id: str
    train: str | None
    ood: tuple[str, ...]
    near: tuple[str, ...] = ()
    transform: str | None = None
    equal: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    detectors: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    errata: tuple[dict[str, str], ...] = ()
    file: str = ""

    @property
    def classes(self) -> int | None:
        """How many classes its networks tell apart, where the ID set says so."""
        return known_set(self.id).classes

    def needs(self, root: Path, located: Mapping[str, str] | None = None, *, size: int | None = None) -> list[Need]:
        """What it needs, and where each set is: as given by role, else below the data root.

        Args:
            root: the data root.
            located: specs for ``open_source`` by role.
            size: side of the images that are made, in pixels.

        Raises:
            InputError: something is given for a role that the suite does not have.
        """
        located = located or {}
        roles = {"id": (self.id, "test")} | ({"train": (self.train, "train")} if self.train else {})
        roles |= {name: (name, "test") for name in self.ood}
        unknown = [role for role in located if role not in roles]
        if unknown:
            raise InputError(f"suite '{self.name}' has no set '{unknown[0]}'{nearest(unknown[0], roles)}")
        needs = []
        for role, (name, split) in roles.items():
            data = known_set(name)
            expected = (
                data.splits[split].images if split == "train" else self.counts.get(name, data.splits[split].images)
            )
            found = located.get(role) or data.find(split, root)
            if found and found == data.splits[split].open and size:
                found += f":size={size}"
            needs.append(Need(role, data, split, expected, found))
        return needs


@functools.cache
def suites() -> dict[str, Suite]:
    """The suites that come with the package, by name."""
    folder = resources.files("nescio.evaluation.suites").joinpath("data")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {
        f.name.removesuffix(".toml"): _suite(f.name.removesuffix(".toml"), tomllib.loads(f.read_text(encoding="utf-8")))
        for f in files
    }


def open_suite(name: str) -> Suite:
    """A suite by its name, or from a file of the user's in the same form.

    Raises:
        InputError: there is none, or the file cannot be read.
    """
    if name in suites():
        return suites()[name]
    path = Path(name).expanduser()
    if path.suffix != ".toml" or not path.is_file():
        raise InputError(f"unknown suite '{name}'{nearest(name, suites())}; or give a .toml file")
    try:
        return dataclasses.replace(_suite(path.stem, read_toml(path)), file=name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise InputError(f"{path} is not a suite: {e}; see the suites that come with nescio for the format") from None


def _suite(name: str, entry: dict[str, Any]) -> Suite:
    tables = entry.pop("published", [])
    lists: dict[str, Any] = {key: tuple(entry.pop(key, ())) for key in ("ood", "near", "detectors", "errata")}
    models = tuple(Model(**m) for m in entry.pop("models", ()))
    suite = Suite(
        name,
        train=entry.pop("train", None),
        about=" ".join(entry.pop("about", "").split()),
        models=models,
        published=tuple(row for table in tables for row in _rows(table)),
        **lists,
        **entry,
    )
    _check(suite)
    return suite


def _check(suite: Suite) -> None:
    """Refuse what could not be run. Raises ValueError."""
    for what, kind in (("title", str), ("about", str), ("id", str), ("counts", dict)):
        if not isinstance(getattr(suite, what), kind):
            raise TypeError(f"{what} is not of type {kind.__name__}")
    if suite.transform is not None and not isinstance(suite.transform, str):
        raise TypeError("transform is not of type str")
    if suite.equal is not None and (not isinstance(suite.equal, int) or suite.equal < 1):
        raise ValueError(f"equal = {suite.equal} is not a number of images")
    for name, split in (
        (suite.id, "test"),
        *((o, "test") for o in suite.ood),
        *(((suite.train, "train"),) if suite.train else ()),
    ):
        if split not in known_set(name).splits:
            raise ValueError(f"the data set '{name}' has no split '{split}'")
    stray = set(suite.near) - set(suite.ood)
    if stray:
        raise ValueError(f"near: '{min(stray)}' is not one of the OOD sets")


def _rows(table: dict[str, Any]) -> list[PublishedRow]:
    rows = []
    for row in table["rows"]:
        numbers = [v / 100 for v in row["values"]]
        if len(numbers) != 2 * len(table["sets"]):
            raise ValueError(f"table {table['table']}: '{row['method']}' has {len(numbers)} values, not two per set")
        pairs = zip(table["sets"], zip(numbers[::2], numbers[1::2], strict=True), strict=True)
        rows.append(
            PublishedRow(
                table["paper"],
                table["table"],
                table.get("model", ""),
                row["method"],
                row.get("detector", ""),
                {name: pair for name, pair in pairs if not any(map(math.isnan, pair))},
                row["id_accuracy"] / 100 if "id_accuracy" in row else None,
                row.get("training", ""),
                row.get("init", ""),
            )
        )
    return rows
