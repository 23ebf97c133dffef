"""The measurement of a WebSocket: one record for each of its responses and transcriptions, and one at its end, without tokens."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from . import estimate, trace_context, usage
from .record import NO_TOKENS
from .record_making import Outcome, make
from .socket_responses import EndedResponse, SocketResponses
from .transcriptions import Transcriptions

if TYPE_CHECKING:
    from azure_openai_proxy.api.operation import Call

    from .meter import Meter
    from .record import CallRecord
    from .transcriptions import Transcription

__all__ = ["WebSocketMeter"]

logger = logging.getLogger(__name__)

type _Side = Literal["client", "upstream"]


class WebSocketMeter:
    """The part of a meter that is for WebSockets. `call`: None for a connection that is not an operation of the API."""

    def __init__(self, meter: Meter, call: Call | None) -> None:
        self._meter = meter
        self.is_operation = call is not None
        self._responses = SocketResponses(call) if call and call.endpoint.usage else None
        self._transcriptions = Transcriptions()
        self._tokens = NO_TOKENS  # of all responses and transcriptions
        self._cost: float | None = None

    def frame(self, content: bytes, now: float, *, from_client: bool) -> None:
        """A text or binary message, as its sender wrote it."""
        if self._responses is None:
            return
        try:
            if from_client:
                self._responses.sent(content, now)
                self._transcriptions.sent(content)
            elif transcription := self._transcriptions.received(content, now):
                self._transcribed(transcription, estimate.delivered(content, chat=True))
            elif ended := self._responses.received(content, now):
                self._response(ended)
        except Exception:
            logger.exception("The usage in a message cannot be read")

    def _response(self, ended: EndedResponse, incomplete: _Side | None = None) -> None:
        """Deliver the record of one response."""
        record = self._made(ended, incomplete)
        if self._meter.holder is not None:
            self._meter.holder.response_recorded(record)
        self._deliver(record)

    def _transcribed(self, ended: Transcription, text: int) -> None:
        """Deliver the record of one transcription, which another model than the session's has made."""
        meter = self._meter
        model, deployment = ended.model or ended.deployment, ended.deployment or ended.model
        record = self._made(EndedResponse(ended.started, ended.first, ended.ended, ended.reported), None, model, deployment)
        if meter.holder is not None:
            meter.holder.transcription_recorded(record, text)
        self._deliver(record)

    def _deliver(self, record: CallRecord) -> None:
        self._tokens = self._tokens.plus(record.tokens)
        if record.cost_usd is not None:
            self._cost = (self._cost or 0.0) + record.cost_usd
        self._meter.meters.now(record)

    def _made(self, ended: EndedResponse, incomplete: _Side | None, model: str | None = None, deployment: str | None = None) -> CallRecord:
        meter, reported, status = self._meter, ended.reported, ended.status
        tokens = reported.tokens if status < 400 else None
        known = tokens is not None and usage.is_whole(tokens, "chat")
        outcome = Outcome(
            status=status,
            error_code=reported.error_code,
            incomplete="upstream" if reported.status == "failed" else incomplete,
            reported=reported,
            tokens=tokens,
            state="known" if known else "none" if status >= 400 or (reported.metered and not tokens) else "unknown",
            duration=ended.ended - ended.started,
            first=None if ended.first is None else ended.first - ended.started,
            in_websocket=True,
        )
        record = make(meter, outcome, model=model, deployment=deployment)
        record.time = meter.time + ended.started - meter.arrived
        record.span_id, record.parent_span_id = trace_context.new_ids()[1], meter.trace.span_id
        record.overhead = record.request_bytes = record.response_bytes = None
        return record

    def ended(self, *, by_client: bool, normal: bool) -> CallRecord:
        """The WebSocket was closed. `normal`: with a close frame."""
        meter = self._meter
        now = meter.meters.clock()
        side: _Side = "client" if by_client else "upstream"
        running = self._responses.left(now) if self._responses else []
        if by_client and meter.holder is not None:  # Azure may have begun with what it was asked for
            running += [EndedResponse(now, None, now, usage.NOTHING)] * meter.holder.waiting_responses
        for one in running:
            self._response(one, side)
        meter.end_attempt("ok")
        meter.overhead = None
        outcome = Outcome(
            status=101,
            error_code=None,
            incomplete=side if running or not (normal or by_client) else None,
            reported=usage.NOTHING,
            tokens=None,
            state="none",
            duration=now - meter.arrived,
            first=meter.first_byte,
        )
        return meter.finish(make(meter, outcome))

    def with_responses(self, record: CallRecord) -> CallRecord:
        """Return the record of the WebSocket with the tokens and the cost of all its responses, which have records of their own."""
        return replace(record, tokens=self._tokens, cost_usd=self._cost)
