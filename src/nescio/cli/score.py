"""Commands that give verdicts on images, here and over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nescio.cli.base import console
from nescio.cli.options import batch_size_option, device_option, file_argument, network_options, out_option
from nescio.core.errors import InputError
from nescio.core.outputs import check_out, is_table

if TYPE_CHECKING:
    from nescio.deploy import Deployed

MOST_PRINTED = 100
"""Verdicts that go onto a screen; more belong into files."""


@click.command()
@file_argument
@click.argument("images", nargs=-1, required=True)
@out_option("Folder for the scores, or FILE.csv, .json or .parquet for one file.  [default: print them]")
@network_options
@device_option
@click.option("--on", default="local", show_default=True, help="local, or ray: on a Ray cluster (nescio[ray]).")
@click.option("--part-size", type=click.IntRange(1), help="Images per parquet file.  [default: 10,000]")
@batch_size_option
@click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: one per core; with ray, none]")
@click.pass_context
def score(ctx: click.Context, /, file: Path, images: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Score IMAGES with the detector in FILE. Each is accepted, or the answer is "I do not know".

    \b
    nescio score my.nescio photo.jpg                   prints the verdict
    nescio score my.nescio IMAGES… -o scores/          writes parquet files, one row per image
    nescio score my.nescio IMAGES… -o scores.csv       writes one file (or .json, .parquet), for up to 100,000 images

    IMAGES are files, folders, globs, zip, tar or parquet files, local or at a URL (s3://, gs://, https://). If a job
    that writes to a folder is interrupted, run the same command again: it continues where it stopped. The exit code is
    1 if an image given as a file cannot be read. Unreadable images in folders and archives are listed with the reason.
    """  # noqa: D301 - click reads the backslashes
    if out is not None:
        check_out(out)
    from nescio.deploy import load, score_images

    deployed = load(file, **{k: options.pop(k) for k in ("model", "weights", "device")})
    if out is None:
        if _print_verdicts(deployed, images, options["batch_size"], options["workers"]):
            ctx.exit(1)
        return
    done = score_images(deployed, images, out, **options, progress=not ctx.obj["quiet"])
    tally = done.tally
    one = is_table(out)
    listed = f" (listed in {out if one else out / '_errors.csv'})" if tally.unreadable else ""
    rate = f"; {done.images / done.seconds:,.0f} images/s" if done.images else ""
    console().print(
        f"{tally.images:,} images: {tally.accepted:,} accepted, {tally.rejected:,} rejected, "
        f"{tally.unreadable:,} unreadable{listed}{rate}\n"
        + (f"wrote {out}" if one else f"wrote {tally.shards:,} parts to {out}/")
    )
    if tally.named:
        ctx.exit(1)


def _print_verdicts(deployed: Deployed, images: tuple[str, ...], batch_size: int | None, workers: int | None) -> int:
    """A table; returned is how many images that were named one by one cannot be read."""
    from rich.table import Table
    from rich.text import Text

    from nescio.data.loader import spans
    from nescio.data.source import open_sources
    from nescio.deploy.scoring import named_files, verdict_rows

    source = open_sources(images)
    if len(source) > MOST_PRINTED:
        raise InputError(f"{len(source):,} images are too many to print; give a folder for the scores (-o scores/)")
    batches = spans(0, len(source), batch_size or deployed.session.batch)
    found = verdict_rows(deployed, source, batches, 0 if workers is None else workers)
    rows = [row for batch in found for row in batch.to_pylist()]
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("verdict")
    numbers = {"p_value": "p-value"} | ({"p_id": "P(ID | image)"} if deployed.gives_p_id else {})
    for title in numbers.values():
        table.add_column(title, justify="right")
    for row in rows:
        if row["error"] is not None:
            table.add_row(row["path"], "", "", Text(f"unreadable: {row['error']}", "yellow"))
            continue
        verdict = Text("ACCEPTED", "green") if row["accepted"] else Text("I do not know", "red")
        values = [f"{row[name]:.3f}" for name in numbers]
        table.add_row(row["path"], row["label"], f"{row['probability']:.1%}", verdict, *values)
    console().print(table)
    return sum(row["error"] is not None and row["path"] in named_files(images) for row in rows)


@click.command()
@file_argument
@network_options
@device_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all addresses.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 for any free one.",
)
@click.option(
    "--token", envvar="NESCIO_TOKEN", help="Require this token from clients.  [default: $NESCIO_TOKEN, or none]"
)
@batch_size_option
@click.option("--decoders", type=click.IntRange(1), help="Decoding processes.  [default: one per core, at most 8]")
@click.option("--max-bytes", default=16_000_000, show_default=True, help="Largest request, in bytes.")
@click.option("--max-pixels", default=50_000_000, show_default=True, help="Largest image, in pixels.")
@click.option("--max-images", default=32, show_default=True, help="Most images in one request.")
@click.option("--timeout", default=30.0, show_default=True, help="Longest time for a request, in seconds.")
@click.option("--concurrency", default=256, show_default=True, help="Most requests at a time; one client may use half.")
def serve(file: Path, **options: Any) -> None:
    """Serve the detector in FILE over HTTP. There is a page for the browser and an API.

    \b
    nescio serve my.nescio
    curl -F images=@photo.jpg http://127.0.0.1:8000/predict

    Only clients on this machine can reach it, unless --host is given. /docs describes the API; /metrics is for
    Prometheus, /health and /ready are for probes, /drift shows whether the input has changed.
    """  # noqa: D301 - click reads the backslashes
    try:
        from nescio.serving import Limits
        from nescio.serving import serve as run
    except ImportError as e:
        raise InputError(f"serve needs the package {e.name}: pip install 'nescio[serve]'") from None
    from nescio.deploy import load

    names = {"bytes": "max_bytes", "pixels": "max_pixels", "images": "max_images", "seconds": "timeout"}
    limits = Limits(**{name: options.pop(o) for name, o in names.items()}, requests=options.pop("concurrency"))
    deployed = load(file, **{k: options.pop(k) for k in ("model", "weights", "device")})
    run(deployed, limits=limits, **options)
