"""WebSocket connections after the upgrade: a size limit for messages, and close codes for broken connections.

mitmproxy buffers each message completely, and decompresses it, without a limit. If a connection breaks, it closes the other side with code
1000 (normal), so that a client takes a truncated response for a complete one.
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
"""Bytes added to the payload size for each frame, since empty frames use memory too."""


class Deflate(PerMessageDeflate):
    """Decompresses at most `limit` bytes per message."""

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
    """Closes a connection after a message that exceeds the limit."""


class Limited(WebsocketConnection):
    """One side of a WebSocket with a limit for messages. `exceeded`: it has sent a message over the limit."""

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
                # wsproto reports a message rejected by an extension as a close. In state OPEN the peer has not sent a close.
                too_big = event.code is CloseReason.MESSAGE_TOO_BIG and self.state.name == "OPEN"
            if too_big:
                self.exceeded = True
                yield TooBig(CloseReason.MESSAGE_TOO_BIG, f"The message is larger than {self.limit} bytes.")
                return
            yield event

    def event_for_side(self, event: Event, code: CloseReason, reason: str) -> Event:
        """The event to send to this side for an event of the other side: errors get `code` and `reason`; all else is unchanged."""
        broke_off = isinstance(event, CloseConnection) and event.code == CloseReason.ABNORMAL_CLOSURE
        if broke_off or (isinstance(event, TooBig) and not self.exceeded):
            return CloseConnection(code=code, reason=reason)
        return event


def _size(data: bytes | str) -> int:
    return len(data) if isinstance(data, (bytes, bytearray)) or data.isascii() else len(data.encode())


class ToClient(Limited):
    def send2(self, event: Event) -> commands.SendData:
        # Of the codes that a proxy may send, OpenAI's SDKs reconnect only after 1011.
        reason = "A message from upstream is too large." if isinstance(event, TooBig) else "The connection upstream broke off."
        return super().send2(self.event_for_side(event, CloseReason.INTERNAL_ERROR, reason))


class ToServer(Limited):
    def send2(self, event: Event) -> commands.SendData:
        return super().send2(self.event_for_side(event, CloseReason.GOING_AWAY, "The client is gone."))


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
            if isinstance(child := self.child_layer, WebsocketLayer) and "server_ws" in vars(child):  # its connections exist
                self.limit(child)
            reply = yield command

    def limit(self, websocket: WebsocketLayer) -> None:
        if type(websocket.client_ws) is WebsocketConnection:
            for side, kind in ((websocket.client_ws, ToClient), (websocket.server_ws, ToServer)):
                side.__class__ = kind
                side.bound(self.rules.max_message(self.flow))

    def passthrough(self, event: events.Event) -> CommandGenerator[None]:
        """Close the connection of a client that is still sending gracefully: a TCP reset could overtake the close frame."""
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
