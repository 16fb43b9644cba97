"""Commands about data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nescio.cli.base import console
from nescio.cli.options import data_root_option, named, ood_option, workers_option
from nescio.core.errors import InputError, some

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nescio.evaluation.suites.check import Checked
    from nescio.evaluation.suites.suite import Model, Need, Suite


@click.group()
def data() -> None:
    """List, fetch and check data sets of published benchmarks."""


@data.command("list")
@click.argument("suite", required=False)
@data_root_option
@click.option("--published", is_flag=True, help="Rows of the papers' tables, each with the commands that reproduce it.")
@click.option("--errata", is_flag=True, help="Errors and gaps in the papers, and the choices made here.")
def list_(suite: str | None, data_root: Path, *, published: bool, errata: bool) -> None:
    """List the suites, or the data sets of one SUITE. Shown are where they are, and how to get missing ones."""
    from rich.box import SIMPLE_HEAD
    from rich.text import Text

    from nescio.evaluation.suites.suite import open_suite
    from nescio.evaluation.tables import table_of

    if suite is None:
        if published or errata:
            raise InputError("--published and --errata need the name of one suite: give it")
        _list_suites()
        return
    chosen = open_suite(suite)
    needs = chosen.needs(data_root)
    screen = console()
    screen.print(f"{chosen.title}: {chosen.about}")
    if published:
        for line in _rows(chosen, data_root):
            screen.print(line, soft_wrap=True)  # a command must not break
        return
    table = table_of(["role", "images", "found"], box=SIMPLE_HEAD, pad_edge=False)
    for need in needs:
        table.add_row(need.role, f"{need.images:,}" if need.images else "", need.found or Text("missing", "bold red"))
    screen.print(table)
    lines = [_how_to_get(need, data_root) for need in needs if need.found is None]
    lines += [_model(m) for m in chosen.models]
    if errata:
        lines += [" | ".join(f"{key}: {value}" for key, value in e.items()) for e in chosen.errata]
    elif chosen.errata:
        lines.append(f"the papers' errata, {len(chosen.errata)} of them: --errata")
    for line in lines:
        screen.print(line)


def _list_suites() -> None:
    from rich.box import SIMPLE_HEAD

    from nescio.evaluation.suites.suite import suites
    from nescio.evaluation.tables import table_of

    table = table_of(["suite", "ID", "OOD", "models"], box=SIMPLE_HEAD, pad_edge=False)
    for s in suites().values():
        table.add_row(s.name, s.id, ", ".join(s.ood), ", ".join(m.name for m in s.models))
    console().print(table)


def _rows(suite: Suite, root: Path) -> Iterator[str]:
    from nescio.evaluation.suites.published import PAPERS, commands
    from nescio.evaluation.suites.suite import AVERAGE

    yield "HELD_OUT stands for labelled ID images that were not used for training, FILE for your weights"
    titles, before = {m.name: m.title or m.name for m in suite.models}, None
    for row in suite.published:
        of = f"{PAPERS.get(row.paper, row.paper)}, Table {row.table}: {titles.get(row.model, row.model)}"
        if of != before:
            yield f"\n{of}"
        before = of
        printed = [(name, pair) for name, pair in row.values.items() if name == AVERAGE] or list(row.values.items())[:1]
        yield (
            f"  {row.method}"
            + "".join(f": FPR95 {f:.2%}, AUROC {a:.2%} ({name})" for name, (f, a) in printed)
            + ("" if row.id_accuracy is None else f", ID accuracy {row.id_accuracy:.2%}")
        )
        yield from (f"    {command}" for command in commands(suite, row, root)) if row.detector else ()


def _how_to_get(need: Need, root: Path) -> str:
    part = need.data.splits[need.split]
    facts = [need.data.title, need.data.about, part.size, f"licence: {need.data.licence}" if need.data.licence else ""]
    get = f"nescio data fetch {need.data.name}/{need.split} --data-root {root}"
    put = f"put it at {root / need.data.name / need.split}" + (
        f", from {need.data.address}" if need.data.address else ""
    )
    return f"{need.role}: {'; '.join(f for f in facts if f)}\n  {get if part.fetch else put}"


def _model(model: Model) -> str:
    brought = "its library's weights" if model.weights == "library" else "your weights (--weights FILE)"
    trained = (
        f"; nescio train --recipe {model.recipe}{f' --init {model.init}' if model.init else ''} trains one"
        if model.recipe
        else ""
    )
    return f"--model {model.name}: {model.title or model.name}, {brought}{trained}"


@data.command()
@click.argument("names", nargs=-1, required=True)
@data_root_option
@click.pass_obj
def fetch(obj: dict[str, bool], names: tuple[str, ...], data_root: Path) -> None:
    """Download data sets to --data-root. NAMES are suites (what they lack) or data sets (svhn, cifar10/train).

    An interrupted download continues where it stopped. Checksums are checked. Existing data sets are kept.
    """
    from nescio.evaluation.suites.fetch import fetch as run
    from nescio.evaluation.suites.sets import known_set
    from nescio.evaluation.suites.suite import open_suite, suites

    wanted: list[tuple[str, str]] = []
    for name in names:
        if name in suites() or name.endswith(".toml"):
            wanted += [(n.data.name, n.split) for n in open_suite(name).needs(data_root) if n.found is None]
        else:
            base, _, split = name.partition("/")
            if (split or "test") not in known_set(base).splits:
                raise InputError(f"data set '{base}' has no split '{split}'; it has {some(known_set(base).splits)}")
            wanted.append((base, split or "test"))
    failed = []
    for base, split in dict.fromkeys(wanted):
        dataset = known_set(base)
        if there := dataset.find(split, data_root):
            console().print(f"{base}/{split} is already at {there}")
            continue
        try:
            came = run(dataset, split, data_root, progress=not obj["quiet"])
        except InputError as e:  # the others are fetched all the same
            failed.append(str(e))
        else:
            console().print(f"downloaded {base}/{split} to {came}")
    if failed:
        raise InputError("\n".join(failed))


@data.command()
@click.argument("suite", required=False)
@data_root_option
@click.option("--id", "id_", help="ID test images, if no SUITE is given.")
@click.option("--train", help="Training images.")
@ood_option("An OOD set and its name. Repeatable.")
@workers_option
@click.pass_context
def check(
    ctx: click.Context,
    suite: str | None,
    data_root: Path,
    id_: str | None,
    train: str | None,
    ood: tuple[str, ...],
    workers: int | None,
) -> None:
    """Check data sets. Reported are counts, unreadable and repeated images, ID among OOD, and what gives OOD away.

    OOD images are given away by a size, shape, file format or compression that ID images do not have. The exit code is
    1 if any problem is found.
    """
    from nescio.data.source import open_source
    from nescio.evaluation.suites.check import check_sets, warnings
    from nescio.evaluation.suites.suite import open_suite

    oods = named(ood)
    if {"id", "train"} & set(oods):
        raise InputError("an OOD set cannot be called 'id' or 'train'; give it another name")
    sets = {role: spec for role, spec in ({"id": id_, "train": train} | oods).items() if spec}
    expected: dict[str, int | None] = {}
    if suite:
        chosen = open_suite(suite)
        needs = chosen.needs(data_root, {r: s for r, s in sets.items() if r in ("id", "train", *chosen.ood)})
        sets |= {n.role: n.found for n in needs if n.found}
        expected = {n.role: n.images for n in needs}
    if not sets:
        raise InputError("nothing to check: give a suite whose sets are in --data-root, or give --id and --ood")
    found = check_sets(
        {name: open_source(spec) for name, spec in sets.items()},
        expected=expected,
        workers=workers,
        progress=not ctx.obj["quiet"],
    )
    _show(found)
    missing = [need.role for need in needs if need.found is None] if suite else []
    problems = [f"{role} is missing" for role in missing] + warnings(found)
    for problem in problems:
        console().print(f"- {problem}")
    if problems:
        ctx.exit(1)


def _show(found: list[Checked]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("set", "images", "expected", "bad", "repeated", "short side px", "shape", "format", "JPEG quality"):
        table.add_column(name, justify="left" if name in ("set", "format") else "right", no_wrap=True)
    for c in found:
        table.add_row(
            c.name,
            f"{c.images:,}",
            f"{c.expected:,}" if c.expected else "",
            f"{len(c.bad):,}",
            f"{c.repeats:,}",
            f"{c.short[1]} ({c.short[0]}–{c.short[2]})",
            f"{c.aspect:.2f} : 1",
            ", ".join(f"{name} {share:.0%}" if share < 1 else name for name, share in c.formats.items()),
            str(c.quality or ""),
        )
    console().print(table)
