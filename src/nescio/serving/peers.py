"""Who sends a request, from where, and by which name: what is checked before anything is read."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine to itself."""
READING = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def client_of(scope: Scope) -> str:
    """Whose turn a request takes: its address; of IPv6 the network, all of whose addresses are one client's."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def foreign_host(headers: Headers, hosts: Collection[str] | None) -> str | None:
    """Why a request by this name is refused: a web page may reach a service through a name that it controls."""
    name = _host(headers.get("host", ""))
    if hosts is None or name in hosts:
        return None
    return f"this service is not available as {name!r}; use {' or '.join(sorted(hosts))}"


def foreign_page(method: str, headers: Headers) -> str | None:
    """Why a request that may change something is refused: it comes from a web page of another site.

    Browsers say where a request comes from, and no page can make them say another thing; others say nothing.
    """
    if method in READING:
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    return None if own else f"web pages of another site ({origin or site}) may not use this service"


def knows(headers: Headers, token: str | None) -> bool:
    """Whether a request has the token, where there is one."""
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    if token is None:
        return True
    same = secrets.compare_digest(sent.strip().encode("latin-1"), token.encode())  # as it came
    return scheme.lower() == "bearer" and same


def _host(header: str) -> str:
    """The name without a port: ``localhost:8000``, ``[::1]:8000``."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
