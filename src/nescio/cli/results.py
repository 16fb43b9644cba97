"""Commands about results that are there, and how a command that makes some presents them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nescio.cli.base import console
from nescio.cli.options import out_option
from nescio.core.errors import InputError
from nescio.core.files import make_folder, write_whole
from nescio.core.outputs import check_out, is_table

if TYPE_CHECKING:
    from nescio.core.progress import Clock
    from nescio.evaluation.results import Results


def check_results(out: Path | None, *, report: bool = False) -> None:
    """Refuse where ``present`` could not write, before the work is done."""
    if is_table(out) and report:
        raise InputError(f"--report needs a folder, and {out} is a file; give a folder (--out DIR)")
    if out is not None:
        files = [f"results.{kind}" for kind in ("csv", "json", "md", "tex")] + ["skipped.csv", "report.html"]
        check_out(out, [*files, "scores.safetensors", "features.safetensors"], ["figures"])


def present(results: Results, out: Path | None, *, report: bool, clock: Clock | None = None) -> None:
    """Print the tables, write the files to ``out``, and say where the time went."""
    from nescio.core.progress import Clock
    from nescio.evaluation import tables

    screen, clock, results = console(), clock or Clock(), results.as_kept()
    for table in tables.terminal(results, screen.width):
        screen.print(table)
    if accuracy := tables.accuracy(results):
        screen.print(accuracy)
    for warning in results.manifest.get("warnings", []):  # once more: the log is far above by now
        screen.print(f"WARNING: {warning}", style="bold red")
    if out is not None and is_table(out):
        results.save_table(out)
        screen.print(f"wrote {out}")
    elif out is not None:
        results.save(out)
        write_whole(out / "results.md", tables.markdown(results))
        write_whole(out / "results.tex", tables.latex(results))
        written = ["results.csv", "results.json", "results.md", "results.tex"]
        if report:
            write_report_to(results, out, clock)
            written.append("report.html")
        elif results.manifest.get("ranges"):
            from nescio.report.ranges import range_plates

            for plate in range_plates(results):
                plate.save(out / "figures")
        if (out / "figures").is_dir():
            written.append("figures")
        screen.print(f"wrote {', '.join(written)} to {out}/")
    logging.getLogger("nescio").info("%s", clock)


def write_report_to(results: Results, folder: Path, clock: Clock) -> None:
    """Write the report page and its figures beside the results."""
    from nescio.report import write_report

    with clock("report"):
        write_report(results, folder / "report.html")


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@out_option("Folder for the page.  [default: RESULTS]")
@click.option(
    "--images",
    is_flag=True,
    help="Show images: open the files and folders that RESULTS names, if they are on this machine.",
)
def report(results: Path, out: Path | None, images: bool) -> None:
    """Write report.html and its figures again. RESULTS is a folder that bench --out wrote."""
    from jinja2 import UndefinedError

    from nescio.core.progress import Clock
    from nescio.evaluation.results import Results

    folder = out or results
    check_results(folder, report=True)
    loaded = Results.load(results, images=images)
    make_folder(folder)
    clock = Clock()
    try:
        write_report_to(loaded, folder, clock)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, UndefinedError) as e:
        if isinstance(e, InputError):
            raise
        manifest = results / "results.json"  # a page reads all of it
        raise InputError(
            f"{manifest} lacks what a page needs ({type(e).__name__}: {e}); run nescio bench again"
        ) from None
    console().print(f"wrote {folder / 'report.html'} in {clock.total():.1f} s")


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path), required=False)
@click.option(
    "--between", nargs=2, metavar="A B", help="Compare detector B of NEW (or of OLD, if alone) with detector A of OLD."
)
@click.option(
    "--tolerance", default=0.1, show_default=True, help="Changes up to this many percentage points are ignored."
)
@click.option("--resamples", type=click.IntRange(100), default=1000, show_default=True, help="Bootstrap resamples.")
@click.pass_context
def compare(
    ctx: click.Context, old: Path, new: Path | None, between: tuple[str, str] | None, tolerance: float, resamples: int
) -> None:
    """Compare two runs of bench --out. They are compared image by image if they scored the same images.

    The exit code is 1 if NEW is worse: FPR95 rose or AUROC fell by more than --tolerance and beyond the 95 % interval.
    """
    from nescio.evaluation.compare import compare as run
    from nescio.evaluation.compare import table_of_changes
    from nescio.evaluation.results import Results

    if new is None and not between:
        raise InputError("give the folder of a second run, or two detectors of this one (--between msp fmls)")
    before = Results.load(old)
    changes = run(
        before,
        Results.load(new) if new else before,
        pairs=dict([between]) if between else None,
        tolerance=tolerance / 100,
        resamples=resamples,
    )
    console().print(table_of_changes(changes))
    worse = [c for c in changes if c.verdict == "worse"]
    if worse:
        click.echo(f"{len(worse)} of {len(changes)} numbers got worse", err=True)
        ctx.exit(1)
