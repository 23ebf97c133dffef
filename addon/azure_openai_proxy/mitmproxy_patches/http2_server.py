"""An HTTP/2 client connection: flow control per stream, requests that are reset immediately, and resets after buffered data.

mitmproxy announces a window of 2 GB and acknowledges uploads as they arrive, so that only TCP slows down a client, for all streams of the
connection at once. Here each stream has its own window, and bytes are acknowledged only as fast as the upstream accepts them.
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
"""Initial window in bytes: how much of a request body the client may send before the upstream has accepted any."""

MAX_MESSAGE = 1000
"""Maximum characters of an error message, which must fit into one frame."""

_QUOTED = re.compile(r":? \(?b['\"]")  # h2 quotes the invalid header, which may be a key


class FlowControlled(BufferedH2Connection):
    withhold: Callable[[int, int], bool]
    """Called with a number of bytes and a stream id. Returns True if the bytes are to be acknowledged later."""

    def initiate_connection(self) -> None:
        self.local_settings.initial_window_size = WINDOW
        self.local_settings.acknowledge()  # otherwise h2 announces the old value
        super().initiate_connection()  # type: ignore[no-untyped-call] # of mitmproxy

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        if not self.withhold(acknowledged_size, stream_id):
            super().acknowledge_received_data(acknowledged_size, stream_id)

    def receive_data(self, data: Buffer) -> list[h2.events.Event]:
        """The events for `data`, without those of requests that are started and reset in the same data."""
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
        """Errors of streams that are reset once the client has read the data buffered for them."""

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
