"""Process time and memory of fitting and scoring 12 detectors from banks that exist, after imports.

The banks (50,000 training, 10,000 ID and 7,100 OOD features of 342) are made first where they are missing.

    python benchmarks/from_bank.py [--shared DIR]
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

from one_pass import DETECTORS

from nescio import bench, load_classifier


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
            ood={name: data / name / "test.parquet" for name in ("textures", "mnist", "scenes")},
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


if __name__ == "__main__":
    main()
