"""Tokens, cost and usage record of a call as text and as metadata."""

from __future__ import annotations

import dataclasses
import json

import pytest
from mitmproxy import flowfilter
from mitmproxy.io import tnetstring
from mitmproxy.test import tflow

from azure_openai_proxy.accounting.record import AttemptRecord, CallKind, CallRecord, Tokens
from azure_openai_proxy.inspection import usage_text
from azure_openai_proxy.inspection.flow_metadata import PREFIX, Facts, metadata

RECORD = CallRecord(
    time=1785610058.25,
    request_id="r\udcff",
    trace_id="t",
    model="gpt-4o",
    attempts=(AttemptRecord("west", "prod", "429", 1.0, 1.5), AttemptRecord("east", "prod", "ok", 1.5, 3.0)),
    repairs=("max_tokens -> max_completion_tokens",),
    latency={"total_duration_ms": 293.0},
    finish_reasons=("stop",),
    usage_state="known",
    tokens=Tokens(1204, 1024, output=87),
    cost_usd=0.0031,
)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Tokens(1204, 1024, output=87), "1,204+87 tokens (1,024 cached)"),
        (Tokens(23, 0, output=11), "23+11 tokens"),
        (Tokens(8), "8 tokens"),
        (Tokens(output=5), "?+5 tokens"),
        (Tokens(), ""),
    ],
)
def test_tokens(counts: Tokens, expected: str) -> None:
    """Unknown counts are not written as 0."""
    assert expected == usage_text.tokens(counts)


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        (None, ""),
        (float("nan"), ""),
        (-1.0, ""),
        (0.0, "$0.00"),
        (1234.5, "$1,234.50"),
        (1.0, "$1.00"),
        (0.5, "$0.50"),
        (0.0031, "$0.0031"),
        (0.00000016, "$0.00000016"),
        (1e-12, "$0.000000000"),
    ],
)
def test_cost(usd: float | None, expected: str) -> None:
    """Cents above a dollar, two significant digits below."""
    assert expected == usage_text.cost(usd)


def test_the_record_can_be_saved_and_found() -> None:
    """The metadata has all known members, survives the format of flow files, and is found by cost and tokens."""
    found = metadata(Facts(operation="POST /v1/chat/completions", record=RECORD))
    assert found == tnetstring.loads(tnetstring.dumps(found))
    assert (1204, 1024, 87, 0.0031) == tuple(
        found[PREFIX + name] for name in ("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd")
    )
    assert PREFIX + "reasoning_output_tokens" not in found
    record = found[PREFIX + "record"]
    assert {"backend": "west", "deployment": "prod", "outcome": "429", "seconds": 0.5} == record["attempts"][0]
    assert ("known", "r\\udcff", {"total_duration_ms": 293.0}) == (record["usage_state"], record["request_id"], record["latency"])
    assert "error_code" not in record
    flow = tflow.tflow()
    flow.metadata = found
    for expression, matches in (
        ("~meta azure_openai_cost_usd:.0.00", True),
        ("~meta azure_openai_input_tokens:.12", True),
        ("~meta usd:.1", False),
    ):
        assert matches == bool(flowfilter.match(expression, flow))
    json.dumps(found)


def test_the_kind_of_a_record_is_not_saved() -> None:
    """The kind is an object for the sinks, which no flow file can contain."""
    record = CallKind(status=200, model="gpt-4o").record()
    found = usage_text.metadata(record)
    assert {"status": 200, "model": "gpt-4o"}.items() <= found["record"].items()
    assert found == tnetstring.loads(tnetstring.dumps(found))


def test_the_record_as_text() -> None:
    """The text has the known members, with numbers that are easy to read."""
    text = usage_text.describe(usage_text.metadata(RECORD))
    for part in ("usage_state known", "input_tokens 1,204", "cost_usd 0.0031", "(backend west, deployment prod, outcome 429, seconds 0.5)"):
        assert part in text
    assert "latency (total_duration_ms 293)" in text
    assert "finish_reasons [stop]" in text
    assert "cost_usd 0.00008," in usage_text.describe(usage_text.metadata(dataclasses.replace(RECORD, cost_usd=0.00008)))


def test_internal_members_are_not_in_the_text() -> None:
    """Members that only the sinks need, and those that `azure.explain` has in a line of its own, are left out."""
    record = dataclasses.replace(RECORD, span_id="s", gen_ai_operation="chat", by_model=True, host="h", port=443, method="POST", path="/p")
    names = {part.split()[0] for part in usage_text.describe(usage_text.metadata(record)).split(", ")}
    internal = {"time", "span_id", "traced", "by_model", "gen_ai_operation", "in_websocket"}
    assert not names & {*internal, "host", "port", "method", "path", "model", "repairs"}


@pytest.mark.parametrize("known", [{}, {"record": None}, {"record": [1]}, {"tokens": [1, 2]}])
def test_a_flow_without_a_record(known: dict[str, object]) -> None:
    """Older flows and foreign values have none."""
    assert "" == usage_text.describe(known)
