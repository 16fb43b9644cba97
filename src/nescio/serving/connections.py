"""Limits of what comes before a request: how many connections, and how large and how slow its headers may be."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 16_384
"""Of a request's line and headers, each counted with ``PER_HEADER`` more for what it takes in memory."""
PER_HEADER = 32
HEADER_SECONDS = 10.0
"""From a connection, or the first byte of a later request on it, to the end of the headers."""
CONNECTIONS = 4_096
"""At one time, where as many are allowed."""
RESERVED = 128
"""File descriptors for the rest: libraries, decoders, logs. Uploads above 1 MB need one more beside the connection."""


def possible_connections() -> int:
    """How many connections this process may have: its limit of file descriptors is raised as far as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS + RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    return max(min(CONNECTIONS, (soft - RESERVED) // 2), 1)


class Connection(HttpToolsProtocol):
    """A connection whose headers must be small and come soon.

    There may be as many as the server's ``limit_concurrency``. One more takes the place of the one that has waited
    longest for a request; where none waits, it is told to come again.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.most, self.limit_concurrency = self.limit_concurrency, None  # it would refuse requests, and close nothing
        self.heard = 0  # bytes since the last headers that ended, or the last piece of a body
        self.counted = 0
        self.waits: float | None = None
        self.late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Expect a request soon, and make room where there are too many connections."""
        super().connection_made(transport)
        self.waits = self.loop.time()
        self._expect()
        if self.most is not None and len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes, until it is a request's whole headers or a piece of a body."""
        if self.waits is not None:
            self._expect()
        self.heard += len(data)
        super().data_received(data)
        if self.heard > HEADER_BYTES and not self.transport.is_closing():
            self._refuse("431 Request Header Fields Too Large", "the headers are too large")

    def on_message_begin(self) -> None:
        """Begin to count a request's headers."""
        self.counted = 0
        self._expect()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the request's path."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer."""
        self._count(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Now there is a request, whose time is limited elsewhere."""
        self.heard, self.waits = 0, None
        self._arrived()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A body's size is limited elsewhere."""
        self.heard = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self.waits = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Say what was wrong."""
        if self.counted > HEADER_BYTES:
            self._refuse("431 Request Header Fields Too Large", "the headers are too large")
        else:
            super().send_400_response(msg)

    def _count(self, *pieces: bytes) -> None:
        self.counted += sum(map(len, pieces)) + PER_HEADER
        if self.counted > HEADER_BYTES:
            raise ValueError("the headers are too large")  # the parser stops

    def _expect(self) -> None:
        if self.late is None:
            self.late = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _arrived(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _too_late(self) -> None:
        self._refuse("408 Request Timeout", "the headers did not come in time")

    def _make_room(self) -> None:
        waiting = [c for c in self.connections if c is not self and isinstance(c, Connection) and c.waits is not None]
        if waiting:
            longest = min(waiting, key=lambda c: c.waits or 0.0)
            self.connections.discard(longest)
            longest.transport.close()
        else:
            self._refuse("503 Service Unavailable", "there are too many connections: try again later")

    def _refuse(self, status: str, why: str) -> None:
        if self.transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n"
            f"retry-after: 1\r\nconnection: close\r\ncontent-length: {len(why) + 13}\r\n\r\n"
        )
        self.transport.write(f'{head}{{"detail":"{why}"}}'.encode("ascii"))
        self.transport.close()
