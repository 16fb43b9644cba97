"""Uploads become pixels in processes of their own: one that hangs or dies takes nothing with it.

Each process has a socket of its own, so that the end of one, at whatever moment, is seen at once and touches no other.
What comes back is bytes, never objects: an image that takes a decoder over has no way from there into the service.
"""

from __future__ import annotations

import asyncio
import io
import logging
import multiprocessing
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nescio.core.errors import BadImage, TooLarge, UnknownFormat
from nescio.data.decode import decode
from nescio.data.preprocess import AnyTransform
from nescio.data.workers import MEMORY, limit_memory
from nescio.serving.fair import FairQueue
from nescio.serving.seldom import Seldom

log = logging.getLogger(__name__)
log.addFilter(Seldom())

STATUS: dict[type[BadImage], int] = {TooLarge: 413, UnknownFormat: 415, BadImage: 422}
"""What a client is told of an image that cannot be read."""
MOST = 8
"""Processes where nobody says how many."""
TRIES = 2
"""Decoders that may end on one image: the first may have been ended by something else."""
START = 300.0
"""Seconds that a decoder may take to start: on a busy machine the libraries alone take a minute."""
AGAIN = 1.0
"""Seconds until the next try where none can be started."""
_KINDS = tuple(STATUS)
_PIXELS = len(_KINDS)
"""First byte of an answer with pixels; others are a kind of refusal and its reason."""


class Decoders:
    """Processes that decode. One that takes too long is killed, and one that ends is replaced.

    Args:
        transform: of the network.
        processes: how many; one per core, at most ``MOST``, by default.
        most: pixels of an image.
        seconds: for one image.
    """

    def __init__(self, transform: AnyTransform, *, processes: int | None = None, most: int, seconds: float) -> None:
        self.transform, self.most, self.seconds = transform, most, seconds
        self.processes = processes or min(os.cpu_count() or 1, MOST)
        self.waiting: FairQueue[_Job] = FairQueue()
        self.running: set[_Decoder] = set()
        self.idle: list[_Decoder] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    @property
    def ready(self) -> bool:
        """Whether a process runs that can decode."""
        return bool(self.running)

    async def start(self) -> None:
        """Start the processes: the first upload need not wait for them."""
        await asyncio.gather(*(self._add() for _ in range(self.processes)))

    async def __call__(self, raw: bytes, client: str = "") -> Tensor:
        """Decode an upload of a client, when it is its turn.

        Raises:
            BadImage: it cannot be read, or not in time.
        """
        job = _Job(raw, client, asyncio.get_running_loop().create_future())
        self.waiting.put(client, job)
        self._dispatch()
        answer = await job.done
        if answer[0] != _PIXELS:
            raise _KINDS[answer[0]](answer[1:].decode())
        side = self.transform.crop
        return torch.frombuffer(answer, dtype=torch.uint8, offset=1).reshape(-1, side, side)

    async def close(self) -> None:
        """End the processes."""
        self.closing = True
        for task in self.tasks:
            task.cancel()
        ended = [decoder.process for decoder in self.running]
        for decoder in [*self.running]:
            decoder.end()
        await asyncio.gather(*(asyncio.to_thread(process.join, 5) for process in ended))

    def _dispatch(self) -> None:
        while self.idle and (job := self.waiting.get()):
            if not job.done.done():  # else its client has gone
                self._begin(self._work(self.idle.pop(), job))

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)  # the loop itself would forget it
        task.add_done_callback(self.tasks.discard)

    async def _work(self, decoder: _Decoder, job: _Job) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                job.finish(await decoder.ask(job.raw))
            if not decoder.ended.done():
                self.idle.append(decoder)
        except TimeoutError:
            decoder.end()
            job.finish(bytearray(_refused(BadImage(f"it takes longer than {self.seconds:g} s to decode"))))
        except EOFError:
            job.tries += 1
            if job.tries < TRIES:
                self.waiting.put(job.client, job, first=True)
            else:
                job.finish(bytearray(_refused(BadImage("the decoder crashed on it"))))
        self._dispatch()

    async def _add(self) -> None:
        """One more process that waits for images."""
        decoder = await _started(self.transform, self.most)
        self.running.add(decoder)
        self.idle.append(decoder)
        decoder.ended.add_done_callback(lambda _: self._ended(decoder))
        self._dispatch()

    def _ended(self, decoder: _Decoder) -> None:
        self.running.discard(decoder)
        if decoder in self.idle:
            self.idle.remove(decoder)
        decoder.end()
        if not self.closing:
            log.warning("a decoder has ended; starting another")
            self._begin(self._replace())

    async def _replace(self) -> None:
        while True:
            try:
                return await self._add()
            except (OSError, EOFError, TimeoutError) as e:
                log.error("no decoder can be started (%s: %s); trying again", type(e).__name__, e)
                await asyncio.sleep(AGAIN)


