"""How much of the offline rate the service reaches, and how long it takes to answer below that.

    python benchmarks/serving.py FILE IMAGES [--clients 32] [--seconds 30] [--rounds 3] [--soak 600] [--load 0.8]
    python benchmarks/serving.py FILE IMAGES --against OTHER.nescio [--clients 32] [--seconds 30] [--rounds 3]

FILE is what 'nescio fit' wrote, IMAGES a folder of encoded images. In turns: 'nescio score' over the images, with a
decoder on each core, as the offline rate; and a closed loop of clients against 'nescio serve', as the capacity. The
clients run on the same cores: the share of these that they take is subtracted from what the offline rate had. Then
images are sent at a share of the capacity, by the clock whether or not earlier ones are answered, for --soak seconds.
With --against the capacities with two files, such as those of two engines, are measured in turns instead.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from _common import parser

BOUNDARY = "nescio"


class Client:
    """One connection. A library of clients would take more of the cores than the network does."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, request: bytes) -> int:
        """Send a whole request and read the answer. Returns its status."""
        if self.streams is None or self.streams[0].at_eof():  # idle for too long, the service hangs up
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        return int(head.split(b" ", 2)[1])


def request_of(raw: bytes) -> bytes:
    """An upload as it goes over the wire."""
    disposition = 'Content-Disposition: form-data; name="images"; filename="image"'
    body = f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + raw + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
    return f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def service(file: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``nescio serve`` in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "nescio", "serve", str(file), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = ""
            while "serving at" not in line:
                line = process.stderr.readline() if process.stderr else ""
                if not line:
                    raise SystemExit("the service did not start")
            yield line.partition("serving at ")[2].partition(" ")[0], process
        finally:
            process.send_signal(signal.SIGTERM)


def offline(file: Path, images: list[Path]) -> float:
    """Images per second of ``nescio score``, as it says itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nescio", "score", str(file), *map(str, images), "-o", f"{folder}/scores"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"([\d,]+) images/s", done.stdout)
    return float(found[1].replace(",", "")) if found else float("nan")


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[float, float]:
    """Images per second that clients reach who send one after the other, and their share of the cores."""
    begin, before = time.perf_counter(), cpu()
    done = 0

    async def run(at: int) -> None:
        nonlocal done
        client = Client(port)
        while time.perf_counter() - begin < seconds:
            if await client.post(requests[at % len(requests)]) != 200:
                raise SystemExit("a request was refused")
            at += clients
            done += 1

    await asyncio.gather(*(run(i) for i in range(clients)))
    took = time.perf_counter() - begin
    return done / took, (cpu() - before) / took / (os.cpu_count() or 1)


def against(files: list[Path], requests: list[bytes], given: argparse.Namespace) -> None:
    """Print the capacity with each of two files, in turns, and the ratio of the first to the second."""
    with service(files[0]) as (ours, _), service(files[1]) as (theirs, _):
        ports, ratios = [int(url.rpartition(":")[2]) for url in (ours, theirs)], []
        for port in ports:
            asyncio.run(closed_loop(port, requests, given.clients, 5))  # the first batches are slower
        for i in range(given.rounds):
            rates = {}
            for port in ports[:: 1 if i % 2 else -1]:
                rates[port], _ = asyncio.run(closed_loop(port, requests, given.clients, given.seconds))
            ratios.append(rates[ports[0]] / rates[ports[1]])
            print(f"{files[0].name} {rates[ports[0]]:.1f}, {files[1].name} {rates[ports[1]]:.1f} images/s", flush=True)
        print(f"{np.median(ratios):.2f} × (of {len(ratios)} rounds: {', '.join(f'{r:.2f}' for r in ratios)})")


async def by_the_clock(
    port: int, requests: list[bytes], rate: float, seconds: float
) -> tuple[np.ndarray, collections.Counter[str]]:
    """Times to an answer when images come at random at this rate, and why some got none."""
    rng, idle, tasks, lost = np.random.default_rng(0), [], [], collections.Counter()
    times: list[float] = []

    async def one(request: bytes, due: float) -> None:
        client = idle.pop() if idle else Client(port)
        try:
            status = await client.post(request)
        except (OSError, asyncio.IncompleteReadError) as e:
            lost[type(e).__name__] += 1
            return
        if status != 200:
            lost[str(status)] += 1
            return
        times.append(time.perf_counter() - due)
        idle.append(client)

    due = begin = time.perf_counter()
    while due - begin < seconds:
        due += rng.exponential(1 / rate)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(one(requests[len(tasks) % len(requests)], due)))
    await asyncio.gather(*tasks)
    return np.array(times), lost


def cpu() -> float:
    """Seconds that this process has computed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run it from the command line."""
    options = parser(__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("images", type=Path)
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--seconds", type=float, default=30)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--soak", type=float, default=600)
    options.add_argument("--load", type=float, default=0.8)
    options.add_argument("--against", type=Path, help="another file")
    given = options.parse_args()
    paths = sorted(p for p in given.images.iterdir() if p.is_file())
    requests = [request_of(p.read_bytes()) for p in paths]
    if given.against:
        against([given.file, given.against], requests, given)
        return
    reached = []
    with service(given.file) as (url, _):
        port = int(url.rpartition(":")[2])
        asyncio.run(closed_loop(port, requests, given.clients, 5))  # the first batches are slower
        print(
            "| offline, images/s | service | clients' share of the cores | service / what was left |\n|---|---|---|---|"
        )
        for _ in range(given.rounds):
            alone = offline(given.file, paths)
            rate, share = asyncio.run(closed_loop(port, requests, given.clients, given.seconds))
            reached.append(rate)
            print(f"| {alone:.0f} | {rate:.1f} | {share:.1%} | {rate / alone / (1 - share):.2f} |", flush=True)
        if given.soak:
            rate = given.load * float(np.median(reached))
            times, lost = asyncio.run(by_the_clock(port, requests, rate, given.soak))
            p50, p99 = np.quantile(times, [0.5, 0.99])
            total = len(times) + lost.total()
            sent = f"{total:,} images in {given.soak:.0f} s ({rate:.1f} a second, {given.load:.0%} of it)"
            print(f"\n{sent}: {lost.total()} lost {dict(lost) or ''}")
            print(f"answered in {1e3 * p50:.0f} ms (half), {1e3 * p99:.0f} ms (99 of 100)")


if __name__ == "__main__":
    main()
