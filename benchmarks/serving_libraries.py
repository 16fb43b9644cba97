"""The same network behind two serving libraries: what clients reach, and what each takes while nobody asks.

    pip install litserve
    python benchmarks/serving_libraries.py FILE IMAGES [--clients 32] [--seconds 20] [--rounds 3]

FILE is what 'nescio fit' wrote, IMAGES a folder of encoded images. 'nescio serve' (FastAPI and uvicorn, and a thread
that takes what waits as a batch) against LitServe with its dynamic batching, which decodes where uvicorn runs and runs
the network in a process of its own. One runs, then the other, twice.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from _common import parser
from serving import closed_loop, request_of, service

LITSERVE = """
import sys
from typing import Annotated

import litserve
import torch
from fastapi import Depends, File, UploadFile

import nescio
from nescio.data.decode import decode

FILE, PORT = sys.argv[1:]
GEOMETRY = nescio.load(FILE, device="cpu").classifier.transform.geometry


def pixels(images: Annotated[UploadFile, File()]) -> torch.Tensor:
    return GEOMETRY(decode(images.file.read()))


class Judge(litserve.LitAPI):
    def setup(self, device):
        self.deployed = nescio.load(FILE, device=device)

    def decode_request(self, request: Annotated[torch.Tensor, Depends(pixels)]):
        return request

    def batch(self, inputs):
        return torch.stack(inputs)

    def predict(self, x):
        return list(self.deployed.verdicts(self.deployed.judge(x)))

    def unbatch(self, output):
        return output

    def encode_response(self, output) -> dict:
        return vars(output)


if __name__ == "__main__":
    server = litserve.LitServer(Judge(max_batch_size=32, batch_timeout=0.005), accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=int(PORT), generate_client_file=False, log_level="error", num_api_servers=1)
"""
PORT = 8199
IDLE = 10.0
"""Seconds in which nobody asks."""


def every(process: psutil.Process) -> list[psutil.Process]:
    """A process and those that it started."""
    return [process, *process.children(recursive=True)]


def computed(process: psutil.Process) -> float:
    """Seconds that they have computed."""
    return sum(t.user + t.system for t in (p.cpu_times() for p in every(process)))


def wait_for(url: str) -> None:
    """Until it answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - our own address
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"{url} does not answer")


def main() -> None:
    """Run it from the command line."""
    options = parser(__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("images", type=Path)
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    requests = [request_of(p.read_bytes()) for p in sorted(given.images.iterdir()) if p.is_file()]

    def judged(name: str, port: int, process: psutil.Process) -> None:
        before = computed(process)
        time.sleep(IDLE)
        busy = (computed(process) - before) / IDLE
        print(f"{name}: {len(every(process))} processes, {busy:.0%} of a core while nobody asks", flush=True)
        for _ in range(given.rounds):
            work = closed_loop(port, requests, given.clients, given.seconds)
            try:
                rate, _share = asyncio.run(asyncio.wait_for(work, 3 * given.seconds))
            except TimeoutError:
                print(f"{name}: a request was not answered within {3 * given.seconds:.0f} s", flush=True)
            else:
                print(f"{name}: {rate:.1f} images/s", flush=True)

    for _ in range(2):
        with service(given.file) as (url, ours):
            judged("nescio serve", int(url.rpartition(":")[2]), psutil.Process(ours.pid))
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "service.py")
            script.write_text(LITSERVE)
            with subprocess.Popen([sys.executable, str(script), str(given.file.absolute()), str(PORT)]) as theirs:
                try:
                    wait_for(f"http://127.0.0.1:{PORT}/health")
                    judged("LitServe", PORT, psutil.Process(theirs.pid))
                finally:
                    for p in every(psutil.Process(theirs.pid)):
                        p.kill()


if __name__ == "__main__":
    main()
