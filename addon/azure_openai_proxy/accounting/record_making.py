"""Making a usage record from what a meter has measured. All texts in it are on one line, bounded, and without the request's keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from azure_openai_proxy import errors
from azure_openai_proxy.api import endpoints, session
from azure_openai_proxy.api.operation import Details

from . import model_selection
from .call_kinds import shown, shown_ids, shown_latency
from .record import NO_TOKENS, AttemptRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.api.backend import Backend

    from .meter import Meter
    from .record import CallKind, CallRecord, OwnValues, Tokens
    from .usage import Reported

__all__ = ["Attempt", "Outcome", "Side", "State", "kind_and_values", "make"]

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


_NO_ATTEMPT = Attempt(cast("Backend", None), "", 0.0, (), "")


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
    kind, own = kind_and_values(meter, outcome, model, deployment)
    return kind.record(own)


def kind_and_values(meter: Meter, outcome: Outcome, model: str | None = None, deployment: str | None = None) -> tuple[CallKind, OwnValues]:
    """Return what a record consists of: the kind of the call, and the members of its own."""
    status, error_code, incomplete, reported, tokens, state, duration, first, once, in_websocket = outcome
    meters, call, attempts = meter.meters, meter.call, meter.attempts
    trace, secrets = meter.complete_trace(), meter.secrets
    row, details = meter.row, (call and call.details) or _NO_DETAILS
    last = attempts[-1] if attempts else _NO_ATTEMPT
    # The values of `COMMON` follow from these, and take longer to compute.
    key = (
        secrets,
        meter.target[0],
        call and call.method,
        endpoints.label(row, call.path if call else meter.path) if row is endpoints.DEFAULT else row.path,
        model or (call and call.model) or meter.frame_model,
        deployment or last.deployment,
        id(last.backend),
        last.reason,
        tuple(last.repairs),
        details.service_tier,
        details.reasoning_effort,
        call is not None and (call.stream or meter.events is not None),
        meter.raw_user_agent,
        meter.client,
        meter.served,
        meter.spillover,
        reported.model,
        reported.service_tier,
        reported.system_fingerprint,
        reported.finish_reasons,
        status,
        error_code,
        incomplete,
        state,
        in_websocket,
    )
    kind = meters.kinds.find(key) or meters.kinds.add(key, _common(meter, outcome, model, deployment), last.backend)
    sample = kind.sample

    path, session_id, previous, selection = meter.path, None, None, reported.model_selection
    if path != f"/v1{row.path}":  # else it is the table's
        path = shown(path, secrets, LONGEST_PATH)
    if meter.session_header or details != _NO_DETAILS:
        previous = details.previous_response_id
        session_id = session.of_record(meter.session_header, details.prompt_cache_key, previous, meters.chains.get)
        session_id, previous = (text and shown(text, secrets) for text in (session_id, previous))
    request_id, response_id = shown_ids(meter.request_id, reported.id, secrets)
    if response_id and sample.operation == "responses" and sample.method == "POST":
        meters.chains.add(response_id, session_id or response_id)  # a later response may continue it
    per_chunk = None
    if meter.chunks > 1 and meter.first_at and meter.last_at and not (call and call.method == "WS"):
        per_chunk = (meter.last_at - meter.first_at) / (meter.chunks - 1)
    own = (  # in the order of `OWN`
        tokens or NO_TOKENS,
        meter.time,
        request_id or errors.request_id(),
        trace.trace_id,
        trace.span_id,
        trace.parent_span_id,
        trace.sampled,
        meter.client_ip,
        session_id,
        path,
        previous,
        () if in_websocket else tuple([_attempt_record(meter, one, last, sample.deployment, secrets) for one in attempts]),
        response_id,
        meter.request_bytes,
        None if status is None else meter.response_bytes,
        shown_latency(reported.latency, secrets),
        selection and model_selection.shown(selection, lambda text: shown(text, secrets)),
        meters.price(sample, tokens) if tokens and state == "known" else None,
        None,  # the estimate of a budget
        once if tokens else None,
        duration,
        first,
        per_chunk,
        meter.overhead,
    )
    return kind, own


def _common(meter: Meter, outcome: Outcome, model: str | None, deployment: str | None) -> tuple[object, ...]:
    """The values of `COMMON` in its order, with the texts as they were found."""
    call, row, reported, attempts = meter.call, meter.row, outcome.reported, meter.attempts
    operation, details = call.path if call else meter.path, (call and call.details) or _NO_DETAILS
    last = attempts[-1] if attempts else _NO_ATTEMPT
    if outcome.in_websocket or (call and call.method == "WS"):
        by_model = stream = outcome.in_websocket
    else:
        by_model, stream = row.by_model, call is not None and (call.stream or meter.events is not None)
    label, sent = endpoints.label(row, operation), last.backend if attempts else None
    return (
        meter.method,
        meter.user_agent,
        model or (call and call.model) or meter.frame_model,
        deployment or last.deployment or None,
        meter.served,
        reported.model,
        reported.service_tier,
        reported.system_fingerprint,
        details.service_tier,
        details.reasoning_effort,
        outcome.error_code,
        meter.client,
        label,
        endpoints.gen_ai_operation(row, operation),
        by_model,
        stream,
        *((sent.name, sent.base.host, sent.base.port, sent.zone or None) if sent else _NO_BACKEND),
        meter.spillover,
        () if outcome.in_websocket else tuple(last.repairs),
        last.reason,
        outcome.status,
        outcome.incomplete,
        tuple([shown(reason, meter.secrets) for reason in reported.finish_reasons]),
        outcome.state,
        "batch" if outcome.once and label == "batches" else None,  # `price_tier`
        outcome.in_websocket,
    )


def _attempt_record(meter: Meter, one: Attempt, last: Attempt, deployment: str | None, secrets: tuple[str, ...]) -> AttemptRecord:
    """The record of an attempt; `deployment` is the shown one of the last attempt."""
    if one.deployment != last.deployment:
        deployment = shown(one.deployment, secrets)
    ended = one.started if one.ended is None else one.ended
    wall, base = meter.time - meter.arrived, one.backend.base
    started, ended = wall + one.started, wall + max(ended, one.started)
    return AttemptRecord(one.backend.name, deployment or "", one.outcome, started, ended, base.host, base.port)
