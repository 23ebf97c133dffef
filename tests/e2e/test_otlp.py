"""OpenTelemetry from a real mitmdump to a collector that decodes it with the official classes."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from websockets.sync.client import connect

from azure_simulator import status
from support.collector import Collector, attributes
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
WORDS = "one two three"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": WORDS}]}
OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}


@pytest.fixture(scope="session")
def _collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def collector(_collector: Collector) -> Collector:
    """A collector that has received nothing."""
    _collector.forget()
    return _collector


@pytest.fixture
def another() -> Iterator[Collector]:
    """A collector for a mitmdump of one test, since each mitmdump exports its sums again and again."""
    with Collector() as running:
        yield running


@pytest.fixture
def traced(proxy: Proxies, collector: Collector) -> Mitmdump:
    """A mitmdump that exports to it."""
    mitmdump = proxy(azure_openai_otlp=collector.url, env=OFTEN)
    collector.forget()
    return mitmdump


def client(mitmdump: Mitmdump, azure: Simulator, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=mitmdump.url, headers={"authorization": f"Bearer {azure.key}"} | headers, timeout=PATIENCE)


def ask(mitmdump: Mitmdump, azure: Simulator, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    with client(mitmdump, azure) as http:
        return http.post("/v1/chat/completions", json=CHAT | more, headers=headers)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_a_trace(traced: Mitmdump, azure: Simulator, collector: Collector, stream: bool) -> None:
    """The client's trace is continued: its span, the request's, the attempt's, and the header that Azure receives."""
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = ask(traced, azure, {"traceparent": PARENT, "tracestate": "vendor=1"}, **more)
    call, (attempt,) = collector.one_call()
    assert ("chat gpt-4o", "attempt default") == (call.name, attempt.name)
    assert (TRACE, SPAN) == (call.trace_id.hex(), call.parent_span_id.hex())
    assert (call.trace_id, call.span_id) == (attempt.trace_id, attempt.parent_span_id)
    (request,) = azure.requests
    assert f"00-{TRACE}-{attempt.span_id.hex()}-01" == request.header("traceparent")
    assert "vendor=1" == request.header("tracestate")

    found = attributes(call.attributes)
    usage = response.json()["usage"] if not stream else json.loads(response.text.split("data: ")[-2])["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"])
    assert ("chat", "gpt-4o", stream, 200) == tuple(
        found[name] for name in ("gen_ai.operation.name", "gen_ai.request.model", "gen_ai.request.stream", "http.response.status_code")
    )
    assert "127.0.0.1" == found["server.address"] == attributes(attempt.attributes)["server.address"]
    assert call.start_time_unix_nano <= attempt.start_time_unix_nano <= attempt.end_time_unix_nano <= call.end_time_unix_nano


