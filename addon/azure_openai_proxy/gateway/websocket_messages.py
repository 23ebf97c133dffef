"""The messages of one WebSocket: the limits of the client, their translation in both directions, and how many of them the flow keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from azure_openai_proxy.api import realtime
from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.formats.json_scan import LARGE

from .named_models import IN_MESSAGES, named

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from mitmproxy.websocket import WebSocketMessage

    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.routing.attempts import Attempts

    from .admission import Admission
    from .request_keys import RequestKeys

__all__ = ["MESSAGE", "WebSocketMessages"]

MESSAGE = 1024
"""Bytes added to the content's size for each WebSocket message kept on the flow."""
_MODEL = realtime.Literal("model")


@dataclass(slots=True)
class WebSocketMessages:
    """The messages of one WebSocket, which passes unchanged if it is not Azure's."""

    call: Call | None
    normalize: bool
    keys: RequestKeys
    frames: realtime.Frames | None = field(default=None, repr=False)  # renames models; None: the WebSocket is not Azure's
    attempts: Attempts | None = field(default=None, repr=False)
    admission: Admission | None = field(default=None, repr=False)  # the client of a key; None: no keys are required
    meter: Meter | None = field(default=None, repr=False)  # None: nothing receives usage records
    _kept: int = 0  # bytes of the messages on the flow

    def to_scan(self, message: WebSocketMessage) -> tuple[bytes, tuple[str, ...]] | None:
        """The content and the members to find in it, if a message is large and must be scanned in slices before its translation."""
        content = message.content
        if len(content) <= LARGE or not self.frames or not (message.is_text or self.admission is not None):
            return None
        return content, (*self.frames.places, *IN_MESSAGES) if message.from_client else self.frames.BACK

    def admit(self, content: bytes, large: LargeBody | None, *, from_client: bool) -> Awaitable[None] | None:
        """Check a message for the rights and the limits of the client, before its translation. A server may read JSON also in binary
        messages.

        Raises:
            ProxyError: the message must not be sent, or the response that Azure has started must be cancelled.
        """
        admission, call = self.admission, self.call
        if admission is None or admission.socket is None or call is None or self.frames is None:
            return None
        metered, socket = call.endpoint.usage, admission.socket
        if not from_client:
            return socket.from_azure(content, call.model) if metered else None
        requests, model = metered and socket.requests(content), call.model
        if (admission.client.models or admission.has_budget) and _MODEL.is_in(content):
            for name in named(content, (*self.frames.places, *IN_MESSAGES), large):
                admission.check_model(name)
            for name in named(content, self.frames.places, large):
                admission.price_of(name, native=bool(call.native))
                model = name
        return socket.from_client(content, model, requests=requests) if metered else None

    def translate(self, messages: list[WebSocketMessage], keep: int, large: LargeBody | None = None) -> None:
        """Translate the last of `messages` in place before it is sent, and drop the oldest messages beyond `keep` bytes in total.

        `large` is the result of scanning a large message, whose content is not converted to ASCII here.
        """
        message = messages[-1]
        if self.meter is not None:
            self.meter.frame(message.content, from_client=message.from_client)
        if self.frames and message.is_text:
            frame = message.content
            if message.from_client:
                frame = self.frames.out(frame, large)
            else:
                if self.attempts and self.attempts.makes_items:
                    self.attempts.item(frame)
                if large:
                    large = openai_response.large_frame(large, self.keys.secrets) if self.normalize else large
                    frame = large.content
                elif self.normalize:
                    frame = openai_response.frame(frame, self.keys.secrets)
                frame = self.frames.back(frame, large)
            if frame is not message.content:
                # mitmproxy splits a changed message into fragments, which could split a multi-byte character; hence ASCII.
                message.content = frame if large else realtime.in_ascii(frame)
        self.drop_oldest(messages, keep)

    def drop_oldest(self, messages: list[WebSocketMessage], keep: int) -> None:
        """Count the last message, and drop the oldest ones beyond `keep` bytes in total."""
        self._kept += len(messages[-1].content) + MESSAGE
        while self._kept > keep and len(messages) > 1:
            self._kept -= len(messages.pop(0).content) + MESSAGE
