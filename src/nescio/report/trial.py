"""The page of a first look: one HTML file that holds its pictures and needs nothing else."""

from __future__ import annotations

from pathlib import Path

import jinja2

from nescio.core.errors import BadImage
from nescio.core.files import whole
from nescio.data.decode import decode
from nescio.evaluation.trial import BAR, Look, Trial
from nescio.report import words
from nescio.report.pictures import address

SIDE = 320
"""Pixels of a picture's longer side; a card shows it at most half as large on a screen of two dots per pixel."""
TINY = 96


def write_trial(trial: Trial, path: Path, command: str) -> None:
    """Write the page to ``path``. ``command`` is what to run next."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nescio", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": words.percent, "breakable": words.breakable}
    page = environment.get_template("trial.html.j2").render(
        trial=trial,
        bar=BAR,
        cards=[(look, *_picture(trial, look)) for look in trial.looks],
        accepted=sum(look.accepted for look in trial.looks),
        read=sum(not look.error for look in trial.looks),
        command=command,
    )
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n", errors="backslashreplace")


def _picture(trial: Trial, look: Look) -> tuple[str, bool]:
    """The picture as an address, empty where it cannot be read; and whether it is so small that its pixels show."""
    if look.error:
        return "", False
    try:
        image = decode(trial.source.read(look.row))
    except (BadImage, OSError):
        return "", False
    tiny = max(image.size) < TINY
    image.thumbnail((SIDE, SIDE))
    return address(image), tiny
