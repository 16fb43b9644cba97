"""Messages and help in plain words: common slips are kept out, and an option stands behind its Python argument."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nescio

ROOT = Path(nescio.__file__).parent
FEWEST_WORDS = 3

SLIPS = {
    r"(?<!there )\bis no\b(?! longer)": "is not a …",
    r"\bthat are no\b": "that are not …",
    r"\bthere is what\b": "say what it is",
    r"\bof (these|them|which) none\b|\bnone of (these|them) (is|has)\b": "there is no …",
    r"\btold\b|\bcannot be told\b": "cannot be found, is unknown",
    r"\bway (out|to)\b|\bon the way\b|\bin another way\b": "say what to do; differently",
    r"\buntil (then|these|those)\b": "before that",
    r"\bwhat for\b|\bfor what\b": "why; for the …",
    r"\bsuch a\b": "a …",
    r"\bone( \w+)? an? (line|image)\b": "one per line, one per image",
    r"\b(goes|go|went) on (where|with|from)\b": "continues",
    r"\banew\b|\bbegun\b": "again, started",
    r"\bcannot be had\b|\bcan be had\b": "cannot be loaded, cannot be used",
    r"\b(nobody|whoever)\b": "say who or what",
    r"\bof yours\b": "your own …",
    r"\bmust lie\b": "must be in",
    r"\bfor nothing\b|\bknows nothing\b": "say what follows",
    r"\bno (number|file|image|folder|string|str)\b(?=,|;|$)": "is not a …",
    r"\bas for (bench|fit|score)\b": "as in nescio bench",
    r"\bholds? no\b": "has no, contains no",
    r"\b(makes?|has) a pass of (its|their) own\b": "needs its own pass",
    r"\bname another\b": "give another",
}
"""What reads like a riddle, by what to write instead."""

COMMAND = re.compile(r"nescio( \w+)? [^;:,()]*--[^;,()]*|the same command with --resume")
ARGUMENT = re.compile(r"\w+=[^()]*\((e\.g\. )?--[^)]*\)|\(--init scratch\)|\(--arch clip:NAME\)|\(--host, --port\)")


def text_of(node: ast.expr) -> str | None:
    """What is written in a string, its values as ``…``; None where the node is no string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    return None


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts of a few words or more, without docstrings, each with its line; a command's docstring is its help."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.FunctionDef) and any("command" in ast.unparse(d) for d in node.decorator_list):
            yield node.lineno, ast.get_docstring(node) or ""
        text = text_of(node) if isinstance(node, ast.expr) else None
        if text is None:
            yield from messages(node)
        elif len(text.split()) >= FEWEST_WORDS:
            yield node.lineno, text


TEXTS = {
    f"{path.relative_to(ROOT)}:{line}": text
    for path in sorted(ROOT.rglob("*.py"))
    for line, text in messages(ast.parse(path.read_text()))
}


@pytest.mark.parametrize(("slip", "instead"), SLIPS.items())
def test_messages_are_in_plain_words(slip: str, instead: str) -> None:
    found = {place: text for place, text in TEXTS.items() if re.search(slip, text)}
    assert not found, f"write: {instead}"


def test_an_option_stands_behind_the_argument_that_a_python_caller_gives() -> None:
    """As in ``give train= (--train)``: a message of the library is read by those who call it from Python, too."""
    assert len(TEXTS) > 600
    inside = {place: text for place, text in TEXTS.items() if not place.startswith(("cli/", "report/"))}
    found = {
        place: text for place, text in inside.items() if re.search("--[a-z]", ARGUMENT.sub("", COMMAND.sub("", text)))
    }
    assert not found
