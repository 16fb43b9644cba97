"""What the library costs beside the same formulas in plain PyTorch, and what its import and its help page cost.

Scores of 256 rows of 2,048 features with 1,000 classes: a fitted detector, called on a tensor, against the formula
written out on the same tensors, in turns; what counts is the median ratio. Then ``import nescio`` and ``nescio --help``
in processes of their own.

    python benchmarks/library.py [--rounds N] [--threads N] [--detector SPEC ...] [--profile]
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from _common import in_turns, machine, parser, ratio, seconds
from nescio import Detector
from nescio.core.features import Head

B, L, C, BANK = 256, 2048, 1000, 50_000
Score = Callable[[Tensor], Tensor]


def written_out(detector: Detector, head: Head) -> dict[str, Score]:
    """The formula of each detector, from what a fitted one learnt."""
    w, b, learnt = head.weight, head.bias, dict(detector.named_buffers())

    def part(name: str) -> Tensor:
        return next(t for key, t in learnt.items() if key.endswith(name))

    def energy(h: Tensor) -> Tensor:
        return functional.linear(h, w, b).double().logsumexp(1)

    def fmls(h: Tensor) -> Tensor:
        pred = functional.linear(h, w, b).argmax(1)
        s = functional.cosine_similarity(h, part("centres")[pred]).clamp(min=0)
        f = functional.linear((h * part("mask")[pred]).clamp(max=part("limit")), w, b)
        return (s[:, None] * f).double().logsumexp(1)

    def mahalanobis(h: Tensor) -> Tensor:
        means, whitening = part("means"), part("whitening")
        z = h.double() @ whitening
        return -(z.square().sum(1, keepdim=True) - 2 * z @ means.T + means.square().sum(1)).amin(1)

    def knn(h: Tensor) -> Tensor:
        z = functional.normalize(h)
        nearest = rows[(z @ rows.T).topk(50).indices[:, -1]]
        return -(z.double() - nearest.double()).norm(dim=1)

    rows = part("bank")[:, :-1].contiguous() if "bank" in " ".join(learnt) else torch.empty(0)
    return {"energy": energy, "fmls": fmls, "mahalanobis": mahalanobis, "knn:k=50": knn}


def compare(spec: str, rounds: int, *, profile: bool) -> None:
    """Print a detector's time and its ratio to the formula's."""
    torch.manual_seed(0)
    n = BANK if spec.startswith("knn") else 4 * C
    head = Head(torch.randn(C, L) * 0.05, torch.zeros(C))
    labels = torch.arange(n) % C
    h = (torch.randn(n, L) * 0.5 + head.weight[labels]).relu()
    detector = Detector(spec).fit(h, labels, head=head)
    formula, x = written_out(detector, head)[spec], (torch.randn(B, L) * 0.5).relu()
    off = float((detector(x) - formula(x)).abs().max())
    times = in_turns({"nescio": lambda: detector(x), "formula": lambda: formula(x)}, rounds, warm=3)
    ours, plain = (1e3 * statistics.median(t) for t in times.values())
    found = ratio(times, "nescio", "formula")
    least = min(times["nescio"]) / min(times["formula"])
    said = f"{ours:8.2f} ms, written out {plain:8.2f} ms: {found:.2f} × (1.15 asked), {least:.2f} × of the quickest"
    print(f"{spec:<14}{said}; {off:.0e} apart", flush=True)
    if profile:
        with cProfile.Profile() as profiler:
            for _ in range(20):
                detector(x)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


def start_up(rounds: int) -> None:
    """Print what the import and the help page cost."""

    def python(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True)

    runs = {
        "interpreter": python("-c", "pass"),
        "import": python("-c", "import nescio"),
        "help": python("-m", "nescio", "--help"),
    }
    times = in_turns(runs, rounds)
    extra = statistics.median(b - a for a, b in zip(times["interpreter"], times["import"], strict=True))
    print(f"import nescio: {1e3 * extra:.0f} ms beside the interpreter's start (50 asked)")
    print(f"nescio --help: {statistics.median(times['help']):.2f} s (0.25 asked)")


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    options.add_argument("--detector", nargs="+", default=["energy", "fmls", "mahalanobis", "knn:k=50"])
    options.add_argument("--profile", action="store_true", help="also print where the library's time goes")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    print(machine())
    warmed = seconds(lambda: torch.randn(L, L) @ torch.randn(L, L))
    print(f"{B} × {L:,} features, {C:,} classes; a product of L × L: {1e3 * warmed:.0f} ms")
    with torch.inference_mode():
        for spec in chosen.detector:
            compare(spec, chosen.rounds, profile=chosen.profile)
    start_up(max(5, chosen.rounds // 4))


if __name__ == "__main__":
    main()
