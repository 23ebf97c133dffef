"""One request, sent until it is answered.

A failed answer is kept from the client while the rules are asked whether to send the request again; so is the beginning of a stream
until it shows that it is no error, but not for longer than `HOLD_STREAM`. Once anything has gone to the client, nothing is sent again.

mitmproxy tells the events of upstream connections apart by the number of the client's stream. A connection that was given up may
still have something to say, so each further attempt has a number of its own: what comes under another is not for us.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, cast

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HttpStream,
    SendHttp,
)
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

from azure_openai_proxy.api.stream_probe import Peek, error_response

from . import http_stream
from .interface import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mitmproxy import http
    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.layer import CommandGenerator
    from mitmproxy.proxy.layers.http._base import HttpEvent

    from .interface import Rules, Timeouts

__all__ = ["Connection", "Stream", "compatible"]

HOLD_AT_MOST = 1 << 20
"""Bytes of a failed answer; a longer one is passed on."""
HOLD_STREAM = 2.0
"""Seconds that the head of a stream is held back while nothing follows it: clients and what stands before them wait for it."""
SOON = 0.001
LOOK = 5.0
"""Seconds between two looks at the clock, at most: mitmproxy's timers keep what they are for in memory, and cannot be stopped."""

_FROM_UPSTREAM = (ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError)


class TimedOut(ResponseProtocolError):
    """Of one attempt."""

    def __init__(self, stream_id: int, message: str, attempt: int) -> None:
        super().__init__(stream_id, message, ErrorCode.GENERIC_SERVER_ERROR)
        self.attempt = attempt


