"""Small pictures for the pages, as HTML that needs no file: images with a line of text below each."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

SIDE = 96
"""Pixels of an image's longer side on the page."""


def strip(images: Iterable[Any], captions: Sequence[str], refused: Sequence[bool] = ()) -> str:
    """Images side by side.

    Args:
        images: PIL images.
        captions: the text below each; a newline starts a second line.
        refused: whether the verdict was "I do not know", which is marked.
    """
    marks = refused or [False] * len(captions)
    cells = [_cell(*one) for one in zip(images, captions, marks, strict=True)]
    return f'<div style="display:flex;flex-wrap:wrap;gap:.8rem;margin:1em 0">{"".join(cells)}</div>'


def _cell(image: Image.Image, caption: str, refused: bool) -> str:
    scale = SIDE / max(image.size)
    size = tuple(round(side * scale) for side in image.size)
    file = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS).save(
        file, "PNG"
    )
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    text = html.escape(caption).replace("\n", "<br>")
    edge = "var(--md-code-hl-number-color)" if refused else "var(--md-default-fg-color--lightest)"
    return (
        f'<figure style="margin:0;width:{SIDE}px;font-size:.65rem;line-height:1.35">'
        f'<img src="{source}" alt="{text.replace("<br>", ", ")}" width="{size[0]}" height="{size[1]}" '
        f'style="border:3px solid {edge};border-radius:4px"><figcaption style="margin:.2rem 0;max-width:none">{text}'
        "</figcaption></figure>"
    )
