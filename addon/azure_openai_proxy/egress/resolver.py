"""DNS cache for upstream hosts. Each lookup runs in its own thread.

For a name that does not resolve, getaddrinfo can block for 10 seconds or more. In asyncio's shared executor a few such lookups delay all
others. Here each host has at most one lookup in progress, and concurrent callers share its result.
"""

from __future__ import annotations

import asyncio
import errno
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
"""Seconds for which addresses are used without another lookup."""
STALE = 600.0
"""Seconds for which expired addresses may be used while lookups fail."""
LOOKUP_INTERVAL = 5.0
"""Seconds between lookups while they fail and stale addresses are in use."""
PATIENCE = 1.0
"""Seconds to wait for a lookup before stale addresses are used. The lookup continues."""

type Lookup = Callable[[str, int], list[str]]


def _lookup(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        # Without free file descriptors getaddrinfo fails as for an unknown name. Opening a socket raises the precise error.
        socket.socket().close()
        raise
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def interleaved(addresses: list[str]) -> list[str]:
    """Alternate between IPv6 and IPv4, keeping the system's order within each family (RFC 8305, section 4)."""
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
    fresh_until: float
    in_doubt: bool = False
    """No address accepted a connection: use them if the next lookup fails, but not merely because it is slow."""


@dataclass
class Resolver:
    """Resolves and caches addresses. `lookup` may block: it runs in a daemon thread."""

    lookup: Lookup = _lookup
    now: Callable[[], float] = time.monotonic
    _known: dict[tuple[str, int], _Known] = field(default_factory=dict)
    _under_way: dict[tuple[str, int], asyncio.Future[list[str]]] = field(default_factory=dict)

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host, alternating between families. An IP address resolves to itself.

        Raises:
            OSError: the lookup failed and no stale addresses can be used.
        """
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        known = self._known.get((host, port))
        now = self.now()
        if known and now < known.fresh_until:
            return known.addresses
        usable = known if known and now - known.at < STALE else None
        under_way = asyncio.shield(self._look_up(host, port))
        try:
            async with asyncio.timeout(PATIENCE if usable and not usable.in_doubt else None):
                return await under_way
        except OSError:  # includes TimeoutError
            if usable is None:
                raise
            usable.fresh_until = max(usable.fresh_until, self.now() + LOOKUP_INTERVAL)
            return usable.addresses

    def forget(self, host: str, port: int) -> None:
        """Expire a host's addresses after no connection succeeded. The next request looks them up again."""
        if known := self._known.get((host, port)):
            known.in_doubt, known.fresh_until = True, 0.0

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
                future.exception()  # mark it as retrieved: all callers may have been cancelled
            else:
                now = self.now()
                self._known[key] = _Known(addresses, now, now + FRESH)
                future.set_result(addresses)

        def run() -> None:
            found: list[str] = []
            failure: OSError | None = None
            try:
                found = interleaved(self.lookup(host, port))
            except OSError as error:
                failure = error
            except Exception:  # noqa: BLE001 - names that cannot be encoded; callers must get a result in any case
                failure = OSError(f"{host!r} is not a host name")
            if not found and failure is None:
                failure = OSError(f"{host} has no address")
            with suppress(RuntimeError):  # the event loop was closed meanwhile
                loop.call_soon_threadsafe(done, found, failure)

        try:
            threading.Thread(target=run, daemon=True, name=f"resolve {host}").start()
        except RuntimeError as error:  # the system's limit of threads
            done([], OSError(errno.ENOMEM, str(error)))
        return future
