"""The adapter between mitmproxy's HTTP layer and the upstream leg (`egress`).

mitmproxy handles the client's side. When its HTTP layer requests an upstream connection for a translated request, it gets a `Leg`: a
virtual connection for all requests of a client connection, always open and without a socket. Each request sent to it is passed to the
policy, which runs a task for it. The task's response is injected into mitmproxy as the same events that a real connection would produce.

Private attributes used: `HttpLayer.connections` (the leg is registered there, and in the enclosing HTTP layers, since inside a CONNECT
events are routed from the outermost layer), `ConnectionHandler.server_event` and `transports`, `Http2Server.h2_conn` with its buffers.
"""

from __future__ import annotations

import asyncio
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import h2.exceptions
from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import HttpLayer
from mitmproxy.proxy.layers.http._base import HttpConnection, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.server import ConnectionIO

from . import connections

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mitmproxy.proxy.layer import CommandGenerator
    from mitmproxy.proxy.layers.http._base import HttpEvent
    from mitmproxy.proxy.server import ConnectionHandler

    from azure_openai_proxy.errors import Failure

    from .http_stream import Connection, Stream
    from .interface import UpstreamRequest

__all__ = ["Leg", "LegServer", "UpstreamFailed", "leg_of"]

FULL = 1 << 16
"""Maximum bytes buffered for the client; above that, reading from upstream pauses."""
BACKLOG = 1 << 18
"""Maximum bytes buffered of a request body; above that, reading from the client pauses."""
HOOK_LOOK = 0.001
"""Seconds between checks whether the hooks of WebSocket messages have completed."""
HANGUP_LOOK = 0.025
"""Seconds between checks whether a client has disconnected while reading from it is paused."""

_UNSENT = {"upstream_unreachable", "upstream_connect_timeout", "proxy_shortage"}


class FromUpstream(events.ConnectionEvent):
    """Response events for mitmproxy, and commands to run after them."""

    def __init__(self, connection: Server, out: Sequence[HttpEvent], commands: Sequence[commands.Command] = ()) -> None:
        super().__init__(connection)
        self.out, self.commands = out, commands


class UpstreamFailed(ResponseProtocolError):
    """The request failed before or during the response."""

    def __init__(self, stream_id: int, failure: Failure) -> None:
        code = ErrorCode.CONNECT_FAILED if failure.code in _UNSENT else ErrorCode.GENERIC_SERVER_ERROR
        super().__init__(stream_id, failure.message, code)
        self.failure = failure


class LegServer(Server):
    """The placeholder for the upstream connections of a leg."""


class Leg(HttpConnection):
    """The virtual upstream connection in the HTTP layer of one client connection."""

    def __init__(self, home: Connection, handler: ConnectionHandler) -> None:
        server = LegServer(address=("upstream", 0))
        server.state = ConnectionState.OPEN
        super().__init__(home.context.fork(), server)
        self.home, self.handler = home, handler
        self.responses: dict[int, Response] = {}

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, FromUpstream):
            for one in event.out:
                yield ReceiveHttp(one)
            yield from event.commands
        elif isinstance(event, RequestHeaders):
            stream = cast("Stream", self.home.streams[event.stream_id])
            streamed = bool(stream.flow.request.stream) and not event.end_stream
            self.responses[event.stream_id] = Response(self, stream, streamed=streamed)
        elif response := self.responses.get(getattr(event, "stream_id", -1)):
            response.sent(event)

    def inject(self, out: Sequence[HttpEvent], commands: Sequence[commands.Command] = ()) -> None:
        """Pass events to mitmproxy. They are processed immediately, or after the event that is being processed."""
        event = FromUpstream(cast("Server", self.conn), out, commands)
        asyncio.Task(self.handler.server_event(event), loop=asyncio.get_running_loop(), eager_start=True)

    def client_data_received(self) -> None:
        """Resume responses for which an HTTP/2 client may have increased its window."""
        for response in list(self.responses.values()):
            response.look_for_room()


def leg_of(home: Connection) -> Leg | None:
    """Create the leg of this HTTP layer. None if mitmproxy has closed the client's connection."""
    handler = connections.handler(home.context.client)
    if handler is None:
        return None
    leg = Leg(home, handler)
    home.connections[leg.conn] = leg
    layers = home.context.layers
    for at, outer in enumerate(layers[: layers.index(home)]):
        if isinstance(outer, HttpLayer):
            outer.connections[leg.conn] = layers[at + 1]
    return leg


