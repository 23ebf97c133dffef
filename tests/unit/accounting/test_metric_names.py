"""The table of metrics."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Literal

import pytest

from azure_openai_proxy.accounting import metric_names
from azure_openai_proxy.accounting.metric_names import Metric, measurements, metrics
from azure_openai_proxy.accounting.record import NO_TOKENS, AttemptRecord, CallRecord, Tokens
from azure_openai_proxy.accounting.sink import BackendState, BudgetLeft, LiveState

if TYPE_CHECKING:
    from azure_openai_proxy.config.settings import Semconv

CALL = CallRecord(
    time=0.0,
    request_id="r",
    trace_id="t",
    client="alice",
    operation="chat.completions",
    gen_ai_operation="chat",
    by_model=True,
    model="gpt-4o",
    stream=True,
    backend="sweden",
    host="sweden.example",
    port=443,
    deployment="prod",
    attempts=(AttemptRecord("france", "prod", "429", 0, 1), AttemptRecord("sweden", "prod", "ok", 1, 2)),
    repairs=("max_tokens",),
    status=200,
    response_model="gpt-4o-2024-11-20",
    service_tier="priority",
    usage_state="known",
    tokens=Tokens(100, 60, 10, 50, 20, 30, 5, 8),
    cost_usd=0.25,
    duration=3.0,
    first_byte=0.5,
    time_per_chunk=0.02,
    overhead=0.001,
)
OWN = {"operation": "chat.completions", "model": "gpt-4o", "deployment": "prod", "backend": "sweden", "client": "alice"}
GENAI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "azure.ai.openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-11-20",
    "server.address": "sweden.example",
    "server.port": 443,
}


def measured(call: CallRecord, semconv: Semconv = "1.41") -> list[tuple[str, dict[str, object], float]]:
    """The measurements: the name, the labels that have a value, and the amount."""
    return [
        (metric.name, {name: value for name, value in zip(metric.labels, labels, strict=True) if value is not None}, amount)
        for metric, labels, amount in measurements(call, semconv)
    ]


def own(call: CallRecord) -> dict[str, list[tuple[dict[str, object], float]]]:
    found: dict[str, list[tuple[dict[str, object], float]]] = {}
    for name, labels, amount in measured(call):
        if name.startswith("azure_openai_proxy."):
            found.setdefault(name.removeprefix("azure_openai_proxy."), []).append((labels, amount))
    return found


def genai(call: CallRecord, semconv: Semconv) -> list[tuple[str, dict[str, object], float]]:
    return [found for found in measured(call, semconv) if found[0].startswith("gen_ai.")]


def test_own_metrics_of_a_call() -> None:
    """A call counts one request, its tokens by type, its cost, its attempts and repairs, and the overhead."""
    found = own(CALL)
    assert [(OWN | {"status": 200}, 1)] == found["requests"]
    tokens = {
        "input": 100,
        "cached_input": 60,
        "cache_write_input": 10,
        "output": 50,
        "reasoning_output": 20,
        "audio_input": 30,
        "audio_output": 5,
    }
    assert [(OWN | {"status": 200, "type": kind}, count) for kind, count in tokens.items()] == found["tokens"]
    cost = {"model": "gpt-4o", "deployment": "prod", "backend": "sweden", "client": "alice", "tier": "priority"}
    assert [(cost, 0.25)] == found["cost"]
    assert [
        ({"backend": "france", "deployment": "prod", "outcome": "429"}, 1),
        ({"backend": "sweden", "deployment": "prod", "outcome": "ok"}, 1),
    ] == found["attempts"]
    assert [({"repair": "max_tokens"}, 1)] == found["repairs"]
    assert [({}, 0.001)] == found["overhead"]
    assert "unknown_usage" not in found


def test_a_batch_has_its_own_tier() -> None:
    """The tier of the price precedes the one in the response."""
    assert "batch" == own(dataclasses.replace(CALL, price_tier="batch"))["cost"][0][0]["tier"]


def test_unknown_is_not_zero() -> None:
    """Unknown tokens, cost and times give no measurement; unknown usage is counted."""
    call = CallRecord(time=0.0, request_id="r", trace_id="t", operation="responses", by_model=True, usage_state="unknown")
    assert {"requests", "unknown_usage"} == own(call).keys()
    assert [] == genai(call, "1.41") == genai(call, "genai-0.1")


def test_conventions_1_41() -> None:
    """The GenAI metrics of version 1.41 have tokens by type, and the duration and times of chunks."""
    assert [
        ("gen_ai.client.token.usage", GENAI | {"gen_ai.token.type": "input"}, 100),
        ("gen_ai.client.token.usage", GENAI | {"gen_ai.token.type": "output"}, 50),
        ("gen_ai.client.operation.duration", GENAI, 3),
        ("gen_ai.client.operation.time_to_first_chunk", GENAI, 0.5),
        ("gen_ai.client.operation.time_per_output_chunk", GENAI, 0.02),
    ] == genai(CALL, "1.41")


def test_conventions_0_1() -> None:
    """The GenAI metrics of version 0.1 count tokens by modality, where cached and reasoning tokens are parts of the others."""
    usage = "gen_ai.client.inference.usage."
    unknown, audio = {"gen_ai.token.modality": "unknown"}, {"gen_ai.token.modality": "audio"}
    assert [
        (f"{usage}input_tokens", GENAI | unknown, 70),
        (f"{usage}input_tokens", GENAI | audio, 30),
        (f"{usage}output_tokens", GENAI | unknown, 45),
        (f"{usage}output_tokens", GENAI | audio, 5),
        (f"{usage}cache_read.input_tokens", GENAI | unknown, 60),
        (f"{usage}cache_write.input_tokens", GENAI | unknown, 10),
        (f"{usage}reasoning.output_tokens", GENAI | unknown, 20),
        ("gen_ai.client.inference.operation.input_tokens", GENAI, 100),
        ("gen_ai.client.inference.operation.output_tokens", GENAI, 50),
        ("gen_ai.client.inference.duration", GENAI, 3),
        ("gen_ai.client.inference.time_to_first_chunk", GENAI, 0.5),
        ("gen_ai.client.inference.time_per_output_chunk", GENAI, 0.02),
    ] == genai(CALL, "genai-0.1")


def test_the_tokens_are_equal_in_both_generations() -> None:
    """The sums over modalities in version 0.1 are the tokens of version 1.41, also if a part exceeds the whole."""
    call = dataclasses.replace(CALL, tokens=Tokens(input=10, output=4, audio_input=12, audio_output=None))
    old = {labels["gen_ai.token.type"]: amount for _, labels, amount in genai(call, "1.41") if "gen_ai.token.type" in labels}
    new = dict.fromkeys(("input", "output"), 0.0)
    for name, _, amount in genai(call, "genai-0.1"):
        for kind in new:
            new[kind] += amount if name == f"gen_ai.client.inference.usage.{kind}_tokens" else 0
    assert {"input": 10, "output": 4} == old == new


def test_other_operations() -> None:
    """In version 0.1 the duration of embeddings has the general name; without a model there are no GenAI metrics."""
    call = dataclasses.replace(CALL, gen_ai_operation="embeddings", stream=False)
    names = {name for name, _, _ in genai(call, "genai-0.1")}
    assert "gen_ai.client.operation.duration" in names
    assert not names & {"gen_ai.client.inference.duration", "gen_ai.client.inference.time_to_first_chunk"}
    assert [] == genai(dataclasses.replace(CALL, by_model=False), "1.41") == genai(dataclasses.replace(CALL, by_model=False), "genai-0.1")


@pytest.mark.parametrize(
    "status, code, incomplete, expected",
    [
        (200, None, None, None),
        (429, "rate_limit_exceeded", None, "rate_limit_exceeded"),
        (500, None, None, "500"),
        (200, None, "upstream", "_OTHER"),
        (200, "server_error", "upstream", "server_error"),
        (200, None, "client", None),
    ],
)
def test_error_type(status: int, code: str | None, incomplete: Literal["client", "upstream"] | None, expected: str | None) -> None:
    """A failed call has the code of its error, else its status, as in its span; a client that leaves is no error."""
    call = dataclasses.replace(CALL, status=status, error_code=code, incomplete=incomplete, tokens=NO_TOKENS)
    (labels,) = [labels for name, labels, _ in genai(call, "1.41") if name == "gen_ai.client.operation.duration"]
    assert expected == labels.get("error.type")


def test_gauges() -> None:
    """The live state has a value for each deployment at a backend, without those that Azure did not report."""
    live = LiveState(3, 2, 1, (BackendState("a", "prod", True, 100, None), BackendState("b", "", False)), budgets=(BudgetLeft("c", 9, 1),))
    assert {
        "azure_openai_proxy_backend_up": [(1, ("a", "prod")), (0, ("b", ""))],
        "azure_openai_proxy_backend_remaining_tokens": [(100, ("a", "prod"))],
        "azure_openai_proxy_backend_remaining_requests": [],
        "azure_openai_proxy_budget_remaining_usd": [(1, ("c",))],
        "azure_openai_proxy_budget_usd": [(9, ("c",))],
        "azure_openai_proxy_active_requests": [(3, ())],
        "azure_openai_proxy_active_streams": [(2, ())],
        "azure_openai_proxy_client_connections": [(1, ())],
        "azure_openai_proxy_shared_state_up": [],
    } == {gauge.metric.prometheus: gauge.read(live) for gauge in metric_names.GAUGES}


@pytest.mark.parametrize("semconv", ["1.41", "genai-0.1"])
def test_table(semconv: Semconv) -> None:
    """Every metric has a unique valid name in Prometheus, a help sentence, ascending buckets if it is a histogram, and unique labels."""
    table = metrics(semconv)
    assert len(table) == len({metric.prometheus for metric in table}) == len({metric.name for metric in table})
    for metric in table:
        assert re.fullmatch("[a-z][a-z0-9_]*", metric.prometheus)
        assert metric.help.endswith(".")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert len(set(metric.prometheus_labels)) == len(metric.labels)


def test_names_in_prometheus() -> None:
    """Dots become underscores, seconds and dollars are suffixes, and counters end in _total."""
    names = {metric.name: metric.prometheus for metric in metrics("1.41")}
    assert "gen_ai_client_token_usage" == names["gen_ai.client.token.usage"]
    assert "gen_ai_client_operation_duration_seconds" == names["gen_ai.client.operation.duration"]
    assert "azure_openai_proxy_requests_total" == names["azure_openai_proxy.requests"]
    assert "azure_openai_proxy_cost_usd_total" == names["azure_openai_proxy.cost"]
    assert "azure_openai_proxy_overhead_seconds" == names["azure_openai_proxy.overhead"]
    assert ("gen_ai_operation_name",) == Metric("a", "gauge", "1", "", ("gen_ai.operation.name",)).prometheus_labels
