"""A collector for OpenTelemetry that decodes what it receives with the official protobuf classes."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Collector", "accept", "attributes"]


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes as a dict."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind
    found = getattr(value, kind)
    return [_value(item) for item in found.values] if kind == "array_value" else found


def accept(_: web.Request) -> web.Response:
    """The answer of a collector that works."""
    return web.Response(content_type="application/x-protobuf")


class Collector:
    """An HTTP server in a thread. `answer` may be replaced to fail; `bodies` has everything as received, decompressed."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.url = ""
        self.answer: Callable[[web.Request], Any] = accept
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/{path:.*}", self._take)
        runner = web.AppRunner(app, access_log=None)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()  # aiohttp decompresses it
        answer = self.answer(request)
        response: web.StreamResponse = await answer if asyncio.iscoroutine(answer) else answer
        with self._changed:
            self.bodies.append(body)
            self.paths.append(request.path)
            self.headers.append(request.headers)
            if response.status == 200:
                if request.path.endswith("/v1/traces"):
                    self.traces.append(ExportTraceServiceRequest.FromString(body))
                elif request.path.endswith("/v1/metrics"):
                    self.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self._changed.notify_all()
        return response

    def forget(self) -> None:
        """Everything that was received."""
        with self._changed:
            for kept in (self.traces, self.metrics, self.bodies, self.paths, self.headers):
                kept.clear()

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until the received data satisfies `condition`."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), "the collector did not receive it"

    def spans(self) -> list[Span]:
        return [span for one in self.traces for resource in one.resource_spans for scope in resource.scope_spans for span in scope.spans]

    def calls(self) -> list[Span]:
        """The spans of requests, without those of attempts."""
        return [span for span in self.spans() if not span.name.startswith("attempt ")]

    def attempts(self, of: Span) -> list[Span]:
        return [span for span in self.spans() if span.name.startswith("attempt ") and span.parent_span_id == of.span_id]

    def one_call(self) -> tuple[Span, list[Span]]:
        """Wait for the only request; its span, and those of its attempts in their order."""
        self.wait(self.calls)
        (call,) = self.calls()
        self.wait(lambda: len(self.attempts(call)) == attributes(call.attributes).get("azure_openai_proxy.attempts", 0))
        return call, sorted(self.attempts(call), key=lambda span: span.start_time_unix_nano)

    def points(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """The data points of the last export of metrics, by the name of the metric: attributes and point."""
        found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        for resource in self.metrics[-1].resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = getattr(metric, metric.WhichOneof("data"))
                    found.setdefault(metric.name, []).extend((attributes(point.attributes), point) for point in data.data_points)
        return found
