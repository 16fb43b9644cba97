from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import gpu


def test_the_benchmark_of_a_card_runs_on_a_cpu_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--small", "--out", str(stored)])
    gpu.main()
    known, printed = json.loads(stored.read_text()), capsys.readouterr().out
    parts = {"network only", "with decoding", "training", "features"}
    assert {key.partition(" | ")[0] for key in known} - {"peer"} == parts
    assert all(found["images/s"] > 0 for key, found in known.items() if key.startswith(("network", "with", "train")))
    assert known["with decoding | resnet18 | float32 | nescio"]["methods"] >= 35
    assert "A step of training" in printed

    again = known.pop("features | msp | nescio")
    stored.write_text(json.dumps(known))
    gpu.main()
    assert again.keys() == json.loads(stored.read_text())["features | msp | nescio"].keys()
    measured = [line for line in capsys.readouterr().out.splitlines() if ": {" in line]
    assert [line.partition(":")[0] for line in measured] == ["features | msp | nescio"]


def test_without_a_card_it_says_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"no CUDA device was found: try --device cpu --small"):
        gpu.main()
