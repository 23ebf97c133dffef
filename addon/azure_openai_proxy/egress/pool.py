"""Upstream connections shared by all clients of the process: one pool per destination."""

from __future__ import annotations

import asyncio
import collections
import select
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .connect import connect_any, is_shortage
from .connection import Connection, ConnectionFailed
from .resolver import Resolver
from .tls import Tls, TlsOptions, context, reason

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from mitmproxy.connection import Server

    from .connect import Destination

__all__ = ["Limits", "Pool", "Pools"]


class Limits(NamedTuple):
    """Idle connections per destination: the maximum number, and the seconds after which one is closed."""

    size: int = 100
    idle: float = 55.0


SESSION_FOR = 60.0
"""Seconds for which a TLS session is resumed before a newer one is copied. Servers accept one for hours."""


@dataclass
class Pool:
    """Connections to one destination. The most recently used one is taken first, so that surplus connections reach the idle limit."""

    destination: Destination
    pools: Pools
    idle: collections.deque[Connection] = field(default_factory=collections.deque)
    opened: int = 0
    """Connections established since the start."""
    opening: asyncio.Future[None] | None = None
    """Set when the connection that is being opened in advance is in the pool, or has failed."""
    _session: ssl.SSLSession | None = None
    _session_of: ssl.SSLContext | None = None
    _session_due: float = 0.0  # when the next session is copied
    _sweeper: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
        """Remove and return an idle connection that is still open, or None."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing() and not _readable(connection):
                return connection
            connection.drop("closed while idle")
        return None

    async def wait_for_opening(self) -> Connection | None:
        """As `take`, but wait for the connection that is being opened in advance. It is meant for one request; others do not wait."""
        if opening := self.opening:
            self.opening = None
            await asyncio.wait([opening])
        return self.take()

    def give(self, connection: Connection) -> None:
        """Return a reusable connection after its request."""
        if len(self.idle) >= self.pools.limits.size:
            connection.drop("too many idle connections")
            return
        connection.idle_since = self.pools.now()
        self.idle.append(connection)
        if not self._sweeper:
            self._sweep_later()

    async def connect(self, starting: Callable[[Server], None] = lambda _: None) -> Connection:
        """Establish a new connection. `starting` is called with its description (a mitmproxy `Server`) before anything is sent.

        Raises:
            ConnectionFailed: name resolution, TCP, the HTTP proxy or TLS failed.
        """
        destination, pools = self.destination, self.pools
        proxy = destination.proxy
        host, port = (proxy.host, proxy.port) if proxy else (destination.host, destination.port)
        connection = Connection(destination, self._gone)
        connection.generation = pools.generation
        starting(connection.server)
        try:
            addresses = await pools.resolver.resolve(host, port)
            try:
                sock = await connect_any(addresses, port, pools.local_address)
            except (OSError, asyncio.CancelledError):  # cancelled: the addresses did not respond within the connect timeout
                pools.resolver.forget(host, port)
                raise
        except OSError as error:
            raise ConnectionFailed(str(error) or type(error).__name__, local=is_shortage(error)) from error
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, sock=sock)
        except BaseException:
            sock.close()
            raise
        proxy_tls = partial(self._tls, proxy.host, resume=False) if proxy and proxy.tls else None
        try:
            await connection.establish(tls=partial(self._tls, destination.host) if destination.tls else None, proxy_tls=proxy_tls)
        except ConnectionFailed:
            self._session = None  # resuming it may be the cause
            raise
        self.opened += 1
        return connection

    def _tls(self, host: str, *, resume: bool = True) -> Tls:
        try:
            made = context(self.pools.tls, host)
        except OSError as error:
            raise ConnectionFailed(f"TLS cannot be set up: {reason(error)}", local=True) from error
        session = None
        if resume:
            if made is not self._session_of:  # a session can only be used with its own context
                self._session, self._session_of, self._session_due = None, made, 0.0
            session = self._session
        return Tls(made, host, session)

    def keep_session(self, connection: Connection) -> None:
        """Remember the TLS session for the next connections. With TLS 1.3 it is only available after the first response bytes.

        A session is copied once in `SESSION_FOR`: in CPython 3.12 and 3.13, `SSLObject.session` takes 150 µs and leaks 5 kB.
        """
        first = connection.requests == 1 and connection.response_started
        if first and connection.tls and connection.tls.object.context is self._session_of and self.pools.now() >= self._session_due:
            self._session, self._session_due = connection.session, self.pools.now() + SESSION_FOR

    def _gone(self, connection: Connection) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        self.keep_session(connection)

    def _sweep_later(self) -> None:
        due = self.idle[0].idle_since + self.pools.limits.idle - self.pools.now()
        self._sweeper = asyncio.get_running_loop().call_later(max(0.0, due), self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        oldest = self.pools.now() - self.pools.limits.idle
        while self.idle and self.idle[0].idle_since <= oldest:
            self.idle.popleft().drop("idle for too long")
        if self.idle:
            self._sweep_later()

    def close(self) -> None:
        """Close all idle connections."""
        if self._sweeper:
            self._sweeper.cancel()
            self._sweeper = None
        while self.idle:
            self.idle.pop().drop("the pool was closed")


@dataclass
class Pools:
    """All pools of the process, and mitmproxy's options for upstream connections."""

    tls: TlsOptions = field(default_factory=TlsOptions)
    limits: Limits = field(default_factory=Limits)
    local_address: str | None = None
    resolver: Resolver = field(default_factory=Resolver)
    now: Callable[[], float] = time.monotonic
    generation: int = 0
    """Counts changes of the options. Connections of an earlier generation are not reused."""
    _pools: dict[Destination, Pool] = field(default_factory=dict)

    def configure(self, tls: TlsOptions, limits: Limits, local_address: str | None) -> None:
        """Set the options. A change closes idle connections and applies to new ones."""
        if (tls, limits, local_address) != (self.tls, self.limits, self.local_address):
            self.tls, self.limits, self.local_address = tls, limits, local_address
            self.generation += 1
            self.close()

    def of(self, destination: Destination) -> Pool:
        pool = self._pools.get(destination)
        if pool is None:
            pool = self._pools[destination] = Pool(destination, self)
        return pool

    def give(self, connection: Connection) -> None:
        """Return a connection after its request. It is closed if the options or the destinations have changed meanwhile."""
        pool = self._pools.get(connection.destination)
        if pool is None or connection.generation != self.generation:
            connection.drop("made for other settings")
            return
        pool.keep_session(connection)
        pool.give(connection)

    async def warm(self, destination: Destination, seconds: float) -> None:
        """Open a connection in advance if none is idle. Failures are ignored: the first request will report them."""
        pool = self.of(destination)
        if pool.idle or not self.limits.size:
            return
        opening = pool.opening = asyncio.get_running_loop().create_future()
        try:
            with suppress(OSError):  # includes TimeoutError
                async with asyncio.timeout(seconds):
                    self.give(await pool.connect())
        finally:
            opening.set_result(None)
            if pool.opening is opening:
                pool.opening = None

    def keep(self, destinations: Callable[[Destination], bool]) -> None:
        """Close the pools of all destinations for which `destinations` is false."""
        for destination in [destination for destination in self._pools if not destinations(destination)]:
            self._pools.pop(destination).close()

    def close(self) -> None:
        """Close all idle connections."""
        for pool in self._pools.values():
            pool.close()


if hasattr(select, "poll"):

    def _readable(connection: Connection) -> bool:
        """Whether the idle connection has unread data: usually its end."""
        if connection.poll is None:
            connection.poll = select.poll()
            connection.poll.register(connection.transport.get_extra_info("socket"), select.POLLIN)
        return bool(connection.poll.poll(0))

else:  # pragma: no cover - Windows

    def _readable(connection: Connection) -> bool:
        """Whether the idle connection has unread data: usually its end."""
        return bool(select.select([connection.transport.get_extra_info("socket")], [], [], 0)[0])
