"""A shorter way from a socket to whoever waits for what it brings; a room of `http_layer`, for it relies on how mitmproxy reads.

mitmproxy has a task for each connection, which sleeps until asyncio's reader has something, wakes in the loop's next turn, hands it to
the layers and then waits until every writer has room. Here the reader hands it over in the turn in which it came. That is done while
the task sleeps and nobody's writer is full; whatever else is the case, the task is woken as ever, and so nothing overtakes anything.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from mitmproxy.proxy import events

from azure_openai_proxy.mitmproxy_patches import connections

if TYPE_CHECKING:
    from mitmproxy.connection import Client, Connection
    from mitmproxy.proxy.server import ConnectionHandler

__all__ = ["Reader", "enable_direct_reads"]


class Reader(asyncio.StreamReader):
    handler: ConnectionHandler
    connection: Connection

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # as asyncio calls it
        waiter: asyncio.Future[None] | None = self._waiter  # type: ignore[attr-defined]
        if waiter is None or waiter.done() or not data or self.full:
            super().feed_data(data)
        else:
            self.deliver_to_layers(data)

    def deliver_to_layers(self, data: bytes) -> None:
        """To the layers. That runs to its end here, unless it must wait for what another one has begun."""
        loop: asyncio.AbstractEventLoop = self._loop  # type: ignore[attr-defined]
        event = events.DataReceived(self.connection, data)
        asyncio.Task(self.handler.server_event(event), loop=loop, eager_start=True)

    @property
    def full(self) -> bool:
        """Somebody reads more slowly than this is written: the task waits for that."""
        for io in self.handler.transports.values():  # noqa: SIM110 - with a generator it takes twice the time
            if io.writer is not None and io.writer._protocol._paused:  # type: ignore[union-attr] # noqa: SLF001
                return True
        return False


def enable_direct_reads(client: Client, connection: Connection) -> None:
    """From now on what comes of this connection of that client's takes the shorter way, if it can."""
    handler = connections.handler(client)
    io = handler and handler.transports.get(connection)
    if handler and io and type(io.reader) is asyncio.StreamReader:
        if not all(isinstance(one.writer, asyncio.StreamWriter | None) for one in handler.transports.values()):
            return  # a client of a virtual network: only waiting tells whether it has room
        reader = cast("Reader", io.reader)
        cast("asyncio.StreamReader", reader).__class__ = Reader
        reader.handler, reader.connection = handler, connection
