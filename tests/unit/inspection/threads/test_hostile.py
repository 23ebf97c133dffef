"""Conversations that are made to harm: any value in any place, and sizes that nobody expects."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from azure_openai_proxy.inspection.sharing import redact
from azure_openai_proxy.inspection.sharing.share import FORMATS, share
from azure_openai_proxy.inspection.threads import details, diff
from azure_openai_proxy.inspection.threads.store import Threads
from support.conversations import Json, assistant, chat, flow, stream, tool_call, user
from support.examples import examples

SCALARS = st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=8)
WORDS = """
    messages input role content type text tool_calls function name arguments id call_id output usage prompt_tokens input_tokens choices
    message delta index finish_reason error model response item item_id image_url url file audio data summary reasoning conversation
    previous_response_id prompt_cache_key prompt_cache_options ttl tools instructions latency_checkpoint status metadata
"""
NAMES = st.sampled_from(WORDS.split())
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "function_call", "function_call_output", "reasoning", "response.completed"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | ROLES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=20
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=8)
METADATA = st.dictionaries(
    st.sampled_from(
        ["operation", "model", "deployment", "backend", "record", "asked", "answered", "azures", "chunks", "first_chunk", "stream"]
    ),
    VALUES | st.dictionaries(st.sampled_from(["attempts", "repairs", "latency", "client", "overhead", "zone"]), VALUES),
)


@settings(max_examples=examples(50), suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(["/v1/chat/completions", "/v1/responses"]), OBJECTS, OBJECTS, st.booleans(), METADATA), max_size=4)
)
def test_any_values(calls: list[tuple[str, Json, Json, bool, Json]]) -> None:
    """Requests, responses, events and metadata of any form are read, compared and shared without an error."""
    flows = []
    for number, (path, request, response, streamed, metadata) in enumerate(calls):
        answer = stream(response, {"choices": [response]}, {**response, "type": "response.output_item.done"}) if streamed else response
        flows.append(flow(path, request, answer, at=number * 5, metadata=metadata))
    threads = Threads()
    assert len(flows) == len(list(threads.load(flows)))
    for id in threads.thread_ids:
        assert details.thread(threads, id)["calls"]
    redactor = redact.Redactor(redact.parse(["emails,ips,hosts,paths"]))
    texts = [share(threads, format, threads.thread_ids, redactor) for format in FORMATS]
    for text in texts:
        text.encode()
    assert len(threads.thread_ids) == len(json.loads(texts[1])["threads"])
    assert all(isinstance(diff.compare(one, other), list) for one, other in itertools.pairwise(flows))


@pytest.mark.slow
def test_great_sizes() -> None:
    """A message of 4 MB, 2,500 tool calls and deep nesting are read and shared, in part."""
    large = chat([user("x y <b>" * 600_000), user("b" * 200_000)])
    calls = [tool_call(f"c{n}", "look", json.dumps({"n": n})) for n in range(2500)]
    results = [{"role": "tool", "tool_call_id": f"c{n}", "content": "<script>"} for n in range(2500)]
    many = [chat([user("q")], assistant(None, *calls)), chat([user("q"), assistant(None, *calls), *results], at=5)]
    deep = flow("/v1/chat/completions", b'{"messages": [' + b"[" * 50_000 + b"]" * 50_000 + b"]}", {})
    threads = Threads()
    assert 3 == len(set(threads.load([large, *many, deep])))
    assert 2500 == len(threads.call(many[0].id).answers)
    for format in FORMATS:
        for id in threads.thread_ids:
            text = share(threads, format, [id])
            assert len(text) < 3_000_000
            assert "<script>" not in text or format in ("text", "markdown", "jsonl")
