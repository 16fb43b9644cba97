"""What comes before a request, over real sockets: headers that are too large or too slow, and idle connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from nescio.serving import connections
from nescio.serving.connections import HEADER_BYTES, Connection

MOST = 20
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with the number of bytes that it was sent."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", limit_concurrency=MOST, log_level="critical"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def opened(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        yield one


def answered(one: socket.socket) -> bytes:
    """All that comes until the service hangs up, or an answer of ``app``."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := one.recv(65_536):
            found += piece
            if found.startswith(b"HTTP/1.1 200") and found.count(b"\r\n\r\n") and found[-1:].isdigit():
                break
    return found


def pour(one: socket.socket, piece: bytes, most: int) -> int:
    """How many bytes are taken before the service hangs up."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            one.sendall(piece)
            sent += len(piece)
    return sent


ENDLESS = {
    "one header": (GET + b"X: ", b"x" * 65_536),
    "many headers": (GET, b"X: y\r\n" * 10_000),
    "a path": (b"GET /", b"x" * 65_536),
    "a trailer": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 65_536),
    "the extension of a chunk": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
        b"x" * 65_536,
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_headers_are_cut_off(port: int, what: str) -> None:
    begin, piece = ENDLESS[what]
    with opened(port) as one:
        one.sendall(begin)
        assert pour(one, piece, 50_000_000) < 10_000_000  # what lies in the sockets' buffers
    with opened(port) as other:
        other.sendall(GET + b"\r\n")
        assert answered(other).startswith(b"HTTP/1.1 200")


def test_large_headers_are_refused_by_name_and_usual_ones_are_not(port: int) -> None:
    with opened(port) as one:
        one.sendall(GET + b"Cookie: " + b"x" * HEADER_BYTES + b"\r\n\r\n")
        assert answered(one).startswith(b"HTTP/1.1 431 ")
    with opened(port) as one:
        for _ in range(3):  # each request of a connection has the whole limit
            one.sendall(GET + b"Cookie: " + b"x" * (HEADER_BYTES // 2) + b"\r\n\r\n")
            assert answered(one).startswith(b"HTTP/1.1 200 ")


def test_a_large_body_is_not_taken_for_headers(port: int) -> None:
    with opened(port) as one:
        one.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000))
        assert answered(one).endswith(b"3000000")
        chunks = b"".join(b"%x\r\n%s\r\n" % (n, bytes(n)) for n in [1, 10, 100, 10_000] * 50)
        one.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert answered(one).endswith(b"505550")


@pytest.mark.parametrize("sent", [b"", GET, b"\r\n"])
def test_headers_that_do_not_come_are_not_waited_for(port: int, sent: bytes) -> None:
    begin = time.perf_counter()
    with opened(port) as one:
        one.sendall(sent)
        assert b"408" in answered(one)
    assert 0.4 < time.perf_counter() - begin < 5


def test_a_slow_second_request_is_not_waited_for_either(port: int) -> None:
    with opened(port) as one:
        one.sendall(GET + b"\r\n")
        assert answered(one).startswith(b"HTTP/1.1 200")
        for _ in range(20):  # a line now and then keeps no connection open
            with contextlib.suppress(OSError):
                one.sendall(b"\r\n")
                time.sleep(0.1)
        assert b"408" in answered(one)


def test_idle_connections_shut_nobody_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 60.0)
    with contextlib.ExitStack() as idle:
        many = [idle.enter_context(opened(port)) for _ in range(3 * MOST)]
        for _ in range(5):
            with opened(port) as one:
                one.sendall(GET + b"\r\n")
                assert answered(one).startswith(b"HTTP/1.1 200")
        assert many[0].recv(1) == b""  # the longest idle ones made room


def test_one_more_than_are_worked_on_is_told_to_come_again(port: int) -> None:
    with contextlib.ExitStack() as busy:
        many = [busy.enter_context(opened(port)) for _ in range(MOST)]
        for one in many:
            one.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        time.sleep(0.2)
        with opened(port) as more:
            found = answered(more)
            assert found.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in found
        for one in many:
            one.sendall(b"x")
            assert answered(one).endswith(b"\r\n\r\n1")
