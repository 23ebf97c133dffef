"""The adapter between mitmproxy's HTTP layer and the upstream leg (`egress`).

mitmproxy handles the client's side. When its HTTP layer requests an upstream connection for a translated request, it gets a `Leg`: a
virtual connection for all requests of a client connection, always open and without a socket. Each request sent to it is passed to the
policy, which runs a task for it. The task's response is injected into mitmproxy as the same events that a real connection would produce.

Private attributes used: `HttpLayer.connections` (the leg is registered there, and in the enclosing HTTP layers, since inside a CONNECT
events are routed from the outermost layer), `ConnectionHandler.server_event` and `transports`, `Http2Server.h2_conn` with its buffers.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import h2.exceptions
from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent

from azure_openai_proxy.client_leg.failures import error_code
from azure_openai_proxy.client_leg.flow_control import FlowControl

from .http1_server import PatchedHttp1Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mitmproxy.proxy.layer import CommandGenerator
    from mitmproxy.proxy.layers.http import HttpStream
    from mitmproxy.proxy.server import ConnectionHandler

    from azure_openai_proxy.errors import Failure

    from .http_layer import PatchedHttpLayer

    type DirectWriter = Callable[[HttpStream, ConnectionHandler], Callable[[bytes], bool] | None]
    """Makes a function that writes parts of a response body directly to the client, bypassing the layers, or None."""

__all__ = ["FromUpstream", "Leg", "Response", "Together", "UpstreamFailed"]


class FromUpstream(events.ConnectionEvent):
    """Response events for mitmproxy, and commands to run after them."""

    def __init__(self, connection: Server, out: Sequence[HttpEvent], commands: Sequence[commands.Command] = ()) -> None:
        super().__init__(connection)
        self.out, self.commands = out, commands


class Together(HttpEvent):
    """Events that arrive at once. The layers between here and the stream are passed once, which saves 20 µs."""

    def __init__(self, stream_id: int, events: Sequence[HttpEvent]) -> None:
        super().__init__(stream_id)
        self.events = events


class UpstreamFailed(http_events.ResponseProtocolError):
    """The request failed before or during the response."""

    def __init__(self, stream_id: int, failure: Failure) -> None:
        super().__init__(stream_id, failure.message, http_events.ErrorCode[error_code(failure)])
        self.failure = failure


class Leg(HttpConnection):
    """The virtual upstream connection in the HTTP layer of one client connection."""

    def __init__(self, http_layer: PatchedHttpLayer, handler: ConnectionHandler) -> None:
        server = Server(address=("upstream", 0))  # the placeholder for all upstream connections
        server.state = ConnectionState.OPEN
        super().__init__(http_layer.context.fork(), server)
        self.http_layer, self.handler = http_layer, handler

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        """Only called for the data of an upgraded connection: streams call `send`, and the HTTP layer delivers `FromUpstream`."""
        self.send(cast("HttpEvent", event))
        yield from ()

    def send(self, event: HttpEvent) -> None:
        """Send the request, or pass on an event of a request that was sent."""
        if isinstance(event, http_events.RequestHeaders):
            stream = self.http_layer.streams[event.stream_id]
            streamed = bool(stream.flow.request.stream) and not event.end_stream
            self.http_layer.requests[event.stream_id] = response = Response(self, stream, streamed=streamed)
            response.start(self.http_layer.policy)
        elif known := self.http_layer.requests.get(event.stream_id):
            if isinstance(event, http_events.RequestProtocolError):
                known.leave()
            elif isinstance(event, http_events.RequestData):
                known.add(event.data)
            else:
                known.complete()

    def inject(self, out: Sequence[HttpEvent], commands: Sequence[commands.Command] = ()) -> None:
        """Pass events to mitmproxy. They are processed immediately, or after the event that is being processed."""
        event = FromUpstream(cast("Server", self.conn), out, commands)
        asyncio.Task(self.handler.server_event(event), loop=asyncio.get_running_loop(), eager_start=True)

    @property
    def client_connection(self) -> Any:
        """mitmproxy's `Http1Server` or `Http2Server`."""
        return self.http_layer.connections[self.context.client]


class Response(FlowControl):
    """Delivers the response of one request to its client, as events of mitmproxy."""

    def __init__(self, leg: Leg, stream: HttpStream, *, streamed: bool) -> None:
        super().__init__(stream.flow, leg.handler.transports, streamed=streamed, http2=leg.context.client.alpn == b"h2")
        self.leg, self.stream, self.id = leg, stream, stream.stream_id

    def pass_on(self, items: Sequence[object]) -> None:
        out: list[HttpEvent] = []
        for item in items:
            if isinstance(item, bytes):
                out.append(http_events.ResponseData(self.id, item))
            elif isinstance(item, http.Response):
                ends = len(items) == 2 and not self.upgraded and not isinstance(items[1], bytes)
                out.append(http_events.ResponseHeaders(self.id, item, end_stream=ends))
            elif type(item) is http.Headers:
                out.append(http_events.ResponseTrailers(self.id, item))
            else:
                out.append(http_events.ResponseEndOfMessage(self.id))
        self.leg.inject([Together(self.id, out)] if len(out) > 1 and not self.upgraded else out)

    def report(self, failure: Failure) -> None:
        self.leg.inject([UpstreamFailed(self.id, failure)])

    def direct_writer(self) -> Callable[[bytes], bool] | None:
        direct_writer = self.leg.http_layer.direct_writer
        return direct_writer(self.stream, self.leg.handler) if direct_writer else None

    def end(self) -> None:
        if not self.over:
            self.leg.http_layer.requests.pop(self.id, None)
            super().end()
            del self.stream

    # The client's connection

    def client_writer(self) -> Any | None:
        io = self.leg.handler.transports.get(self.leg.context.client)
        return io and io.writer

    def unhandled(self) -> bool:
        child = self.stream.child_layer if self.upgraded else None
        return child is not None and bool(child._paused_event_queue)  # noqa: SLF001 - there is no public attribute

    def held(self) -> int:
        server = cast("Any", self.leg.http_layer.connections.get(self.leg.context.client))
        waiting = server.h2_conn.stream_buffers.get(self.id) if server else None
        return sum(len(piece.data) for piece in waiting) if waiting else 0

    def acknowledge(self, size: int) -> None:
        http2 = self.leg.client_connection.h2_conn
        with suppress(h2.exceptions.ProtocolError):  # the connection is closed
            http2.acknowledge_received_data(size, self.id)
            self.leg.inject([], [commands.SendData(self.leg.context.client, http2.data_to_send())])

    def probe(self) -> bool:
        server = self.leg.client_connection
        probe = server.http1.probe() if isinstance(server, PatchedHttp1Server) else []
        self.leg.inject([], probe)
        return bool(probe)
