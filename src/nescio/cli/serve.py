"""The command that puts a detector behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nescio.cli.options import batch_size_option, device_option, file_argument, network_options
from nescio.core.errors import InputError


@click.command()
@file_argument
@network_options
@device_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 for any.")
@click.option("--token", envvar="NESCIO_TOKEN", help="Ask clients for it.  [default: $NESCIO_TOKEN, or none]")
@batch_size_option
@click.option("--decoders", type=click.IntRange(1), help="Decoding processes.  [default: one per core, at most 8]")
@click.option("--max-bytes", default=16_000_000, show_default=True, help="Of a request.")
@click.option("--max-pixels", default=50_000_000, show_default=True, help="Of an image.")
@click.option("--max-images", default=32, show_default=True, help="In a request.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds for a request.")
@click.option("--concurrency", default=256, show_default=True, help="Requests at one time; of one client, half.")
def serve(file: Path, **options: Any) -> None:
    """Answer over HTTP whether the detector in FILE accepts images; with a page for people.

    \b
    nescio serve my.nescio
    curl -F images=@photo.jpg http://127.0.0.1:8000/predict

    Clients reach it from this machine alone, unless --host says otherwise. /docs describes the API; /metrics is for
    Prometheus, /health and /ready for whoever keeps it running, /drift says whether the input has changed.
    """  # noqa: D301 - click reads the backslashes
    try:
        from nescio.serving import Limits
        from nescio.serving import serve as run
    except ImportError as e:
        raise InputError(f"serve needs the package {e.name}: pip install 'nescio[serve]'") from None
    from nescio.deploy import Deployed

    names = {"bytes": "max_bytes", "pixels": "max_pixels", "images": "max_images", "seconds": "timeout"}
    limits = Limits(**{name: options.pop(o) for name, o in names.items()}, requests=options.pop("concurrency"))
    deployed = Deployed.load(file, **{k: options.pop(k) for k in ("model", "weights", "device")})
    run(deployed, limits=limits, **options)
