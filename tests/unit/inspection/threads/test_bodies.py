"""Reading requests and responses of any form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mitmproxy import http

from azure_openai_proxy.inspection import flow_metadata, response_text
from azure_openai_proxy.inspection.body_diff import Splice
from azure_openai_proxy.inspection.flow_metadata import ClientRequestHead, SavedExchange
from azure_openai_proxy.inspection.threads import bodies
from support.conversations import Json, chat, flow, stream, user

CHUNK: Json = {"id": "c", "model": "m", "choices": []}


def delta(index: int = 0, **members: Any) -> Json:
    return {**CHUNK, "choices": [{"index": index, "delta": members}]}


def read(body: bytes, saved: SavedExchange = flow_metadata.NOTHING) -> bodies.Answer:
    return bodies.answer(flow("/v1/chat/completions", {}, body), saved)


def test_the_client_s_body() -> None:
    """The difference that the proxy has saved restores the client's body."""
    sent = flow("/x", b'{"model":"prod"}', {})
    head = ClientRequestHead("POST", "/v1/chat/completions", [], Splice(10, 2, b"gpt-4o"))
    assert {"model": "gpt-4o"} == bodies.client_request(sent, SavedExchange(head))
    assert {"model": "prod"} == bodies.client_request(sent, flow_metadata.NOTHING)
    assert [{}, {}] == [bodies.client_request(flow("/x", body, {}), flow_metadata.NOTHING) for body in (b"[1]", b"\xff{")]


def test_items() -> None:
    """Messages, input items, or a text, which is a message of the user."""
    assert [[1], [2], [user("x")], []] == [bodies.items(one) for one in ({"messages": [1]}, {"input": [2]}, {"input": "x"}, {"input": 1})]


def test_a_chat_as_events() -> None:
    """Deltas are joined by choice and by tool call, and the last chunk has the usage and Azure's times."""
    calls = [
        {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"a'}},
        {"index": 0, "function": {"arguments": '":1}'}},
        {"index": 1, "id": "c2", "function": {"name": "go"}},
        {"index": 2},
    ]
    events = [
        {"choices": [], "prompt_filter_results": []},
        delta(role="assistant", content="he"),
        delta(content="llo", reasoning_content="hm"),
        delta(1, content="other"),
        {**CHUNK, "choices": [{"index": 0, "delta": "none"}, {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "stop"}]},
        {**CHUNK, "usage": {"prompt_tokens": 1}, "latency_checkpoint": {"engine_ttft_ms": 1}, "service_tier": "flex"},
    ]
    found = read(b"data: {\n\n: comment\n\ndata: 1\n\n" + stream(*events))
    tools = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}]
    tools.append({"id": "c2", "type": "function", "function": {"name": "go", "arguments": ""}})
    tools.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})  # type: ignore[dict-item]
    first = {"role": "assistant", "content": "hello", "reasoning_content": "hm", "tool_calls": tools}
    assert [first, {"role": "assistant", "content": "other"}] == found.output
    assert ({"prompt_tokens": 1}, {"engine_ttft_ms": 1}, "m", "c", "flex", "stop", True) == (
        *(found.usage, found.latency, found.model, found.id, found.tier, found.finish, found.complete),
    )


def test_a_response_as_events() -> None:
    """The last event has the whole response; without it, the items and deltas that came are put together."""
    item = {"id": "m1", "type": "message", "role": "assistant", "content": []}
    call = {"id": "f1", "type": "function_call", "name": "look", "call_id": "c1", "arguments": ""}
    begun = [
        {"type": "response.created", "response": {"id": "r", "model": "m", "usage": None}},
        {"type": "response.output_item.added", "item": item, "output_index": 0},
        {"type": "response.output_text.delta", "item_id": "m1", "delta": "he"},
        {"type": "response.output_text.delta", "item_id": "m1", "delta": "llo"},
        {"type": "response.output_item.added", "item": call, "output_index": 1},
        {"type": "response.function_call_arguments.delta", "item_id": "f1", "delta": "{}"},
        {"type": "response.in_progress"},
    ]
    done = {"type": "response.completed", "response": {"id": "r", "output": [item], "usage": {"input_tokens": 3}, "status": "completed"}}
    whole = read(stream(*begun, done, done=False))
    assert ([item], {"input_tokens": 3}, "completed", True) == (whole.output, whole.usage, whole.finish, whole.complete)
    cut = read(stream(*begun, done=False))
    text = {**item, "content": [{"type": "output_text", "text": "hello"}]}
    assert ([text, {**call, "arguments": "{}"}], False, "r") == (cut.output, cut.complete, cut.id)


