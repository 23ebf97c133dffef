"""The sink for OpenTelemetry."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from mitmproxy.http import Headers
from opentelemetry import metrics, trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from azure_openai_proxy import compatibility
from azure_openai_proxy.accounting import otlp, otlp_spans, otlp_transport
from azure_openai_proxy.accounting.message_content import Content
from azure_openai_proxy.accounting.otlp import Otlp
from azure_openai_proxy.accounting.record import AttemptRecord, CallRecord, Tokens
from azure_openai_proxy.accounting.sink import NOTHING_LIVE
from azure_openai_proxy.accounting.trace_context import attempt_span_id
from azure_openai_proxy.config.settings import Settings
from support.collector import Collector, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TRACE, SPAN, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
CALL = CallRecord(
    time=1_700_000_000.25,
    request_id="r1",
    trace_id=TRACE,
    span_id=SPAN,
    parent_span_id=PARENT,
    client="team",
    session="s1",
    method="POST",
    path="/v1/chat/completions",
    operation="chat.completions",
    gen_ai_operation="chat",
    by_model=True,
    model="gpt-4o",
    stream=True,
    backend="b",
    host="b.example",
    port=443,
    deployment="dep",
    attempts=(
        AttemptRecord("a", "dep", "429", 1_700_000_000.5, 1_700_000_000.75, "a.example"),
        AttemptRecord("b", "dep", "ok", 1_700_000_000.75, 1_700_000_001.0, "b.example", 8443),
    ),
    repairs=("max_completion_tokens",),
    status=200,
    response_id="chatcmpl-1",
    response_model="gpt-4o-2024-11-20",
    finish_reasons=("stop",),
    usage_state="known",
    tokens=Tokens(1204, 1024, 8, 87, 5),
    cost_usd=0.0031,
    duration=1.0,
    first_byte=0.4,
)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the next second."""
    monkeypatch.setattr(otlp, "DRAIN_EVERY", 0.005)
    monkeypatch.setattr(otlp, "CLOSE_WITHIN", 20.0)
    monkeypatch.setattr(otlp, "LEEWAY", 20.0)


async def export(collector: Collector, *calls: CallRecord, environ: Mapping[str, str] | None = None, **settings: Any) -> Otlp:
    sink = Otlp(Settings(otlp=collector.url, **settings), environ or {})
    await sink.start(lambda: NOTHING_LIVE)
    for call in calls:
        sink.record([call])
    sink.reopen()
    await sink.close()
    return sink


async def test_a_call_is_a_trace(collector: Collector) -> None:
    """A span of the call with the ids and times of its record, and a child for each attempt."""
    await export(collector, CALL)
    (call,) = collector.calls()
    assert ("chat gpt-4o", Span.SPAN_KIND_CLIENT) == (call.name, call.kind)
    assert (TRACE, SPAN, PARENT) == (call.trace_id.hex(), call.span_id.hex(), call.parent_span_id.hex())
    assert (1_700_000_000_250_000_000, 1_700_000_001_250_000_000) == (call.start_time_unix_nano, call.end_time_unix_nano)
    assert Status.STATUS_CODE_UNSET == call.status.code
    found = attributes(call.attributes)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4o-2024-11-20",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.4,
        "gen_ai.usage.input_tokens": 1204,
        "gen_ai.usage.cache_read.input_tokens": 1024,
        "gen_ai.usage.cache_creation.input_tokens": 8,
        "gen_ai.usage.output_tokens": 87,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "server.address": "b.example",
        "server.port": 443,
        "http.response.status_code": 200,
        "azure_openai_proxy.cost_usd": 0.0031,
        "azure_openai_proxy.attempts": 2,
        "azure_openai_proxy.repairs": ["max_completion_tokens"],
    }
    assert expected == {name: found[name] for name in expected}
    assert not {"error.type", "gen_ai.usage.audio.input_tokens"} & set(found)

    first, second = collector.attempts(call)
    assert ("attempt a", "attempt b") == (first.name, second.name)
    assert [attempt_span_id(SPAN, 1), attempt_span_id(SPAN, 2)] == [first.span_id.hex(), second.span_id.hex()]
    assert {TRACE} == {first.trace_id.hex(), second.trace_id.hex()}
    assert (1_700_000_000_500_000_000, 1_700_000_000_750_000_000) == (first.start_time_unix_nano, first.end_time_unix_nano)
    failed, answered = attributes(first.attributes), attributes(second.attributes)
    assert ("a.example", 443, "429", 429, "429") == tuple(
        failed[name] for name in ("server.address", "server.port", "error.type", "http.response.status_code", "azure_openai_proxy.outcome")
    )
    assert ("b.example", 8443, "ok") == tuple(answered[name] for name in ("server.address", "server.port", "azure_openai_proxy.outcome"))
    assert "error.type" not in answered
    assert (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET) == (first.status.code, second.status.code)


