"""A large body that is sent on as it comes, and answers that do not wait for the end of one.

The first bytes of every body are held: they tell where the request goes, and a small one can be sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mitmproxy.proxy.layers.http import DropStream, GetHttpConnection, HttpStream, SendHttp
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
    from collections.abc import Iterable

    from mitmproxy import http
    from mitmproxy.connection import Connection
    from mitmproxy.proxy.layer import CommandGenerator

    from .interface import Rules

__all__ = ["HELD", "OverHttp1", "Uploading"]

HTTP1 = (b"http/1.1",)
HELD = 1 << 20
"""Bytes of a body that are held before it is sent on."""


@dataclass
class OverHttp1(GetHttpConnection):
    """A connection for a large body: over HTTP/2 mitmproxy holds whatever the window does not let out, and lets the client send on."""

    __hash__ = GetHttpConnection.__hash__

    def connection_spec_matches(self, connection: Connection) -> bool:
        return super().connection_spec_matches(connection) and connection.alpn_offers == HTTP1

    def offer(self, connections: Iterable[Connection]) -> None:
        """Let connections that were just made for this speak nothing else."""
        for connection in connections:
            connection.alpn_offers = HTTP1


class Uploading(HttpStream):
    rules: Rules
    may_go_on: bool | None = False
    """None: nobody has asked yet, for the answer takes a while, and most bodies are small."""
    over_http1 = False
    dropped = False  # the HTTP layer passes no more events to this stream

    @property
    def goes_on(self) -> bool:
        if self.may_go_on is None:
            self.may_go_on = self.rules.goes_on(self.flow)
        return self.may_go_on

    def go_on(self) -> CommandGenerator[bool]:
        """Send what has come and from now on what comes. True: the request is answered."""
        self.may_go_on = False
        start = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        self.rules.begin(self.flow, start)
        if self.flow.response:
            yield HttpResponseHeadersHook(self.flow)
            if not (yield from self.check_killed(True)):  # noqa: FBT003 - mitmproxy's signature
                yield from self.reply(self.flow.response, last=False)
            return True
        yield from self.start_request_stream()
        if self.client_state == self.state_stream_request_body:
            yield from self.state_stream_request_body(RequestData(self.stream_id, start))
        return False

    def make_server_connection(self) -> CommandGenerator[bool]:
        doing = super().make_server_connection()
        command: Any = next(doing)
        if not self.over_http1:
            reply = yield command
        else:
            reply = yield OverHttp1(command.address, command.tls, command.via, command.transport_protocol)
        while True:
            try:
                command = doing.send(reply)
            except StopIteration as end:
                return bool(end.value)
            reply = yield command

    def start_request_stream(self) -> CommandGenerator[None]:
        """As mitmproxy does, but with framing for HTTP/1.1 where a body of unknown length came over HTTP/2 or is changed on its way."""
        headers = self.flow.request.headers
        length = headers.get("content-length", "")
        self.over_http1 = not length.isdecimal() or int(length) > HELD
        if not (yield from self.make_server_connection()):
            self.client_state = self.state_errored
            return
        if not length:
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
