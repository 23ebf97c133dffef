"""The seam between mitmproxy's HTTP layer and an upstream leg of our own.

mitmproxy keeps the client's side. Where its HTTP layer asks for a connection upstream for a request of ours, it gets a `Leg`: one for all
requests of a client connection, always open, and without a socket. Each request that is sent to it is given to the rules, which have a
task for it; what that task brings of the response is injected into mitmproxy as the same events that a connection of its own would.

What is touched: `HttpLayer.connections` (the leg is registered there, and in the HTTP layers around it, for inside a CONNECT an event finds
its way from the outermost layer), `ConnectionHandler.server_event` and `transports`, `Http2Server.h2_conn` with its buffers.
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
    RequestEndOfMessage,
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
"""Bytes for the client that wait in the process before no more is read from upstream."""
BACKLOG = 1 << 18
"""Bytes of a request's body that wait in the process before no more is read from the client."""
HOOK_LOOK = 0.001
"""Seconds between two looks whether the hooks of WebSocket messages have run."""
HANGUP_LOOK = 0.025
"""Seconds between two looks whether a client has left, while nothing is read from it."""

_UNSENT = {"upstream_unreachable", "upstream_connect_timeout", "proxy_shortage"}


class FromUpstream(events.ConnectionEvent):
    """What came of responses, in mitmproxy's own events, and what is to be written for the client."""

    def __init__(self, connection: Server, out: Sequence[HttpEvent], commands: Sequence[commands.Command] = ()) -> None:
        super().__init__(connection)
        self.out, self.commands = out, commands


class UpstreamFailed(ResponseProtocolError):
    """There is no response, or no more of it."""

    def __init__(self, stream_id: int, failure: Failure) -> None:
        code = ErrorCode.CONNECT_FAILED if failure.code in _UNSENT else ErrorCode.GENERIC_SERVER_ERROR
        super().__init__(stream_id, failure.message, code)
        self.failure = failure


class LegServer(Server):
    """Stands for all connections of a leg."""


class Leg(HttpConnection):
    """The connection upstream, as the HTTP layer of one client connection sees it."""

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
        """Give mitmproxy these events now, or as soon as it has dealt with the one that it has."""
        event = FromUpstream(cast("Server", self.conn), out, commands)
        asyncio.Task(self.handler.server_event(event), loop=asyncio.get_running_loop(), eager_start=True)

    def client_data_received(self) -> None:
        """An HTTP/2 client may have made room for more."""
        for response in list(self.responses.values()):
            response.look_for_room()


def leg_of(home: Connection) -> Leg | None:
    """The leg of this HTTP layer; None: its client's sockets are not mitmproxy's (a replay)."""
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
    """One request's way back to its client; also what keeps the two sides in step (see `ClientSide` in egress)."""

    def __init__(self, leg: Leg, stream: Stream, *, streamed: bool) -> None:
        self.leg, self.stream, self.flow, self.id = leg, stream, stream.flow, stream.stream_id
        self.streamed = streamed
        self.upgraded = False
        self.over = False
        self._room: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None  # the client's next bytes wait for it
        self._gate: ConnectionIO | None = None
        self._gate_key = Server(address=("upload", self.id))
        client = leg.context.client
        self.http2 = client.alpn == b"h2"
        self.owed = 0  # bytes of an HTTP/2 upload that are not acknowledged yet
        self.request: UpstreamRequest = leg.home.rules.send_upstream(self.flow, self, streamed=streamed)
        if streamed and not self.http2:
            self._place_gate()
        self.request.start()

    def _place_gate(self) -> None:
        self._gate = ConnectionIO(handler=None, writer=cast("Any", _Gate(self)))
        self.leg.handler.transports[self._gate_key] = self._gate

    # What mitmproxy sends

    def sent(self, event: events.Event) -> None:
        if isinstance(event, RequestProtocolError):
            self.leave()
        elif self.upgraded:
            if isinstance(event, RequestData):
                self.request.send_upgraded(event.data)
        elif not self.streamed:
            pass  # the body stands on the request
        elif isinstance(event, RequestData):
            if event.data:
                self.request.add(event.data)
        elif isinstance(event, RequestEndOfMessage):
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
        """Whether more of the body waits here than should."""
        return not self.over and (self.request.backlog > BACKLOG or self.unhandled())

    def unhandled(self) -> bool:
        """Whether WebSocket data waits in mitmproxy for the hook of the message before: reading is faster than hooks are."""
        child = self.stream.child_layer if self.upgraded else None
        return child is not None and bool(child._paused_event_queue)  # noqa: SLF001 - a layer has no other name for it

    async def drained(self) -> None:
        """Until the upload has room. Nothing is read from the client meanwhile, so its leaving has to be looked for."""
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
            return False  # pragma: no cover - not on this system
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    # What upstream brings

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
                    if not self.http2 and not self._gate:
                        self._place_gate()
                    out.append(ResponseEndOfMessage(self.id))  # of HTTP; what comes then is another protocol's
            elif isinstance(item, http.Headers):
                if self.http2:  # mitmproxy has no trailers for HTTP/1
                    out.append(ResponseTrailers(self.id, item))
            else:
                out.append(ResponseEndOfMessage(self.id))
                ended = True
        if ended:
            self.end()
        self.leg.inject(out)
        if not self.over and not self.flow.live:  # refused by a hook, or killed
            self.leave()

    def failed(self, failure: Failure) -> None:
        self.end()
        self.leg.inject([UpstreamFailed(self.id, failure)])

    def leave(self) -> None:
        """The client is gone, or wants no more."""
        request = self.request
        self.end()
        request.cancel()

    def end(self) -> None:
        """Nothing more of this request goes either way."""
        if self.over:
            return
        self.over = True
        self.leg.responses.pop(self.id, None)
        if self._gate:
            self._gate = None
            self.leg.handler.transports.pop(self._gate_key, None)
        if self._taken and not self._taken.done():
            self._taken.set_result(None)
        self.body_taken()
        self.look_for_room()
        del self.flow, self.stream, self.request  # they refer to this one, and hold bodies

    def full(self) -> bool:
        io = self.leg.handler.transports.get(self.leg.context.client)
        transport = getattr(io and io.writer, "transport", None)
        if transport is not None and transport.get_write_buffer_size() > FULL:
            return True
        return self.unhandled() or (self.http2 and self.held() > FULL)

    def held(self) -> int:
        """Bytes of this response that wait for the client's HTTP/2 window."""
        server = cast("Any", self.leg.home.connections.get(self.leg.context.client))
        waiting = server.h2_conn.stream_buffers.get(self.id) if server else None
        return sum(len(piece.data) for piece in waiting) if waiting else 0

    async def room(self) -> None:
        while self.unhandled():  # noqa: ASYNC110 - nothing tells it
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
    """Stands among the writers of a client's connection while a body is sent on, so that mitmproxy waits for it as for any writer."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.drain = response.drained
        self._protocol = self

    @property
    def _paused(self) -> bool:
        return self._response.behind

    def close(self) -> None:
        """Nothing to close."""

    def is_closing(self) -> bool:
        return False
