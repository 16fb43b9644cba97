"""Fit and score every bank-level detector on a synthetic bank of ImageNet's size, and its memory.

The bank holds 1,281,167 × 2,048 float16 features of 1,000 classes (5.2 GB on disk, made first where it is missing), the
test banks 50,000 ID and 10,000 OOD rows. Printed per detector: seconds to fit and to score, beside the time to read the
bank once and the detector's arithmetic at the rate of this machine's matrix products; and the peak of anonymous memory.

    python benchmarks/imagenet_scale.py [--images N] [--folder DIR] [--detector SPEC ...] [--together]

With --together all are fitted at once instead, and the seconds of that stand beside those of one read and of what no
sharing can save: two products with the head (OpenMax needs the logits twice), the second moments of the features and
of their directions, ViM's projection, and four eigendecompositions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from _common import AnonymousMemory, in_turns, parser, seconds
from nescio.core import numerics
from nescio.core.detector import BLOCK, Detector, fit_all, score_all
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features, Head
from nescio.run.bank import Bank, BankKey
from nescio.run.bank_writer import BankWriter

N, L, C, N_ID, N_OOD, ROWS = 1_281_167, 2048, 1000, 50_000, 10_000, 8192

# The matrix products that each detector makes: on every training row, and on every test row.
HEAD, SQUARE64, CLASSES64 = "head product", "L × L float64", "L × C float64"
ARITHMETIC: dict[str, tuple[list[str], list[str]]] = {
    "msp": ([], [HEAD]),
    "maxlogit": ([], [HEAD]),
    "energy": ([], [HEAD]),
    "entropy": ([], [HEAD]),
    "gen": ([], [HEAD]),
    "gradnorm": ([], [HEAD]),
    "temperature:T=2+msp": ([], [HEAD]),
    "lts+energy": ([], [HEAD]),
    "ashp+energy": ([], [HEAD]),
    "ashb+energy": ([], [HEAD]),
    "ashs+energy": ([], [HEAD]),
    "scale+energy": ([], [HEAD]),
    "react:q=0.98+energy": ([], [HEAD]),
    "vra+energy": ([], [HEAD]),
    "typical+energy": ([], [HEAD]),
    "dice+energy": ([], [HEAD]),
    "line:p_a=0.1,p_w=0.1+energy": ([], [HEAD]),
    "fm:p=0.3+react:clip=0.8+ls+energy": ([], [HEAD]),
    "ls+energy": ([], [HEAD]),
    "cosine": ([], []),
    "she": ([], []),
    "nci": ([], []),
    "fdbd": ([], [HEAD]),
    "klm": ([HEAD], [HEAD]),
    "openmax": ([HEAD, HEAD, HEAD], [HEAD]),
    "mahalanobis": ([SQUARE64], [SQUARE64, CLASSES64]),
    "rmd": ([SQUARE64], [SQUARE64, SQUARE64, CLASSES64]),
    "gmm": ([], [CLASSES64, CLASSES64]),
    "gmm:covariance=tied": ([SQUARE64], [SQUARE64, CLASSES64]),
    "residual": ([SQUARE64], [SQUARE64]),
    "vim": ([SQUARE64, HEAD, SQUARE64], [HEAD, SQUARE64]),
    "pnml": ([SQUARE64], [HEAD, SQUARE64]),
    "knn:k=10,alpha=0.01": ([], ["L × N/100"]),
    "nnguide:k=10,alpha=0.01": (["head product of 1 %"], [HEAD, "L × N/100"]),
    "temperature+msp": (["head product of 50,000"], [HEAD]),
}


def make_bank(folder: Path, name: str, n: int, centres: torch.Tensor, head: Head, *, noise: float, seed: int) -> Bank:
    """A finished bank of ``relu(centre + noise)``; predictions are the labels, as this head gives them."""
    writer = BankWriter(folder, BankKey("synthetic", name, f"{n}-{noise}-{seed}", "plain", "float16"))
    reaction = torch.zeros(2, L)
    done = writer.finished(reaction)
    if done is not None:
        return done
    print(f"making {n:,} rows …", flush=True)
    with writer.alone():
        for batch in writer.begin(n, head, reaction, ROWS, {"h": L}):
            at, rows = batch.start, len(batch)
            g = torch.Generator().manual_seed(seed * 10_000_019 + at)
            y = torch.randint(C, (rows,), generator=g)
            h = torch.randn(rows, L, generator=g).mul_(noise).add_(centres[y]).relu_()
            values = {"h": h.half().numpy(), "pred": y.numpy(), "label": y.numpy(), "status": np.ones(rows, np.uint8)}
            writer.write(at, values, [])
        return writer.finish()


def read(banks: list[Bank]) -> float:
    """Seconds to read banks once, as float32."""
    return seconds(lambda: [f.h.sum() for bank in banks for f in bank.chunks()])


def product_seconds(n_train: int) -> dict[str, tuple[float, float]]:
    """Per kind of product: seconds that a row takes, and the number of training rows that fitting does it on."""
    x = torch.rand(ROWS, L)
    kinds = {
        HEAD: torch.rand(L, C),
        SQUARE64: torch.rand(L, L, dtype=torch.float64),
        CLASSES64: torch.rand(L, C, dtype=torch.float64),
        "L × N/100": torch.rand(L, n_train // 100),
    }
    row = {kind: min(seconds(lambda m=m: x.to(m.dtype) @ m) for _ in range(3)) / ROWS for kind, m in kinds.items()}
    rates = {kind: (t, float(n_train)) for kind, t in row.items()}
    rates["head product of 1 %"] = (row[HEAD], n_train / 100)
    rates["head product of 50,000"] = (row[HEAD], min(n_train, 50_000))
    return rates


def compare_with_head_product(bank: Bank) -> None:
    """FM + LS from a bank that stores the prediction, and without it, over one head product on the same rows."""
    chunks = list(bank.chunks(BLOCK // L))  # as score_all cuts them
    head = bank.head
    detector = Detector("fm:p=0.3+react:clip=0.8+ls+energy")
    detector.fit(FeatureSet.stream(lambda: iter(chunks), head))

    def product() -> None:
        for f in chunks:
            head.linear(f.h)

    def stored() -> None:
        for f in fresh(chunks):
            detector(f)

    def predicted() -> None:
        for f in fresh(chunks):
            detector(Features(f.h, head, head.linear(f.h).argmax(dim=1)))

    times = in_turns({"product": product, "stored": stored, "predicted": predicted}, 5)
    best = {name: min(t) for name, t in times.items()}
    print(
        f"FM + LS on {len(bank):,} rows: {best['stored'] / best['product']:.2f} × one head product "
        f"({best['product']:.2f} s) with the stored prediction (at most 1.3 asked), "
        f"{best['predicted'] / best['product']:.2f} × without (2.4 asked)"
    )


def fresh(chunks: list[Features]) -> Iterator[Features]:
    """The same records without what they have computed."""
    return (Features(f.h, f.head, f.pred, f.labels) for f in chunks)


def fit_together(train: Bank, specs: list[str], once: float) -> None:
    """Print what one fit of all takes, in reads and beyond what no sharing can save, and each detector's part."""
    reads = 0

    def rows() -> Iterator[Features]:
        nonlocal reads
        reads += 1
        return train.chunks()

    arithmetic = unavoidable_seconds(len(train))
    detectors = [Detector(spec) for spec in specs]
    data = FeatureSet.stream(rows, train.head)
    whole = seconds(lambda: fit_all(detectors, data))
    for detector in sorted(detectors, key=lambda d: -d.fit_seconds):
        print(f"  {detector!r:<36}{detector.fit_seconds:>8.1f}s")
    alone = sum(arithmetic.values())
    print(f"arithmetic {alone:.1f} s: " + ", ".join(f"{kind} {t:.1f} s" for kind, t in arithmetic.items()))
    print(
        f"{len(detectors)} detectors fitted together in {whole:.1f} s, the bank read {reads} times: "
        f"{whole / once:.1f} reads of {once:.1f} s, {(whole - alone) / once:.1f} beyond the arithmetic (6 asked)"
    )


