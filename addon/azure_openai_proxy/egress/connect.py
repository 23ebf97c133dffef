"""TCP connections to a destination: parallel attempts per address (RFC 8305), keep-alive, and local resource shortages."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Destination", "Proxy", "connect_any", "is_shortage", "keep_alive"]

HEAD_START = 0.25
"""Seconds until the next address is tried in parallel."""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Idle seconds before the first probe (`TCP_KEEPALIVE` on macOS), seconds between probes, number of probes.

Azure's balancer drops idle connections after 4 minutes.
"""

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Proxy(NamedTuple):
    """An HTTP proxy between this process and the destination."""

    host: str
    port: int
    tls: bool = False
    authorization: bytes | None = None  # value of Proxy-Authorization; secret

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


class Destination(NamedTuple):
    """The target of a request. Each destination has its own pool of connections."""

    host: str
    port: int
    tls: bool
    proxy: Proxy | None = None

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_shortage(error: OSError) -> bool:
    """Whether the error is a shortage of local resources (file descriptors, memory, ports) and not a fault of the remote host."""
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
    """Connect to the first address that accepts. Attempts start `HEAD_START` seconds apart and run in parallel.

    `local` is the source address; only addresses of its family are tried.

    Raises:
        OSError: no address accepted. The error of the last attempt, or of a local shortage if there was one.
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
                    if not short:  # only the arguments: the exception's frames would form a reference cycle with this one
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
    """Close the socket of an attempt that connected while it was being cancelled."""
    if not task.cancelled() and not task.exception():
        task.result().close()