def test_attempts_have_spans_of_their_own(
    proxy: Proxies, azure: Simulator, another: Collector, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After a failover each request that Azure received belongs to the span of its attempt."""
    file = tmp_path_factory.mktemp("otlp") / "config.yaml"
    backends = [{"name": name, "endpoint": azure.http_url, "priority": number} for number, name in enumerate("ab")]
    file.write_text(json.dumps({"azure_openai_backends": backends}))
    mitmdump = proxy(azure_openai_otlp=another.url, azure_openai_endpoint=None, env=OFTEN | {"AZURE_OPENAI_CONFIG": str(file)})
    azure.faults.next(status(500))
    assert 200 == ask(mitmdump, azure).status_code
    call, attempts = another.one_call()
    assert ["attempt a", "attempt b"] == [attempt.name for attempt in attempts]
    assert [f"00-{call.trace_id.hex()}-{attempt.span_id.hex()}-01" for attempt in attempts] == [
        request.header("traceparent") for request in azure.requests
    ]
    failed, answered = (attributes(attempt.attributes) for attempt in attempts)
    assert ("500", "500", "ok") == (failed["error.type"], failed["azure_openai_proxy.outcome"], answered["azure_openai_proxy.outcome"])
    assert Status.STATUS_CODE_UNSET == call.status.code


def test_a_failure(traced: Mitmdump, azure: Simulator, collector: Collector) -> None:
    """A failed request is an error with the code of Azure."""
    azure.faults.next(status(429))
    response = ask(traced, azure)
    assert 429 == response.status_code
    call, _ = collector.one_call()
    found = attributes(call.attributes)
    assert (Status.STATUS_CODE_ERROR, 429, response.json()["error"]["code"]) == (
        call.status.code,
        found["http.response.status_code"],
        found["error.type"],
    )


def test_a_client_that_does_not_sample(traced: Mitmdump, azure: Simulator, collector: Collector) -> None:
    """Its decision is obeyed and passed on; the request is counted nevertheless."""
    ask(traced, azure, {"traceparent": PARENT[:-2] + "00"})
    ask(traced, azure, {"traceparent": "invalid", "tracestate": "a=1"})
    call, _ = collector.one_call()
    first, second = azure.requests
    parent = first.header("traceparent") or ""
    assert (f"00-{TRACE}-", "-00") == (parent[:36], parent[-3:])
    assert TRACE != call.trace_id.hex()
    assert f"00-{call.trace_id.hex()}-" == (second.header("traceparent") or "")[:36]
    assert second.header("tracestate") is None


def test_without_a_collector_the_headers_pass(proxy: Proxies, azure: Simulator) -> None:
    """Azure receives the trace headers of the client, even invalid ones, and none if the client sent none."""
    ask(proxy(), azure, {"traceparent": "invalid", "tracestate": "a=1"})
    ask(proxy(), azure)
    first, second = azure.requests
    assert ("invalid", "a=1") == (first.header("traceparent"), first.header("tracestate"))
    assert second.header("traceparent") is None


def test_metrics(traced: Mitmdump, azure: Simulator, collector: Collector) -> None:
    """The sums of the exports grow by the usage that Azure reported."""

    def sums() -> dict[str, int]:
        points = collector.points() if collector.metrics else {}
        found = {"requests": sum(point.as_int for _, point in points.get("azure_openai_proxy.requests", []))}
        for labels, point in points.get("azure_openai_proxy.tokens", []):
            found[labels["type"]] = found.get(labels["type"], 0) + point.as_int
        return found

    collector.wait(lambda: collector.metrics)
    before = sums()
    usages = [ask(traced, azure).json()["usage"] for _ in range(3)]
    collector.wait(lambda: sums()["requests"] == before["requests"] + 3)
    assert sum(usage["prompt_tokens"] for usage in usages) == sums()["input"] - before.get("input", 0)
    assert sum(usage["completion_tokens"] for usage in usages) == sums()["output"] - before.get("output", 0)
    collector.wait(lambda: [0] == [point.as_int for _, point in collector.points()["azure_openai_proxy.active_requests"]])


def counted(collector: Collector) -> int:
    """The requests in the last export of metrics."""
    return sum(point.as_int for _, point in collector.points().get("azure_openai_proxy.requests", []))


def test_no_key_and_no_text_is_exported(traced: Mitmdump, azure: Simulator, collector: Collector) -> None:
    """The bytes of all exports contain neither, whatever the client sends."""
    collector.wait(lambda: collector.metrics)
    before = counted(collector)
    answer = ask(traced, azure, {"user-agent": f"agent {azure.key}", "x-session-affinity": azure.key}, user=azure.key)
    ask(traced, azure, model=azure.key)
    with client(traced, azure) as http:
        http.post(f"/v1/{azure.key}?api-key={azure.key}", json=CHAT)
    collector.wait(lambda: len(collector.calls()) == 3)
    collector.wait(lambda: counted(collector) == before + 3)
    everything = b"".join(collector.bodies)
    secrets = [azure.key, WORDS, answer.json()["choices"][0]["message"]["content"]]
    assert [] == [secret for secret in secrets if secret.encode() in everything]


@pytest.mark.parametrize("stream", [False, True])
def test_messages_only_if_wanted(proxy: Proxies, azure: Simulator, another: Collector, stream: bool) -> None:
    """With the option, a span has the messages of the request and the response, without keys."""
    mitmdump = proxy(azure_openai_otlp=another.url, azure_openai_otlp_content=True, env=OFTEN)
    said = f"{WORDS} {azure.key}"
    response = ask(mitmdump, azure, messages=[{"role": "user", "content": said}], stream=stream)
    assert 200 == response.status_code
    call, _ = another.one_call()
    found = attributes(call.attributes)
    (asked,) = json.loads(found["gen_ai.input.messages"])
    (answered,) = json.loads(found["gen_ai.output.messages"])
    assert ("user", f"{WORDS} [key]") == (asked["role"], asked["parts"][0]["content"])
    assert ("assistant", "stop", f"You said: {WORDS} [key]") == (
        answered["role"],
        answered["finish_reason"],
        answered["parts"][0]["content"],
    )
    assert azure.key.encode() not in b"".join(another.bodies)


def test_the_last_spans_are_exported_at_the_end(azure: Simulator, another: Collector, tmp_path: Path, confdir: Path) -> None:
    """On SIGTERM the proxy exports the remaining spans and metrics."""
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_otlp": another.url}
    mitmdump = Mitmdump(tmp_path, confdir, options=options, env={"OTEL_BSP_SCHEDULE_DELAY": "3600000"}).start()
    ask(mitmdump, azure)
    mitmdump.signal(signal.SIGTERM)
    assert 0 == mitmdump.wait()
    assert 1 == len(another.calls())
    assert [1] == [point.as_int for _, point in another.points()["azure_openai_proxy.requests"]]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", None])
def test_a_collector_that_fails_delays_nothing(
    azure: Simulator, another: Collector, tmp_path: Path, confdir: Path, url: str | None
) -> None:
    """With a collector that is down or rejects everything, requests are answered, the log says so in one line, and the proxy ends."""
    another.answer = lambda _: web.Response(status=503, headers={"retry-after": "3600"})
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_otlp": url or another.url}
    mitmdump = Mitmdump(tmp_path, confdir, options=options, env=OFTEN | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}).start()
    assert [200] * 5 == [ask(mitmdump, azure).status_code for _ in range(5)]
    mitmdump.signal(signal.SIGTERM)
    assert 0 == mitmdump.wait()
    lines = [line for line in mitmdump.output if "OpenTelemetry" in line]
    assert 1 == len(lines)
    assert "not exported to 127.0.0.1:" in lines[0]


def test_a_websocket(traced: Mitmdump, azure: Simulator, collector: Collector) -> None:
    """The handshake continues the client's trace, and each response is a child of the WebSocket's span."""
    headers = {"authorization": f"Bearer {azure.key}", "traceparent": PARENT}
    url = traced.url.replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    with connect(url, additional_headers=headers, proxy=None, open_timeout=PATIENCE) as socket:
        socket.recv(PATIENCE)
        socket.send(json.dumps({"type": "response.create"}))
        while json.loads(socket.recv(PATIENCE))["type"] != "response.done":
            pass
    collector.wait(lambda: len(collector.calls()) == 2)
    spans = {span.parent_span_id.hex(): span for span in collector.calls()}
    whole = spans[SPAN]
    assert TRACE == spans[whole.span_id.hex()].trace_id.hex()
    (attempt,) = collector.attempts(whole)
    assert f"00-{TRACE}-{attempt.span_id.hex()}-01" == azure.requests[0].header("traceparent")
