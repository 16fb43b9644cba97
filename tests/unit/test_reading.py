"""JSON and TOML of anyone are read with limits, and every fault is a ValueError."""

from __future__ import annotations

import json
import os

import pytest

from nescio.core import reading


@pytest.mark.parametrize("value", [None, 3, -(2**63), 0.1, 1e300, "ü", [], {}, {"a": [{"b": None}, True]}])
def test_what_json_writes_is_read(value, tmp_path):
    text = json.dumps(value)
    (tmp_path / "a.json").write_text(text)
    assert (
        reading.parse_json(text) == reading.parse_json(text.encode()) == reading.read_json(tmp_path / "a.json") == value
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than 50 deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested more than 50 deep"),
        ("[" * 51 + "]" * 51, "nested more than 50 deep"),
        ("[NaN]", "number NaN"),
        ("[-Infinity]", "number -Infinity"),
        ("[1e999]", "1e999 is too large"),
        ("1" + "0" * 5000, "more than 19 digits"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("{", "Expecting"),
        (b"\xff\xfe\x00", "utf-8"),
        ('"' + "a" * reading.MOST_BYTES + '"', "larger than 64 MB"),
    ],
)
def test_other_json_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        reading.parse_json(text)


def test_fifty_deep_is_read():
    assert reading.parse_json("[" * 50 + "7" + "]" * 50) == json.loads("[" * 50 + "7" + "]" * 50)


def test_numbers_that_are_not_finite_are_read_where_asked_and_written_as_nothing():
    values = reading.parse_json("[NaN, -Infinity, 2.5, 7]", finite=False)
    assert str(values) == "[nan, -inf, 2.5, 7]"
    assert reading.plain({"a": values, "b": ("x", True)}) == {"a": [None, None, 2.5, 7], "b": ["x", True]}


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{b=" * 100_000, ".".join(["a"] * 100) + " = 1"])
def test_toml_that_is_nested_too_deep_is_refused(text, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match="nested more than 50 deep"):
        reading.read_toml(tmp_path / "a.toml")


def test_toml_is_read_up_to_a_megabyte(tmp_path):
    (tmp_path / "a.toml").write_text("a = [1, nan]\n")
    assert str(reading.read_toml(tmp_path / "a.toml")) == "{'a': [1, nan]}"
    (tmp_path / "a.toml").write_text("#" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="larger than 1 MB"):
        reading.read_toml(tmp_path / "a.toml")


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (reading.read_json, reading.read_toml):
        with pytest.raises(ValueError, match="not a regular file"):
            read(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")
