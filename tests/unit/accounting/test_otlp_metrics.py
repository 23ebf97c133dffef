"""The metrics over OTLP."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from azure_openai_proxy.accounting import metric_names, otlp, otlp_metrics
from azure_openai_proxy.accounting.otlp import Otlp
from azure_openai_proxy.accounting.record import AttemptRecord, CallRecord, Tokens
from azure_openai_proxy.accounting.sink import NOTHING_LIVE, BackendState, LiveState
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import SettingsError
from support.collector import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL = CallRecord(
    time=1_700_000_000.0,
    request_id="r",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    operation="chat.completions",
    gen_ai_operation="chat",
    by_model=True,
    model="gpt-4o",
    response_model="gpt-4o-2024-11-20",
    stream=True,
    client="team",
    backend="b",
    host="b.example",
    port=8443,
    deployment="dep",
    attempts=(AttemptRecord("a", "dep", "429", 0.0, 0.0), AttemptRecord("b", "dep", "ok", 0.0, 0.0)),
    repairs=("stream_options",),
    status=200,
    usage_state="known",
    tokens=Tokens(1204, 1024, 0, 87, 5),
    cost_usd=0.5,
    duration=1.5,
    first_byte=0.25,
    overhead=0.002,
)
OWN = {"operation": "chat.completions", "model": "gpt-4o", "deployment": "dep", "backend": "b", "client": "team"}
GENAI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "azure.ai.openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-11-20",
    "server.address": "b.example",
    "server.port": 8443,
}
LIVE = LiveState(3, 2, 1, (BackendState("b", "dep", up=True, remaining_tokens=900), BackendState("c", "dep", up=False)))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(autouse=True)
def _time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "CLOSE_WITHIN", 20.0)
    monkeypatch.setattr(otlp, "LEEWAY", 20.0)


async def export(collector: Collector, *calls: CallRecord, live: LiveState = LIVE, **settings: Any) -> Otlp:
    sink = Otlp(Settings(otlp=collector.url, **settings), {})
    await sink.start(lambda: live)
    for call in calls:
        sink.record([call])
    await sink.close()
    return sink


def values(collector: Collector, name: str) -> list[tuple[dict[str, Any], float]]:
    """Attributes and value of each point."""
    return [(labels, point.as_int or point.as_double) for labels, point in collector.points()[name]]


async def test_sums(collector: Collector) -> None:
    """The counters have the sums of the records, with the labels of the table as attributes; one without a value is left out."""
    await export(collector, CALL, CALL, replace(CALL, client="", status=None, usage_state="unknown", tokens=Tokens(), cost_usd=None))
    mine = OWN | {"status": "200"}
    others = {name: value for name, value in OWN.items() if name != "client"}
    assert [(mine, 2), (others, 1)] == values(collector, "azure_openai_proxy.requests")
    assert [(others, 1)] == values(collector, "azure_openai_proxy.unknown_usage")
    tokens = {labels.pop("type"): (labels, amount) for labels, amount in values(collector, "azure_openai_proxy.tokens")}
    assert {
        "input": (mine, 2408),
        "cached_input": (mine, 2048),
        "output": (mine, 174),
        "reasoning_output": (mine, 10),
    }.items() <= tokens.items()
    assert {"cache_write_input": (mine, 0)}.items() <= tokens.items()
    assert 5 == len(tokens)
    (cost,) = values(collector, "azure_openai_proxy.cost")
    assert 1.0 == cost[1]
    at = {"backend": "a", "deployment": "dep", "outcome": "429"}, {"backend": "b", "deployment": "dep", "outcome": "ok"}
    assert [(at[0], 3), (at[1], 3)] == values(collector, "azure_openai_proxy.attempts")
    assert [({"repair": "stream_options"}, 3)] == values(collector, "azure_openai_proxy.repairs")


async def test_histograms(collector: Collector) -> None:
    """The histograms of the conventions have their buckets; the port is a number."""
    await export(collector, CALL)
    points = collector.points()
    ((labels, duration),) = points["gen_ai.client.operation.duration"]
    assert GENAI == labels
    assert (1, 1.5, list(metric_names.SECONDS)) == (duration.count, duration.sum, list(duration.explicit_bounds))
    usage = {labels["gen_ai.token.type"]: point.sum for labels, point in points["gen_ai.client.token.usage"]}
    assert {"input": 1204, "output": 87} == usage
    ((_, first),) = points["gen_ai.client.operation.time_to_first_chunk"]
    assert 0.25 == first.sum


async def test_the_newer_generation(collector: Collector) -> None:
    """`genai-0.1` has its own names."""
    await export(collector, CALL, semconv="genai-0.1")
    assert "gen_ai.client.token.usage" not in collector.points()
    assert [(GENAI | {"gen_ai.token.modality": "unknown"}, 1204)] == values(collector, "gen_ai.client.inference.usage.input_tokens")


async def test_every_metric_is_declared(collector: Collector) -> None:
    """An export has no metric that the table lacks."""
    await export(collector, CALL)
    assert set(collector.points()) <= {metric.name for metric in metric_names.metrics("1.41")}


async def test_the_live_state(collector: Collector) -> None:
    """The gauges have the state at the export."""
    await export(collector, live=LIVE._replace(ledger_lost_rows=7))
    assert [({}, 3)] == values(collector, "azure_openai_proxy.active_requests")
    assert [({}, 2)] == values(collector, "azure_openai_proxy.active_streams")
    assert [({}, 1)] == values(collector, "azure_openai_proxy.client_connections")
    b, c = {"backend": "b", "deployment": "dep"}, {"backend": "c", "deployment": "dep"}
    assert [(b, 1), (c, 0)] == values(collector, "azure_openai_proxy.backend_up")
    assert [(b, 900)] == values(collector, "azure_openai_proxy.backend_remaining_tokens")
    assert [({}, 7)] == values(collector, "azure_openai_proxy.ledger_lost_rows")
    ((versions, one),) = values(collector, "azure_openai_proxy.build_info")
    assert ({"version", "mitmproxy", "python"}, 1) == (set(versions), one)


async def test_values_are_bounded(collector: Collector) -> None:
    """Made-up names become `other`, and those of backends beyond the bound have no gauges."""
    many = LiveState(backends=tuple(BackendState(f"b{number}", "dep", up=True) for number in range(9)))
    await export(collector, *[replace(CALL, model=f"m{number}", port=number) for number in range(9)], live=many, metrics_series=6)
    models = {labels["model"] for labels, _ in values(collector, "azure_openai_proxy.requests")}
    assert {*(f"m{number}" for number in range(6)), "other"} == models
    assert {*range(6), "other"} == {labels["server.port"] for labels, _ in collector.points()["gen_ai.client.operation.duration"]}
    assert [({"backend": "b0", "deployment": "dep"}, 1)] == values(collector, "azure_openai_proxy.backend_up")


async def test_a_backend_named_other(collector: Collector) -> None:
    """It has its gauges, also if the bound is reached."""
    names = "a", "b", "other"
    await export(collector, live=LiveState(backends=tuple(BackendState(name, "dep", up=True) for name in names)), metrics_series=2)
    assert [({"backend": name, "deployment": "dep"}, 1) for name in ("a", "other")] == values(collector, "azure_openai_proxy.backend_up")


async def test_refusals_beyond_the_bound(collector: Collector) -> None:
    """Those of further clients are summed."""
    refusals = {(f"c{number}", "max_parallel"): 1 for number in range(6)}
    await export(collector, live=LiveState(limit_refusals=refusals), metrics_series=2)
    counts = {labels["client"]: count for labels, count in values(collector, "azure_openai_proxy.limit_refusals")}
    assert 6 == sum(counts.values())
    assert counts["other"] > 1


async def test_many_series(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are complete if more series change than are kept at hand."""
    monkeypatch.setattr(otlp_metrics, "MOST_KEPT", 3)
    await export(collector, *[replace(CALL, model=f"m{number}") for number in (1, 2, 1, 2)])
    counts = {labels["model"]: count for labels, count in values(collector, "azure_openai_proxy.requests")}
    assert {"m1": 2, "m2": 2} == counts


