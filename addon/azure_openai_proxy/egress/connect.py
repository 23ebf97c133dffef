"""From a destination to a connected socket: addresses in parallel (RFC 8305), keep-alive, and which errors are this machine's own."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Destination", "Proxy", "connect_any", "is_shortage"]

HEAD_START = 0.25
"""Seconds that an address has before the next one is tried beside it."""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds of silence until the first probe, between two, and how many: Azure's balancer drops silent connections after four minutes."""

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Proxy(NamedTuple):
    """An HTTP proxy on the way."""

    host: str
    port: int
    tls: bool = False
    authorization: bytes | None = None  # the value of Proxy-Authorization, a secret

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


class Destination(NamedTuple):
    """Where a request goes: one pool of connections each."""

    host: str
    port: int
    tls: bool
    proxy: Proxy | None = None

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_shortage(error: OSError) -> bool:
    """Whether this machine lacks something, which says nothing about the other side."""
    return error.errno in _SHORTAGES


def keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # pragma: no branch - not on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _connect(address: str, port: int, local: str | None) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - its only parameter
        if local:
            sock.bind((local, 0))
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
        keep_alive(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_any(addresses: Sequence[str], port: int, local: str | None = None) -> socket.socket:
    """A connection to the first address that takes it. Each has a head start before the next is tried beside it.

    `local` is the address to connect from; only addresses of its family are tried.

    Raises:
        OSError: none does; the last one's error, or that this machine lacks something.
    """
    left = [address for address in addresses if not local or (":" in address) == (":" in local)]
    if len(left) == 1:
        return await _connect(left[0], port, local)
    error: tuple[object, ...] = (f"the host has no address that can be reached from {local}" if local else "the host has no address",)
    short = False
    running: set[asyncio.Task[socket.socket]] = set()
    connected: list[socket.socket] = []
    try:
        while (left or running) and not connected:
            if left:
                running.add(asyncio.create_task(_connect(left.pop(0), port, local)))
            done, running = await asyncio.wait(running, timeout=HEAD_START if left else None, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if failure := task.exception():
                    if not short:  # kept without its frames: they would be in a reference cycle with this one
                        error, short = failure.args, isinstance(failure, OSError) and is_shortage(failure)
                else:
                    connected.append(task.result())
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_discard)
        for sock in connected[1:]:
            sock.close()
    if connected:
        return connected[0]
    raise OSError(*error)


def _discard(task: asyncio.Task[socket.socket]) -> None:
    """One that connected in the moment in which it was cancelled."""
    if not task.cancelled() and not task.exception():
        task.result().close()
