"""A room beside http_layer: mitmproxy's open sockets, which no hook hands out.

What is touched: the `proxyserver` addon's `connections` (client id → handler) and `servers.is_updating`, and a handler's `transports`
(connection → its streams).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy import ctx

if TYPE_CHECKING:
    from mitmproxy.connection import Client, Connection
    from mitmproxy.proxy.server import ConnectionHandler

__all__ = ["close_left", "closing", "cut", "handler", "unsent"]


def handler(client: Client) -> ConnectionHandler | None:
    """Who has that client's open connections; None: they are not mitmproxy's (a replay, a test)."""
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
