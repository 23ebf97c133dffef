"""Direct delivery of socket data to mitmproxy's layers, without a task switch.

mitmproxy has a task for each connection: it waits for asyncio's reader, resumes in the next iteration of the event loop, passes the data to
the layers, and waits until no writer is full. Here the reader passes data to the layers in the same iteration, provided that the task is
waiting for data and no writer is full. In all other cases the task is resumed as usual, which preserves the order.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from mitmproxy.proxy import events

from azure_openai_proxy.client_leg.flow_control import is_full
from azure_openai_proxy.mitmproxy_patches import connections

if TYPE_CHECKING:
    from mitmproxy.connection import Client, Connection
    from mitmproxy.proxy.server import ConnectionHandler

__all__ = ["Reader", "enable_direct_reads"]


SIZE = 1 << 16
"""Bytes to allocate for each read. asyncio allocates 256 kB, which malloc gets from the system each time (14 µs)."""
LARGE = 1 << 18
"""The same for an upload, which is cheaper in large parts."""


class Reader(asyncio.StreamReader):
    handler: ConnectionHandler
    connection: Connection
    transport: Any
    waiting = False  # the task waits for data, and gets none yet

    async def read(self, n: int = -1) -> bytes:
        self.waiting = True
        try:
            return await super().read(n)
        finally:
            self.waiting = False

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # as asyncio calls it
        if len(data) == SIZE:
            self.transport.max_size = LARGE
        if self.waiting and data and not self.full:
            # Completes before returning, unless another event is being processed.
            event = events.DataReceived(self.connection, data)
            asyncio.Task(self.handler.server_event(event), loop=asyncio.get_running_loop(), eager_start=True)
        else:
            self.waiting = False
            super().feed_data(data)

    @property
    def full(self) -> bool:
        """Whether a writer of the connection is full, so that the task must wait for it."""
        for io in self.handler.transports.values():  # noqa: SIM110 - a generator takes twice the time
            if io.writer is not None and is_full(io.writer):
                return True
        return False


def enable_direct_reads(client: Client, connection: Connection) -> None:
    """Enable direct delivery for data from `connection`, if possible."""
    handler = connections.handler(client)
    io = handler and handler.transports.get(connection)
    if handler and io and type(io.reader) is asyncio.StreamReader:
        reader = cast("Reader", io.reader)
        cast("asyncio.StreamReader", reader).__class__ = Reader
        reader.handler, reader.connection = handler, connection
        reader.transport = cast("asyncio.StreamWriter", io.writer).transport
        reader.transport.max_size = SIZE
