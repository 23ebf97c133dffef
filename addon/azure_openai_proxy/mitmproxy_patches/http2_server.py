"""One HTTP/2 client connection: flow control per stream, requests that are reset in the write that brings them, and an orderly last event.

mitmproxy announces a window of 2 GB and acknowledges an upload as it arrives: nothing slows a client down but TCP, which stops every
stream of the connection. Here each stream has a window of its own, and bytes that upstream does not take are not acknowledged.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h2.events
from h2.errors import ErrorCodes
from mitmproxy.proxy import events as proxy_events
from mitmproxy.proxy.layers.http._events import ResponseProtocolError
from mitmproxy.proxy.layers.http._http2 import Http2Server
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

if TYPE_CHECKING:
    from collections.abc import Buffer, Callable

    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.layer import CommandGenerator

__all__ = ["WINDOW", "Server2"]

WINDOW = 1 << 20
"""Bytes of a request's body that a client may send ahead of what upstream takes."""

MAX_MESSAGE = 1000
"""Characters of an error: it must fit into a frame."""

_QUOTED = re.compile(r":? \(?b['\"]")  # h2 repeats the header that is wrong, which may be a key


class FlowControlled(BufferedH2Connection):
    withhold: Callable[[int, int], bool]
    """Takes a number of bytes and a stream. True: they are acknowledged later."""

    def initiate_connection(self) -> None:
        self.local_settings.initial_window_size = WINDOW
        self.local_settings.acknowledge()  # else h2 announces the old value
        super().initiate_connection()  # type: ignore[no-untyped-call] # of mitmproxy

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        if not self.withhold(acknowledged_size, stream_id):
            super().acknowledge_received_data(acknowledged_size, stream_id)

    def receive_data(self, data: Buffer) -> list[h2.events.Event]:
        """What came, without the requests that came with their own reset."""
        received: list[h2.events.Event] = super().receive_data(data)
        if not any(type(event) is h2.events.StreamReset for event in received):
            return received
        begun = {event.stream_id for event in received if isinstance(event, h2.events.RequestReceived)}
        dropped = begun & {event.stream_id for event in received if isinstance(event, h2.events.StreamReset)}
        for event in received:
            if isinstance(event, h2.events.DataReceived) and event.stream_id in dropped:
                super().acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return [event for event in received if getattr(event, "stream_id", None) not in dropped]


class Server2(Http2Server):
    h2_conn: FlowControlled

    def __init__(self, context: Context, withhold: Callable[[int, int], bool]) -> None:
        super().__init__(context)
        self.h2_conn = FlowControlled(self.h2_conf)
        self.h2_conn.withhold = withhold
        self.resets: dict[int, ResponseProtocolError] = {}
        """Streams that are reset when the client has read what was written before."""

    def _handle_event(self, event: proxy_events.Event) -> CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and self.h2_conn.stream_buffers.get(event.stream_id):
            self.resets[event.stream_id] = event
            return
        yield from super()._handle_event(event)
        if self.resets and isinstance(event, proxy_events.DataReceived):
            for stream_id in [each for each in self.resets if not self.h2_conn.stream_buffers.get(each)]:
                yield from super()._handle_event(self.resets.pop(stream_id))

    def protocol_error(self, message: str, error_code: int = ErrorCodes.PROTOCOL_ERROR) -> CommandGenerator[None]:
        return super().protocol_error(_QUOTED.split(message, maxsplit=1)[0][:MAX_MESSAGE], error_code)
