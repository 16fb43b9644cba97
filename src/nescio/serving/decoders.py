"""Uploads become pixels in processes of their own: one that hangs or dies takes nothing with it."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pebble import ProcessExpired, ProcessPool
from PIL import Image
from torch import Tensor

from nescio.data.decode import decode
from nescio.data.transforms import Transform
from nescio.errors import BadImage, TooLarge, UnknownFormat

STATUS: dict[type[BadImage], int] = {TooLarge: 413, UnknownFormat: 415, BadImage: 422}
"""What a client is told of an image that cannot be read."""
MOST = 8
"""Processes where nobody says how many."""


def pixels(raw: bytes, transform: Transform, most: int) -> npt.NDArray[np.uint8]:
    """An upload as the network will see it: uint8 ``(3, crop, crop)``. Raises BadImage."""
    seen: npt.NDArray[np.uint8] = transform.geometry(decode(raw, max_pixels=most)).numpy()
    return seen


class Decoders:
    """Processes that decode. One that takes too long is killed and replaced; so is one that dies.

    Args:
        transform: of the network.
        processes: how many; one per core, at most ``MOST``, by default.
        most: pixels of an image.
        seconds: for one image.
    """

    def __init__(self, transform: Transform, *, processes: int | None = None, most: int, seconds: float) -> None:
        # processes are made from one that holds the libraries and has no threads
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.processes = processes or min(os.cpu_count() or 1, MOST)
        self.pool = ProcessPool(self.processes, context=context)
        self.transform, self.most, self.seconds = transform, most, seconds

    async def __call__(self, raw: bytes) -> Tensor:
        """Decode an upload.

        Raises:
            BadImage: it cannot be read, or not in time.
        """
        try:
            return torch.from_numpy(await asyncio.wrap_future(self._scheduled(raw, self.seconds)))
        except TimeoutError:
            raise BadImage(f"it takes longer than {self.seconds:g} s to decode") from None
        except ProcessExpired:
            raise BadImage("the decoder broke down on it") from None

    def warm(self) -> None:
        """Have the processes started: the first upload need not wait for them."""
        white = io.BytesIO()
        Image.new("RGB", (self.transform.crop, self.transform.crop), "white").save(white, "PNG")
        for done in [self._scheduled(white.getvalue()) for _ in range(self.processes)]:
            done.result()

    def _scheduled(self, raw: bytes, seconds: float | None = None) -> Any:
        return self.pool.schedule(pixels, args=[raw, self.transform, self.most], timeout=seconds)

    def close(self) -> None:
        """End the processes."""
        self.pool.stop()
        self.pool.join()