class Stream(http_stream.Stream):
    timeouts: Timeouts | None = None
    head: ResponseHeaders  # of the answer that is held
    peek: Peek

    def __init__(self, context: Context, stream_id: int, rules: Rules, home: Connection) -> None:
        super().__init__(context, stream_id, rules)
        self.home = home
        self.attempt = stream_id  # the number of this attempt upstream
        self.deadline: float | None = None
        self.why = ""  # what is late when it has passed
        self.connecting: GetHttpConnection | None = None
        self.late = False  # the connection that was waited for did not come in time
        self.held_until = 0.0  # in `state_peek`
        self.growing = False  # the answer that is held, with mitmproxy's stream_large_bodies

    # What comes and goes

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        """Every event before it may have to wait for a hook to end, and every command before anyone acts on it."""
        if isinstance(event, events.Wakeup):
            looked = yield from self.look(event)
            if looked is None:
                return
            event = looked
        elif isinstance(event, GetHttpConnectionCompleted):
            if self._paused is None or event.command is not self._paused.command:
                return  # it was given up
        elif isinstance(event, _FROM_UPSTREAM):
            if event.stream_id != self.attempt and not self.growing:
                return
            self.growing = False
            event.stream_id = self.stream_id
            if isinstance(event, ResponseEndOfMessage):
                self.deadline = None
            elif self.timeouts:
                self.wait(self.timeouts.chunk, "Azure sent nothing more")
        for command in super().handle_event(event):
            if self.attempt != self.stream_id:
                if isinstance(command, SendHttp) and command.connection is not self.context.client:
                    command.event.stream_id = self.attempt
                elif isinstance(command, DropStream):
                    yield DropStream(self.attempt)
            if isinstance(command, GetHttpConnection):
                self.connecting = command
            yield command

    def dispatch(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            return self.send_again() if event.command.delay == 0 else self.release()
        return super().dispatch(event)

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:  # noqa: FBT001 - mitmproxy's signature
        """What there is of an answer that grows too large to be held comes as an event, by the client's number whoever is asked."""
        self.growing = not request
        too_large = yield from super().check_body_size(request)
        self.growing = False
        return too_large

    # Time

    def wait(self, seconds: float, why: str) -> None:
        self.deadline = time.monotonic() + seconds
        self.why = f"{why} for {seconds:g} seconds"

    def passes(self) -> None:
        if self.timeouts:
            self.wait(self.timeouts.chunk, "Azure sent nothing more")

    def look(self, wakeup: events.Wakeup) -> CommandGenerator[events.Event | None]:
        """What a timer brings: the event to go on with, or nothing."""
        if wakeup.command.delay == 0:
            return wakeup  # no look at the clock: the turn of `send_again`
        if self.holding and time.monotonic() >= self.held_until:
            return wakeup  # the turn of `release`
        if not self.watched:
            return None
        if self.deadline is None or time.monotonic() < self.deadline:
            return None
        self.deadline = None
        if command := self.not_connected:
            self.late = True
            pending = [connection for connection, asking in self.home.waiting_for_establishment.items() if command in asking]
            yield from map(commands.CloseConnection, pending)  # in the middle of its TLS handshake; before it this does nothing
            # That may have brought the answer already.
            return GetHttpConnectionCompleted(command, (None, self.why)) if self.not_connected is command else None
        return TimedOut(self.stream_id, self.why, self.attempt)

    @property
    def not_connected(self) -> GetHttpConnection | None:
        """The connection that is waited for."""
        return self.connecting if self._paused and self._paused.command is self.connecting else None

    @property
    def holding(self) -> bool:
        """The head of a stream is held back."""
        return bool(self.server_state == self.state_peek)

    @property
    def watched(self) -> bool:
        """Somebody waits here for what may come too late."""
        return self.timeouts is not None and self.server_state not in (self.state_done, self.state_errored) and not self.child_layer

    # The request

    def make_server_connection(self) -> CommandGenerator[bool]:
        self.timeouts = self.rules.timeouts(self.flow)
        self.late = False
        if self.timeouts:
            self.wait(self.timeouts.connect, "there was no connection")
            yield from self.home.watch(self.timeouts)
        connected = yield from super().make_server_connection()
        if connected and self.timeouts:
            self.wait(self.timeouts.first_byte, "Azure did not answer")
        return connected

    def state_stream_request_body(self, event: RequestData | RequestEndOfMessage) -> CommandGenerator[None]:
        if self.timeouts and self.deadline is not None:  # pragma: no branch - a refusal in mid-upload is tested end to end
            self.wait(self.timeouts.first_byte, "Azure did not answer")
        yield from super().state_stream_request_body(event)

    def resend(self) -> CommandGenerator[None]:
        """In a moment: the connection that has just brought the failed answer is not yet ready for another request."""
        self.response_body_buf.clear()
        self.flow.response = self.flow.error = None
        self.deadline = None
        self.renumber()
        self.server_state = self.state_between
        yield commands.RequestWakeup(0)

    def renumber(self) -> None:
        """From here on what the last attempt says is not for us."""
        if self.attempt != self.stream_id:
            self.home.streams.pop(self.attempt, None)
        self.attempt = next(self.home.numbers)
        self.home.streams[self.attempt] = self

    def state_between(self, _: events.Event) -> CommandGenerator[None]:
        """Nobody is asked."""
        yield from ()  # pragma: no cover - so nobody says anything

    def send_again(self) -> CommandGenerator[None]:
        if self.server_state != self.state_between:
            return  # pragma: no cover - the client has left in that moment
        self.server_state = self.state_wait_for_response_headers
        if not (yield from self.make_server_connection()) or self.left:
            return
        content = self.flow.request.raw_content
        yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, not content), self.context.server)
        if content:
            yield SendHttp(RequestData(self.stream_id, content), self.context.server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)

    @property
    def left(self) -> bool:
        """The client is gone, and that is what comes next."""
        return any(isinstance(event, RequestProtocolError) for event in self._paused_event_queue)

    def abandon(self) -> CommandGenerator[None]:
        """Tell upstream that nobody waits for the rest."""
        yield SendHttp(RequestProtocolError(self.stream_id, "given up", ErrorCode.CANCEL), self.context.server)
        self.renumber()

    # The answer

    @property
    def waiting(self) -> bool:
        return super().waiting or self.server_state in (self.state_hold, self.state_peek, self.state_between)

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> CommandGenerator[None]:
        whole = self.client_state == self.state_done and not self.flow.request.stream
        how = self.rules.holds(self.flow, event.response) if whole else "pass"
        if how == "pass" or (isinstance(how, Peek) and event.end_stream):
            yield from super().state_wait_for_response_headers(event)
            return
        self.head = event
        if isinstance(how, Peek):
            self.peek = how
            self.server_state = self.state_peek
            self.held_until = time.monotonic() + HOLD_STREAM
            yield from self.home.hold()
        else:
            self.server_state = self.state_hold

    def state_hold(self, event: HttpEvent) -> CommandGenerator[None]:
        """A failed answer comes in."""
        if isinstance(event, ResponseData):
            self.response_body_buf += event.data
            if len(self.response_body_buf) > HOLD_AT_MOST:
                yield from self.let_go()
        elif isinstance(event, ResponseEndOfMessage):  # pragma: no branch - what else there is are trailers
            response = self.head.response
            response.data.content = bytes(self.response_body_buf)
            yield from self.decide(response)

    def state_peek(self, event: HttpEvent) -> CommandGenerator[None]:
        """A stream begins."""
        if isinstance(event, ResponseEndOfMessage):
            yield from self.let_go()
            yield from self.server_state(event)
        elif isinstance(event, ResponseData):  # pragma: no branch - as above
            self.response_body_buf += event.data
            verdict = self.peek.feed(event.data)
            if verdict and verdict.error is None:
                yield from self.let_go()
            elif verdict and verdict.error is not None:
                status, content = error_response(verdict.error)
                response = self.head.response.copy()
                for name in ("content-length", "content-encoding", "transfer-encoding"):
                    response.headers.pop(name, None)
                response.status_code, response.data.content = status, content
                response.headers.update({"content-type": "application/json", "content-length": str(len(content))})
                yield from self.abandon()
                yield from self.decide(response)

    def release(self) -> CommandGenerator[None]:
        """Nothing has shown in time whether the stream is an error."""
        if self.holding:  # pragma: no branch - it may have had to wait for a hook
            yield from self.let_go()

    def let_go(self) -> CommandGenerator[None]:
        """Pass on what was held, as if it came now."""
        held = bytes(self.response_body_buf)
        self.response_body_buf.clear()
        self.server_state = self.state_wait_for_response_headers
        yield from super().state_wait_for_response_headers(self.head)
        if held:
            yield from self.server_state(ResponseData(self.stream_id, held))

    def decide(self, failed: http.Response) -> CommandGenerator[None]:
        self.response_body_buf.clear()
        match self.rules.again(self.flow, failed):
            case True:
                yield from self.resend()
            case False:
                yield from self.give(failed)
            case instead:
                yield from self.give(instead)

    def give(self, response: http.Response) -> CommandGenerator[None]:
        """A whole answer to the client, by way of every hook."""
        content = response.raw_content or b""
        response.data.content = None
        self.deadline = None
        self.server_state = self.state_wait_for_response_headers
        yield from super().state_wait_for_response_headers(ResponseHeaders(self.stream_id, response, not content))
        if content:
            yield from self.server_state(ResponseData(self.stream_id, content))
        yield from self.server_state(ResponseEndOfMessage(self.stream_id))

    # Failures

    def failure(self, error: ResponseProtocolError) -> Failure:
        if isinstance(error, TimedOut):
            return Failure(504, "upstream_timeout", f"The answer did not come in time: {error.message}.")
        if self.late and error.code is ErrorCode.CONNECT_FAILED:
            return Failure(504, "upstream_connect_timeout", f"Could not connect upstream in time: {self.why}.")
        return super().failure(error)

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and event.code in http_stream.FAILURES:
            if isinstance(event, TimedOut):
                if event.attempt != self.attempt:
                    return  # pragma: no cover - it had to wait for a hook, and is of yesterday
                yield from self.abandon()
            waiting = self.waiting
            streaming = self.server_state == self.state_stream_response_body
            if self.client_state == self.state_done and (waiting or streaming) and not self.left:
                decision = self.rules.again(self.flow, self.failure(event))
                if waiting and decision is True:
                    yield from self.resend()
                    return
                if waiting and decision:
                    self.response_body_buf.clear()
                    yield from self.give(cast("http.Response", decision))
                    return
        yield from super().handle_protocol_error(event)