def test_choices_of_any_type() -> None:
    """A choice without a message or with another reason than a text has no output."""
    assert [] == read(json.dumps({"choices": [{"finish_reason": 5}, 7, {"message": "x"}]}).encode()).output


@pytest.mark.parametrize(
    "body",
    [
        stream({"type": "error", "code": "x", "message": "no"}),
        stream({"error": {"code": "x"}}),
        stream({"type": "response.failed", "response": {"error": {"code": "x"}, "status": "failed"}}),
        stream({"type": "response.error", "error": {"code": "x"}}),
        json.dumps({"error": {"code": "x"}}).encode(),
    ],
)
def test_errors(body: bytes) -> None:
    """An error is found in a body and in each form of events."""
    assert "x" == read(body).error["code"]


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[1]", b'"x"', b"[" * 100_000, b'{"choices": {}, "output": 1, "usage": []}', b"data: {}\n\n"]
)
def test_other_bodies(body: bytes) -> None:
    """A body of another form has no output."""
    found = read(body)
    assert ([], None, None) == (found.output, found.usage, found.error)


def test_no_response() -> None:
    """A call that still runs has no answer."""
    assert [] == bodies.answer(flow("/x", {}, None)).output


def test_the_usage_that_the_proxy_removed() -> None:
    """Azure's body has the usage, the times, and the output if the client's has none."""
    clients = stream(delta(content="hello"))
    azures = stream(delta(content="other"), {**CHUNK, "usage": {"prompt_tokens": 1}, "latency_checkpoint": {"x": 1}})
    found = read(clients, SavedExchange(azure_body=azures))
    assert ("hello", {"prompt_tokens": 1}, {"x": 1}) == (found.output[0]["content"], found.usage, found.latency)
    whole = stream({**CHUNK, "usage": {"prompt_tokens": 2}, "latency_checkpoint": {"x": 2}})
    assert {"prompt_tokens": 2} == (read(whole, SavedExchange(azure_body=azures)).usage)


def test_hostile_streams_take_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of too many choices, tool calls or items is read in part, and of a long one the beginning and the end."""
    monkeypatch.setattr(bodies, "MOST_PARTS", 3)
    choices = [delta(n, content="x") for n in range(9)]
    assert 3 == len(read(stream(*choices)).output)
    calls = [delta(tool_calls=[{"index": n, "id": str(n)}]) for n in range(9)]
    assert 3 == len(read(stream(*calls)).output[0]["tool_calls"])
    items = [{"type": "response.output_item.added", "item": {"id": str(n)}} for n in range(9)]
    texts = [{"type": "response.output_text.delta", "item_id": str(n), "delta": "x"} for n in range(9)]
    assert 3 == len(read(stream(*items, items[0], *texts)).output)
    monkeypatch.setattr(response_text, "READ_FIRST", 500)
    monkeypatch.setattr(response_text, "READ_LAST", 200)
    found = read(stream(*(delta(content=f"{n:05}") for n in range(100)), {**CHUNK, "usage": {"prompt_tokens": 1}}))
    assert {"prompt_tokens": 1} == found.usage
    assert "00000" in found.output[0]["content"]
    assert "00050" not in found.output[0]["content"]


def test_broken_utf_8() -> None:
    """Bytes that are not UTF-8 are replaced, in requests, answers and streams."""
    sent = flow("/v1/chat/completions", b'{"messages": ["a\xff"]}', b'{"choices": [{"message": {"content": "b\xc3"}}]}')
    assert ["a\ufffd"] == bodies.items(bodies.client_request(sent, flow_metadata.NOTHING))
    assert "b\ufffd" == bodies.answer(sent).output[0]["content"]
    assert "c\ufffd" == read(b'data: {"choices": [{"delta": {"content": "c\xe2\x82"}}]}\n\n').output[0]["content"]


def test_a_compressed_answer() -> None:
    """A compressed body is decompressed."""
    made = chat([user("x")])
    assert isinstance(made.response, http.Response)
    made.response.encode("gzip")
    assert "fine" == bodies.answer(made).output[0]["content"]
