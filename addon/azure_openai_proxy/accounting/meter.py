"""The measurement of one request, from its arrival to its usage record.

The gateway creates a `Meter` for each request while anything receives records, and reports each event to it. At the end the meter makes
one `CallRecord`, which the sinks get after the response was handed to the client. A failure of a meter never fails or delays its request.

A WebSocket has a record at its end, without tokens, and one for each of its responses.

Overhead is the time that the proxy adds to a request: from the last byte of the request to the start of the first attempt; from the end of
a failed attempt to the start of the next one; the translation of each chunk of a stream; and from the last byte of Azure's response to the
end. The time in which the proxy waits for Azure or for the client does not count, nor does the time for which the start of a stream is
held back until it is clear that it is no error.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Protocol

from azure_openai_proxy import errors
from azure_openai_proxy.api import endpoints, redaction, session
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.client_leg.headers import by_name

from . import message_content, record_making, trace_context, usage
from .call_kinds import LONGEST, shown_again
from .message_content import Content, KeptEvents
from .rate_limits import REMAINING
from .record import NO_TOKENS, CallRecord
from .record_making import Attempt, Outcome
from .websocket_meter import WebSocketMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mitmproxy import http

    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.api.endpoints import Endpoint
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.errors import Failure

    from .meters import Meters
    from .rate_limits import Limits
    from .record import CallKind, OwnValues, Tokens
    from .record_making import Side, State
    from .sink import Tracing
    from .trace_context import TraceContext
    from .usage import Kept, Reported

    # When it ended, its status, the size of its body unless that was streamed, its keys, its usage
    type Ended = tuple[float, int, int | None, tuple[str, ...], Kept | None]

__all__ = ["Holder", "Keys", "Meter"]

logger = logging.getLogger(__name__)

ERROR_SIZE = 64 << 10
"""Bytes of an error's body that are parsed."""
ANSWER_WITHIN = 0.5
"""Seconds until the HTTP layer has sent the error response or the error event of a request that failed."""

_FINAL = frozenset({"completed", "failed", "incomplete", "cancelled", "canceled", "expired"})
"""Statuses of a response or a batch that does not change any more."""
_BY_CLIENT = ("client disconnected", "connection killed", "http/2 connection closed", "peer closed", "stream closed by", "stream reset by")
"""Beginnings of mitmproxy's messages for a request that its client has cancelled."""


_SESSIONS = frozenset(name.encode() for name in (session.AFFINITY, *session.HARNESSES))
_SERVED, _SPILLOVER, _SPILLED = b"x-ms-deployment-name", b"\nx-ms-spillover-", b"x-ms-spillover-from-"
_REMAINING_TOKENS, _REMAINING_REQUESTS = (name.encode() for name in REMAINING)


class Keys(Protocol):
    """The keys of a request, of which more may become known until it ends."""

    @property
    def all(self) -> tuple[str, ...]:
        """All that are known."""


class Holder(Protocol):
    """Holds a reservation for the request, which its usage settles."""

    def event(self, data: bytes, reported: Reported, *, ended: bool, chat: bool) -> None:
        """The data of an event of a stream."""

    def recorded(self, record: CallRecord, *, unknown: bool, body: bytes | None) -> None:
        """The record of the request. `unknown`: a model may have answered, and the usage is not known; `body`: what it answered."""

    def response_recorded(self, record: CallRecord) -> None:
        """The record of a response of a WebSocket."""

    def transcription_recorded(self, record: CallRecord, text: int) -> None:
        """The record of a transcription in a realtime session, which is no response. `text`: its bytes."""

    @property
    def waiting_responses(self) -> int:
        """Responses of a WebSocket that were requested, and not created yet."""


