"""Spans of calls and of their attempts, made of the usage records, and the thread that exports them."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from azure_openai_proxy.compatibility import own_version

from . import span_attributes, trace_context
from .otlp_transport import SCOPE, CollectorSession

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mitmproxy import http
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

    from azure_openai_proxy.config.settings import Semconv

    from .otlp_transport import Losses
    from .record import CallRecord
    from .trace_context import TraceContext

__all__ = ["Spans"]

QUEUED, AT_ONCE, EVERY = 16_384, 512, 1_000
"""Defaults of OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_MAX_EXPORT_BATCH_SIZE and OTEL_BSP_SCHEDULE_DELAY (ms)."""
SCHEMAS: dict[Semconv, str] = {"1.41": "https://opentelemetry.io/schemas/1.41.0"}


class _Ids(IdGenerator):
    """Gives the SDK the ids of a record."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Spans(SpanProcessor):
    """`add` is called by one thread; another one exports."""

    def __init__(self, url: str, generation: Semconv, resource: Resource, losses: Losses, environ: Mapping[str, str]) -> None:
        self._generation = generation
        self._losses = losses
        self._ids = _Ids()
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(self)
        self._tracer = self._provider.get_tracer(SCOPE, own_version(), SCHEMAS.get(generation))
        self._session = CollectorSession()
        self._exporter = OTLPSpanExporter(f"{url}/v1/traces", session=self._session)
        self._queue: deque[ReadableSpan] = deque()
        self._most = _number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", QUEUED)
        self._at_once = _number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", AT_ONCE)
        self._every = _number(environ, "OTEL_BSP_SCHEDULE_DELAY", EVERY) / 1000
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-spans", daemon=True)

    def begin(self, headers: http.Headers) -> TraceContext:
        """The trace context of a new request, with the decision of the sampler."""
        context = trace_context.begin(headers.fields)
        parent = _remote(context.trace_id, context.parent_span_id, sampled=context.sampled)
        decision = self._provider.sampler.should_sample(parent, int(context.trace_id, 16), "", SpanKind.CLIENT).decision
        return context._replace(sampled=decision is Decision.RECORD_AND_SAMPLE)

    def add(self, call: CallRecord, content: Mapping[str, str]) -> None:
        """Make the spans of a call, unless the sampler decides against them. `content`: attributes with messages."""
        self._ids.trace_id = int(call.trace_id, 16)
        self._ids.span_id = int(call.span_id, 16) if call.span_id else RandomIdGenerator().generate_span_id()
        span = self._tracer.start_span(
            span_attributes.span_name(call),
            _remote(call.trace_id, call.parent_span_id, sampled=call.traced),
            SpanKind.CLIENT,
            span_attributes.call_attributes(call, self._generation) | dict(content),
            start_time=_ns(call.time),
        )
        if not span.is_recording():
            return
        end = call.time + max(0.0, call.duration or 0.0)
        within = trace.set_span_in_context(span, Context())
        span_id = f"{self._ids.span_id:016x}"
        for number, attempt in enumerate(call.attempts, 1):
            self._ids.span_id = int(trace_context.attempt_span_id(span_id, number), 16)
            attributes = span_attributes.attempt_attributes(attempt, self._generation)
            name = f"attempt {attempt.backend}"
            child = self._tracer.start_span(name, within, SpanKind.CLIENT, attributes, start_time=_ns(attempt.started))
            if "error.type" in attributes:
                child.set_status(Status(StatusCode.ERROR))
            child.end(_ns(max(attempt.started, min(attempt.ended, end))))  # their ends are measured one after the other
        if call.failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_ns(end))

    def on_end(self, span: ReadableSpan) -> None:
        if len(self._queue) < self._most:
            self._queue.append(span)
        else:
            self._losses.add("spans", 1, "the queue is full")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the thread export the remaining spans and end."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread. Spans that it does not export in that time are lost."""
        self._thread.join(seconds)
        self._exporter.shutdown()  # ends the pauses between its attempts
        if left := len(self._queue):
            self._losses.add("spans", left, "the proxy stopped")

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while count := min(len(self._queue), self._at_once):
            batch = [self._queue.popleft() for _ in range(count)]
            if self._exporter.export(batch) is not SpanExportResult.SUCCESS:
                self._losses.add("spans", count, self._session.outcome)


def _remote(trace_id: str, span_id: str, *, sampled: bool) -> Context:
    """The context of a child of the client's span; an empty one without a client's span."""
    if not span_id:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return trace.set_span_in_context(
        NonRecordingSpan(SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=flags)), Context()
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e6) * 1000  # a float of today's time is exact to a microsecond only


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """A number of an environment variable; the default if it is not a positive one."""
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and int(text) else default
