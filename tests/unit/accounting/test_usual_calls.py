"""Usual calls have the records that `Meter.end` makes for them, apart from random ids."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.accounting import usual_calls as module
from azure_openai_proxy.accounting.meter import Meter
from azure_openai_proxy.accounting.meters import NO_REMAINING
from azure_openai_proxy.api.backend import Base
from support.metering import BACKEND, USAGE, Bench, Keys, response

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from azure_openai_proxy.accounting.lru import Lru
    from azure_openai_proxy.accounting.record import CallKind, CallRecord, OwnValues

KEY = "a-secret-key-of-azure"
OTHER = replace(BACKEND, name="other", base=Base("https", "s.openai.azure.com", 8443), zone="")


USUAL: dict[str, Any] = {
    "call": {"path": "/v1/chat/completions", "keys": (KEY,), "client": "", "times": (0.25, 0.5, 1.0), "ended": False, "attempts": 1},
    "body": {"model": "m"},
    "headers": {"user_agent": "agent"},
    "attempt": {"backend": BACKEND, "deployment": "dep", "repairs": (), "reason": "only"},
    "head": {"status": 200, "x_request_id": "id", "x_ratelimit_remaining_tokens": "7"},
    "answer": {"id": "c", "model": "m-1", "usage": USAGE, "choices": [{"finish_reason": "stop"}]},
}
NAMES = (None, "", "two words", "other", KEY, "m" * 3000, "\x1b", "é", 1, True, 1.0, ["m"], {"m": 1})
OTHERS: dict[str, dict[str, Sequence[Any]]] = {
    "call": {
        "path": [
            *("/v1/responses", "/v1/embeddings", "/v1/completions", "/v1/batches", "/v1/unknown", "/chat/completions"),
            *("/v1/chat/completions?api-key=x", f"/openai/deployments/{KEY}/chat/completions?api-version=2025-01-01", "/v1/responses/r"),
        ],
        "keys": [(), ("agent",), (KEY, "engine_ms"), (KEY, "stop", "length")],
        "client": ["team"],
        "times": [(0.0, 0.0, 0.0), (0.0, 0.0, -1.0)],
        "ended": [True],
        "attempts": [0, 2],
    },
    "body": {
        "model": ["other", KEY],
        "service_tier": ["auto", "flex"],
        "reasoning_effort": ["low", "high"],
        "prompt_cache_key": ["", "cached"],
        "previous_response_id": ["c", "d"],
        "background": [False, True],
        "stream": [False, True],
    },
    "headers": {
        "user_agent": ["other", KEY, "x" * 300],
        "session_id": ["", "s"],
        "traceparent": ["", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"],
    },
    "attempt": {"backend": [OTHER], "deployment": ["", "other", KEY], "repairs": [("changed",), ["changed"]], "reason": ["weight"]},
    "head": {
        "status": [201, 302],
        "x_request_id": ["", KEY, "i" * 200],
        "x_ratelimit_remaining_tokens": ["x", "8"],
        "x_ms_deployment_name": ["served"],
        "x_ms_spillover_from_deployment": ["dep"],
    },
    "answer": {
        "id": NAMES,
        "model": NAMES,
        "service_tier": NAMES,
        "system_fingerprint": NAMES,
        "status": ["completed", "failed", *NAMES],
        "usage": [
            {"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}},
            {"input_tokens": 5, "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 1}},
            *({"prompt_tokens": 3, "total_tokens": 3}, {"prompt_tokens": 3.0, "completion_tokens": 4}, {"completion_tokens": 4}),
            *({"prompt_tokens": -1, "completion_tokens": 4}, {"type": "duration", "seconds": 3}, {}, [], None),
        ],
        "choices": [
            *([{"finish_reason": "A B"}], [{"finish_reason": ["stop"]}], [{"finish_reason": "length"}], [{}, {}], [3], "c", None),
            [{"finish_reason": "stop"}, {"finish_reason": "length"}],
        ],
        "background": [False, True, 1],
        "error": [None, {"code": "c"}],
        "incomplete_details": [None, {"reason": "content_filter"}],
        "latency_checkpoint": [None, {"engine_ms": 3}, {"x y": 1}, 7],
        "model_router_details": [None, {"mode": "cost"}],
    },
}
CHANGES = [(part, name, value) for part, names in OTHERS.items() for name, values in names.items() for value in values]
PAIRS = [[change] for change in CHANGES] + [[("call", "path", "/v1/responses"), change] for change in CHANGES]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def changed(changes: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """The usual call with other values."""
    call = {part: dict(values) for part, values in USUAL.items()}
    for part, name, value in changes:
        call[part][name] = value
    return call


def measured(bench: Bench, one: dict[str, Any], *, later: bool) -> None:
    """A call from its arrival to its end. `later`: its record is made with those of others."""
    call, waits = one["call"], one["call"]["times"]
    method = "GET" if call["path"].endswith("/r") else "POST"
    meter = bench.start(call["path"], method, json.dumps(one["body"]).encode(), **one["headers"])
    meter.keys, meter.client = Keys(call["keys"]), call["client"]
    bench.now += waits[0]
    for _ in range(call["attempts"]):
        meter.attempt(**one["attempt"])
    meter.sending()
    bench.now += waits[1]
    content = json.dumps(one["answer"]).encode()
    head = response(**one["head"], content=content)
    if call["ended"]:
        meter.end_attempt("429")
    meter.head(head)
    bench.now += waits[2]
    if later:
        meter.end_soon(head, content)
    else:
        meter.end(head, content)


def without_ids(record: CallRecord) -> CallRecord:
    """The record without the ids that are random."""
    trace_id = record.trace_id if record.parent_span_id else ""
    id = "" if record.request_id.startswith("req_") else record.request_id
    return replace(record, trace_id=trace_id, span_id="", request_id=id)


def content[K, V](lru: Lru[K, V], default: V) -> list[tuple[K, V]]:
    return [(key, lru.get(key, default)) for key in list(lru)]


def check(calls: list[dict[str, Any]]) -> None:
    """Compare the records of calls, each of them three times, that are made at once and together."""

    async def made() -> None:
        expected, actual = Bench(), Bench()
        for _ in range(3):
            for call in calls:
                measured(expected, call, later=False)
                measured(actual, call, later=True)
            await asyncio.sleep(0)
            actual.meters.complete()
            assert list(map(without_ids, expected.records)) == list(map(without_ids, actual.records))
        assert content(expected.meters.chains, "") == content(actual.meters.chains, "")
        assert content(expected.meters.remaining, NO_REMAINING) == content(actual.meters.remaining, NO_REMAINING)

    asyncio.run(made())


def test_single_changes() -> None:
    """Of a call of each of two APIs, all in one batch."""
    check([changed(changes) for changes in ([], *PAIRS)])


@given(st.lists(st.lists(st.sampled_from(CHANGES), max_size=3).map(changed), min_size=1, max_size=4))
def test_several_changes(calls: list[dict[str, Any]]) -> None:
    """Few calls in a batch, so that all of its ids can be shown."""
    check(calls)


def ended(bench: Bench, user_agent: str) -> None:
    """A usual call that has ended."""
    measured(bench, changed([("headers", "user_agent", user_agent)]), later=True)


async def test_what_is_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Meter.complete` makes the record of the first usual call alone, and of each one with large values."""
    made: list[Meter] = []
    complete = Meter.complete

    def counted(meter: Meter) -> tuple[CallKind, OwnValues]:
        made.append(meter)
        return complete(meter)

    monkeypatch.setattr(Meter, "complete", counted)
    large = "x" * module.LARGEST
    changes: list[tuple[tuple[str, str, Any], int]] = [
        (("headers", "user_agent", "agent"), 1),
        (("headers", "user_agent", "other"), 1),
        (("headers", "user_agent", "agent"), 0),
        (("headers", "user_agent", large), 3),
        (("call", "keys", tuple(map(str, range(module.MOST_KEYS + 1)))), 3),
        (("answer", "model", 2**61 - 1), 3),
        (("answer", "choices", [{"finish_reason": "a" * 64}] * 100), 3),
        (("answer", "model", "m-2"), 1),
    ]
    for change, expected in changes:
        made.clear()
        for _ in range(3):
            measured(bench, changed([change]), later=True)
        bench.meters.complete()
        assert expected == len(made), change


@pytest.mark.parametrize("later", [False, True])
async def test_keys_in_names_of_the_upstream(later: bool, bench: Bench) -> None:
    """They are masked in the reasons to finish, and timings whose names have one are left out."""
    key, other = "0123456789abcdef0123456789abcdef", "a_lower_case_key"
    changes = [("answer", "latency_checkpoint", {f"x{key}": 1, "engine_ms": 2}), ("answer", "choices", [{"finish_reason": f"x{other}"}])]
    for _ in range(2):
        measured(bench, changed([("call", "keys", (key, other)), *changes]), later=later)
    bench.meters.complete()
    await asyncio.sleep(0)
    assert 2 == len(bench.records)
    for record in bench.records:
        assert (None, ("x[key]",)) == (record.latency, record.finish_reasons)


async def test_many_values(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not fill the memory."""
    monkeypatch.setattr(module, "MOST", 3)
    for number in range(10):
        ended(bench, f"agent {number}")
    bench.meters.complete()
    assert len(bench.meters._usual._known) <= 3
