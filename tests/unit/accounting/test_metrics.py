"""The sink for Prometheus."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib.metadata
import socket
import threading
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse

from azure_openai_proxy.accounting import metric_names
from azure_openai_proxy.accounting import metrics as module
from azure_openai_proxy.accounting.metrics import Prometheus, open_sink
from azure_openai_proxy.accounting.record import AttemptRecord, CallRecord, Tokens
from azure_openai_proxy.accounting.sink import NOTHING_LIVE, BackendState, BudgetLeft, LiveState
from azure_openai_proxy.config.parsers import Address
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import SettingsError
from support.metering import of_kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from prometheus_client import CollectorRegistry

    from azure_openai_proxy.config.settings import Semconv

CALL = CallRecord(
    time=0.0,
    request_id="r",
    trace_id="t",
    operation="chat.completions",
    gen_ai_operation="chat",
    by_model=True,
    model="gpt-4o",
    stream=True,
    backend="a",
    host="a.example",
    port=443,
    deployment="prod",
    attempts=(AttemptRecord("a", "prod", "ok", 0, 1),),
    status=200,
    usage_state="known",
    tokens=Tokens(input=100, cached_input=60, output=50, reasoning_output=20),
    cost_usd=0.25,
    duration=3.0,
    first_byte=0.5,
    overhead=0.001,
)
LOCAL = Address("127.0.0.1", 0)

type Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def sink(series: int = 200) -> Prometheus:
    return open_sink(Settings(metrics=LOCAL, metrics_series=series))


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


async def scrape(prometheus: Prometheus) -> Samples:
    return samples((await prometheus.page("text/plain")).body.decode())


def total(found: Samples, name: str, **labels: str) -> float:
    return sum(value for (sample, have), value in found.items() if sample == name and labels.items() <= dict(have).items())


@asynccontextmanager
async def running(prometheus: Prometheus, live: Callable[[], LiveState] = lambda: NOTHING_LIVE) -> AsyncIterator[Prometheus]:
    await prometheus.start(live)
    try:
        yield prometheus
    finally:
        await prometheus.close()


async def test_records_are_counted() -> None:
    """Each record adds its amounts to the series of its labels, histograms in the bucket whose bound is not exceeded."""
    prometheus = sink()
    for _ in range(3):
        prometheus.record([CALL])
    prometheus.record([dataclasses.replace(CALL, status=429, error_code="rate", cost_usd=None, tokens=Tokens(), repairs=("max_tokens",))])
    found = await scrape(prometheus)
    assert 3 == total(found, "azure_openai_proxy_requests_total", status="200", model="gpt-4o", operation="chat.completions", client="")
    assert 1 == total(found, "azure_openai_proxy_requests_total", status="429")
    assert 300 == total(found, "azure_openai_proxy_tokens_total", type="input")
    assert 60 == total(found, "azure_openai_proxy_tokens_total", type="reasoning_output")
    assert 0.75 == total(found, "azure_openai_proxy_cost_usd_total", tier="")
    assert 4 == total(found, "azure_openai_proxy_attempts_total", backend="a", outcome="ok")
    assert 1 == total(found, "azure_openai_proxy_repairs_total", repair="max_tokens")
    duration = "gen_ai_client_operation_duration_seconds"
    assert (0, 4, 4) == tuple(total(found, f"{duration}_bucket", le=le) for le in ("2.56", "5.12", "+Inf"))
    assert (12, 4) == (total(found, f"{duration}_sum"), total(found, f"{duration}_count"))
    assert 3 == total(
        found, f"{duration}_count", error_type="", gen_ai_operation_name="chat", server_address="a.example", server_port="443"
    )
    assert 3 == total(found, "gen_ai_client_token_usage_bucket", gen_ai_token_type="input", le="256.0")
    assert 4 == total(found, "azure_openai_proxy_overhead_seconds_bucket", le="0.001")  # the bound is inclusive


@pytest.mark.parametrize("semconv", ["1.41", "genai-0.1"])
async def test_the_page_has_the_measurements(semconv: Semconv, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of all series equal the measurements of the table, in both generations of names."""
    rules, metrics = metric_names.rules(semconv), metric_names.metrics(semconv)
    monkeypatch.setattr(metric_names, "rules", lambda _: rules)
    monkeypatch.setattr(metric_names, "metrics", lambda _: metrics)
    prometheus = sink()
    calls = [dataclasses.replace(CALL, model=f"m{number % 7}", client=f"c{number % 3}", duration=number / 10) for number in range(50)]
    expected: dict[str, float] = {}
    for call in calls:
        prometheus.record([call])
        for metric, _, amount in metric_names.measurements(call, semconv):
            name = metric.prometheus + ("_sum" if metric.kind == "histogram" else "")
            expected[name] = expected.get(name, 0) + amount
    found = await scrape(prometheus)
    assert {name: pytest.approx(value) for name, value in expected.items()} == {name: total(found, name) for name in expected}


