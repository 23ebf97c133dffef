"""Access to mitmproxy's open sockets, which no hook provides.

Private attributes used: `connections` (client id → handler) and `servers` of the `proxyserver` addon, and `transports` of a handler
(connection → its reader and writer).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mitmproxy import ctx
from mitmproxy.connection import ConnectionState

from azure_openai_proxy.client_leg import sockets

from . import compat

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from mitmproxy.connection import Client, Connection
    from mitmproxy.proxy.server import ConnectionHandler

__all__ = ["client_socket", "close_left", "closing", "cut", "handler", "lengthen_backlog", "unsent", "watch"]


def handler(client: Client) -> ConnectionHandler | None:
    """The handler of the client's connections. None if mitmproxy has none (in a replay or test)."""
    if not compat.CONNECTIONS.usable:
        return None
    known: dict[object, ConnectionHandler] = getattr(ctx.master.addons.get("proxyserver"), "connections", {})
    return known.get(client.id)


def _transport(client: Client) -> Any | None:
    """The task, reader and writer of a client's TCP connection, or None."""
    found = handler(client)
    io = found.transports.get(client) if found else None
    return io if io and isinstance(io.writer, asyncio.StreamWriter) else None


def cut(client: Client, connection: Connection) -> None:
    """Close a connection of this client immediately. Later writes to it are discarded."""
    ctx.master.addons.get("proxyserver").connections[client.id].transports[connection].writer.close()


def close_left(client: Client, connection: Connection) -> None:
    """Close a socket that mitmproxy leaves open when a client with several upstream connections disconnects.

    In that case mitmproxy cancels the task of the connection twice, which interrupts the close.
    """
    found = handler(client)
    left = found.transports.pop(connection, None) if found else None
    if left and left.writer:
        left.writer.close()


def watch(client: Client, left: Callable[[], None]) -> bool:
    """Call `left` when a client that has half-closed its connection disconnects completely.

    Return False if it has already disconnected or cannot be watched, or if the proxy itself closes the connection, as when it stops.
    """
    io = _transport(client)
    if client.state is ConnectionState.CLOSED or not io or not io.handler or sockets.is_gone(io.writer.transport):
        return False
    sockets.watch(io.writer.transport, lambda: _transport(client) is not None, left, io.handler)
    return True


def client_socket(client: Client) -> socket.socket | None:
    """The socket of a client's TCP connection, or None."""
    io = _transport(client)
    return io.writer.get_extra_info("socket") if io else None


def lengthen_backlog() -> None:
    """Set the listen backlog of all present and future ports to the system's maximum (SOMAXCONN). asyncio's default is 100."""
    if not compat.PORTS.usable:
        return
    servers = ctx.master.addons.get("proxyserver").servers
    servers.changed.connect(_listen)
    _listen()


def _listen() -> None:
    for instance in ctx.master.addons.get("proxyserver").servers:
        for server in getattr(instance, "_servers", ()):
            for sock in getattr(server, "sockets", ()):
                sockets.lengthen_backlog(sock)


def closing() -> bool:
    """Whether ports are being closed."""
    return bool(ctx.master.addons.get("proxyserver").servers.is_updating)


def unsent() -> bool:
    """Whether any connection has unsent bytes in its write buffer."""
    handlers = ctx.master.addons.get("proxyserver").connections.values()
    return any(sockets.has_unsent(io.writer) for handler in handlers for io in handler.transports.values())
