"""Which addresses may be asked: http and https, to machines of the public net, by the address that was checked."""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from carrara.errors import BadPicture, one_line

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
HEADERS = 1 << 20  # bytes that a server may say around a picture
_KEPT = "%/:=&?~#+!$,;'@()*[]"  # of an address's path; anything else is written as %XX


class Target(NamedTuple):
    """A checked address: what to connect to, and what to ask there."""

    https: bool
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]  # of the host, of which one is connected to


def checked(url: str, *, private: bool) -> Target:
    """Where a url leads. BadPicture where it is none, or where any of its host's addresses is not public (unless
    ``private``): a name that leads to both kinds is made to get past a check."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").encode("idna").decode() if parts.hostname else "", parts.port
    except ValueError as error:  # UnicodeError among them
        raise BadPicture(f"no address: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise BadPicture(
            f"expected http:// or https://, not {parts.scheme[:20] + '://' if parts.scheme else 'this'}"
        )
    if not host or parts.username or parts.password or re.search(r"[\s\0-\x1f\x7f%]", host):
        raise BadPicture("an address without a host, or with a password in it")
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"no address is known for {host} ({one_line(error)})") from None
    for address in found:
        if not private and not is_public(address):
            raise BadPicture(
                f"{host!r} is {address}, which is not a public address (--allow-private lets it)"
            )
    path = quote(parts.path or "/", safe=_KEPT) + (
        f"?{quote(parts.query, safe=_KEPT)}" if parts.query else ""
    )
    return Target(parts.scheme == "https", host, port, path, tuple(dict.fromkeys(found)))


class Unreachable(BadPicture):
    """What may be otherwise the next time."""


class TooMuch(Exception):
    """The other side says more than it may."""


def is_public(address: str) -> bool:
    """Whether an address belongs to the public net, also where it is one in another's dress (mapped, 6to4, NAT64)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if "%" in address:
        return False
    if found in _NAT64:  # reserved, but the way to IPv4 where there is none
        return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    if not found.is_global or found.is_multicast or found.is_reserved:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        return all(is_public(str(one)) for one in inner if one is not None)
    return True


class Connection(http.client.HTTPConnection):
    """A connection to the checked address itself, so that no second look-up can lead elsewhere, that never takes
    longer than until ``deadline``, however slowly the other side drips, and never reads more than ``most`` bytes,
    whatever it says of their number."""

    def __init__(self, target: Target, *, patience: float, deadline: float, most: int) -> None:
        super().__init__(target.host, target.port)
        self.default_port = 443 if target.https else 80  # which the header Host leaves out
        self._target, self._patience, self._deadline, self._most = target, patience, deadline, most

    def connect(self) -> None:
        raw = self._first_that_answers()
        try:
            if self._target.https:
                raw = _secure().wrap_socket(raw, server_hostname=self._target.host)
        except BaseException:
            raw.close()
            raise
        self.sock: Any = _Timed(raw, self._patience, self._deadline, self._most)

    def _first_that_answers(self) -> socket.socket:
        *others, last = self._target.addresses
        for address in others:
            with contextlib.suppress(OSError):
                return socket.create_connection((address, self._target.port), self._left())
        return socket.create_connection((last, self._target.port), self._left())

    def _left(self) -> float:
        return min(self._patience, remaining(self._deadline))


def remaining(deadline: float) -> float:
    """Seconds until a moment of `time.monotonic`; TimeoutError where it is over."""
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError("it takes too long in all")
    return left


@cache
def _secure() -> ssl.SSLContext:
    """One for all connections: making it reads every certificate of the system."""
    return ssl.create_default_context()


class _Timed:
    """As much of a socket as `http.client` uses, with a limit of time and of bytes for everything together."""

    def __init__(self, raw: socket.socket, patience: float, deadline: float, most: int) -> None:
        self._raw, self._patience, self._deadline, self._most = raw, patience, deadline, most

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(min(self._patience, remaining(self._deadline)))
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self._raw, self._patience, self._deadline, self._most))

    # The socket itself stays open for as long as something made of it is read.
    def close(self) -> None:
        self._raw.close()


class _Reading(io.RawIOBase):
    def __init__(self, raw: socket.socket, patience: float, deadline: float, most: int) -> None:
        self._raw, self._patience, self._deadline, self._left = raw, patience, deadline, most
        self._file = raw.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(min(self._patience, remaining(self._deadline)))
        count = self._file.readinto(buffer) or 0
        self._left -= count
        if self._left < 0:
            raise TooMuch
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