async def test_calls_are_exported_while_the_proxy_runs(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export does not wait for the end of the proxy."""
    monkeypatch.setattr(otlp_spans, "EVERY", 5)
    sink = otlp.open_sink(Settings(otlp=collector.url))
    await sink.start(lambda: NOTHING_LIVE)
    sink.record([CALL])
    await asyncio.to_thread(collector.wait, lambda: len(collector.calls()) == 1)
    sink.record([CALL])
    await asyncio.to_thread(collector.wait, lambda: len(collector.calls()) == 2)
    await sink.close()
    assert 6 == len(collector.spans())


async def test_generations_name_attributes(collector: Collector) -> None:
    """The newer generation has other names and more attributes."""
    await export(collector, replace(CALL, reasoning_effort="low", tokens=Tokens(1, 0, 8, audio_input=3)), semconv="genai-0.1")
    (call,) = collector.calls()
    found = attributes(call.attributes)
    assert (8, 3, "low") == (
        found["gen_ai.usage.cache_write.input_tokens"],
        found["gen_ai.usage.audio.input_tokens"],
        found["gen_ai.request.reasoning.level"],
    )
    assert "gen_ai.usage.cache_creation.input_tokens" not in found
    assert 0 == found["gen_ai.usage.cache_read.input_tokens"]
    assert "gen_ai.usage.output_tokens" not in found


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"status": 429, "error_code": "rate_limit_exceeded"}, "rate_limit_exceeded"),
        ({"status": 500}, "500"),
        ({"incomplete": "upstream"}, "_OTHER"),
        ({"incomplete": "client"}, None),
        ({"status": None, "incomplete": "client"}, None),
    ],
)
async def test_a_failed_call_is_an_error(collector: Collector, changes: dict[str, Any], error: str | None) -> None:
    """A failure has `error.type` and the status of an error; a client that disconnects is no error."""
    await export(collector, replace(CALL, **changes))
    (call,) = collector.calls()
    assert error == attributes(call.attributes).get("error.type")
    assert (Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET) == call.status.code


async def test_a_call_without_a_model(collector: Collector) -> None:
    """A call that names nothing has a span of its own trace, with an id."""
    await export(collector, CallRecord(time=1.0, request_id="r", trace_id=TRACE, duration=-1.0))
    (call,) = collector.spans()
    assert ("request", b"") == (call.name, call.parent_span_id)
    assert any(call.span_id)
    assert call.start_time_unix_nano == call.end_time_unix_nano


async def test_texts_are_bounded_and_can_be_encoded(collector: Collector) -> None:
    """Half characters, numbers of more than 64 bits, long texts and lists do not lose the batch."""
    hostile = replace(CALL, model="\ud800" + "x" * 5000, tokens=Tokens(2**64), finish_reasons=["y" * 5000] * 99, repairs=())
    await export(collector, hostile, replace(CALL, span_id="0000000000000001"))
    first, second = collector.calls()
    found = attributes(first.attributes)
    assert "?" + "x" * 1023 == found["gen_ai.request.model"]
    assert 1024 == len(first.name)
    assert "gen_ai.usage.input_tokens" not in found
    assert ["y" * 1024] * 32 == found["gen_ai.response.finish_reasons"]
    assert "azure_openai_proxy.repairs" not in found
    assert "0000000000000001" == second.span_id.hex()


async def test_a_record_that_cannot_be_a_span_stops_nothing(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next one is exported."""
    await export(collector, replace(CALL, trace_id="not hexadecimal"), CALL)
    assert 1 == len(collector.calls())
    assert ["A usage record could not be exported"] == [record.message for record in caplog.records]


async def test_sampling(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's decision is obeyed, and OTEL_TRACES_SAMPLER decides for new traces; Azure receives the decision."""
    asked = Headers([(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())])
    sink = await export(collector, replace(CALL, traced=False))
    assert [] == collector.spans()
    assert not sink.begin_trace(asked).sampled
    assert sink.begin_trace(Headers()).sampled
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    sink = await export(collector, CALL, replace(CALL, parent_span_id=""))
    assert 1 == len(collector.calls())
    assert not sink.begin_trace(Headers()).sampled
    assert sink.begin_trace(Headers([(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())])).sampled


async def test_the_standard_variables_apply(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers, compression and resource attributes come from OTEL_* variables."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    await export(collector, CALL)
    assert ("blue", "gzip") == (collector.headers[0]["x-tenant"], collector.headers[0]["content-encoding"])
    found = attributes(collector.traces[0].resource_spans[0].resource.attributes)
    assert ("azure-openai-proxy", "test") == (found["service.name"], found["deployment.environment"])
    assert {"service.version", "service.instance.id", "telemetry.sdk.name"} <= set(found)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway")
    assert "gateway" == otlp_transport.resource().attributes["service.name"]


async def test_the_sdk_can_be_disabled(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OTEL_SDK_DISABLED nothing is exported."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    await export(collector, CALL)
    assert [] == collector.bodies


async def test_global_providers_are_left_alone(collector: Collector) -> None:
    """Another user of OpenTelemetry in this process keeps its own."""
    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    await export(collector, CALL)
    assert before == (trace.get_tracer_provider(), metrics.get_meter_provider())


async def test_batches_are_bounded(collector: Collector) -> None:
    """OTEL_BSP_MAX_EXPORT_BATCH_SIZE bounds an export; a number that is none is ignored."""
    calls = [replace(CALL, attempts=(), span_id=f"{number:016x}") for number in range(1, 8)]
    await export(collector, *calls, environ={"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "3", "OTEL_BSP_MAX_QUEUE_SIZE": "0"})
    assert 7 == len(collector.calls())
    sizes = [len(one.resource_spans[0].scope_spans[0].spans) for one in collector.traces]
    assert 3 >= max(sizes)


async def test_content_is_exported_with_its_call(collector: Collector) -> None:
    """With the option on, a span has the messages that were kept for it; a call without kept bodies has none."""
    body = b'{"messages":[{"role":"user","content":"hello there"}]}'
    sink = Otlp(Settings(otlp=collector.url, otlp_content=True), {})
    assert sink.wants_content
    assert not Otlp(Settings(otlp=collector.url), {}).wants_content
    await sink.start(lambda: NOTHING_LIVE)
    sink.keep_content(SPAN, Content("chat.completions", body))
    sink.record([CALL])
    sink.record([replace(CALL, span_id="0000000000000001")])
    await sink.close()
    first, second = collector.calls()
    message = '[{"role":"user","parts":[{"type":"text","content":"hello there"}]}]'
    assert message == attributes(first.attributes)["gen_ai.input.messages"]
    assert "gen_ai.input.messages" not in attributes(second.attributes)


def test_kept_content_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest bodies are dropped."""
    monkeypatch.setattr(otlp, "CONTENT_SIZE", 5)
    kept = otlp._Contents()
    for name in "abc":
        kept.add(name, Content("responses", b"12"))
    kept.add("d", Content("responses", b"123456"))
    assert [None] * 4 == [kept.take(name) for name in "abcd"]
    kept.add("e", Content("responses", b"12345"))
    assert Content("responses", b"12345") == kept.take("e")
    assert kept.take("e") is None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: web.Response(status=400, body=b"x" * 100), "HTTP 400"),
        (lambda _: web.Response(status=302, headers={"location": "/elsewhere/v1/traces"}), "HTTP 302"),
        (lambda _: web.Response(status=304), "HTTP 304"),
    ],
)
async def test_a_collector_that_refuses(collector: Collector, caplog: pytest.LogCaptureFixture, answer: Any, reason: str) -> None:
    """Refused spans are counted and logged; redirects are not followed."""
    collector.answer = answer
    sink = await export(collector, CALL)
    assert {"spans": 3, "exports of metrics": 1} == sink.losses.lost
    (line,) = warnings(caplog)  # of the loss that came first
    assert line.startswith(f"OpenTelemetry: not exported to {collector.url.removeprefix('http://')}: ")
    assert line.endswith((f" 3 spans ({reason})", f" 1 exports of metrics ({reason})"))
    assert {"/v1/traces", "/v1/metrics"} == set(collector.paths)
    assert 2 == len(collector.paths)


async def test_an_answer_without_end(collector: Collector) -> None:
    """The body of a response is not read: it may be of any size."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while request.transport and not request.transport.is_closing():
            await response.write(b"x" * 65536)
            await asyncio.sleep(0)
        return response

    collector.answer = endless
    sink = await export(collector, CALL)
    assert {} == sink.losses.lost


async def test_a_collector_that_hangs(collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end does not wait for it longer than a few seconds; requests do not wait at all."""
    monkeypatch.setattr(otlp, "CLOSE_WITHIN", 0.1)
    release = threading.Event()

    async def hang(_: web.Request) -> web.Response:
        while not release.is_set():
            await asyncio.sleep(0.01)
        return web.Response()

    collector.answer = hang
    sink = await export(collector, *[CALL] * 300, environ={"OTEL_BSP_MAX_QUEUE_SIZE": "600"})
    release.set()
    assert 299 <= sink.losses.lost["spans"] <= 900
    assert "spans (" in warnings(caplog)[0]


async def test_no_collector(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a collector spans are lost, and the log says so."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.05")
    sink = Otlp(Settings(otlp="http://127.0.0.1:9"), {})
    await sink.start(lambda: NOTHING_LIVE)
    sink.record([CALL])
    await sink.close()
    assert {"spans": 3, "exports of metrics": 1} == sink.losses.lost
    (line,) = warnings(caplog)
    assert line.startswith("OpenTelemetry: not exported to 127.0.0.1:9: ")
    assert line.endswith(" (ConnectionError)")


async def test_the_queue_of_records_is_bounded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that does not fit is dropped and counted."""
    monkeypatch.setattr(otlp, "MOST_RECORDS", 2)
    sink = Otlp(Settings(otlp=collector.url), {})
    for _ in range(5):
        sink.record([CALL])
    assert {"records": 3} == sink.losses.lost


async def test_an_end_that_takes_too_long(collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the thread itself does not end, the proxy stops nevertheless."""
    monkeypatch.setattr(otlp, "CLOSE_WITHIN", 0.0)
    monkeypatch.setattr(otlp, "LEEWAY", 0.01)
    sink = Otlp(Settings(otlp=collector.url), {})
    await sink.close()
    assert ["OpenTelemetry: the last exports did not end in time"] == warnings(caplog)


def test_losses_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A line has the losses since the last one."""
    now = 0.0
    losses = otlp_transport.Losses("https://otel.example:4318/prefix", lambda: now)
    losses.add("spans", 3, "HTTP 503")
    losses.add("spans", 4, "HTTP 503")
    losses.add("records", 1, "the queue is full")
    now = 60.0
    losses.add("spans", 5, "ConnectionError")
    assert [
        "OpenTelemetry: not exported to otel.example:4318: 3 spans (HTTP 503)",
        "OpenTelemetry: not exported to otel.example:4318: 9 spans, 1 records (ConnectionError)",
    ] == warnings(caplog)


def test_the_version_of_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is not installed as a package has no version."""
    assert "0" != compatibility.own_version()

    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    assert "0" == compatibility.own_version()
