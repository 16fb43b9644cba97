"""KNN over a whole bank: the exact search against FAISS's flat, IVF and HNSW indexes.

Features are made up: 200 classes, each with 16 directions of its own in a space of 64, mapped to N × L by a layer
with ReLU. The queries are 1,000 ID rows, and 1,000 OOD rows of other classes. Each index is built in a process of its
own. Printed: seconds to build it and per 1,000 queries, the process's peak of anonymous memory from the fit on, the
share of the k nearest that it finds, and AUROC in points, also against the exact search.

    python benchmarks/knn.py [--rows N] [--width L] [--k K] [--index KIND ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from _common import AnonymousMemory, parser, seconds
from nescio.core import numerics
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.evaluation.metrics import auroc
from nescio.methods import KNN

CLASSES, LATENT, OWN, QUERIES = 200, 64, 16, 1000
KINDS = ("exact", "flat", "ivf", "hnsw")


def made(n: int, width: int, *, seed: int, known: bool = True) -> torch.Tensor:
    """Features ``(n, width)`` of the classes that the bank has, or of others."""
    fixed = torch.Generator().manual_seed(0 if known else 1)
    centres = torch.randn(CLASSES, LATENT, generator=fixed)
    own = torch.randn(CLASSES, OWN, LATENT, generator=fixed) * 0.4
    layer = torch.randn(LATENT, width, generator=torch.Generator().manual_seed(2)) / LATENT**0.5
    g = torch.Generator().manual_seed(seed)
    h = torch.empty(n, width)
    for at in range(0, n, 4096):
        rows = min(4096, n - at)
        y = torch.randint(CLASSES, (rows,), generator=g)
        x = torch.einsum("bk,bkl->bl", torch.randn(rows, OWN, generator=g), own[y]) + centres[y]
        h[at : at + rows] = (x @ layer - 0.5).relu_()
    return h


def measure(kind: str, n: int, width: int, k: int, out: Path) -> None:
    """Build an index, search with it, and keep what was found and what that took."""
    h, queries = made(n, width, seed=3), made(QUERIES, width, seed=4)
    others = made(QUERIES, width, seed=5, known=False)
    memory = AnonymousMemory()
    memory.start()
    stage = KNN(k=k, index=kind)  # type: ignore[arg-type]
    stage.fit(FeatureSet(h))
    del h
    build = seconds(lambda: stage(Features.of(queries[:1])))  # the first search builds the index
    search = min(seconds(lambda: stage(Features.of(queries))) for _ in range(3))
    z = numerics.normalised(queries)
    if kind == "exact":
        ids = numerics.top_k_products(torch.cat([z, -torch.ones(len(z), 1)], dim=1), stage.bank, k)[1].numpy()
    else:
        ids = stage._searcher.search(z.numpy(), k)[1]  # noqa: SLF001 - a stage gives the last of these alone
    scores = {"id": stage(Features.of(queries)), "ood": stage(Features.of(others))}
    found = {name: s.numpy() for name, s in scores.items()}
    np.savez(out, ids=ids, build=build, search=search, peak=memory.peak, **found)


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--width", type=int, default=342)
    arguments.add_argument("--k", type=int, default=50)
    arguments.add_argument("--index", action="append", choices=KINDS, help="instead of all; exact always is")
    arguments.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    n, width, k = options.rows, options.width, options.k
    if options.only:
        measure(options.only[0], n, width, k, Path(options.only[1]))
        return
    print(f"{n:,} × {width:,} features, {n * width * 4 / 1e9:.2f} GB in float32, k = {k}\n")
    print(f"{'index':<8}{'build':>9}{'1,000 queries':>15}{'memory':>10}{'recall':>9}{'AUROC':>9}{'against exact':>15}")
    with tempfile.TemporaryDirectory() as folder:
        exact = None
        for kind in dict.fromkeys(("exact", *(options.index or KINDS))):
            out = Path(folder) / f"{kind}.npz"
            sizes = ["--rows", str(n), "--width", str(width), "--k", str(k)]
            subprocess.run([sys.executable, __file__, *sizes, "--only", kind, str(out)], check=True)
            found = dict(np.load(out))
            exact = exact or found
            recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(found["ids"], exact["ids"], strict=True)])
            areas = [100 * auroc(f["id"], f["ood"]) for f in (found, exact)]
            search = found["search"] * 1000 / QUERIES
            print(
                f"{kind:<8}{found['build']:>8.1f}s{search:>14.2f}s{found['peak'] / 1e9:>8.2f}GB"
                f"{recall:>9.3f}{areas[0]:>9.2f}{areas[0] - areas[1]:>+15.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
