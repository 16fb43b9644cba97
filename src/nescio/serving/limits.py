"""What one client may ask of the service, and what it is answered beyond that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass, field, fields

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nescio.core.errors import check_positive
from nescio.serving.peers import client_of, foreign_host, foreign_page, knows
from nescio.serving.seldom import Seldom

log = logging.getLogger(__name__)
log.addFilter(Seldom())

BUSY, LATE, TOO_LARGE, NO_TOKEN, FOREIGN, FAILED = 503, 408, 413, 401, 403, 500
AGAIN = {"Retry-After": "1"}
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))
"""Nothing is read as what it does not say it is, or shown inside the pages of others."""


@dataclass(frozen=True)
class Limits:
    """The most that is taken. What lies beyond is refused with the reason.

    Attributes:
        bytes: of a request.
        pixels: of an image, before it is resized.
        images: in a request.
        seconds: for a request, from its first byte to its answer.
        requests: that are worked on at one time. One client may have half of them, so that others find a place.
    """

    bytes: int = 16_000_000
    pixels: int = 50_000_000
    images: int = 32
    seconds: float = 30.0
    requests: int = 256

    def __post_init__(self) -> None:
        for f in fields(self):
            check_positive(f.name, getattr(self, f.name))


@dataclass
class Gate:
    """Middleware that refuses before a body is read, and while it is.

    Attributes:
        app: what is behind.
        limits: of requests; those of bytes and of how many there are hold for ``path`` alone.
        path: the one that takes images.
        token: to be sent as ``Authorization: Bearer TOKEN``; None where nobody has to.
        hosts: names that the service may be asked by; None for any.
        free: paths that need no token.
        on_answer: called with the status and the seconds of each request to ``path``.
        on_count: called with how many of them are worked on.
        running: how many of them are worked on, by client.
    """

    app: ASGIApp
    limits: Limits
    path: str
    token: str | None
    hosts: Collection[str] | None
    free: Container[str]
    on_answer: Callable[[int, float], object]
    on_count: Callable[[int], object]
    running: Counter[str] = field(init=False, default_factory=Counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        headers = Headers(scope=scope)
        refused = self._stranger(scope, headers)
        if refused is not None:
            await refused(scope, receive, answer)
        elif scope["path"] == self.path and scope["method"] == "POST":
            await self._limited(headers, scope, receive, answer)
        else:
            await self._through(scope, _Body(receive, self.limits.bytes), answer)

    def _stranger(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if why := foreign_host(headers, self.hosts):
            return refusal(400, why)
        if not (scope["path"] in self.free or knows(headers, self.token)):
            return refusal(
                NO_TOKEN,
                "this service requires a token: send 'Authorization: Bearer TOKEN'",
                {"WWW-Authenticate": "Bearer"},
            )
        if why := foreign_page(scope["method"], headers):
            return refusal(FOREIGN, why)
        return None

    async def _limited(self, headers: Headers, scope: Scope, receive: Receive, answer: _Answer) -> None:
        begin, client = time.perf_counter(), client_of(scope)
        refused = self._refused(client, headers)
        if refused is not None:
            await refused(scope, receive, answer)
        else:
            self._count(client, 1)
            try:
                await self._through(scope, _Body(receive, self.limits.bytes), answer)
            finally:
                self._count(client, -1)
        self.on_answer(answer.status, time.perf_counter() - begin)

    async def _through(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        """Answer in time, whatever happens."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, body, answer)
                return
        except TimeoutError:
            why = f"no answer within {self.limits.seconds:g} s"
            response = refusal(BUSY, why, AGAIN) if body.whole else refusal(LATE, f"{why}: the request is incomplete")
        except Exception:
            log.exception("a request failed")
            response = refusal(FAILED, "the service failed on this request; its log says why")
        if not answer.status:
            await response(scope, body, answer)

    def _count(self, client: str, more: int) -> None:
        self.running[client] += more
        if not self.running[client]:
            del self.running[client]
        self.on_count(self.running.total())

    def _refused(self, client: str, headers: Headers) -> JSONResponse | None:
        running, own = self.running.total(), self.running[client]
        free = self.limits.requests - running
        if not free:
            return refusal(BUSY, f"{running} requests are in progress: try again later", AGAIN)
        if own > free:  # so a place is left for others, whatever one client sends
            return refusal(BUSY, f"{own} of your requests are in progress: try again later", AGAIN)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.bytes:
            # the rest of the body is not read: the connection cannot be used again
            return refusal(TOO_LARGE, _too_large(self.limits.bytes), {"Connection": "close"})
        return None


class _Answer:
    """Adds the headers that every answer has, and remembers the status."""

    def __init__(self, send: Send) -> None:
        self.send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *_ALWAYS]}
        await self.send(message)


class _Body:
    """Counts what is received, and whether that is all of it."""

    def __init__(self, receive: Receive, most: int) -> None:
        self.receive, self.most, self.whole, self.size = receive, most, False, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.size += len(message.get("body", b""))
        if self.size > self.most:
            raise HTTPException(TOO_LARGE, _too_large(self.most), {"Connection": "close"})
        self.whole = not message.get("more_body", False)
        return message


def _too_large(most: int) -> str:
    return f"the request is too large: the limit is {most:,} bytes"


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says why there is no other."""
    return JSONResponse({"detail": reason}, status, headers)