class Connection(http_stream.Connection):
    @property
    def numbers(self) -> Iterator[int]:
        """Of attempts; no client's stream has them."""
        numbers: Iterator[int] = self.__dict__.setdefault("_numbers", itertools.count(-1, -1))
        return numbers

    def stream(self, stream_id: int) -> Stream:
        return Stream(self.context.fork(), stream_id, self.rules, self)

    timer: commands.RequestWakeup | None = None
    """The one look at the clock that is to come: a timer for each request would cost as much as its translation."""

    def watch(self, timeouts: Timeouts) -> CommandGenerator[None]:
        if self.timer is None:
            self.timer = commands.RequestWakeup(min(LOOK, min(timeouts) / 2))
            yield self.timer

    hold_timer: commands.RequestWakeup | None = None
    """The one for the heads that are held back."""

    def hold(self, seconds: float | None = None) -> CommandGenerator[None]:
        if self.hold_timer is None:
            self.hold_timer = commands.RequestWakeup(HOLD_STREAM if seconds is None else seconds)
            yield self.hold_timer

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if not isinstance(event, events.Wakeup) or event.command not in (self.timer, self.hold_timer):
            return (yield from super()._handle_event(event))
        self.command_sources.pop(event.command, None)
        streams = cast("list[Stream]", [*dict.fromkeys(self.streams.values())])  # one that was sent again stands there twice
        for stream in streams:
            yield from self.event_to_child(stream, event)
        if event.command is self.hold_timer:
            self.hold_timer = None
            if held := [stream.held_until for stream in streams if stream.holding]:
                yield from self.hold(max(min(held) - time.monotonic(), SOON))
            return None
        self.timer = None
        if waiting := [stream.timeouts for stream in streams if stream.watched and stream.timeouts]:
            yield from self.watch(min(waiting))
        return None


KNOWN: dict[type, dict[str, str | None]] = {
    layer.Layer: {"handle_event": "self event"},
    HttpLayer: {"event_to_child": "self child event", "get_connection": "self event reuse"},
    GetHttpConnectionCompleted: {"__init__": "self command reply"},
    HttpStream: {
        "make_server_connection": "self",
        "handle_protocol_error": "self event",
        "state_wait_for_response_headers": "self event",
        "state_done": None,
    },
}


def compatible() -> str | None:
    """What is not as it is known; None when everything is."""
    return http_stream.compatible(KNOWN)
