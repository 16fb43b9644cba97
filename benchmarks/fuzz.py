"""Send broken and hostile images to the service, and see that it answers each one and goes on.

    python benchmarks/fuzz.py FILE [--images 20000] [--clients 8] [--seed 0]
    python benchmarks/fuzz.py FILE --kill 120

FILE is what 'nescio fit' wrote. Images of every format that is read, in several modes, are mutated at random: bits
flipped, bytes cut, repeated or spliced from another image, numbers of the header made extreme. Each is an upload of its
own. The service fails this if it gives any answer but 200 or 4xx with a reason, breaks a connection, ends, or grows.
With --kill SECONDS whole images are sent instead, with pauses, while decoders (and at times the process that they are
made from) are killed at random: each request must get 200, 422 or 503, and the service must recover by itself.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import io
import random
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from _common import parser
from serving import service

SIDE = 48
EXTREME = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000, 100_000)
GROWTH = 1.15
"""What the service may hold at the end, relative to after the first tenth: allocators settle late, leaks do not."""


def originals(rng: np.random.Generator) -> dict[str, list[bytes]]:
    """Whole images of each format, in the modes that it has: gradients and noise, so that every coder has work."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    rgb = np.stack([x, y, x * y], axis=2) + 0.2 * rng.random((SIDE, SIDE, 3))
    colour = Image.fromarray((255 * rgb / rgb.max()).astype(np.uint8))
    grey, palette, clear = colour.convert("L"), colour.quantize(32), colour.convert("RGBA")
    deep = Image.fromarray((65535 * x).astype(np.uint16))
    turned = colour.getexif()
    turned[0x0112] = 6
    frames = [colour.rotate(angle) for angle in (0, 90)]
    moving = {"save_all": True, "append_images": frames[1:]}
    made: dict[str, list[tuple[Image.Image, dict[str, object]]]] = {
        "JPEG": [(colour, {"exif": turned}), (grey, {}), (colour.convert("CMYK"), {}), (colour, {"progressive": True})],
        "PNG": [(colour, {}), (clear, {}), (palette, {}), (deep, {}), (grey.convert("1"), {})],
        "WEBP": [(colour, {}), (clear, {"lossless": True}), (frames[0], moving)],
        "GIF": [(palette, {}), (frames[0], moving)],
        "BMP": [(colour, {}), (palette, {})],
        "TIFF": [(colour, {"compression": c}) for c in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate")]
        + [(deep, {})],
        "PPM": [(colour, {}), (grey, {})],
        "AVIF": [(colour, {}), (clear, {})],
        "JPEG2000": [(colour, {}), (grey, {})],
        "ICO": [(clear, {})],
        "PCX": [(colour, {}), (palette, {})],
        "QOI": [(colour, {}), (clear, {})],
        "SGI": [(colour, {}), (grey, {})],
        "TGA": [(colour, {"compression": "tga_rle"}), (clear, {})],
    }
    return {kind: [_encoded(image, kind, options) for image, options in each] for kind, each in made.items()}


def _encoded(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flip(data: bytearray, at: int, n: int, r: random.Random) -> None:
    """Bits, anywhere."""
    del at
    for _ in range(n):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def number(data: bytearray, at: int, n: int, r: random.Random) -> None:
    """A number of the header becomes extreme."""
    del n
    kind, value, at = r.choice(("<I", ">I", "<H", ">H")), r.choice(EXTREME), at % 64
    short = kind[1] == "H"
    data[at : at + (2 if short else 4)] = struct.pack(kind, value & 0xFFFF if short else value)


def cut(data: bytearray, at: int, n: int, r: random.Random) -> None:
    """The end, or a piece, is lost."""
    del data[at : r.choice((at + n, len(data)))]


def insert(data: bytearray, at: int, n: int, r: random.Random) -> None:
    """Bytes from nowhere, or a piece again, up to a hundred times."""
    data[at:at] = r.choice((r.randbytes(n), bytes(data[at : at + n]) * r.choice((1, 8, 100))))


def blank(data: bytearray, at: int, n: int, r: random.Random) -> None:
    """A piece becomes all zeros or ones."""
    data[at : at + n] = bytes([r.choice((0, 255))]) * n


CHANGES = (flip, number, cut, insert, blank)


def mutated(raw: bytes, other: bytes, r: random.Random) -> bytes:
    """One to four random changes of an image, of which one may be a piece of another."""
    data = bytearray(raw)
    for _ in range(r.randint(1, 4)):
        at, n = r.randrange(len(data) + 1), r.choice((1, 2, 4, 16, 64, 256))
        change = r.choice((*CHANGES, None))
        if change is None or not data:
            data[at : at + n] = other[at : at + n]
        else:
            change(data, at, n, r)
    return bytes(data)


@dataclass
class Found:
    """What came of it."""

    statuses: dict[str, collections.Counter[int]] = field(default_factory=dict)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    seconds: float = 0.0


async def fuzz(
    url: str, images: int, *, clients: int = 8, seed: int = 0, process: psutil.Process | None = None
) -> Found:
    """Send that many mutated images to a service, and count its answers by format."""
    seeds, r = originals(np.random.default_rng(seed)), random.Random(seed)  # noqa: S311 - no secrets
    every = [raw for each in seeds.values() for raw in each]
    found, begin = Found({kind: collections.Counter() for kind in seeds}), time.perf_counter()
    todo = (
        (kind, mutated(r.choice(seeds[kind]), r.choice(every), r))
        for _ in range(images)
        for kind in [r.choice([*seeds])]
    )
    done = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal done
        for kind, raw in todo:  # one iterator for all clients
            try:
                answer = await http.post("/predict", files={"images": (f"x.{kind}", raw)})
            except httpx.HTTPError as e:
                found.wrong.append(f"{kind}: {type(e).__name__}: {e}")
                continue
            found.statuses[kind][answer.status_code] += 1
            if answer.status_code != 200:
                reason = answer.json().get("detail", "") if answer.status_code < 500 else ""
                found.reasons[reason.partition(": ")[2].partition(":")[0][:40]] += 1
                if not (400 <= answer.status_code < 500 and reason):
                    found.wrong.append(f"{kind}: HTTP {answer.status_code}: {answer.text[:200]}")
            done += 1
            if process and done % max(images // 20, 1) == 0:
                found.memory.append(held(process))

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
        alive = await http.get("/health")
    if alive.status_code != 200:
        found.wrong.append(f"health: HTTP {alive.status_code}")
    found.seconds = time.perf_counter() - begin
    return found


@dataclass
class Siege:
    """A service whose decoders are killed at random, idle and busy, while images are sent, and what becomes of it.

    Attributes:
        process: the service.
        raw: an image.
        seconds: that it goes on.
        statuses: of requests for verdicts.
        ready: of ``/ready``.
        killed: processes.
        wrong: answers that are neither verdicts nor refusals with a reason, broken connections, what did not recover.
        recovery: seconds until it was ready again, after the end.
    """

    process: psutil.Process
    raw: bytes
    seconds: float
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    ready: collections.Counter[int] = field(default_factory=collections.Counter)
    killed: int = 0
    wrong: list[str] = field(default_factory=list)
    recovery: float = 0.0

    async def run(self, url: str, *, clients: int = 4, seed: int = 0) -> None:
        """Besiege it, and see that it recovers."""
        self.end, r = time.perf_counter() + self.seconds, random.Random(seed)  # noqa: S311 - no secrets
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            await asyncio.gather(self._kill(r), self._watch(http), *(self._client(http, r) for _ in range(clients)))
            begin = time.perf_counter()
            while (await http.get("/ready")).status_code != 200 and self.recovery < 60:
                await asyncio.sleep(0.05)
                self.recovery = time.perf_counter() - begin
            after = [(await self._post(http)).status_code for _ in range(20)]
        if after != [200] * 20:
            self.wrong.append(f"afterwards: {after}")

    async def _post(self, http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/predict", files={"images": ("x.png", self.raw)})

    async def _client(self, http: httpx.AsyncClient, r: random.Random) -> None:
        while time.perf_counter() < self.end:
            try:
                answer = await self._post(http)
            except httpx.HTTPError as e:
                self.wrong.append(f"{type(e).__name__}: {e}")
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code not in (200, 422, 503) or not (answer.is_success or answer.json()["detail"]):
                self.wrong.append(f"HTTP {answer.status_code}: {answer.text[:200]}")
            if r.random() < 0.05:
                await asyncio.sleep(r.random())  # at times nothing is to be decoded

    async def _watch(self, http: httpx.AsyncClient) -> None:
        while time.perf_counter() < self.end:
            self.ready[(await http.get("/ready")).status_code] += 1
            await asyncio.sleep(0.05)

    async def _kill(self, r: random.Random) -> None:
        known: dict[int, psutil.Process] = {}  # decoders work on when what they were made from is killed
        while time.perf_counter() < self.end:
            await asyncio.sleep(r.expovariate(2))
            children = decoders(self.process)
            known = {p.pid: p for p in (*known.values(), *children) if alive(p)}
            victims = list(known.values())
            if children and r.random() < 0.03:  # what they are made from
                victims = [psutil.Process(children[0].ppid())]
            for victim in r.sample(victims, r.randint(1, len(victims)) if victims else 0):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    self.killed += 1


def decoders(process: psutil.Process) -> list[psutil.Process]:
    """The processes that decode: they are children of the one that they are made from."""
    try:
        return [grandchild for child in process.children() for grandchild in child.children()]
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    """Whether it runs: neither gone nor ended and waiting to be collected."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def held(process: psutil.Process) -> float:
    """Megabytes that a process and those that it started hold by themselves."""
    each = [process, *process.children(recursive=True)]
    return sum(p.memory_full_info().uss for p in each if p.is_running()) / 1e6


def kill(file: Path, seconds: float, clients: int, seed: int) -> None:
    """Besiege a service, and print what became of it."""
    with service(file) as (url, process):
        lines: list[str] = []
        threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
        raw = originals(np.random.default_rng(seed))["PNG"][0]
        siege = Siege(psutil.Process(process.pid), raw, seconds)
        asyncio.run(siege.run(url, clients=clients, seed=seed))
    answers = ", ".join(f"{n:,} × {status}" for status, n in sorted(siege.statuses.items()))
    print(f"{siege.killed:,} processes killed in {seconds:g} s; answers: {answers}; {len(siege.wrong)} wrong")
    print("ready:", ", ".join(f"{n:,} × {status}" for status, n in sorted(siege.ready.items())))
    print(f"ready {siege.recovery:.1f} s after the end; {len(lines)} lines of log; ended with {process.returncode}")
    for wrong in siege.wrong[:20]:
        print("wrong:", wrong)
    if siege.wrong or process.returncode:
        sys.exit(1)


def main() -> None:
    """Run it from the command line."""
    options = parser(__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kill", type=float, metavar="SECONDS")
    given = options.parse_args()
    if given.kill:
        kill(given.file, given.kill, given.clients, given.seed)
        return
    with service(given.file) as (url, process):
        found = asyncio.run(
            fuzz(url, given.images, clients=given.clients, seed=given.seed, process=psutil.Process(process.pid))
        )
    codes = sorted({code for each in found.statuses.values() for code in each})
    print("| format | " + " | ".join(str(c) for c in codes) + " |")
    print("|---" * (len(codes) + 1) + "|")
    for kind, each in found.statuses.items():
        print(f"| {kind} | " + " | ".join(f"{each[c]:,}" for c in codes) + " |")
    total = sum(sum(each.values()) for each in found.statuses.values())
    wrong, code = len(found.wrong), process.returncode
    print(f"\n{total:,} images in {found.seconds:.0f} s; {wrong} wrong answers; ended with {code}")
    print("refused for:", ", ".join(f"{why} ({n:,})" for why, n in found.reasons.most_common(12)))
    print("memory of the service and its decoders, MB:", " ".join(f"{m:.0f}" for m in found.memory))
    for wrong in found.wrong[:20]:
        print("wrong:", wrong)
    early = found.memory[max(len(found.memory) // 10, 0)]
    if found.wrong or process.returncode or found.memory[-1] > GROWTH * early:
        sys.exit(1)


if __name__ == "__main__":
    main()
