"""Making a usage record from what a meter has measured. All texts in it are on one line, bounded, and without the request's keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from azure_openai_proxy import errors
from azure_openai_proxy.api import endpoints, session
from azure_openai_proxy.api.operation import Details

from . import model_selection
from .call_kinds import shown, shown_ids
from .record import AttemptRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.api.backend import Backend

    from .meter import Meter
    from .record import CallKind, CallRecord, Tokens
    from .usage import Reported

__all__ = ["Attempt", "Outcome", "Side", "State", "kind_of", "make", "record_of_kind"]

LONGEST_PATH = 1024
"""Characters of a path."""
_NO_DETAILS = Details()
_NO_BACKEND: tuple[str | None, str | None, int | None, str | None] = (None, None, None, None)

type State = Literal["known", "unknown", "none"]
type Side = Literal["client", "upstream"]


class Attempt:
    """An attempt that may still run."""

    __slots__ = ("backend", "deployment", "ended", "outcome", "reason", "repairs", "started")

    def __init__(self, backend: Backend, deployment: str, started: float, repairs: Sequence[str], reason: str) -> None:
        self.backend, self.deployment, self.started, self.repairs, self.reason = backend, deployment, started, repairs, reason
        self.ended: float | None = None
        self.outcome = "ok"


class Outcome(NamedTuple):
    """How a call, or one response of a WebSocket, has ended."""

    status: int | None
    error_code: str | None
    incomplete: Side | None
    reported: Reported
    tokens: Tokens | None
    state: State
    duration: float  # seconds
    first: float | None  # seconds to the first byte of the response body
    once: str | None = None  # id of a usage that several requests can show
    in_websocket: bool = False  # one response of a WebSocket


def make(meter: Meter, outcome: Outcome, *, model: str | None = None, deployment: str | None = None) -> CallRecord:
    """Make the record of a call, or of one response of a WebSocket. `model` and `deployment`: others than those of the call."""
    meter.start_trace()
    meter.note_limits()
    return record_of_kind(meter, kind_of(meter, outcome, model=model, deployment=deployment), outcome)


def kind_of(meter: Meter, outcome: Outcome, *, model: str | None = None, deployment: str | None = None) -> CallKind:
    """Return the kind of a call."""
    status, error_code, incomplete, reported, _, state, _, _, once, in_websocket = outcome
    call, row = meter.call, meter.row
    if call is None:
        operation, asked, details, stream, websocket = meter.path, None, _NO_DETAILS, False, False
    else:
        operation, asked, details, stream, websocket = call.path, call.model, call.details or _NO_DETAILS, call.stream, call.method == "WS"
    if in_websocket or websocket:
        by_model = stream = in_websocket
    else:
        by_model, stream = row.by_model, stream or (call is not None and meter.events is not None)
    reason, backend = "", _NO_BACKEND
    repairs: tuple[str, ...] = ()
    if meter.attempts:
        last = meter.attempts[-1]
        sent, deployment, reason = last.backend, deployment or last.deployment, last.reason
        repairs = () if in_websocket else tuple(last.repairs)
        backend = sent.name, sent.base.host, sent.base.port, sent.zone or None
    label = endpoints.label(row, operation)
    return meter.meters.kinds.find(
        meter.secrets,
        (  # in the order of `COMMON`
            meter.method,
            meter.user_agent,
            model or asked or meter.frame_model,
            deployment or None,
            meter.served,
            reported.model,
            reported.service_tier,
            reported.system_fingerprint,
            details.service_tier,
            details.reasoning_effort,
            error_code,
            meter.client,
            label,
            endpoints.gen_ai_operation(row, operation),
            by_model,
            stream,
            *backend,
            meter.spillover,
            repairs,
            reason,
            status,
            incomplete,
            reported.finish_reasons,
            state,
            "batch" if once and label == "batches" else None,  # `price_tier`
            in_websocket,
        ),
    )


def record_of_kind(meter: Meter, kind: CallKind, outcome: Outcome) -> CallRecord:
    """Make the record of a call of this kind, without its cost."""
    status, _, _, reported, tokens, _, duration, first, once, in_websocket = outcome
    if meter.trace.parent_span_id:
        meter.leave_trace_of_key()
    secrets, path, call, attempts = meter.secrets, meter.path, meter.call, meter.attempts
    record = kind.record()
    record.time, record.client_ip = meter.time, meter.client_ip
    request_id, record.response_id = shown_ids(meter.request_id, reported.id, secrets)
    record.request_id = request_id or errors.request_id()
    record.trace_id, record.span_id, record.parent_span_id, record.traced, _, _ = meter.trace
    record.path = path
    if path != f"/v1{meter.row.path}":  # else it is the table's
        record.path = shown(path, secrets, LONGEST_PATH)
    if attempts and not in_websocket:
        record.attempts = tuple([_attempt_record(meter, one, attempts[-1], record.deployment, secrets) for one in attempts])
    details = (call.details if call else None) or _NO_DETAILS
    if meter.session_header or details != _NO_DETAILS:
        previous = details.previous_response_id
        session_id = session.of_record(meter.session_header, details.prompt_cache_key, previous, meter.meters.chains.get)
        record.session = session_id and shown(session_id, secrets)
        record.previous_response_id = previous and shown(previous, secrets)
    record.request_bytes = meter.request_bytes
    if status is not None:
        record.response_bytes = meter.response_bytes
    record.latency = reported.latency
    if selection := reported.model_selection:
        record.model_selection_details = model_selection.shown(selection, lambda text: shown(text, secrets))
    if tokens:
        record.tokens, record.once = tokens, once
    record.duration, record.first_byte, record.overhead = duration, first, meter.overhead
    if meter.chunks > 1 and meter.first_at and meter.last_at and not (call and call.method == "WS"):
        record.time_per_chunk = (meter.last_at - meter.first_at) / (meter.chunks - 1)
    return record


def _attempt_record(meter: Meter, one: Attempt, last: Attempt, deployment: str | None, secrets: tuple[str, ...]) -> AttemptRecord:
    """The record of an attempt; `deployment` is the shown one of the last attempt."""
    if one.deployment != last.deployment:
        deployment = shown(one.deployment, secrets)
    ended = one.started if one.ended is None else one.ended
    wall, base = meter.time - meter.arrived, one.backend.base
    started, ended = wall + one.started, wall + max(ended, one.started)
    return AttemptRecord(one.backend.name, deployment or "", one.outcome, started, ended, base.host, base.port)
