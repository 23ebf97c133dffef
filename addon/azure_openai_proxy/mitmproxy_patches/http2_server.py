"""An HTTP/2 client connection: flow control per stream, requests that are reset immediately, and resets after buffered data.

mitmproxy announces a window of 2 GB and acknowledges uploads as they arrive, so that only TCP slows down a client, for all streams of the
connection at once. Here each stream has its own window, and bytes are acknowledged only as fast as the upstream accepts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.errors import ErrorCodes
from mitmproxy.proxy import events as proxy_events
from mitmproxy.proxy.layers.http._events import ResponseProtocolError
from mitmproxy.proxy.layers.http._http2 import Http2Server
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from azure_openai_proxy.client_leg import http2

if TYPE_CHECKING:
    from collections.abc import Buffer, Mapping

    from h2.events import Event
    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.layer import CommandGenerator

    from azure_openai_proxy.client_leg.flow_control import FlowControl

__all__ = ["WINDOW", "PatchedHttp2Server"]

WINDOW = 1 << 20
"""Initial window in bytes: how much of a request body the client may send before the upstream has accepted any."""


class FlowControlled(BufferedH2Connection):
    requests: Mapping[int, FlowControl]
    """Those that the upstream leg sends, by their streams."""

    def initiate_connection(self) -> None:
        self.local_settings.initial_window_size = WINDOW
        self.local_settings.acknowledge()  # otherwise h2 announces the old value
        super().initiate_connection()  # type: ignore[no-untyped-call] # of mitmproxy

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        request = self.requests.get(stream_id)
        if request is None or not request.withhold(acknowledged_size):
            super().acknowledge_received_data(acknowledged_size, stream_id)

    def receive_data(self, data: Buffer) -> list[Event]:
        """The events for `data`, without those of requests that are started and reset in the same data."""
        events, dropped = http2.reset_at_once(super().receive_data(data))
        for event in dropped:
            super().acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return events


class PatchedHttp2Server(Http2Server):
    h2_conn: FlowControlled

    def __init__(self, context: Context, requests: Mapping[int, FlowControl]) -> None:
        super().__init__(context)
        self.h2_conn = FlowControlled(self.h2_conf)
        self.h2_conn.requests = requests
        self.resets: dict[int, ResponseProtocolError] = {}
        """Errors of streams that are reset once the client has read the data buffered for them."""

    def _handle_event(self, event: proxy_events.Event) -> CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and self.h2_conn.stream_buffers.get(event.stream_id):
            self.resets[event.stream_id] = event
            return
        yield from super()._handle_event(event)
        if isinstance(event, proxy_events.DataReceived):
            for request in list(self.h2_conn.requests.values()):
                request.check_window()
            for stream_id in [each for each in self.resets if not self.h2_conn.stream_buffers.get(each)]:
                yield from super()._handle_event(self.resets.pop(stream_id))

    def protocol_error(self, message: str, error_code: int = ErrorCodes.PROTOCOL_ERROR) -> CommandGenerator[None]:
        return super().protocol_error(http2.unquoted(message), error_code)
