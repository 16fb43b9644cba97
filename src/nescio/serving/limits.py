"""What one client may ask of the service, and what it is told beyond that."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, fields

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nescio.errors import check_positive

BUSY, LATE, TOO_LARGE, NO_TOKEN = 503, 408, 413, 401


@dataclass(frozen=True)
class Limits:
    """The most that is taken. What lies beyond is refused with the reason.

    Attributes:
        bytes: of a request.
        pixels: of an image, before it is resized.
        images: in a request.
        seconds: for a request, from its first byte to its answer.
        requests: that are worked on at one time.
    """

    bytes: int = 16_000_000
    pixels: int = 50_000_000
    images: int = 32
    seconds: float = 30.0
    requests: int = 256

    def __post_init__(self) -> None:
        for f in fields(self):
            check_positive(f.name, getattr(self, f.name))


class Gate:
    """Middleware that refuses before a body is read, and while it is.

    Args:
        app: what is behind.
        limits: of requests to ``path``.
        path: the one that takes images.
        token: to be sent as ``Authorization: Bearer TOKEN``; None where nobody has to.
        free: paths that need none.
        seen: told the status and the seconds of each request to ``path``.
        running: told how many of them are worked on.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        path: str,
        token: str | None,
        free: Container[str],
        seen: Callable[[int, float], object],
        running: Callable[[int], object],
    ) -> None:
        self.app, self.limits, self.path, self.free = app, limits, path, free
        self.bearer = None if token is None else f"Bearer {token}".encode()
        self.seen, self.tell, self.running = seen, running, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not (scope["path"] in self.free or self._knows(headers)):
            said = {"WWW-Authenticate": "Bearer"}
            await refusal(NO_TOKEN, "this service asks for a token", said)(scope, receive, send)
        elif scope["path"] == self.path and scope["method"] == "POST":
            await self._limited(headers, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        given = headers.get("authorization", "").encode("latin-1")  # as it came
        return self.bearer is None or secrets.compare_digest(given, self.bearer)

    async def _limited(self, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        begin, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refused = self._refused(headers)
        if refused is not None:
            await refused(scope, receive, sending)
        else:
            self._count(1)
            body = _Body(receive, self.limits.bytes)
            try:
                async with asyncio.timeout(self.limits.seconds):
                    await self.app(scope, body, sending)
            except TimeoutError:
                if not status:
                    why = f"no answer within {self.limits.seconds:g} s"
                    late = refusal(BUSY, why) if body.whole else refusal(LATE, f"{why}: the request is not complete")
                    await late(scope, receive, sending)
            finally:
                self._count(-1)
        self.seen(status, time.perf_counter() - begin)

    def _count(self, more: int) -> None:
        self.running += more
        self.tell(self.running)

    def _refused(self, headers: Headers) -> JSONResponse | None:
        if self.running >= self.limits.requests:
            return refusal(BUSY, f"{self.running} requests are being worked on: try again later", {"Retry-After": "1"})
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.bytes:
            # the rest of the body is not read: the connection cannot be used again
            return refusal(TOO_LARGE, _too_large(self.limits.bytes), {"Connection": "close"})
        return None


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
    return f"a request may have {most:,} bytes"


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says why there is no other."""
    return JSONResponse({"detail": reason}, status, headers)