def unavoidable_seconds(n: int) -> dict[str, float]:
    """What fitting all at once computes that several cannot share, at the rate of the functions that do it."""
    rows = BLOCK // L
    x, head, square = torch.rand(rows, L), torch.rand(L, C), torch.zeros(L, L, dtype=torch.float64)
    y, outside = x.to(torch.float64), torch.rand(L, L - 1000, dtype=torch.float64)

    def per_bank(product: Callable[[], object]) -> float:
        return min(seconds(lambda: [product() for _ in range(8)]) for _ in range(3)) / 8 * n / rows

    spread = y.T @ y
    return {
        "two head products": 2 * per_bank(lambda: x @ head),
        "two second moments": 2 * per_bank(lambda: numerics.add_square(square, y)),
        "projection": per_bank(lambda: y @ outside),
        "four eigendecompositions": 4 * seconds(lambda: torch.linalg.eigh(spread)),
    }


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=N, help="training rows")
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nescio-imagenet-scale")
    arguments.add_argument("--detector", action="append", help="instead of all")
    arguments.add_argument("--together", action="store_true", help="fit all at once, and score nothing")
    options = arguments.parse_args()
    centres = torch.randn(C, L, generator=torch.Generator().manual_seed(0)) * 0.5
    head = Head(centres * 0.1, torch.zeros(C))
    memory, specs = AnonymousMemory(), options.detector or list(ARITHMETIC)
    train = make_bank(options.folder, "train", options.images, centres, head, noise=0.5, seed=1)
    tests = [
        make_bank(options.folder, "id", N_ID, centres, head, noise=0.5, seed=2),
        make_bank(options.folder, "ood", N_OOD, centres * 0.3, head, noise=0.7, seed=3),
    ]
    memory.start()
    once, once_test = read([train]), read(tests)
    print(f"{len(train):,} × {L} float16: read once in {once:.1f} s; test rows {once_test:.1f} s")
    if options.together:
        fit_together(train, specs, once)
        print(f"peak anonymous memory {memory.peak / 1e9:.2f} GB (at most 4 asked)")
        return
    rates = product_seconds(len(train))
    for kind, (t, _) in rates.items():
        if kind in (HEAD, SQUARE64):
            width = C if kind == HEAD else L
            print(f"{kind}: {2 * L * width / t / 1e9:.0f} GFLOP/s")
    compare_with_head_product(tests[0])
    print(f"\n{'detector':<36}{'fit':>9}{'score':>9}{'arithmetic':>12}{'reads':>8}{'over':>8}", flush=True)
    over = []
    for spec in specs:
        fit, score = ARITHMETIC[spec]
        detector = Detector(spec)
        fit_seconds = detector.fit(FeatureSet.stream(train.chunks, train.head)).fit_seconds
        score_seconds = seconds(lambda d=detector: [score_all([d], bank.chunks()) for bank in tests])
        arithmetic = sum(rates[k][0] * rates[k][1] for k in fit) + sum(rates[k][0] * (N_ID + N_OOD) for k in score)
        reading = once * (detector.needs.train or detector.needs.held_out) + once_test
        share = (fit_seconds + score_seconds - reading) / max(reading, arithmetic)  # 3 at most, besides one read
        over += [spec] if share > 3 else []
        print(
            f"{spec:<36}{fit_seconds:>8.1f}s{score_seconds:>8.1f}s{arithmetic:>11.1f}s{reading:>7.1f}s{share:>7.2f}×",
            flush=True,
        )
    print(f"\nabove 3 × the larger of arithmetic and one read, plus one read: {', '.join(over) or 'none'}")
    print(f"peak anonymous memory {memory.peak / 1e9:.2f} GB (at most 4 asked)")


if __name__ == "__main__":
    main()
