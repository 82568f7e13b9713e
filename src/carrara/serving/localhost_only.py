"""Localhost only: keeps a page to one's own machine: who may ask, how much they may send, what a browser may make of
it.

A page elsewhere can make a browser ask any address, and let a name of its own point to this one (DNS rebinding): so a
request must name this host and must not come from another site. Pictures of strangers are only ever pictures.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
UPLOAD = 64 * 2**20  # bytes of a picture to look for
UPLOADS = 4  # such pictures on their way at once
SECONDS = 60  # that one may take
CONNECTIONS = 256
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Around an ASGI app. ``host`` is where it listens: one on this machine answers to this machine's names only."""

    def __init__(self, app: ASGIApp, *, host: str, names: Collection[str] = ()) -> None:
        self.app = app
        self.anybody = not is_loopback(host)
        self.names = {name.lower() for name in (*LOOPBACK, host, *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        if (refused := self._refusal(scope, headers)) is not None:
            await _refuse(send, *refused)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(_name_of(host)):
            return 421, f"this server does not answer to the name {host[:100]!r}"
        elsewhere = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        followed_link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        origin = headers.get("origin", "")
        other_origin = bool(origin) and origin.partition("://")[2].lower() != host.lower()
        if other_origin or (elsewhere and not followed_link):
            return 403, "requests from other sites are not answered"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, f"the method {scope['method']} is not known here"
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > UPLOAD:
            return 413, f"more than {UPLOAD // 2**20} MiB"
        return None

    def _is_ours(self, name: str) -> bool:
        # An address cannot be made to point elsewhere as a name can.
        return name in self.names or (self.anybody and _is_address(name))


def _name_of(host: str) -> str:
    """A Host header without the port: "[::1]:80" is "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    headers: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
