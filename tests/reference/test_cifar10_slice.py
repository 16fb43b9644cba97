"""The reference table on a slice of CIFAR-10, measured by an independent float64 implementation."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from nescio import bench, load_classifier
from nescio.evaluation.results import Results
from nescio.run.session import Session

with (Path(__file__).parent / "cifar10_slice.csv").open(newline="") as file:
    REFERENCE = {row.pop("detector"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}
SETS = ("textures", "scenes")  # mnist, 5,000 images more, stands in the study (make study-cifar10)


@pytest.fixture(scope="module")
def results(shared: Path) -> Results:
    data = shared / "data"
    return bench(
        Session(
            load_classifier("densenet-bc-100-12", weights=shared / "models/densenet100_cifar10.safetensors"), workers=1
        ),
        train=f"{data}/cifar10/train.parquet[:5000]",
        id=f"{data}/cifar10/test.parquet[:2000]",
        ood={name: data / name / "test.parquet" for name in SETS},
        detectors=[*REFERENCE, "fmls"],
    )


@pytest.mark.parametrize("ood", SETS)
@pytest.mark.parametrize("detector", REFERENCE)
def test_the_row_is_the_reference(results: Results, detector: str, ood: str) -> None:
    row = results.row(detector, ood)
    assert row.fpr95 * 100 == pytest.approx(REFERENCE[detector][f"{ood}_fpr95"], abs=0.3)
    assert row.auroc * 100 == pytest.approx(REFERENCE[detector][f"{ood}_auroc"], abs=0.1)


def test_the_classifier_and_the_preset_are_the_published_ones(results: Results) -> None:
    assert results.rows[0].id_accuracy == pytest.approx(0.9415, abs=0.002)
    published = results.row("fm:p=0.6+react:clip=1.6+ls+energy", "textures")
    assert results.row("fmls", "textures").auroc == published.auroc
