"""An extraction as bytes that another process of this program makes it of again."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nescio.core.errors import InputError
from nescio.core.plugins import files_of_code, load_plugin

if TYPE_CHECKING:
    from nescio.run.extraction import Extraction

_APPEARS = 60.0
"""Seconds after which a folder that another host made is there, on a slow network file system."""


@dataclass(frozen=True)
class Packed:
    """An extraction with its network on the CPU.

    Attributes:
        data: the pickled extraction.
        files: code that it needs and that was imported by the paths of its files.
    """

    data: bytes
    files: list[str]

    @classmethod
    def of(cls, work: Extraction, dumps: Callable[[Any], bytes] = pickle.dumps) -> Packed:
        """Pack it, by a function that pickles.

        Raises:
            InputError: a part of it cannot be pickled.
        """
        try:
            data = dumps(work.on("cpu", work.runner.workers))
        except Exception as e:  # noqa: BLE001 - what cannot be pickled raises nearly anything
            raise InputError(
                f"the network, its transform or the images cannot be sent to another process ({type(e).__name__}: "
                f"{str(e).splitlines()[0] if str(e) else 'no reason'}); define their classes and functions in a .py "
                "file, outside of other functions, or use one device: devices=1 (--devices 1)"
            ) from None
        return cls(data, files_of_code())

    def unpacked(self) -> Extraction:
        """The extraction, in another process.

        Raises:
            InputError: its code is not here.
        """
        try:
            for file in self.files:
                load_plugin(file)
            # no file of anybody's: bytes that another process of the same run has just sent
            work: Extraction = pickle.loads(self.data)  # noqa: S301
        except (ImportError, AttributeError) as e:
            raise InputError(
                f"another process cannot import what it needs ({type(e).__name__}: {e}); define the network's classes "
                "in a .py file that it can import, or use one device: devices=1 (--devices 1)"
            ) from None
        return work


def there(path: Path) -> Path:
    """A path that another process made, once it is there.

    Raises:
        InputError: it does not come.
    """
    last = time.monotonic() + _APPEARS
    while not path.exists():
        if time.monotonic() > last:
            raise InputError(f"{path} is not on this host: give a folder that all hosts share: cache= (--cache DIR)")
        time.sleep(0.1)
    return path
