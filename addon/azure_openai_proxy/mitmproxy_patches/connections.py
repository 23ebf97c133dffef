"""Access to mitmproxy's open sockets, which no hook provides.

Private attributes used: `connections` (client id → handler) and `servers` of the `proxyserver` addon, and `transports` of a handler
(connection → its reader and writer).
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from mitmproxy import ctx
from mitmproxy.connection import ConnectionState

from azure_openai_proxy.client_leg import sockets

from . import compat

if TYPE_CHECKING:
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


def _writer(client: Client) -> asyncio.StreamWriter | None:
    """The writer of a client's TCP connection, or None."""
    found = handler(client)
    io = found.transports.get(client) if found else None
    return io.writer if io and isinstance(io.writer, asyncio.StreamWriter) else None


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
    found, writer = handler(client), _writer(client)
    reading = found.transports[client].handler if found and writer else None
    if client.state is ConnectionState.CLOSED or not found or not writer or not reading or sockets.is_gone(writer.transport):
        return False

    def leave() -> None:
        left()
        reading.cancel("the client is gone")

    sockets.watch(writer.transport, lambda: client in found.transports, leave)
    return True


def client_socket(client: Client) -> socket.socket | None:
    """The socket of a client's TCP connection, or None."""
    writer = _writer(client)
    return writer.get_extra_info("socket") if writer else None


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
                with socket.fromfd(sock.fileno(), sock.family, sock.type) as same:
                    same.listen(socket.SOMAXCONN)


def closing() -> bool:
    """Whether ports are being closed."""
    return bool(ctx.master.addons.get("proxyserver").servers.is_updating)


def unsent() -> bool:
    """Whether any connection has unsent bytes in its write buffer."""
    for handler in ctx.master.addons.get("proxyserver").connections.values():
        for transport in handler.transports.values():
            # UDP has no write buffer
            socket = getattr(transport.writer, "transport", None)
            if socket is not None and socket.get_write_buffer_size():
                return True
    return False
