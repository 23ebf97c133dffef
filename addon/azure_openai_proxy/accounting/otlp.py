"""The sink for OpenTelemetry: a trace of each call and the proxy's metrics, by OTLP over HTTP.

`record` only appends to a queue. A thread takes the records from it once a second and makes measurements and spans of them; a second thread
exports the spans, and the SDK's reader exports the metrics. A collector that is down or slow delays these threads only: both queues are
bounded, and the log counts the spans that do not fit.

The SDK and the exporters obey the `OTEL_*` variables. The providers belong to this sink; the global ones are not set.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

from azure_openai_proxy.errors import SettingsError

from . import message_content
from .otlp_metrics import Metrics
from .otlp_spans import Spans
from .otlp_transport import Losses, resource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mitmproxy import http

    from azure_openai_proxy.config.settings import Settings

    from .message_content import Content
    from .record import CallRecord
    from .sink import LiveState
    from .trace_context import TraceContext

__all__ = ["Otlp", "open_sink"]

logger = logging.getLogger(__name__)

MOST_RECORDS = 10_000
"""Records that wait for the thread that reads them."""
DRAIN_EVERY = 1.0
CONTENT_SIZE = 64 << 20
"""Bytes of the bodies that wait for their records."""
LIVE_WITHIN = 1.0
CLOSE_WITHIN = 4.0
"""Seconds for the last exports when the proxy stops."""
LEEWAY = 1.0
"""Seconds for the thread to begin and end the last exports."""


def open_sink(settings: Settings) -> Otlp:
    """The sink for the configured collector.

    Raises:
        SettingsError: one of the `OTEL_*` variables is invalid.
    """
    return Otlp(settings)


class Otlp:
    """A sink of usage records."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # `Losses` logs failures
        self.losses = Losses(settings.otlp)
        self._settings = settings
        self.wants_content = settings.otlp_content
        self._records: deque[CallRecord] = deque()
        self._contents = _Contents()
        self._resource = resource()
        try:
            self._spans = Spans(settings.otlp, settings.semconv, self._resource, self.losses, environ)
        except ValueError as error:
            raise SettingsError(f"azure_openai_otlp: {error}") from None
        self._stop = threading.Event()
        self._over = asyncio.Event()
        self._thread: threading.Thread | None = None

    async def start(self, live: Callable[[], LiveState]) -> None:
        loop = asyncio.get_running_loop()
        settings = self._settings
        read = _from_another_thread(loop, live)
        try:
            metrics = Metrics(settings.otlp, settings.semconv, settings.metrics_series, self._resource, self.losses, read)
        except ValueError as error:
            raise SettingsError(f"azure_openai_otlp: {error}") from None
        self._spans.start()
        self._thread = threading.Thread(target=self._run, args=[loop, metrics], name="otlp-records", daemon=True)
        self._thread.start()

    def begin_trace(self, headers: http.Headers) -> TraceContext:
        """The trace context of a new request, with the decision of the sampler."""
        return self._spans.begin(headers)

    def keep_content(self, span_id: str, content: Content) -> None:
        """Keep the bodies of a call until its record is exported. Above the limit, the oldest are dropped."""
        self._contents.add(span_id, content)

    def record(self, calls: Sequence[CallRecord]) -> None:
        taken = calls[: max(0, MOST_RECORDS - len(self._records))]
        self._records.extend(taken)
        if lost := len(calls) - len(taken):
            self.losses.add("records", lost, "the queue is full")

    def reopen(self) -> None:
        """Nothing: there is no file."""

    async def close(self) -> None:
        """Export the remaining records, for at most `CLOSE_WITHIN` seconds."""
        self._stop.set()
        try:
            await asyncio.wait_for(self._over.wait(), CLOSE_WITHIN + LEEWAY)
        except TimeoutError:
            logger.warning("OpenTelemetry: the last exports did not end in time")

    def _run(self, loop: asyncio.AbstractEventLoop, metrics: Metrics) -> None:
        while not self._stop.wait(DRAIN_EVERY):
            self._drain(metrics)
        self._drain(metrics)
        deadline = time.monotonic() + CLOSE_WITHIN
        self._spans.stop()
        metrics.close(CLOSE_WITHIN)
        self._spans.join(max(0.0, deadline - time.monotonic()))
        loop.call_soon_threadsafe(self._over.set)

    def _drain(self, metrics: Metrics) -> None:
        for _ in range(len(self._records)):
            call = self._records.popleft()
            content = self._contents.take(call.span_id)
            try:
                metrics.add(call)
                self._spans.add(call, message_content.attributes(content) if content else {})
            except Exception:
                logger.exception("A usage record could not be exported")
        metrics.flush()


class _Contents:
    """Bodies by the id of their span, up to `CONTENT_SIZE` bytes. The event loop adds them, and the thread takes them."""

    def __init__(self) -> None:
        self._kept: dict[str, Content] = {}
        self._size = 0
        self._lock = threading.Lock()

    def add(self, span_id: str, content: Content) -> None:
        with self._lock:
            self._kept[span_id] = content
            self._size += content.size
            while self._size > CONTENT_SIZE:
                self._size -= self._kept.pop(next(iter(self._kept))).size

    def take(self, span_id: str) -> Content | None:
        with self._lock:
            content = self._kept.pop(span_id, None)
            if content:
                self._size -= content.size
        return content


def _from_another_thread(loop: asyncio.AbstractEventLoop, live: Callable[[], LiveState]) -> Callable[[], LiveState | None]:
    """A function for other threads that calls `live` in the event loop. It returns None without an answer in time."""

    def read() -> LiveState | None:
        answer: Future[LiveState] = Future()
        try:
            loop.call_soon_threadsafe(lambda: answer.set_result(live()))
            return answer.result(LIVE_WITHIN)
        except (TimeoutError, RuntimeError):  # the loop is busy, or closed
            return None

    return read
