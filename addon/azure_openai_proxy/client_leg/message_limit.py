"""A limit for WebSocket messages, compressed ones too, and the codes with which the other side is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsproto.events import CloseConnection, Event, Message
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, RsvBits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from wsproto.extensions import Extension
    from wsproto.frame_protocol import FrameDecoder, FrameProtocol, Opcode

__all__ = ["FRAME", "MessageLimit", "for_client", "for_server", "limit_inflation"]

FRAME = 64
"""Bytes added to the payload size for each frame, since empty frames use memory too."""
PIECE = 1 << 12
"""Bytes to decompress at once. They become 4 MB at most, as deflate compresses to a 1,032nd at best."""


class TooBig(CloseConnection):
    """Closes a connection after a message that exceeds the limit."""


class MessageLimit:
    """The limit for the messages of one side; None is no limit."""

    exceeded = False
    """This side has sent a message over the limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._received = limit, 0

    def checked(self, events: Iterable[Event], is_open: Callable[[], bool]) -> Iterator[Event]:
        """The events of this side; `TooBig` instead of a message over the limit, after which nothing is read."""
        for event in events:
            too_big = False
            if isinstance(event, Message):
                self._received += _size(event.data) + FRAME * event.frame_finished
                too_big = self._limit is not None and self._received > self._limit + FRAME
                if event.message_finished:
                    self._received = 0
            elif isinstance(event, CloseConnection):
                # wsproto reports a message rejected by an extension as a close. While open, the peer has not sent a close.
                too_big = event.code is CloseReason.MESSAGE_TOO_BIG and is_open()
            if too_big:
                self.exceeded = True
                yield TooBig(CloseReason.MESSAGE_TOO_BIG, f"The message is larger than {self._limit} bytes.")
                return
            yield event


def for_client(event: Event, limit: MessageLimit) -> Event:
    """The event to send to the client for one of the server.

    Of the codes that a proxy may send, OpenAI's SDKs reconnect only after 1011.
    """
    reason = "A message from upstream is too large." if isinstance(event, TooBig) else "The connection upstream broke off."
    return _for_side(event, limit, CloseReason.INTERNAL_ERROR, reason)


def for_server(event: Event, limit: MessageLimit) -> Event:
    """The event to send to the server for one of the client."""
    return _for_side(event, limit, CloseReason.GOING_AWAY, "The client is gone.")


def _for_side(event: Event, limit: MessageLimit, code: CloseReason, reason: str) -> Event:
    """Errors of the other side get `code` and `reason`; all else is unchanged. `limit`: of this side."""
    broke_off = isinstance(event, CloseConnection) and event.code == CloseReason.ABNORMAL_CLOSURE
    if broke_off or (isinstance(event, TooBig) and not limit.exceeded):
        return CloseConnection(code=code, reason=reason)
    return event


def _size(data: bytes | str) -> int:
    return len(data) if isinstance(data, (bytes, bytearray)) or data.isascii() else len(data.encode())


class Deflate(PerMessageDeflate):
    """Decompresses a message until it exceeds the limit.

    wsproto takes a ping within a compressed message for the end of the message. Here control frames do not reach it.
    """

    limit: int
    inflated = 0  # bytes of the current message
    _control = False  # the kind of the current frame

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._control = opcode.iscontrol()
        if self._control:
            return CloseReason.PROTOCOL_ERROR if rsv.rsv1 else RsvBits(rsv1=True, rsv2=False, rsv3=False)
        return super().frame_inbound_header(proto, opcode, rsv, payload_length)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        if self._control:
            return data
        out = []
        for start in range(0, len(data), PIECE):
            inflated = super().frame_inbound_payload_data(proto, data[start : start + PIECE])
            if isinstance(inflated, CloseReason):
                return inflated
            self.inflated += len(inflated)
            if self.inflated > self.limit:
                return CloseReason.MESSAGE_TOO_BIG
            out.append(inflated)
        return b"".join(out)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:  # noqa: FBT001 - wsproto's signature
        if self._control:
            return None
        if fin:
            self.inflated = 0
        return super().frame_inbound_complete(proto, fin)


def limit_inflation(extensions: Iterable[Extension], limit: int) -> None:
    """Limit the decompressed bytes of each message. Called before the first message."""
    for extension in [each for each in extensions if type(each) is PerMessageDeflate]:
        extension.__class__ = Deflate
        vars(extension)["limit"] = limit
