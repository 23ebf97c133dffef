"""HTTP streams and the HTTP layer of a client connection: errors in OpenAI's format, limits, early responses, the upstream leg."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from mitmproxy import flow
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import url
from mitmproxy.proxy import events, mode_specs
from mitmproxy.proxy.commands import CloseConnection, StartHook
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    SendHttp,
    is_h3_alpn,
)
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHeadersHook, HttpResponseHook
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from mitmproxy.utils import human
from OpenSSL import SSL

from azure_openai_proxy.errors import Failure

from . import connections
from .http1_server import Server, Unreadable
from .http2_server import Server2
from .http_upload import HELD, Uploading
from .interface import ABSOLUTE_FORM, CLIENT_HOST, HttpPolicy
from .upstream_leg import LegServer, UpstreamFailed, leg_of
from .websocket import Upgrading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mitmproxy import http
    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.layer import CommandGenerator, Layer
    from mitmproxy.proxy.server import ConnectionHandler

    from .upstream_leg import Leg

__all__ = ["Connection", "Stream", "patch"]

# Status, code and beginning of the message for each of mitmproxy's errors. Other error codes mean that the request was cancelled.
FAILURES = {
    ErrorCode.GENERIC_CLIENT_ERROR: (400, "invalid_request", "The request cannot be read: "),
    ErrorCode.REQUEST_VALIDATION_FAILED: (400, "invalid_request", ""),
    ErrorCode.DESTINATION_UNKNOWN: (400, "invalid_request", ""),
    ErrorCode.REQUEST_TOO_LARGE: (413, "request_too_large", ""),
    ErrorCode.CONNECT_FAILED: (502, "upstream_unreachable", "Could not connect upstream: "),
    ErrorCode.GENERIC_SERVER_ERROR: (502, "upstream_error", "The connection upstream failed: "),
    ErrorCode.CANCEL: (502, "upstream_error", "The connection upstream failed: "),
    ErrorCode.HTTP_1_1_REQUIRED: (502, "upstream_error", "The connection upstream failed: "),
    ErrorCode.RESPONSE_TOO_LARGE: (502, "upstream_error", "The response from upstream cannot be forwarded: "),
    ErrorCode.RESPONSE_VALIDATION_FAILED: (502, "upstream_error", "The response from upstream cannot be forwarded: "),
}

_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t"})


def _nothing() -> CommandGenerator[None]:
    yield from ()


class Stream(Uploading, Upgrading):
    rules: HttpPolicy
    max_body: int | None = None
    large = False  # mitmproxy's `stream_large_bodies` applies

    def __init__(self, context: Context, stream_id: int, rules: HttpPolicy) -> None:
        super().__init__(context, stream_id)
        self.rules = rules

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        """As mitmproxy, but replace the error responses, and check the request before it is sent."""
        if self.dropped:
            return  # the event was queued while the previous one was processed
        doing = self.dispatch(event)
        reply: Any = None
        while True:
            try:
                command = doing.send(reply)
            except StopIteration:
                if self.dropped:
                    self.free()
                return
            reply = None
            if type(command) is DropStream:
                self.dropped = True
            if isinstance(command, StartHook) and self.run_hook(command):
                continue
            if (
                isinstance(command, SendHttp)
                and isinstance(command.event, RequestHeaders)
                and not isinstance(command.connection, LegServer)
            ):
                request = self.rules.on_the_wire(self.flow)
                if isinstance(request, Failure):
                    doing.close()
                    doing = self.refuse(request.message, ErrorCode.REQUEST_VALIDATION_FAILED)
                    if command.connection.alpn != b"h2":  # pragma: no branch - an HTTP/2 connection has other requests
                        yield CloseConnection(command.connection)
                    continue
                command.event.request = request
            if not isinstance(command, SendHttp) or not isinstance(command.event, ResponseProtocolError):
                reply = yield command
            elif command.connection != self.context.client or not (yield from self.tell(command.event)):
                yield command

    def dispatch(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, RequestTrailers):
            return (
                _nothing()
            )  # trailers are not checked, and mitmproxy raises when writing them to HTTP/1.1, so that the client gets no response
        return self.cut_short(event) if isinstance(event, Unreadable) else super()._handle_event(event)

    def run_hook(self, hook: StartHook) -> bool:  # noqa: ARG002 - overridden by the fast path
        """Run a hook without a task. Return False to let mitmproxy run it."""
        return False

    def free(self) -> None:
        """Release the flow and the buffers. Streams are in reference cycles, so bodies would be kept until a garbage collection."""
        del self.flow
        self.request_body_buf.clear()
        self.response_body_buf.clear()

    # The request

    def check_invalid(self, request: bool) -> CommandGenerator[bool]:  # noqa: FBT001 - mitmproxy's signature
        """Record the form of the request target and the Host. mitmproxy calls this first, and modifies the request afterwards."""
        if request and self.mode is not HTTPMode.transparent and (asked := self.flow.request).method != "CONNECT":
            self.flow.metadata[ABSOLUTE_FORM] = bool(asked.scheme == "http" if asked.is_http2 or asked.is_http3 else asked.authority)
            if not asked.host and asked.http_version == "HTTP/1.0" and "host" not in asked.headers:
                # Host is optional in HTTP/1.0, but mitmproxy requires it
                address, port, *_ = self.context.client.sockname
                asked.headers["Host"] = url.hostport("https" if self.context.client.tls else "http", address, port)
        elif request and isinstance(self.context.client.proxy_mode, mode_specs.ReverseMode):
            self.flow.metadata[CLIENT_HOST] = self.flow.request.host_header
        return (yield from super().check_invalid(request))

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:  # noqa: FBT001 - mitmproxy's signature
        """Send an early response, or check the head and the declared length.

        mitmproxy calls this first after the `requestheaders` hook: the exchange exists, and the body has not been read.
        """
        if (yield from super().check_killed(emit_error_hook)):
            return True
        if self.client_state == self.state_wait_for_request_headers:
            if response := self.rules.early_response(self.flow):
                yield from self.respond_early(response)
                return True
            self.max_body = self.rules.max_body(self.flow)
            if self.max_body is not None:
                if self.large:
                    self.flow.request.stream = False  # mitmproxy would stream it untranslated
                limit = human.parse_size(self.context.options.body_size_limit)
                self.max_body = min(self.max_body, self.max_body if limit is None else limit)
                self.may_go_on = None
                return (yield from self.check_headers())
        return False

    def respond_early(self, response: http.Response) -> CommandGenerator[None]:
        """Respond to a request before its body is read, calling the hooks of a response."""
        self.flow.response = response
        response.timestamp_start = response.timestamp_end = time.time()
        yield HttpResponseHeadersHook(self.flow)
        if (yield from super().check_killed(True)):  # noqa: FBT003 - mitmproxy's signature
            return
        yield HttpResponseHook(self.flow)
        if not (yield from super().check_killed(False)):  # noqa: FBT003 - mitmproxy's signature
            yield from self.reply(response, last=self.body_may_follow)

    @property
    def body_may_follow(self) -> bool:
        """Whether a body may or may not follow: the client sent `Expect: 100-continue` and got no 100 response."""
        return "expect" in self.flow.request.headers and not (self.flow.request.is_http2 or self.flow.request.is_http3)

    def check_headers(self) -> CommandGenerator[bool]:
        asked = self.flow.request
        line = b"".join((asked.data.method, asked.data.authority, asked.data.path))
        if b" " in line or b"\t" in line:  # possible with HTTP/2
            yield from self.refuse("The request's method, authority or path has a space or a tab.", ErrorCode.REQUEST_VALIDATION_FAILED)
            return True
        head = b"".join((line, *(part for field in asked.headers.fields for part in field)))
        if len(head.translate(None, _CONTROLS)) != len(head):
            yield from self.refuse(
                "The request line or headers contain control characters, or a header continues on the next line.",
                ErrorCode.REQUEST_VALIDATION_FAILED,
            )
            return True
        declared = asked.headers.get("content-length", "")
        return (yield from self.check_max_body(int(declared) if declared.isdecimal() else 0))

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:  # noqa: FBT001 - mitmproxy's signature
        if not request or self.max_body is None:
            too_large = yield from super().check_body_size(request)
            self.large = request and self.flow.request.stream is True
            return too_large
        if len(self.request_body_buf) > HELD and self.may_stream_upload:
            return (yield from self.go_on())
        return (yield from self.check_max_body(len(self.request_body_buf)))

    def check_max_body(self, size: int) -> CommandGenerator[bool]:
        if self.max_body is None or size <= self.max_body or self.may_stream_upload:
            return False
        yield from self.refuse(f"The request's body is larger than {self.max_body} bytes.", ErrorCode.REQUEST_TOO_LARGE)
        return True

    def refuse(self, message: str, code: ErrorCode) -> CommandGenerator[None]:
        """Reject a request as mitmproxy does. The rest of the body is read and discarded."""
        self.request_body_buf.clear()
        self.flow.error = flow.Error(message)
        yield HttpErrorHook(self.flow)
        if not (yield from super().check_killed(False)):  # noqa: FBT003 - mitmproxy's signature
            yield SendHttp(ResponseProtocolError(self.stream_id, message, code), self.context.client)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False

    def cut_short(self, event: Unreadable) -> CommandGenerator[None]:
        if self.server_state == self.state_errored:
            return  # the request is already answered
        waiting = self.waiting
        if not waiting:
            yield from event.instead
        error = RequestProtocolError(self.stream_id, event.message, ErrorCode.GENERIC_CLIENT_ERROR)
        yield from self.handle_protocol_error(error)  # calls the error hook and notifies the upstream; sends nothing to the client
        if waiting and not (yield from self.tell(ResponseProtocolError(self.stream_id, event.message, error.code))):
            yield from event.instead

    # The response

    @property
    def waiting(self) -> bool:
        """Whether no part of the response has been sent to the client."""
        return self.server_state in (self.state_uninitialized, self.state_wait_for_response_headers, self.state_consume_response_body)

    def tell(self, error: ResponseProtocolError) -> CommandGenerator[bool]:
        """Report an error as a response, or as the last event of a started stream. Return False to let mitmproxy send its own error."""
        if error.code not in FAILURES or not self.context.client.state & ConnectionState.CAN_WRITE:
            return False
        failure = self.failure(error)
        if self.waiting:
            return (yield from self.answer(failure, error.code))
        if self.server_state == self.state_stream_response_body:
            yield from self.last_event(failure)
        return False

    def failure(self, error: ResponseProtocolError) -> Failure:
        if isinstance(error, UpstreamFailed):
            return error.failure
        status, code, intro = FAILURES[error.code]
        return Failure(status, code, f"{intro}{error.message}")

    def answer(self, failure: Failure, code: ErrorCode) -> CommandGenerator[bool]:
        response = self.rules.answer(failure, self.flow)
        if response is None:
            return False
        # With invalid framing, or after `Expect` without a 100 response, the end of the request is unknown: close the connection.
        lost = code in (ErrorCode.GENERIC_CLIENT_ERROR, ErrorCode.REQUEST_VALIDATION_FAILED)
        last = lost and not (self.flow.request.is_http2 or self.flow.request.is_http3)
        yield from self.reply(response, last=last or self.body_may_follow)
        return True

    def last_event(self, failure: Failure) -> CommandGenerator[None]:
        """Append an error event to a truncated event stream, so that the client does not take it for complete."""
        headers = cast("http.Response", self.flow.response).headers
        if "text/event-stream" not in headers.get("content-type", "") or "content-encoding" in headers or "content-length" in headers:
            return
        if event := self.rules.last_event(failure, self.flow):
            # The blank line ends an incomplete event.
            yield SendHttp(ResponseData(self.stream_id, b"\n\n" + event), self.context.client)


class Connection(HttpLayer):
    """mitmproxy's HTTP layer with the patched streams, client connections (`Server`, `Server2`) and the upstream leg."""

    rules: HttpPolicy
    leg: Leg | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        client = self.context.client
        if isinstance(event, events.Start) and not is_h3_alpn(client.alpn):
            http2 = client.alpn == b"h2"
            context = self.context.fork()
            self.connections[client] = Server2(context, self.withhold) if http2 else Server(context, self.rules, self.half_closed)
        doing = cast("CommandGenerator[None]", super()._handle_event(event))
        if self.leg and isinstance(event, events.DataReceived):
            return self.then_look_for_room(doing, self.leg)
        return doing

    def withhold(self, size: int, stream_id: int) -> bool:
        """Whether to postpone the acknowledgement of upload bytes (HTTP/2) until the upstream has accepted more."""
        response = self.leg.responses.get(stream_id) if self.leg else None
        if response is None or not response.streamed or not response.behind:
            return False
        response.owed += size
        return True

    def half_closed(self) -> bool:
        """Whether to answer an HTTP/1 client that has half-closed its connection. If so, watch for its disconnection."""
        server = cast("Server", self.connections[self.context.client])
        stream = self.streams.get(server.stream_id)
        if not isinstance(stream, Stream) or not self.rules.takes(stream.flow):
            return False
        return connections.watch(self.context.client, lambda: self.client_left(server.stream_id))

    def client_left(self, stream_id: int) -> None:
        """Cancel the request of a client that has disconnected. mitmproxy does not notice after a half-close, as it no longer reads."""
        leg = cast("Leg", self.make_leg())  # the connection is still open on this side
        leg.inject([RequestProtocolError(stream_id, "Client disconnected.", ErrorCode.CLIENT_DISCONNECTED)])

    def make_leg(self) -> Leg | None:
        """Create the leg if there is none. None if mitmproxy has closed the client's connection."""
        if self.leg is None:
            self.leg = leg_of(self)
        return self.leg

    def then_look_for_room(self, doing: CommandGenerator[None], leg: Leg) -> CommandGenerator[None]:
        yield from doing
        leg.client_data_received()

    def straight(self, stream: Stream, handler: ConnectionHandler, between_chunks: Callable[[], bool]) -> Callable[[bytes], bool] | None:  # noqa: ARG002 - overridden by the fast path
        """A function that writes response chunks directly to the client, bypassing the layers, or None."""
        return None

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> CommandGenerator[None]:
        stream = self.command_sources.get(event)
        if isinstance(stream, Stream) and self.rules.takes(stream.flow):
            leg = self.make_leg()
            del self.command_sources[event]
            reply = (leg.conn, None) if leg else (None, "The client is gone.")
            yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, reply))
        else:
            yield from super().get_connection(event, reuse=reuse)

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        self.streams[stream_id] = self.stream(stream_id)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def stream(self, stream_id: int) -> Stream:
        return Stream(self.context.fork(), stream_id, self.rules)


class ClientTLS(ClientTLSLayer):
    """Client TLS that sends close_notify. Without it, clients treat a response without a length as truncated."""

    def send_close(self, command: CloseConnection) -> CommandGenerator[None]:
        if self.tunnel_state in (TunnelState.OPEN, TunnelState.CLOSED):
            with suppress(SSL.Error):
                self.tls.shutdown()
            yield from self.tls_interact()
        yield from super().send_close(command)


def patch(layers: Iterable[Layer], rules: HttpPolicy, connection: type[Connection] = Connection) -> None:
    for layer in layers:
        if type(layer) is ClientTLSLayer:
            layer.__class__ = ClientTLS
        if type(layer) is HttpLayer:
            layer.__class__ = connection
            cast("Connection", layer).rules = rules
