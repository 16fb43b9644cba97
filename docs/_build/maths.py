"""Formulas in the pages: ``$…$`` in a line and ``$$…$$`` on its own become MathML, which browsers draw without a script."""

from __future__ import annotations

import re
import xml.etree.ElementTree as etree
from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

DISPLAY = re.compile(r"^([ \t]*)\$\$(.+?)\$\$[ \t]*$", re.DOTALL | re.MULTILINE)
INLINE = r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])"


class _Display(Preprocessor):
    """Formulas on lines of their own. It runs after code blocks are taken out."""

    def run(self, lines: list[str]) -> list[str]:
        return DISPLAY.sub(self._drawn, "\n".join(lines)).split("\n")

    def _drawn(self, found: re.Match[str]) -> str:
        drawn = f'<div class="formula">{convert(found[2].strip(), display="block")}</div>'
        return f"{found[1]}\n{found[1]}{self.md.htmlStash.store(drawn)}\n"


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str | etree.Element, int, int]:  # type: ignore[override]  # noqa: N802
        del data
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Maths(Extension):
    """The two of them."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        """Run after fenced code (25) and after code in a line (190), before escapes (180)."""
        md.preprocessors.register(_Display(md), "display_maths", 22)
        md.inlinePatterns.register(_Inline(INLINE, md), "inline_maths", 185)