class Meter:
    """Measures one request. The times are of `Meters.clock`, in seconds."""

    def __init__(self, meters: Meters, request: http.Request, client_ip: str, keys: Keys | None = None) -> None:
        now, wall, data = meters.clock(), meters.wall(), request.data
        self.meters = meters
        self.time = time = data.timestamp_start or wall
        self.arrived = now - (wall - time if wall > time else 0.0)
        self.target = data.method, data.path
        """Method and path as the client wrote them."""
        self.client_ip, self.keys = client_ip, keys
        head = by_name(data.headers)
        self.raw_user_agent = head.get(b"user-agent")
        if not _SESSIONS.isdisjoint(head):
            self.session_header = session.in_header(
                {name.decode(): head[name].decode("utf-8", "surrogateescape") for name in _SESSIONS & head.keys()}
            )
        self.trace: TraceContext = trace_context.NONE
        """The position in a trace. One that the request starts is made when it is needed."""
        if meters.tracing:
            self.tracing = meters.tracing
            self.trace = self.tracing.begin_trace(data.headers)
        elif trace_context.PARENT in head:
            self.trace = trace_context.begin(data.headers.fields)
        # Members that every request or every stream sets. Setting one that the class has as well takes three times as long.
        self.attempts: list[Attempt] = []
        self.call: Call | None = None
        self.holder: Holder | None = None
        self.request_bytes: int | None = None
        self.overhead: float | None = 0.0
        self.idle_from: float | None = None  # since when the request waits for the proxy
        self.raw_request_id: bytes | None = None  # of the request, in the header of the response
        self.limits: Limits | None = None  # that Azure's last response has named
        self.ended: Ended | None = None
        """How the request has ended, if its record is made with those of others."""
        self.events: usage.Events | None = None
        self.response_bytes = 0
        self.chunks = 0
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._kept: KeptEvents | None = None  # of a stream whose messages are exported
        self._ended_well = False  # an event has said that the response is complete
        self._status: int | None = None
        self._over = False  # the request has ended; there is no other record of it

    # Defaults in the class: few requests need these members.

    client = ""
    """Configured name of the client key."""
    record: CallRecord | None = None
    """The record, once the request has ended."""
    tracing: Tracing | None = None
    replayed = False
    """Whether a recording answers."""
    session_header: str | None = None  # that a header names
    served: str | None = None
    spillover: bool | None = None
    frame_model: str | None = None  # the model that the client named last on a WebSocket
    _failure: Failure | None = None  # of the upstream, after which there is no other attempt
    _uploads = False  # the body of the request is streamed
    _socket: WebSocketMeter | None = None

    # The request

    def request_read(self, size: int, at: float | None) -> None:
        """The body of the request is complete. `at`: Unix time."""
        self.request_bytes = size
        self.idle_from = self.meters.clock() if at is None else self.arrived + max(0.0, at - self.time)

    def upload(self, *, rewrite: bool | Callable[[bytes], Iterable[bytes] | bytes]) -> Callable[[bytes], Iterable[bytes] | bytes]:
        """Wrap the function that rewrites a streamed request body. The proxy's part of such a request's time is unknown."""
        self.request_bytes, self.overhead, self._uploads = 0, None, True

        def counted(data: bytes) -> Iterable[bytes] | bytes:
            self.request_bytes = (self.request_bytes or 0) + len(data)
            return rewrite(data) if callable(rewrite) else [data] if data else []

        return counted

    def attempt(self, backend: Backend, deployment: str | None, repairs: Sequence[str] = (), reason: str = "") -> None:
        """Another attempt is about to start. `reason`: why this backend was chosen."""
        self.attempts.append(Attempt(backend, deployment or "", self.meters.clock(), repairs, reason))

    def propagate(self, headers: http.Headers) -> None:
        """Set the headers of Trace Context in the request of the attempt. Called if traces are exported, else the client's stay."""
        trace_context.set_headers(headers, self.complete_trace(), len(self.attempts))

    def complete_trace(self) -> TraceContext:
        """The position in a trace as records have it. One that the request starts is made now.

        The request also starts one if the client's ids are parts of its key: Azure's keys may be hexadecimal, and ids are in every sink.
        """
        trace = self.trace
        if trace is trace_context.NONE:
            self.trace = trace_context.new()
        elif trace.parent_span_id:
            keys = [secret.lower() for secret in self.secrets]
            if any(trace.trace_id in key or trace.parent_span_id in key for key in keys):
                self.trace = trace_context.new()._replace(sampled=trace.sampled)
        return self.trace

    def sending(self) -> None:
        """The attempt starts: the connection is taken or opened, and the request is sent."""
        now, idle = self.meters.clock(), self.idle_from
        if attempts := self.attempts:
            attempts[-1].started = now
        if idle is not None:  # as `_spent`, for every request
            self.idle_from = None
            if self.overhead is not None and now > idle:
                self.overhead += now - idle

    def frame_names(self, model: str, deployment: str) -> None:
        """A message of a WebSocket names a model. A name that is too long for a record is ignored."""
        if len(model) > LONGEST:
            return
        self.frame_model = model
        if self.attempts and not self.attempts[-1].deployment:
            self.attempts[-1].deployment = deployment

    def attempt_failed(self, what: Failure | http.Response) -> None:
        self.idle_from = self.meters.clock()
        if isinstance(what, errors.Failure):
            self.end_attempt(what.code)
        else:
            self.limits = _limits(what.status_code, by_name(what.headers))
            self.note_limits()
            self.end_attempt(str(what.status_code))

    def note_limits(self) -> None:
        """Note what the last response of Azure has said about its rate limits, if that is not done yet."""
        limits, self.limits = self.limits, None
        if limits is not None and self.attempts and (last := self.attempts[-1]).deployment:
            deployment = shown_again(last.deployment, self.secrets)  # it may be any text of the client
            self.meters.note_limits(last.backend.name, deployment, limits)

    def broke_off(self, failure: Failure) -> None:
        """The response failed after the client had received a part of it."""
        self._failure = failure
        self.attempt_failed(failure)

    def end_attempt(self, outcome: str, now: float | None = None) -> None:
        if self.attempts and self.attempts[-1].ended is None:
            self.attempts[-1].ended, self.attempts[-1].outcome = self.meters.clock() if now is None else now, outcome

    def _spent(self, now: float) -> None:
        """The proxy stops working on the request, and waits for the upstream."""
        idle, self.idle_from = self.idle_from, None
        if idle is not None and self.overhead is not None and now > idle:
            self.overhead += now - idle

    @property
    def exports_messages(self) -> bool:
        return self.tracing is not None and self.tracing.wants_content and self.label in message_content.OPERATIONS

    def keep_messages(self, request: bytes, response: bytes | None) -> None:
        """Keep the bodies, if the messages of the call are exported. Called before `end` if traces are exported."""
        if self.tracing and self.exports_messages:
            asked, answered = (body if body and len(body) <= message_content.LARGEST else b"" for body in (request, response))
            events = self._kept.events if self._kept else ()
            self.tracing.keep_content(self.trace.span_id, Content(self.label, asked, answered, events, self.secrets))

    # The response

    def head(self, response: http.Response) -> None:
        """The head of the response, as Azure sent it."""
        data = response.data
        self.idle_from = self.meters.clock()
        self._status, head = data.status_code, by_name(data.headers)
        self.limits = _limits(data.status_code, head)
        self.raw_request_id = head.get(b"x-request-id")
        if _SERVED in head or _SPILLOVER in b"\n".join((b"", *head)):
            self.served = _text(head.get(_SERVED))
            self.spillover = any(name.startswith(_SPILLED) for name in head)
        elif self.spillover is not None:  # that was an earlier attempt
            self.served = self.spillover = None

    def stream_head(self, response: http.Response, *, events: bool) -> None:
        """The head of a stream or a WebSocket, as the client gets it. `events`: `event` or `frame` gets the content."""
        self._status = response.status_code
        self._read_id(response)
        self.note_limits()
        self._spent(self.meters.clock())
        if events and self.exports_messages:
            self._kept = KeptEvents()
        if self._status == 101:
            self._socket = WebSocketMeter(self, self.call if events else None)
        elif events and self.call:
            self.events = usage.Events(self.call)

    @property
    def streams(self) -> bool:
        """Whether the response is a stream of events or a WebSocket."""
        return self.events is not None or (self._socket is not None and self._socket.is_operation)

    def event(self, data: bytes) -> None:
        """The data of an event of the stream."""
        if self._kept is not None:
            self._kept.add(data)
        try:
            if self.events and self.events.event(data):
                self._ended_well = True
        except Exception:
            logger.exception("The usage in an event cannot be read")
            self.events = None
        if self.holder is not None and self.events:
            self.holder.event(data, self.events.reported, ended=self._ended_well, chat=self.row.response_kind == "chat")

    def chunk(self, began: float, pieces: Sequence[bytes], *, last: bool) -> None:
        """Bytes of a stream for the client. `began`: when their translation began; `last`: Azure's response is complete."""
        now = self.meters.clock()
        if self.overhead is not None:
            self.overhead += now - began
        if last:
            self.idle_from = now
        for piece in pieces:
            size = len(piece)
            self.response_bytes += size
            # The first newline is nearly always that of the end of an event, and searching one character takes a fifth of the time.
            self.chunks += 1 if piece.find(b"\n") == size - 2 else piece.count(b"\n\n") or 1
        if pieces:
            self.last_at = now
            if self.first_at is None:
                self.first_at = now

    # WebSockets

    def frame(self, content: bytes, *, from_client: bool) -> None:
        """A text or binary message of a WebSocket, as its sender wrote it."""
        now = self.meters.clock()
        if from_client:
            self.request_bytes = (self.request_bytes or 0) + len(content)
        else:
            self.response_bytes += len(content)
            self.first_at = self.first_at or now
        if self._socket:
            self._socket.frame(content, now, from_client=from_client)

    @property
    def with_responses(self) -> CallRecord | None:
        """The record of a WebSocket with the tokens and the cost of all its responses, which have records of their own."""
        return self._socket.with_responses(self.record) if self._socket and self.record else self.record

    def socket_ended(self, *, by_client: bool, normal: bool) -> CallRecord | None:
        """The WebSocket was closed. `normal`: with a close frame."""
        try:
            return self._socket.ended(by_client=by_client, normal=normal) if self._socket else None
        except Exception:
            logger.exception("A WebSocket is not accounted for")
            self._over = True
            return None

    @property
    def runs(self) -> bool:
        """Whether the request has not ended."""
        return not self._over

    @property
    def first_byte(self) -> float | None:
        """Seconds from the arrival of the request to the first byte of the response body."""
        return None if self.first_at is None else self.first_at - self.arrived

    # The end

    def end(
        self, response: http.Response | None, body: bytes | None, error: str | None = None, *, parsed: Mapping[str, Any] | None = None
    ) -> CallRecord | None:
        """The response is complete, or the request failed with `error`. `body`: Azure's body, if it was buffered; `parsed`: the object in
        it, if that is known.

        Returns:
            The record; None if the request goes on as a WebSocket, if it has a record already, or if accounting failed.
        """
        if self._over or (response is not None and response.status_code == 101):
            return None
        try:
            now, status = self.meters.clock(), response.status_code if response else None
            self._stop(now, len(response.raw_content or b"") if response and not response.stream else None)
            if response:
                self._read_id(response)
            record = self._record(
                now,
                status,
                self._reported(self._kept_usage(status, body, parsed)),
                error,
                error_code=self._code(response) if status is not None and status >= 400 else None,
                streamed=response is None or bool(response.stream),
                body=body,
            )
            follows = self._failure is not None or (status is None and record.incomplete != "client")  # an error event or response
            return self.finish(record, ANSWER_WITHIN if follows else 0.0)
        except Exception:
            logger.exception("A request is not accounted for")
            self._over = True
            return None

    def end_soon(self, response: http.Response, body: bytes | None, *, parsed: Mapping[str, Any] | None = None) -> None:
        """The response is complete. As `end`, but the record of a successful response is made with those of other requests.

        One after the other, the same code takes half of the time, because it is in the processor's caches. For the same reason, little
        is kept until then.
        """
        data, call = response.data, self.call
        status = data.status_code
        if self._over or self.holder is not None or self._failure or status >= 400 or status == 101:
            self.end(response, body, parsed=parsed)
            return
        try:
            kept = None if body is None or call is None or self.replayed else usage.kept(body, parsed, call)
            size = None if response.stream else len(data.content or b"")
            self.ended = self.meters.clock(), status, size, self.keys.all if self.keys else (), kept
            self.keys = None
            if not self.raw_request_id:
                self._read_id(response)
            self._over = True
            self.meters.complete_soon(self)
        except Exception:
            logger.exception("A request is not accounted for")
            self._over = True

    def complete(self) -> tuple[CallKind, OwnValues]:
        """Return the record after `end_soon`, as its kind and the members of its own."""
        assert self.ended
        now, status, size, _, kept = self.ended
        self._stop(now, size)
        self.note_limits()
        outcome = self._outcome_of(now, status, self._reported(kept), None, error_code=None, streamed=size is None)
        return record_making.kind_and_values(self, outcome)

    def _read_id(self, response: http.Response) -> None:
        """Read the id of the response as the client gets it, if Azure's response had none, which is passed on."""
        if not self.raw_request_id:
            head = by_name(response.headers)
            self.raw_request_id = head.get(b"x-request-id") or head.get(b"apim-request-id")

    def _stop(self, now: float, size: int | None) -> None:
        """The response is complete. `size`: of its body for the client, if it was not streamed."""
        self._spent(now)
        if size is not None:
            self.response_bytes = size
            self.first_at = now if size else None

    def _outcome_of(
        self, now: float, status: int | None, reported: Reported, error: str | None, *, error_code: str | None, streamed: bool
    ) -> Outcome:
        incomplete = self._incomplete(error, reported, streamed=streamed)
        if self.attempts and (last := self.attempts[-1]).ended is None:
            last.ended, last.outcome = now, "ok" if incomplete != "client" else "client_left"
        state, tokens, once = self._usage(status, reported)
        if self._failure:
            error_code = self._failure.code
        elif status is None or status < 400:
            error_code = reported.error_code
        first = None if self.first_at is None else self.first_at - self.arrived
        return Outcome(status, error_code, incomplete, reported, tokens, state, now - self.arrived, first, once)

    def _record(
        self,
        now: float,
        status: int | None,
        reported: Reported,
        error: str | None,
        *,
        error_code: str | None,
        streamed: bool,
        body: bytes | None = None,
    ) -> CallRecord:
        """Make the record at once."""
        outcome = self._outcome_of(now, status, reported, error, error_code=error_code, streamed=streamed)
        self.note_limits()
        record = record_making.make(self, outcome)
        if self.holder is not None:
            self.holder.recorded(record, unknown=self._used_unknown(record), body=None if self.events else body)
        return record

    def finish(self, record: CallRecord, delay: float = 0.0) -> CallRecord:
        self.record, self._over = record, True
        self.meters.later(self, delay)
        return record

    def error_response(self, failure: Failure, response: http.Response) -> None:
        """The HTTP layer responds to a request that has failed."""
        if record := self.record:
            record.request_id = response.headers.get("x-request-id", record.request_id)
            record.change(status=failure.status, error_code=failure.code, incomplete=None, usage_state="none")
            record.response_bytes, record.first_byte = len(response.raw_content or b""), record.duration
            self.meters.later(self)

    def last_event(self, size: int) -> None:
        """The event that ends a truncated stream was sent."""
        if self.record:
            self.record.response_bytes = (self.record.response_bytes or 0) + size
            self.meters.later(self)

    def cut_off(self) -> None:
        """The process ends."""
        try:
            if self._status == 101:
                self.socket_ended(by_client=False, normal=True)
            else:
                self._failure = errors.Failure(503, "proxy_stopped", "The proxy was stopped.")
                now, reported = self.meters.clock(), self._reported(None)
                self._stop(now, None)
                self.finish(self._record(now, self._status, reported, None, error_code=None, streamed=True))
        except Exception:
            logger.exception("A request is not accounted for")

    def _kept_usage(self, status: int | None, body: bytes | None, parsed: Mapping[str, Any] | None) -> Kept | None:
        if body is None or status is None or status >= 400 or not self.call or self.replayed:
            return None
        return usage.kept(body, parsed, self.call)

    def _reported(self, kept: Kept | None) -> Reported:
        if self.events:
            return self.events.reported
        return usage.read(kept) if kept else usage.NOTHING

    def _incomplete(self, error: str | None, reported: Reported, *, streamed: bool) -> Side | None:
        if self._failure:
            return "upstream"
        failed = reported.status == "failed" or (streamed and reported.error_code is not None)
        if failed and self.row.usage and not reported.background:
            return "upstream"
        if error is None or self._ended_well:
            return None
        return "client" if error.lower().startswith(_BY_CLIENT) else "upstream"

    def _usage(self, status: int | None, reported: Reported) -> tuple[State, Tokens | None, str | None]:
        """Whether the usage is known, its tokens, and the id of a usage that several requests can show."""
        if self.replayed or not (self.attempts or self._uploads) or (status is not None and status >= 400):
            return "none", None, None
        row, tokens = self.row, reported.tokens
        if reported.background or (reported.status and self.label == "batches"):
            id = reported.id
            if not tokens or not id or (reported.status or "").lower() not in _FINAL:
                return "none", None, None
            new = self.meters.counted.add(id, None)
            return ("known", tokens, id) if new else ("none", None, None)
        if tokens and row.gen_ai != "fetch_response":
            return "known" if usage.is_whole(tokens, row.gen_ai) else "unknown", tokens, None
        in_background = self.call and self.call.details and self.call.details.background
        return "unknown" if row.usage and not reported.metered and not in_background else "none", None, None

    def _used_unknown(self, record: CallRecord) -> bool:
        """Whether a model may have answered, and the usage is not known."""
        answers = (self.attempts or self._uploads) and not self.replayed and self.row.by_model and self.row.gen_ai != "fetch_response"
        if not answers or record.usage_state == "known":
            return False
        return record.status < 400 if record.status is not None else record.incomplete == "client"

    def sketch(self, reported: Reported) -> CallRecord:
        """A record of what a stream has reported, which has enough to price it."""
        asked, sent = self.call.model if self.call else None, self.attempts[-1].deployment if self.attempts else None
        texts = asked, sent, self.served, reported.model, reported.service_tier
        # A name without a price is logged, and a client may have mistaken its key for one.
        model, deployment, served, response_model, tier = (text and shown_again(text, self.secrets) for text in texts)
        return CallRecord(
            time=self.time,
            request_id="",
            trace_id="",
            model=model,
            deployment=deployment or None,
            served_deployment=served,
            response_model=response_model,
            service_tier=tier,
            zone=self.zone,
            tokens=reported.tokens or NO_TOKENS,
        )

    @staticmethod
    def _code(response: http.Response | None) -> str | None:
        """The code in the body of an error response."""
        content = (response.raw_content if response else None) or b""
        error = _object(content).get("error") if len(content) <= ERROR_SIZE else None
        code = error.get("code") if isinstance(error, dict) else None
        return str(code) if isinstance(code, str | int) and code != "" else None

    # The record

    @property
    def secrets(self) -> tuple[str, ...]:
        """The keys that no record may contain."""
        if self.ended:
            return self.ended[3]
        return self.keys.all if self.keys else ()

    @property
    def user_agent(self) -> str | None:
        return _text(self.raw_user_agent)

    @property
    def request_id(self) -> str | None:
        return _text(self.raw_request_id)

    @property
    def zone(self) -> str | None:
        """The data zone of the last backend."""
        return (self.attempts[-1].backend.zone or None) if self.attempts else None

    @property
    def method(self) -> str:
        return self.target[0].decode("utf-8", "surrogateescape").upper()

    @property
    def path(self) -> str:
        """The client's, without query, and without a key that is percent-encoded in it. The record masks the others."""
        path = self.target[1].partition(b"?")[0].decode("utf-8", "surrogateescape")
        return redaction.mask_path(path, self.secrets) if "%" in path else path

    @property
    def row(self) -> Endpoint:
        return self.call.endpoint if self.call else operations.row(self.method, self.path)

    @property
    def label(self) -> str:
        return endpoints.label(self.row, self.call.path if self.call else self.path)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def _limits(status: int, head: Mapping[bytes, bytes]) -> Limits | None:
    """The headers of `REMAINING`. With a 404 they do not count: made-up deployments must not displace those that exist."""
    return None if status == 404 else (head.get(_REMAINING_TOKENS, b""), head.get(_REMAINING_REQUESTS, b""))


def _object(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
