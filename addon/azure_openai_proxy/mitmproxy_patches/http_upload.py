"""Streaming of large request bodies, and responses before the end of a request body.

The beginning of each body is buffered: it contains the model, which decides the destination, and a small body can be retried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._hooks import HttpResponseHeadersHook

from .http1_server import LastOfConnection, complete

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.proxy.layer import CommandGenerator

    from .interface import HttpPolicy

__all__ = ["HELD", "Uploading"]

HELD = 1 << 20
"""Bytes of a body to buffer before streaming starts."""


class Uploading(HttpStream):
    rules: HttpPolicy
    may_go_on: bool | None = False
    """Whether the body may be streamed. None: not determined yet, since that is slow and most bodies are small."""
    dropped = False  # the HTTP layer sends no more events to this stream

    @property
    def may_stream_upload(self) -> bool:
        if self.may_go_on is None:
            self.may_go_on = self.rules.may_stream_upload(self.flow)
        return self.may_go_on

    def go_on(self) -> CommandGenerator[bool]:
        """Start streaming the body. Return True if the request was answered instead."""
        self.may_go_on = False
        start = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        self.rules.start_streamed_upload(self.flow, start)
        if self.flow.response:
            yield HttpResponseHeadersHook(self.flow)
            if not (yield from self.check_killed(True)):  # noqa: FBT003 - mitmproxy's signature
                yield from self.reply(self.flow.response, last=False)
            return True
        yield from self.start_request_stream()
        if self.client_state == self.state_stream_request_body:
            yield from self.state_stream_request_body(RequestData(self.stream_id, start))
        return False

    def start_request_stream(self) -> CommandGenerator[None]:
        """As mitmproxy, but use chunked framing if the length is unknown (HTTP/2) or changed by the translation."""
        headers = self.flow.request.headers
        if not (yield from self.make_server_connection()):
            self.client_state = self.state_errored
            return
        if not headers.get("content-length", ""):
            headers["transfer-encoding"] = "chunked"
        yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=False), self.context.server)
        self.client_state = self.state_stream_request_body

    def state_stream_request_body(self, event: RequestData | RequestEndOfMessage) -> CommandGenerator[None]:
        if isinstance(event, RequestData) and not event.data:
            return  # an empty HTTP/2 frame would become the last chunk of HTTP/1.1
        yield from super().state_stream_request_body(event)

    def reply(self, response: http.Response, *, last: bool) -> CommandGenerator[None]:
        """Send a response immediately. The rest of the request is read and discarded. `last`: close an HTTP/1 connection afterwards."""
        self.flow.response = complete(response, self.flow.request, last=last)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        self.dropped = True
        content = response.raw_content
        yield SendHttp(ResponseHeaders(self.stream_id, response, not content), self.context.client)
        if content:
            yield SendHttp(ResponseData(self.stream_id, content), self.context.client)
        yield DropStream(self.stream_id)
        yield SendHttp((LastOfConnection if last else ResponseEndOfMessage)(self.stream_id), self.context.client)
