"""Addresses of upstream hosts: cached, and each host looked up in a thread of its own.

A name that does not resolve takes getaddrinfo ten seconds and more. With asyncio's shared executor a few such look-ups hold up every other
one; here a host has at most one look-up under way, and all who wait for it share the result.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FRESH", "STALE", "Resolver"]

FRESH = 30.0
"""Seconds for which addresses are used without another look-up."""
STALE = 600.0
"""Seconds for which they are used while look-ups fail."""

type Lookup = Callable[[str, int], list[str]]


def _lookup(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def interleaved(addresses: list[str]) -> list[str]:
    """The families in turn, in the system's order within each (RFC 8305, section 4)."""
    first = [address for address in addresses if (":" in address) == (":" in addresses[0])]
    second = [address for address in addresses if (":" in address) != (":" in addresses[0])]
    mixed = []
    for index in range(max(len(first), len(second))):
        mixed += [*first[index : index + 1], *second[index : index + 1]]
    return mixed


@dataclass
class _Known:
    addresses: list[str]
    at: float


@dataclass
class Resolver:
    """Of one process. `lookup` blocks, and runs in a thread that does not keep the process from ending."""

    lookup: Lookup = _lookup
    now: Callable[[], float] = time.monotonic
    _known: dict[tuple[str, int], _Known] = field(default_factory=dict)
    _under_way: dict[tuple[str, int], asyncio.Future[list[str]]] = field(default_factory=dict)

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host, the families in turn.

        Raises:
            OSError: it has none.
        """
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        known = self._known.get((host, port))
        if known and self.now() - known.at < FRESH:
            return known.addresses
        try:
            addresses = await asyncio.shield(self._look_up(host, port))
        except OSError:
            if known and self.now() - known.at < STALE and (host, port) in self._known:
                return known.addresses
            raise
        return addresses

    def forget(self, host: str, port: int) -> None:
        """None of its addresses could be connected to."""
        self._known.pop((host, port), None)

    def _look_up(self, host: str, port: int) -> asyncio.Future[list[str]]:
        key = host, port
        if (waiting := self._under_way.get(key)) is not None:
            return waiting
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()
        self._under_way[key] = future

        def done(addresses: list[str], error: OSError | None) -> None:
            del self._under_way[key]
            if error is not None:
                future.set_exception(error)
                future.exception()  # whoever waited may be gone
            else:
                self._known[key] = _Known(addresses, self.now())
                future.set_result(addresses)

        def run() -> None:
            try:
                found: list[str] = interleaved(self.lookup(host, port))
                failure: OSError | None = None
            except (OSError, UnicodeError) as error:
                found, failure = [], error if isinstance(error, OSError) else OSError(f"{host!r} is no host name")
            if not found and failure is None:
                failure = OSError(f"{host} has no address")
            with suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(done, found, failure)

        threading.Thread(target=run, daemon=True, name=f"resolve {host}").start()
        return future