async def test_amounts_that_are_unknown() -> None:
    """They add nothing, and the known ones of the same batch count."""
    prometheus = sink()
    known = of_kind(CALL)
    unknown = dataclasses.replace(CALL, tokens=Tokens(input=100), duration=None)
    prometheus.record([known, of_kind(unknown, known.kind)])
    found = await scrape(prometheus)
    assert (200, 50) == tuple(total(found, "azure_openai_proxy_tokens_total", type=kind) for kind in ("input", "output"))
    assert 1 == total(found, "gen_ai_client_operation_duration_seconds_count")


async def test_live_state_and_versions() -> None:
    """The page has the live state of the moment, the ledger's lost rows, and the versions."""
    backends = (BackendState("a", "prod", True, 100, 7), BackendState("b", "prod", False))
    state = LiveState(3, 2, 1, backends, 5, (BudgetLeft("alice", 10, 2.5),), {("alice", "max_parallel"): 3})
    async with running(sink(), lambda: state) as prometheus:
        found = await scrape(prometheus)
    own = {name.removeprefix("azure_openai_proxy_"): value for (name, _), value in found.items()}
    assert (3, 2, 1) == (own["active_requests"], own["active_streams"], own["client_connections"])
    assert (1, 0) == tuple(total(found, "azure_openai_proxy_backend_up", backend=backend) for backend in "ab")
    assert (100, 7) == (own["backend_remaining_tokens"], own["backend_remaining_requests"])
    assert 5 == own["ledger_lost_rows_total"]
    assert (10, 2.5) == tuple(total(found, f"azure_openai_proxy_{name}_usd", client="alice") for name in ("budget", "budget_remaining"))
    assert 3 == total(found, "azure_openai_proxy_limit_refusals_total", client="alice", limit="max_parallel")
    assert 1 == total(found, "azure_openai_proxy_build_info", mitmproxy=importlib.metadata.version("mitmproxy"))


async def test_deployments_beyond_the_bound_have_no_state() -> None:
    """The state of deployments that exceed the bound is left out, because `other` has no state."""
    state = LiveState(backends=tuple(BackendState("a", f"d{number}", True) for number in range(50)))
    async with running(sink(10), lambda: state) as prometheus:
        found = await scrape(prometheus)
    assert 5 == len([name for name, _ in found if name == "azure_openai_proxy_backend_up"])
    assert 0 == total(found, "azure_openai_proxy_backend_up", deployment="other")


async def test_names_that_are_other() -> None:
    """A backend and a client named `other` have their state, also if the bound is reached."""
    backends = (*(BackendState(f"b{number}", "d", False) for number in range(9)), BackendState("other", "d", True, 100, 7))
    budgets = (BudgetLeft("other", 10, 2.5), *(BudgetLeft(f"c{number}", 1, 1) for number in range(9)))
    async with running(sink(4), lambda: LiveState(backends=backends, budgets=budgets)) as prometheus:
        found = await scrape(prometheus)
    assert 1 == total(found, "azure_openai_proxy_backend_up", backend="other")
    assert 3 == len([name for name, _ in found if name == "azure_openai_proxy_backend_up"])
    assert (10, 2.5) == tuple(total(found, f"azure_openai_proxy_{name}_usd", client="other") for name in ("budget", "budget_remaining"))
    assert 4 == len([name for name, _ in found if name == "azure_openai_proxy_budget_usd"])


