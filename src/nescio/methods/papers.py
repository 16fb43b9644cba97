"""The papers that the methods are from: ``papers.bib``, read."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

_ENTRY = re.compile(r"^@(?P<kind>\w+)\{(?P<key>[^,]+),\n(?P<fields>.*?)^\}", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},$", re.MULTILINE)


@dataclass(frozen=True)
class Paper:
    """A paper: its entry in BibTeX, and what that says."""

    bibtex: str
    fields: Mapping[str, str]

    @property
    def title(self) -> str:
        """Its title."""
        return self.fields["title"]

    @property
    def venue(self) -> str:
        """Where and when it was published."""
        return f"{self.fields.get('booktitle') or self.fields['journal']} {self.fields['year']}"

    @property
    def reference(self) -> str:
        """Authors, title, venue and year in a line."""
        names = [" ".join(reversed(name.split(", "))) for name in self.fields["author"].split(" and ")]
        authors = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        return f"{authors}. {self.title.rstrip('.')}{'' if self.title.endswith('?') else '.'} {self.venue}."

    @property
    def url(self) -> str:
        """Its page on arXiv; nothing where there is none."""
        return f"https://arxiv.org/abs/{self.fields['eprint']}" if "eprint" in self.fields else ""


@functools.cache
def papers() -> Mapping[str, Paper]:
    """Every paper that a method is from, by its key."""
    text = resources.files("nescio.methods").joinpath("papers.bib").read_text(encoding="utf-8")
    return {m["key"]: Paper(m[0], dict(_FIELD.findall(m["fields"]))) for m in _ENTRY.finditer(text)}
