"""Direct delivery of socket data to mitmproxy's layers, without a task switch.

mitmproxy has a task for each connection: it waits for asyncio's reader, resumes in the next iteration of the event loop, passes the data to
the layers, and waits until no writer is full. Here the reader passes data to the layers in the same iteration, provided that the task is
waiting for data and no writer is full. In all other cases the task is resumed as usual, which preserves the order.
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
        """Process data in the layers. Completes before returning, unless another event is being processed."""
        loop: asyncio.AbstractEventLoop = self._loop  # type: ignore[attr-defined]
        event = events.DataReceived(self.connection, data)
        asyncio.Task(self.handler.server_event(event), loop=loop, eager_start=True)

    @property
    def full(self) -> bool:
        """Whether a writer of the connection is full, so that the task must wait for it."""
        for io in self.handler.transports.values():  # noqa: SIM110 - a generator takes twice the time
            if io.writer is not None and io.writer._protocol._paused:  # type: ignore[union-attr] # noqa: SLF001
                return True
        return False


def enable_direct_reads(client: Client, connection: Connection) -> None:
    """Enable direct delivery for data from `connection`, if possible."""
    handler = connections.handler(client)
    io = handler and handler.transports.get(connection)
    if handler and io and type(io.reader) is asyncio.StreamReader:
        if not all(isinstance(one.writer, asyncio.StreamWriter | None) for one in handler.transports.values()):
            return  # a WireGuard or local-mode client: its writers cannot report that they are full
        reader = cast("Reader", io.reader)
        cast("asyncio.StreamReader", reader).__class__ = Reader
        reader.handler, reader.connection = handler, connection