async def test_refusals_beyond_the_bound_are_one_series() -> None:
    """The refusals of clients that exceed the bound are summed, because a scrape with a repeated series is invalid."""
    refusals = {(f"c{number}", "max_parallel"): 1 for number in range(9)}
    async with running(sink(4), lambda: LiveState(limit_refusals=refusals)) as prometheus:
        page = await prometheus.page("")
    (family,) = [family for family in parse(page.body.decode()) if family.name == "azure_openai_proxy_limit_refusals"]
    assert [*[(f"c{number}", 1) for number in range(4)], ("other", 5)] == [(one.labels["client"], one.value) for one in family.samples]


async def test_formats() -> None:
    """A scraper that asks for OpenMetrics gets it, and any other one the text format."""
    prometheus = sink()
    prometheus.record([CALL])
    text = await prometheus.page("*/*")
    assert text.content_type.startswith("text/plain")
    new = await prometheus.page("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert new.content_type.startswith("application/openmetrics-text")
    families = {family.name: family.type for family in open_metrics(new.body.decode())}  # type: ignore[no-untyped-call]
    assert "counter" == families["azure_openai_proxy_requests"]
    assert "histogram" == families["gen_ai_client_operation_duration_seconds"]
    assert b"_created" not in text.body + new.body


async def test_hostile_labels() -> None:
    """Names with quotes, line ends, surrogates and any length do not break the page or add lines to it."""
    prometheus = sink()
    names = ['a"} 1\nevil_total{x="', "back\\slash", "\ud800", "é\u2028\u202e", "x" * 100_000, "\x00\x1b[31m", 'a"', "a"]
    for name in names:
        prometheus.record([dataclasses.replace(CALL, model=name, response_model=name, deployment=name, error_code=name, status=500)])
    found = await scrape(prometheus)
    assert len(names) == total(found, "azure_openai_proxy_requests_total")
    assert "evil_total" not in {name for name, _ in found}
    assert all(len(value) <= 720 for _, labels in found for _, value in labels)


@pytest.mark.slow
async def test_made_up_names_are_bounded() -> None:
    """10,000 made-up models, clients and deployments give a bounded page and bounded memory, and nothing is lost from the sums."""
    prometheus = sink()

    def calls(start: int, stop: int) -> Iterable[CallRecord]:
        for number in range(start, stop):
            made = dataclasses.replace(
                CALL,
                model=f"model-{number}",
                response_model=f"answer-{number}",
                deployment=f"deployment-{number}",
                client=f"client-{number}",
                attempts=(AttemptRecord(f"backend-{number}", f"deployment-{number}", "ok", 0, 1),),
                status=200 + number % 7,
            )
            yield of_kind(made)

    for call in calls(0, 9_000):
        prometheus.record([call])
    before = len((await prometheus.page("")).body)
    more = list(calls(9_000, 10_000))
    gc.collect()
    tracemalloc.start()
    try:
        for call in more:
            prometheus.record([call])
        gc.collect()
        own = [tracemalloc.Filter(inclusive=True, filename_pattern=f"*/{package}/*") for package in ("accounting", "prometheus_client")]
        grown = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(own).traces)  # other tests may have threads
    finally:
        tracemalloc.stop()
    page = (await prometheus.page("")).body
    found = samples(page.decode())
    assert 10_000 == total(found, "azure_openai_proxy_requests_total") == total(found, "azure_openai_proxy_attempts_total")
    for label in ("model", "deployment", "client", "status"):
        values = {dict(labels)[label] for name, labels in found if name == "azure_openai_proxy_requests_total"}
        assert len(values) <= 201
    assert len(page) < before + 100_000
    assert len(page) < 10 << 20
    assert grown < 2 << 20
    assert 0 < len(prometheus._bound) <= module.MOST_BOUND
    assert len(prometheus._tried) <= module.MOST_BOUND


