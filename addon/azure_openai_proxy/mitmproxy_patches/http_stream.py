"""HTTP streams: errors in OpenAI's format, limits, early responses, streamed uploads, the upstream leg."""

from __future__ import annotations

import time
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.layers.http import DropStream, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpResponseHeadersHook, HttpResponseHook

from azure_openai_proxy.client_leg import hook_index, request_target
from azure_openai_proxy.client_leg.failures import failure, reason_to_close, truncated_end, withheld
from azure_openai_proxy.client_leg.headers import is_checked, make_index
from azure_openai_proxy.client_leg.http1 import body_may_follow, complete
from azure_openai_proxy.client_leg.request_body import HELD, RequestBody
from azure_openai_proxy.errors import Failure

from .http1_server import LastOfConnection, PatchedHttp1Server, RequestUnreadable, WholeRequest
from .upstream_leg import Together, UpstreamFailed
from .websocket import Upgrading

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.proxy import events
    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.layer import CommandGenerator

    from .http_layer import PatchedHttpLayer
    from .upstream_leg import Leg

__all__ = ["PatchedStream"]


_IGNORE_EVENTS = MethodType(HttpStream.state_errored, HttpStream)
"""A state that needs no stream."""


class PatchedStream(Upgrading):
    leg: Leg | None = None  # once the upstream leg sends the request
    body: RequestBody | None = None  # of a translated request
    sent_request: http.Request | Failure  # the request with its keys, until mitmproxy sends it
    dropped = False  # the HTTP layer sends no more events to this stream

    def __init__(self, context: Context, stream_id: int, http_layer: PatchedHttpLayer) -> None:
        super().__init__(context, stream_id)
        self.http_layer, self.policy, self.mode = http_layer, http_layer.policy, http_layer.mode
        client = http_layer.connections[context.client]
        self.http1_server = client if isinstance(client, PatchedHttp1Server) else None
        self.client_state = self.state_wait_for_request_headers  # mitmproxy sets it in an event of its own

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        """As mitmproxy, but replace the error responses, and send the request as the policy has it."""
        if self.dropped:
            return  # the event was queued while the previous one was processed
        if isinstance(event, RequestTrailers):
            return  # they are not checked, and mitmproxy raises when writing them to HTTP/1.1: the client would get no response
        doing: CommandGenerator[Any] = self.dispatch(event)
        reply: Any = None
        while True:
            try:
                command = doing.send(reply)
            except StopIteration:
                if self.dropped:
                    self.free()
                return
            reply = None
            if isinstance(command, SendHttp):
                sent = command.event
                if self.leg and command.connection is self.leg.conn:
                    self.leg.send(sent)  # does what the HTTP layer would, in a fifth of the time
                    continue
                if self.http1_server and isinstance(sent, ResponseHeaders | ResponseData):
                    yield from cast("CommandGenerator[None]", self.http1_server.outputs(sent))  # likewise
                    continue
                if isinstance(sent, RequestHeaders):
                    sent.request = vars(self).pop("sent_request")
                elif isinstance(sent, ResponseProtocolError) and (yield from self.report(sent)):
                    continue
            elif type(command) is DropStream:
                self.dropped = True
            elif isinstance(command, StartHook) and command.blocking is True and hook_index.in_place(command):
                continue
            reply = yield command

    def dispatch(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, WholeRequest):
            return self.whole(event)
        if isinstance(event, Together):
            return self.one_by_one(event)
        return self.cut_short(event) if isinstance(event, RequestUnreadable) else super()._handle_event(event)

    def whole(self, event: WholeRequest) -> CommandGenerator[None]:  # mitmproxy's states, without its events in between
        yield from self.state_wait_for_request_headers(event)
        if self.dropped:
            return
        if self.body and self.client_state == self.state_consume_request_body and len(event.content) <= HELD:
            self.request_body_buf += event.content  # its size was checked with the head
        elif event.content:
            yield from self.client_state(RequestData(self.stream_id, event.content))
        yield from self.client_state(RequestEndOfMessage(self.stream_id))

    def one_by_one(self, event: Together) -> CommandGenerator[None]:
        for one in event.events:
            yield from self.server_state(one)

    def make_server_connection(self) -> CommandGenerator[bool]:
        """Use the upstream leg for translated requests. There is nothing to wait for, so the HTTP layer is not involved."""
        if not self.policy.takes(self.flow):
            self.sent_request = request = self.policy.request_with_keys(self.flow)
            if isinstance(request, Failure):
                return not (yield from self.refuse((request.message, "REQUEST_VALIDATION_FAILED")))
            return (yield from super().make_server_connection())
        self.leg = leg = self.http_layer.make_leg()
        if leg is None:
            return not (yield from self.refuse(("The client is gone.", "CONNECT_FAILED")))
        self.context.server = self.flow.server_conn = cast("Any", leg.conn)
        return True

    def free(self) -> None:
        """Release the flow and the buffers, and leave all reference cycles, so that the memory is free before a garbage collection."""
        del self.flow
        self.client_state = self.server_state = _IGNORE_EVENTS  # instead of methods of the stream
        self.context.layers.clear()
        self.request_body_buf.clear()
        self.response_body_buf.clear()

    # The request

    def check_invalid(self, request: bool) -> CommandGenerator[bool]:  # noqa: FBT001 - mitmproxy's signature
        message = cast("http.Message", self.flow.request if request else self.flow.response)
        checked = is_checked(message)
        if request:
            make_index(message)
            request_target.record(self.flow, self.context.client, transparent=self.mode is HTTPMode.transparent)
        return False if checked else (yield from super().check_invalid(request))

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:  # noqa: FBT001 - mitmproxy's signature
        """Send an early response, or check the head and the declared length.

        mitmproxy calls this first after the `requestheaders` hook: the exchange exists, and the body has not been read.
        """
        if (yield from super().check_killed(emit_error_hook)):
            return True
        if emit_error_hook and self.client_state == self.state_wait_for_request_headers:
            if response := self.policy.early_response(self.flow):
                yield from self.respond_early(response)
                return True
            self.body = RequestBody.of(self.flow, self.policy, self.context.options)
            if self.body:
                return (yield from self.refuse(self.body.error_in_head(self.flow)))
        return False

    def respond_early(self, response: http.Response) -> CommandGenerator[None]:
        """Respond to a request before its body is complete, calling the hooks of a response."""
        self.flow.response = response
        response.timestamp_start = response.timestamp_end = time.time()
        yield HttpResponseHeadersHook(self.flow)
        if (yield from super().check_killed(True)):  # noqa: FBT003 - mitmproxy's signature
            return
        yield HttpResponseHook(self.flow)
        if not (yield from super().check_killed(False)):  # noqa: FBT003 - mitmproxy's signature
            yield from self.reply(response, last=body_may_follow(self.flow.request))

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:  # noqa: FBT001 - mitmproxy's signature
        if not request or self.body is None:
            return (yield from super().check_body_size(request))
        if len(self.request_body_buf) > HELD:
            if self.body.may_stream(self.flow):
                return (yield from self.stream_upload(self.body))
            self.request_body_buf = cast("Any", self.body.gathered(cast("Any", self.request_body_buf)))
        return (yield from self.refuse(self.body.error_in_size(self.flow, len(self.request_body_buf))))

    def refuse(self, error: tuple[str, str] | None) -> CommandGenerator[bool]:
        """Reject a request, if there is an error. The rest of the body is read and discarded."""
        if error is None:
            return False
        message, code = error
        self.request_body_buf.clear()
        yield from self.handle_protocol_error(ResponseProtocolError(self.stream_id, message, ErrorCode[code]))
        return True

    def stream_upload(self, body: RequestBody) -> CommandGenerator[bool]:
        """Start streaming the body. Return True if the request was answered instead."""
        start = bytes(self.request_body_buf)
        self.request_body_buf.clear()
        body.start_stream(self.flow, start)
        if self.flow.response:
            yield from self.respond_early(self.flow.response)
            return True
        yield from self.start_request_stream()
        if self.client_state == self.state_stream_request_body:
            yield from self.state_stream_request_body(RequestData(self.stream_id, start))
        return False

    def start_request_stream(self) -> CommandGenerator[None]:
        """As mitmproxy, but use chunked framing if the length is unknown (HTTP/2) or changed by the translation."""
        headers = self.flow.request.headers
        if not headers.get("content-length", ""):
            headers["transfer-encoding"] = "chunked"
        if not (yield from self.make_server_connection()):
            self.client_state = self.state_errored
            return
        yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=False), self.context.server)
        self.client_state = self.state_stream_request_body

    def state_stream_request_body(self, event: RequestData | RequestEndOfMessage) -> CommandGenerator[None]:
        if isinstance(event, RequestData) and not event.data:
            return  # an empty HTTP/2 frame would become the last chunk of HTTP/1.1
        yield from super().state_stream_request_body(event)

    def cut_short(self, event: RequestUnreadable) -> CommandGenerator[None]:
        if self.server_state == self.state_errored:
            return  # the request is already answered
        waiting = self.waiting
        if not waiting:
            yield from event.instead
        error = RequestProtocolError(self.stream_id, event.message, ErrorCode.GENERIC_CLIENT_ERROR)
        yield from self.handle_protocol_error(error)  # calls the error hook and notifies the upstream; sends nothing to the client
        if waiting and not (yield from self.report(ResponseProtocolError(self.stream_id, event.message, error.code))):
            yield from event.instead

    # The response

    @property
    def waiting(self) -> bool:
        """Whether no part of the response has been sent to the client."""
        return self.server_state in (self.state_uninitialized, self.state_wait_for_response_headers, self.state_consume_response_body)

    def report(self, error: ResponseProtocolError) -> CommandGenerator[bool]:
        """Report an error as a response, or as the last event of a started stream. Return False to let mitmproxy send its own error."""
        what = error.failure if isinstance(error, UpstreamFailed) else failure(error.code.name, error.message)
        if not what or not self.context.client.state & ConnectionState.CAN_WRITE:
            return False
        if self.waiting:
            if response := self.policy.error_response(what, self.flow):
                yield from self.reply(response, last=reason_to_close(error.code.name, self.flow.request))
            return response is not None
        if self.server_state == self.state_stream_response_body:
            yield from self.send_body(truncated_end(self.flow, what, self.policy))
        return False

    def flow_done(self) -> CommandGenerator[None]:
        yield from self.send_body(withheld(cast("http.Response", self.flow.response)))
        yield from super().flow_done()

    def send_body(self, data: bytes | None) -> CommandGenerator[None]:
        if data:
            yield SendHttp(ResponseData(self.stream_id, data), self.context.client)

    def reply(self, response: http.Response, *, last: bool) -> CommandGenerator[None]:
        """Send a response immediately. The rest of the request is read and discarded. `last`: close an HTTP/1 connection afterwards."""
        self.flow.response = complete(response, self.flow.request, last=last)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        self.dropped = True
        content = response.raw_content
        yield SendHttp(ResponseHeaders(self.stream_id, response, not content), self.context.client)
        yield from self.send_body(content)
        yield DropStream(self.stream_id)
        yield SendHttp((LastOfConnection if last else ResponseEndOfMessage)(self.stream_id), self.context.client)
