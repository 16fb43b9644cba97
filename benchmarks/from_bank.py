"""Process time and memory of fitting and scoring 12 detectors from banks that exist, after imports.

Then the time of all bank-level detectors together, beside that of the network pass that made the banks (its rate is
taken from 2,000 images). The banks (50,000 training, 10,000 ID and 7,100 OOD features of 342) are made first where they
are missing.

    python benchmarks/from_bank.py
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Sequence

from _common import data, densenet, parser, seconds, tests
from nescio import Detector, Results, Session, bench, open_source
from nescio.core.spec import all_specs
from one_pass import DETECTORS

SETS = ("textures", "mnist", "scenes")


def main() -> None:
    """Print seconds and memory."""
    parser(__doc__).parse_args()

    def run() -> None:
        judged(DETECTORS)

    if os.fork() == 0:  # the banks are made in a process of their own, whose memory does not count
        run()
        os._exit(0)
    if os.wait()[1]:
        raise SystemExit("the banks could not be made")
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start, wall = time.process_time(), time.perf_counter()
    run()
    computed, wall = time.process_time() - start, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{len(DETECTORS)} detectors from banks: {computed:.2f} s of process time ({wall:.2f} s), at most 3 s allowed"
    )
    print(f"peak memory {peak:.2f} GB ({imported:.2f} GB of it after imports), at most 1.5 GB allowed")
    compare_with_network()


def judged(detectors: Sequence[str]) -> Results:
    """Fitted and scored on CIFAR-10 and the OOD sets."""
    sets = {"train": data("cifar10/train"), "id": data("cifar10/test"), "ood": tests(*SETS)}
    return bench(densenet(None), detectors=detectors, **sets)


def compare_with_network() -> None:
    """All detectors that read nothing but features, and the network."""
    specs = [s for s in all_specs() if not (d := Detector(s)).needs.probes and d.input_stage is None]
    results = judged(specs)
    # each row has the seconds of the fit, the ID set and one OOD set: count the fit and the ID set once
    spent = sum(results.row(d, SETS[0]).seconds for d in specs)
    classifier, some = densenet(None), open_source(data("cifar10/train") + "[:2000]")
    with tempfile.TemporaryDirectory() as folder:
        rate = 2000 / seconds(lambda: Session(classifier, cache=folder, progress=False).bank(some))
    n = 60_000 + results.rows[0].n_ood
    print(
        f"{len(specs)} bank-level detectors: {spent:.1f} s for {n:,} images; decoding and network at {rate:.0f} "
        f"images/s: {n / rate:.0f} s: {spent / (n / rate):.1%} of it (at most 15 % allowed)"
    )


if __name__ == "__main__":
    main()
