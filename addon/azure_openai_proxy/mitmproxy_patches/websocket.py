"""A WebSocket after its upgrade: messages have a size limit, and a connection that breaks off is not reported as a regular end.

mitmproxy collects a message whole before it passes it on, whatever its size, and decompresses it without a limit. When a connection
breaks off, it closes the other side with 1000, and a client takes half an answer for a whole one.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from mitmproxy.proxy.layers.http import HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import ResponseProtocolError
from mitmproxy.proxy.layers.websocket import WebsocketConnection, WebsocketLayer
from wsproto.events import CloseConnection, Event, Message
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason

from .http1_server import Leave

if TYPE_CHECKING:
    from collections.abc import Generator

    from mitmproxy.proxy import commands, events
    from mitmproxy.proxy.layer import CommandGenerator
    from wsproto.frame_protocol import FrameDecoder, FrameProtocol

    from .interface import HttpPolicy

__all__ = ["FRAME", "Deflate", "Upgrading"]

FRAME = 64
"""Bytes that a frame counts beside its payload: a message of many empty frames takes memory too."""


class Deflate(PerMessageDeflate):
    """Decompresses no more than `limit` bytes of a message."""

    limit: int
    inflated: int

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        if not self._inbound_compressed or not self._inbound_is_compressible or self._decompressor is None:
            return super().frame_inbound_payload_data(proto, data)
        try:
            inflated = self._decompressor.decompress(bytes(data), self.limit - self.inflated + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self.inflated += len(inflated)
        return CloseReason.MESSAGE_TOO_BIG if self.inflated > self.limit else inflated

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:  # noqa: FBT001 - wsproto's signature
        if fin and self._inbound_is_compressible:
            self.inflated = 0
        return super().frame_inbound_complete(proto, fin)


class TooBig(CloseConnection):
    """The end of a connection after a message that exceeds the limit."""


class Limited(WebsocketConnection):
    """One side of a WebSocket. `exceeded`: it has sent a message over the limit."""

    limit: int | None
    received: int
    exceeded: bool

    def bound(self, limit: int | None) -> None:
        self.limit, self.received, self.exceeded = limit, 0, False
        if limit is not None:
            for extension in [known for known in self._proto.extensions if type(known) is PerMessageDeflate]:
                extension.__class__ = Deflate
                vars(extension).update(limit=limit, inflated=0)

    def events(self) -> Generator[Event, None, None]:
        for event in super().events():
            too_big = False
            if isinstance(event, Message):
                self.received += _size(event.data) + FRAME * event.frame_finished
                too_big = self.limit is not None and self.received > self.limit + FRAME
                if event.message_finished:
                    self.received = 0
            elif isinstance(event, CloseConnection):
                # wsproto reports what its extensions refuse as a close; in this state the peer has not sent one.
                too_big = event.code is CloseReason.MESSAGE_TOO_BIG and self.state.name == "OPEN"
            if too_big:
                self.exceeded = True
                yield TooBig(CloseReason.MESSAGE_TOO_BIG, f"The message is larger than {self.limit} bytes.")
                return
            yield event

    def told(self, event: Event, code: CloseReason, reason: str) -> Event:
        """How this side is told of an event of the other: a regular close as it came."""
        broke_off = isinstance(event, CloseConnection) and event.code == CloseReason.ABNORMAL_CLOSURE
        if broke_off or (isinstance(event, TooBig) and not self.exceeded):
            return CloseConnection(code=code, reason=reason)
        return event


def _size(data: bytes | str) -> int:
    return len(data) if isinstance(data, (bytes, bytearray)) or data.isascii() else len(data.encode())


class ToClient(Limited):
    def send2(self, event: Event) -> commands.SendData:
        # OpenAI's SDKs connect again after 1011, and after nothing else that a proxy could say.
        reason = "A message from upstream is too large." if isinstance(event, TooBig) else "The connection upstream broke off."
        return super().send2(self.told(event, CloseReason.INTERNAL_ERROR, reason))


class ToServer(Limited):
    def send2(self, event: Event) -> commands.SendData:
        return super().send2(self.told(event, CloseReason.GOING_AWAY, "The client is gone."))


class Upgrading(HttpStream):
    rules: HttpPolicy

    def flow_done(self) -> CommandGenerator[None]:
        doing = super().flow_done()
        reply: Any = None
        while True:
            try:
                command = doing.send(reply)
            except StopIteration:
                return
            if isinstance(child := self.child_layer, WebsocketLayer) and "server_ws" in vars(child):  # it has begun
                self.limit(child)
            reply = yield command

    def limit(self, websocket: WebsocketLayer) -> None:
        if type(websocket.client_ws) is WebsocketConnection:
            for side, kind in ((websocket.client_ws, ToClient), (websocket.server_ws, ToServer)):
                side.__class__ = kind
                side.bound(self.rules.max_message(self.flow))

    def passthrough(self, event: events.Event) -> CommandGenerator[None]:
        """The connection of a client that is still sending is left in steps: a reset would overtake the reason."""
        for command in super().passthrough(event):
            if isinstance(command, SendHttp) and isinstance(command.event, ResponseProtocolError) and self.client_exceeded:
                command.event = Leave(self.stream_id)
            yield command
        if isinstance(child := self.child_layer, WebsocketLayer) and not self.flow.live:  # both sides are closed
            self.child_layer, self._handle_event = None, self.state_errored
            for side in (child.client_ws, child.server_ws):
                side.frame_buf = [b""]
            del child.flow, self.flow

    @property
    def client_exceeded(self) -> bool:
        return isinstance(self.child_layer, WebsocketLayer) and getattr(self.child_layer.client_ws, "exceeded", False)
