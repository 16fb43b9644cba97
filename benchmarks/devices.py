"""One process that runs the network on all cores, against a process for each share of them, in one run.

Both make the same bank of the same images, decoding included, in turns. Prints images per second, the ratio of seconds,
and whether the banks are equal byte for byte: last bits may depend on the number of threads.

    python benchmarks/devices.py [--devices N] [--images N] [--model NAME] [--rounds N]
"""

from __future__ import annotations

import statistics
import tempfile

import torch

from _common import data, densenet, in_turns, machine, parser, ratio
from nescio import Session, load_classifier, open_source
from nescio.data.source import Source
from nescio.run.bank import Bank


def measured(sessions: dict[str, Session], source: Source, rounds: int) -> dict[str, list[float]]:
    """Seconds of each session's banks of the images. Prints how they differ."""
    banks: dict[str, Bank] = {}
    with tempfile.TemporaryDirectory() as folder:

        def extract(name: str) -> None:
            session = sessions[name]
            session.banks.clear()
            session.cache = tempfile.mkdtemp(dir=folder)
            banks[name] = session.bank(source)

        times = in_turns({name: lambda name=name: extract(name) for name in sessions}, rounds)
        one, many = (torch.cat([f.h for f in banks[name].chunks()]) for name in ("one", "many"))
        same = len({tuple(p.read_bytes() for p in sorted(bank.path.iterdir())) for bank in banks.values()}) == 1
    off = (one - many).abs().max() / one.abs().max()
    print(f"equal byte for byte: {same}; largest difference of a feature, of the largest feature: {off:.1e}")
    return times


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--devices", type=int, default=2)
    arguments.add_argument("--images", type=int, default=3000)
    arguments.add_argument("--model", help="A name as nescio bench takes it; a DenseNet for CIFAR by default.")
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    print(machine())
    classifier = load_classifier(given.model, untrained=True, device="cpu") if given.model else densenet()
    source = open_source(f"{data('cifar10/test')}[:{given.images}]")
    sessions = {
        name: Session(classifier, devices=devices, progress=False)
        for name, devices in (("one", 1), ("many", given.devices))
    }
    times = measured(sessions, source, given.rounds)
    for name, seconds in times.items():
        rates = [len(source) / s for s in seconds]
        print(f"{name:5} {statistics.median(rates):7,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f})")
    print(f"seconds of {given.devices} processes / one: {ratio(times, 'many', 'one'):.2f}")


if __name__ == "__main__":
    main()