class Response:
    """Delivers the response of one request to its client, with flow control. Implements `ClientSide` of `egress.request`."""

    def __init__(self, leg: Leg, stream: Stream, *, streamed: bool) -> None:
        self.leg, self.stream, self.flow, self.id = leg, stream, stream.flow, stream.stream_id
        self.streamed = streamed
        self.upgraded = False
        self.over = False
        self._room: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None  # set when the client may send more
        self._gate: Server | None = None  # the key of a writer among the client's transports; made for uploads only, it costs 30 µs
        client = leg.context.client
        self.http2 = client.alpn == b"h2"
        self.owed = 0  # unacknowledged bytes of an HTTP/2 upload
        self.request: UpstreamRequest = leg.home.rules.send_upstream(self.flow, self, streamed=streamed)
        if streamed and not self.http2:
            self._place_gate()
        self.request.start()

    def _place_gate(self) -> None:
        self._gate = Server(address=("upload", self.id))
        self.leg.handler.transports[self._gate] = ConnectionIO(handler=None, writer=cast("Any", _Gate(self)))

    # Events from mitmproxy

    def sent(self, event: events.Event) -> None:
        if isinstance(event, RequestProtocolError):
            self.leave()
        elif isinstance(event, RequestData):
            if self.upgraded:
                self.request.send_upgraded(event.data)
            elif self.streamed and event.data:  # otherwise the body is on the flow's request
                self.request.add(event.data)
        elif self.streamed:
            self.request.complete()

    def body_taken(self) -> None:
        if self._taken and not self._taken.done() and self.request.backlog <= BACKLOG:
            self._taken.set_result(None)
        if self.owed and not self.behind:
            owed, self.owed = self.owed, 0
            server = cast("Any", self.leg.home.connections[self.leg.context.client])
            with suppress(h2.exceptions.ProtocolError):  # the connection is closed
                server.h2_conn.acknowledge_received_data(owed, self.id)
                self.leg.inject([], [commands.SendData(self.leg.context.client, server.h2_conn.data_to_send())])

    @property
    def behind(self) -> bool:
        """Whether the buffered part of the request body exceeds the limit."""
        return not self.over and (self.request.backlog > BACKLOG or self.unhandled())

    def unhandled(self) -> bool:
        """Whether WebSocket data is queued in mitmproxy until the hook of the previous message completes."""
        child = self.stream.child_layer if self.upgraded else None
        return child is not None and bool(child._paused_event_queue)  # noqa: SLF001 - there is no public attribute

    async def drained(self) -> None:
        """Wait until more of the upload can be buffered. Meanwhile nothing is read from the client, so poll for its disconnection."""
        while self.behind:
            if self.unhandled():
                await asyncio.sleep(HOOK_LOOK)
                continue
            self._taken = asyncio.get_running_loop().create_future()
            done, _ = await asyncio.wait([self._taken], timeout=HANGUP_LOOK)
            if not done and self.hung_up():
                self.leave()
                return

    def hung_up(self) -> bool:
        io = self.leg.handler.transports.get(self.leg.context.client)
        transport = getattr(io and io.writer, "transport", None)
        sock = transport and transport.get_extra_info("socket")
        if sock is None or not hasattr(select, "POLLRDHUP"):
            return False  # pragma: no cover - systems without POLLRDHUP
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    # `ClientSide`: the response from upstream

    def connected(self, server: Server) -> None:
        self.flow.server_conn = server

    def deliver(self, items: Sequence[object]) -> None:
        out: list[HttpEvent] = []
        ended = False
        for item in items:
            if isinstance(item, bytes):
                out.append(ResponseData(self.id, item))
            elif isinstance(item, http.Response):
                self.upgraded = item.status_code == 101
                out.append(ResponseHeaders(self.id, item, end_stream=len(items) == 2 and not isinstance(items[1], bytes | http.Headers)))
                if self.upgraded:
                    self._place_gate()
                    out.append(ResponseEndOfMessage(self.id))  # the end of HTTP; another protocol follows
            elif isinstance(item, http.Headers):
                if self.http2:  # mitmproxy does not support trailers in HTTP/1
                    out.append(ResponseTrailers(self.id, item))
            else:
                out.append(ResponseEndOfMessage(self.id))
                ended = True
        if ended:
            self.end()
        self.leg.inject(out)
        if not self.over and not self.flow.live:  # rejected by a hook, or killed
            self.leave()

    def failed(self, failure: Failure) -> None:
        self.end()
        self.leg.inject([UpstreamFailed(self.id, failure)])

    def leave(self) -> None:
        """Cancel the request: the client has disconnected or cancelled it."""
        request = self.request
        self.end()
        request.cancel()

    def end(self) -> None:
        """Release everything at the end of the request."""
        if self.over:
            return
        self.over = True
        self.leg.responses.pop(self.id, None)
        if self._gate:
            self.leg.handler.transports.pop(self._gate, None)
            self._gate = None
        if self._taken and not self._taken.done():
            self._taken.set_result(None)
        self.body_taken()
        self.look_for_room()
        del self.flow, self.stream, self.request  # break reference cycles, which would keep bodies in memory

    def full(self) -> bool:
        io = self.leg.handler.transports.get(self.leg.context.client)
        transport = getattr(io and io.writer, "transport", None)
        if transport is not None and transport.get_write_buffer_size() > FULL:
            return True
        return self.unhandled() or (self.http2 and self.held() > FULL)

    def held(self) -> int:
        """Bytes of this response buffered until the client's HTTP/2 window allows them."""
        server = cast("Any", self.leg.home.connections.get(self.leg.context.client))
        waiting = server.h2_conn.stream_buffers.get(self.id) if server else None
        return sum(len(piece.data) for piece in waiting) if waiting else 0

    async def room(self) -> None:
        while self.unhandled():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(HOOK_LOOK)
        io = self.leg.handler.transports.get(self.leg.context.client)
        if io and io.writer:
            await io.writer.drain()
        while self.http2 and self.held() > FULL:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def look_for_room(self) -> None:
        if self._room and not self._room.done() and self.held() <= FULL:
            self._room.set_result(None)

    def straight(self, between_chunks: Callable[[], bool]) -> Callable[[bytes], bool] | None:
        return self.leg.home.straight(self.stream, self.leg.handler, between_chunks)


class _Gate:
    """A writer without a socket, registered with the client's connection during an upload so that mitmproxy waits for its `drain`."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.drain = response.drained
        self._protocol = self

    @property
    def _paused(self) -> bool:
        return self._response.behind