async def test_combinations_are_bounded() -> None:
    """Combinations of values beyond the bound of a metric count as `other` in all labels."""
    prometheus = sink(10)
    for number in range(1_000):
        prometheus.record([dataclasses.replace(CALL, model=f"m{number % 10}", client=f"c{number // 10 % 10}", status=200 + number // 100)])
    found = await scrape(prometheus)
    requests = [labels for name, labels in found if name == "azure_openai_proxy_requests_total"]
    assert 501 == len(requests)
    assert 1_000 == total(found, "azure_openai_proxy_requests_total")
    assert 500 == total(found, "azure_openai_proxy_requests_total", model="other", client="other", status="other")


async def test_series_are_kept_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call like an earlier one looks up no label."""
    prometheus = sink()
    first = of_kind(dataclasses.replace(CALL, attempts=()))
    prometheus.record([first])
    looked_up: list[object] = []

    def values(_: object, raw: object, **__: object) -> tuple[str, ...]:
        looked_up.append(raw)
        return ()

    monkeypatch.setattr(prometheus._bounds, "values", values)
    for number in range(100):
        prometheus.record([of_kind(dataclasses.replace(CALL, attempts=(), duration=number, request_id=str(number)), first.kind)])
    assert [] == looked_up


async def test_the_loop_runs_while_a_page_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is rendered in another thread: meanwhile the loop counts records, and a second scrape waits for the first."""
    prometheus = sink()
    prometheus.record([CALL])
    started, go_on, threads = threading.Event(), threading.Event(), []

    def slow(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
        encode, kind = choose_encoder(accept)

        def wait(registry: CollectorRegistry) -> bytes:
            threads.append(threading.get_ident())
            started.set()
            assert go_on.wait(30)
            return encode(registry)

        return wait, kind

    monkeypatch.setattr(module, "choose_encoder", slow)
    pages = [asyncio.create_task(prometheus.page("")) for _ in range(2)]
    while not started.is_set():
        await asyncio.sleep(0)
    turns = 0
    for _ in range(100):
        prometheus.record([CALL])
        await asyncio.sleep(0)
        turns += 1
    assert (100, 1) == (turns, len(threads))  # one page at a time
    assert not any(page.done() for page in pages)
    go_on.set()
    for page in await asyncio.gather(*pages):
        assert 101 == total(samples(page.body.decode()), "azure_openai_proxy_requests_total")
    assert threading.get_ident() not in threads


async def test_two_instances() -> None:
    """Two sinks in one process count by themselves, and nothing is registered globally."""
    before = {family.name for family in REGISTRY.collect()}
    async with running(sink()) as one, running(sink()) as two:
        one.record([CALL])
        assert (1, 0) == tuple([total(await scrape(each), "azure_openai_proxy_requests_total") for each in (one, two)])
        assert one.server.url != two.server.url
    assert before == {family.name for family in REGISTRY.collect()}


async def test_the_address_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log says where the metrics are; reopening files does nothing."""
    caplog.set_level("INFO")
    async with running(sink()) as prometheus:
        prometheus.reopen()
        assert [f"Prometheus metrics: {prometheus.server.url}"] == caplog.messages


async def test_a_taken_address() -> None:
    """An address that is in use stops the start with one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        prometheus = open_sink(Settings(metrics=Address("127.0.0.1", port)))
        with pytest.raises(SettingsError, match=rf"azure_openai_metrics: cannot listen on 127\.0\.0\.1:{port} \(.*in use\)"):
            await prometheus.start(lambda: NOTHING_LIVE)
        await prometheus.close()
