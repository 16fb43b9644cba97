"""Process time and memory of fitting and scoring 12 detectors from banks that exist, after imports.

Then the time of all bank-level detectors together, beside that of the network pass that made the banks (its rate is
taken from 2,000 images). The banks (50,000 training, 10,000 ID and 7,100 OOD features of 342) are made first where they
are missing.

    python benchmarks/from_bank.py [--shared DIR]
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

from nescio import Detector, bench, load_classifier, open_source
from nescio.core.spec import all_specs
from nescio.run.session import Session
from one_pass import DETECTORS

SETS = ("textures", "mnist", "scenes")


def main() -> None:
    """Print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("NESCIO_SHARED", "../shared")))
    data, weights = (root := parser.parse_args().shared) / "data", root / "models/densenet100_cifar10.safetensors"

    def run() -> None:
        bench(
            load_classifier("densenet-bc-100-12", weights=weights),
            train=data / "cifar10/train.parquet",
            id=data / "cifar10/test.parquet",
            ood={name: data / name / "test.parquet" for name in SETS},
            detectors=DETECTORS,
        )

    if os.fork() == 0:  # the banks are made in a process of their own, whose memory does not count
        run()
        os._exit(0)
    if os.wait()[1]:
        raise SystemExit("the banks could not be made")
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start, wall = time.process_time(), time.perf_counter()
    run()
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(DETECTORS)} detectors from banks: {seconds:.2f} s of process time ({wall:.2f} s), at most 3 s allowed")
    print(f"peak memory {peak:.2f} GB ({imported:.2f} GB of it after imports), at most 1.5 GB allowed")
    compare_with_network(data, weights)


def compare_with_network(data: Path, weights: Path) -> None:
    """All detectors that read nothing but features, and the network."""
    specs = [s for s in all_specs() if not (d := Detector(s)).needs.probes and d.input_stage is None]
    results = bench(
        load_classifier("densenet-bc-100-12", weights=weights),
        train=data / "cifar10/train.parquet",
        id=data / "cifar10/test.parquet",
        ood={name: data / name / "test.parquet" for name in SETS},
        detectors=specs,
    )
    # each row has the seconds of the fit, the ID set and one OOD set: count the fit and the ID set once
    spent = sum(results.row(d, SETS[0]).seconds for d in specs)
    classifier = load_classifier("densenet-bc-100-12", weights=weights)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Session(classifier, cache=folder, progress=False).bank(open_source(f"{data}/cifar10/train.parquet[:2000]"))
        rate = 2000 / (time.perf_counter() - start)
    n = 60_000 + results.rows[0].n_ood
    print(
        f"{len(specs)} bank-level detectors: {spent:.1f} s for {n:,} images; decoding and network at {rate:.0f} "
        f"images/s: {n / rate:.0f} s: {spent / (n / rate):.1%} of it (at most 15 % allowed)"
    )


if __name__ == "__main__":
    main()
