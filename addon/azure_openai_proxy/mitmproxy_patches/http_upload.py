"""A large body that is sent on as it comes, and answers that do not wait for the end of one.

The first bytes of every body are held: they tell where the request goes, and a small one can be sent again.
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
"""Bytes of a body that are held before it is sent on."""


class Uploading(HttpStream):
    rules: HttpPolicy
    may_go_on: bool | None = False
    """None: nobody has asked yet, for the answer takes a while, and most bodies are small."""
    dropped = False  # the HTTP layer passes no more events to this stream

    @property
    def may_stream_upload(self) -> bool:
        if self.may_go_on is None:
            self.may_go_on = self.rules.may_stream_upload(self.flow)
        return self.may_go_on

    def go_on(self) -> CommandGenerator[bool]:
        """Send what has come and from now on what comes. True: the request is answered."""
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
        """As mitmproxy does, but with framing for HTTP/1.1 where a body of unknown length came over HTTP/2 or is changed on its way."""
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
            return  # HTTP/2 has empty frames; as a chunk of HTTP/1.1 it would be the end
        yield from super().state_stream_request_body(event)

    def reply(self, response: http.Response, *, last: bool) -> CommandGenerator[None]:
        """Answer at once. What still comes of the request is read and thrown away."""
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
