"""Examples in docstrings: lines that begin with ``>>>`` become a code block, where Markdown would see quotations."""

from __future__ import annotations

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor


class _Fenced(Preprocessor):
    """Fences around each run of lines that an example begins, up to the next empty line."""

    def run(self, lines: list[str]) -> list[str]:
        made: list[str] = []
        inside = False
        for line in lines:
            if not inside and line.startswith(">>> "):
                made += ["", "```pycon"]
                inside = True
            elif inside and not line.strip():
                made.append("```")
                inside = False
            made.append(line)
        return [*made, "```"] if inside else made


class Doctests(Extension):
    """The extension."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        """Run before fenced code is taken out (25)."""
        md.preprocessors.register(_Fenced(md), "doctests", 27)