async def test_a_failed_export_is_reported(collector: Collector) -> None:
    """It is counted, and its sums are part of the next one."""
    collector.answer = lambda _: web.Response(status=400)
    sink = await export(collector, CALL)
    assert 1 == sink.losses.lost["exports of metrics"]


@pytest.mark.parametrize("name", ["OTEL_METRIC_EXPORT_INTERVAL", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
async def test_invalid_variables(collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A variable that the SDK refuses stops the start with one line."""
    monkeypatch.setenv(name, "-1")
    with pytest.raises(SettingsError, match="azure_openai_otlp: "):
        await otlp.open_sink(Settings(otlp=collector.url)).start(lambda: LIVE)


async def test_a_busy_loop_has_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export waits for the live state only a moment, and not for a loop that is closed."""
    monkeypatch.setattr(otlp, "LIVE_WITHIN", 0.01)
    loop = asyncio.get_running_loop()
    read = otlp._from_another_thread(loop, lambda: LIVE)
    assert read() is None  # it blocks the loop that would answer
    assert LIVE == await asyncio.to_thread(read)
    closed = asyncio.new_event_loop()
    closed.close()
    assert otlp._from_another_thread(closed, lambda: LIVE)() is None
    assert NOTHING_LIVE != LIVE
    assert threading.current_thread() is threading.main_thread()