@dataclass
class _Job:
    """An upload, and who waits for its pixels."""

    raw: bytes
    client: str
    done: asyncio.Future[bytearray]
    tries: int = 0

    def finish(self, answer: bytearray) -> None:
        if not self.done.done():
            self.done.set_result(answer)


class _Decoder(asyncio.Protocol):
    """One process, as the service sees it. Messages are a length, in four bytes, and as many bytes."""

    def __init__(self, process: Any) -> None:
        self.process, self.heard = process, bytearray()
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[bytearray] = loop.create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if len(self.heard) >= 4 + int.from_bytes(self.heard[:4]) and not self.answer.done():
            self.answer.set_result(self.heard[4:])

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.ended.done():
            self.ended.set_result(None)

    async def ask(self, raw: bytes) -> bytearray:
        """What the process says of an upload.

        Raises:
            EOFError: it has ended.
        """
        self.heard.clear()
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(len(raw).to_bytes(4) + raw)
        either: list[asyncio.Future[Any]] = [self.answer, self.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self.answer.done():
            raise EOFError("the process has ended")
        return self.answer.result()

    def end(self) -> None:
        """Kill it."""
        if not self.ended.done():  # its number is still its own
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.transport.abort()


async def _started(transform: AnyTransform, most: int) -> _Decoder:
    """A process that has decoded its first image.

    Raises:
        OSError, EOFError, TimeoutError: none can be started.
    """
    # processes are made from one that holds the libraries and has no threads
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = socket.socketpair()
    process = context.Process(target=_serve, args=(there, transform, most), name="nescio-decoder", daemon=True)
    try:
        async with asyncio.timeout(START):
            with there:
                await asyncio.to_thread(process.start)
            _, decoder = await asyncio.get_running_loop().create_unix_connection(lambda: _Decoder(process), sock=here)
            await decoder.ask(_white(transform.crop))
    except BaseException:
        here.close()
        if process.pid is not None:
            process.kill()
        raise
    return decoder


def _white(side: int) -> bytes:
    white = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(white, "PNG")
    return white.getvalue()


# --- in the process


def _serve(link: socket.socket, transform: AnyTransform, most: int) -> None:
    """Answer until the service hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which finishes what it has begun
    limit_memory(MEMORY)
    with link, link.makefile("rb") as asked:
        while head := asked.read(4):
            answer = _answer(asked.read(int.from_bytes(head)), transform, most)
            try:
                link.sendall(len(answer).to_bytes(4) + answer)
            except OSError:
                return


def _answer(raw: bytes, transform: AnyTransform, most: int) -> bytes:
    """The pixels that the network will see, uint8 ``(channels, crop, crop)``, or why there are none."""
    try:
        return bytes([_PIXELS]) + transform.geometry(decode(raw, max_pixels=most)).numpy().tobytes()
    except BadImage as e:
        return _refused(e)
    except MemoryError:
        return _refused(TooLarge("it needs more memory than a decoder has"))
    except Exception as e:  # noqa: BLE001 - one image's trouble ends no decoder
        return _refused(BadImage(f"{type(e).__name__}: {e}"))


def _refused(e: BadImage) -> bytes:
    kind = next(i for i, kind in enumerate(_KINDS) if isinstance(e, kind))
    return bytes([kind]) + str(e).encode(errors="backslashreplace")
