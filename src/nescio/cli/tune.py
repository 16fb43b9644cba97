"""Commands that choose a detector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nescio.cli.base import console
from nescio.cli.options import (
    extraction_options,
    model_options,
    named,
    open_classifier,
    out_option,
    session_of,
    taking,
    use_cache,
)
from nescio.core.errors import some
from nescio.core.outputs import TABLES, check_file, write_table

if TYPE_CHECKING:
    from nescio.evaluation.select import Choice

_options = taking(
    click.option("--model", required=True, help="The model, as in nescio bench."),
    model_options,
    click.option("--train", help="The classifier's training images. Most detectors need them."),
    click.option(
        "--val",
        required=True,
        help="ID validation images: not the training images, and not the test images of a later comparison.",
    ),
    click.option(
        "--proxy",
        help="Stand-ins for OOD images: noise, pixels, tiles, blur, corner, background, or mixed for all of them."
        "  [default: mixed; with --ood-examples, only these]",
    ),
    click.option(
        "--ood-examples",
        multiple=True,
        metavar="[NAME=]SET",
        help="A few real OOD images, used instead of the stand-ins. Repeatable, each with its name.",
    ),
    click.option("--cost-accept", type=float, help="Cost of accepting an OOD image.  [default: 1]"),
    click.option("--cost-reject", type=float, help="Cost of rejecting an ID image.  [default: 1]"),
    click.option("--share-ood", type=float, help="Share of OOD images that you expect.  [default: 0.5]"),
    out_option("File for the table of all candidates: .csv, .json or .parquet."),
    extraction_options,
    click.pass_obj,
)


@click.command()
@click.argument("space", nargs=-1, required=True)
@_options
def tune(obj: dict[str, Any], /, space: tuple[str, ...], **options: Any) -> None:
    """Choose hyperparameters without OOD images. All detectors in SPACE are tried on stand-ins for OOD images.

    \b
    nescio tune 'fm:p=0.1..0.9+react:q=0.8..0.995+ls+energy' --model … --train … --val …
    LOW..HIGH gives 9 values (LOW..HIGH/20 gives 20); 10|50|200 gives three. All share one pass of the network.
    """  # noqa: D301 - click reads the backslashes
    from nescio.evaluation.select import tune as run

    _present(run, obj, options, space=space)


@click.command()
@_options
def recommend(obj: dict[str, Any], /, **options: Any) -> None:
    """Choose a detector without OOD images. All methods and presets are tried with their default settings."""
    from nescio.evaluation.select import recommend as run

    _present(run, obj, options)


def _present(run: Any, obj: dict[str, Any], options: dict[str, Any], **more: Any) -> None:
    from nescio.calibration.cost import Costs
    from nescio.core.detector import Detector
    from nescio.data.source import open_source

    out: Path | None = options["out"]
    if out is not None:
        check_file(out, TABLES)
    use_cache(options["cache"])
    costs = {
        "accept_ood": options["cost_accept"],
        "reject_id": options["cost_reject"],
        "share_ood": options["share_ood"],
    }
    chosen = Costs(**{name: value for name, value in costs.items() if value is not None})
    sources = {name: options[name] and open_source(options[name]) for name in ("train", "val")}
    examples = {name: open_source(spec) for name, spec in _examples(options["ood_examples"]).items()}
    choice: Choice = run(
        session_of(open_classifier(options["model"], options, (options["val"], options["train"])), options | obj),
        val=sources["val"],
        train=sources["train"],
        examples=examples or None,
        proxy=options["proxy"],
        **more,
    )
    screen = console()
    screen.print(choice.table())
    left = len(choice.candidates) - 10
    if left > 0:
        screen.print(f"and {left:,} more" + ("" if out else " (--out FILE.csv for all)"))
    screen.print(f"best: {choice.best}")
    if choice.accuracy:
        screen.print(f"the classifier is right for {choice.accuracy}")
        if choice.accuracy.warning:  # once more: the log is far above by now
            screen.print(f"WARNING: {choice.accuracy.warning}", style="bold red")
    refused = [c.detector for c in choice.candidates if Detector(c.detector).unexportable()]
    if refused:
        screen.print(f"nescio export does not support {some(refused)}")
    if options["ood_examples"] or any(value is not None for value in costs.values()):
        for line in choice.operating_lines(chosen):
            screen.print(line)
    if out:
        write_table(out, _rows(choice))
        screen.print(f"wrote {out}")


def _examples(sets: tuple[str, ...]) -> dict[str, str]:
    """Sets of OOD images by name, which one alone need not have."""
    if len(sets) == 1 and (Path(sets[0]).exists() or not re.match(r"[\w.+ -]+=.", sets[0])):
        return {"examples": sets[0]}
    return named(sets, "--ood-examples")


def _rows(choice: Choice) -> list[dict[str, Any]]:
    """All candidates, metrics in percent."""
    metrics = ("fpr95", "auroc")
    return [
        {"detector": c.detector}
        | {f"{p}_{m}": round(getattr(c, m)[p] * 100, 4) for p in choice.proxies for m in metrics}
        | {"gap": round(c.mean("gap", choice.proxies), 4)}
        for c in choice.candidates
    ]
