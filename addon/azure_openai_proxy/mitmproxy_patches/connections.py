"""A room beside http_layer: mitmproxy's open sockets, which no hook hands out.

What is touched: the `proxyserver` addon's `connections` (client id → handler) and `servers.is_updating`, and a handler's `transports`
(connection → its streams).
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import TYPE_CHECKING

from mitmproxy import ctx

from . import compat

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy.connection import Client, Connection
    from mitmproxy.proxy.server import ConnectionHandler

__all__ = ["client_socket", "close_left", "closing", "cut", "handler", "lengthen_backlog", "unsent", "watch"]


LOOK = 0.025
"""Seconds between two looks whether a client has left."""

_watching: set[asyncio.Task[None]] = set()


def handler(client: Client) -> ConnectionHandler | None:
    """Who has that client's open connections; None: they are not mitmproxy's (a replay, a test)."""
    if not compat.CONNECTIONS.usable:
        return None
    known: dict[object, ConnectionHandler] = getattr(ctx.master.addons.get("proxyserver"), "connections", {})
    return known.get(client.id)


def cut(client: Client, connection: Connection) -> None:
    """Close this connection of that client's at once; what is written to it from now on goes nowhere."""
    ctx.master.addons.get("proxyserver").connections[client.id].transports[connection].writer.close()


def close_left(client: Client, connection: Connection) -> None:
    """Close a socket that mitmproxy left open: its task is cancelled twice when a client leaves that had several upstream connections."""
    found = handler(client)
    left = found.transports.pop(connection, None) if found else None
    if left and left.writer:
        left.writer.close()


def watch(client: Client, left: Callable[[], None]) -> bool:
    """Call `left` when this client, which has ended its sending, is gone altogether. False: it is gone now, or cannot be watched."""
    found = handler(client)
    io = found.transports.get(client) if found else None
    writer = io.writer if io else None
    if not found or not io or not isinstance(writer, asyncio.StreamWriter) or gone(writer):
        return False

    async def look() -> None:
        while client in found.transports:
            await asyncio.sleep(LOOK)
            if gone(writer):
                left()
                if io.handler:
                    io.handler.cancel("the client is gone")
                return

    _watching.add(task := asyncio.create_task(look()))
    task.add_done_callback(_watching.discard)
    return True


def gone(writer: asyncio.StreamWriter) -> bool:
    """Whether the connection is closed in both directions, or was reset."""
    sock = writer.get_extra_info("socket")
    if writer.is_closing() or sock is None or sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):
        return False  # pragma: no cover - Windows: the next write tells
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def client_socket(client: Client) -> socket.socket | None:
    """The socket of a client's connection, if it is one of the system's."""
    found = handler(client)
    io = found.transports.get(client) if found else None
    return io.writer.get_extra_info("socket") if io and isinstance(io.writer, asyncio.StreamWriter) else None


def lengthen_backlog() -> None:
    """Let the system take in as many connections at once as it can, on every port that is or will be open; asyncio asks for 100."""
    if not compat.PORTS.usable:
        return
    servers = ctx.master.addons.get("proxyserver").servers
    servers.changed.connect(_listen)
    _listen()


def _listen() -> None:
    for instance in ctx.master.addons.get("proxyserver").servers:
        for server in getattr(instance, "_servers", ()):
            for sock in getattr(server, "sockets", ()):
                with socket.fromfd(sock.fileno(), sock.family, sock.type) as same:
                    same.listen(socket.SOMAXCONN)


def closing() -> bool:
    """Whether ports are being closed."""
    return bool(ctx.master.addons.get("proxyserver").servers.is_updating)


def unsent() -> bool:
    """Whether anything that was written still waits to leave."""
    for handler in ctx.master.addons.get("proxyserver").connections.values():
        for transport in handler.transports.values():
            # UDP has no buffer
            socket = getattr(transport.writer, "transport", None)
            if socket is not None and socket.get_write_buffer_size():
                return True
    return False
