"""The responses of a WebSocket as calls of threads."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http, io
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.inspection.flow_metadata import PREFIX
from azure_openai_proxy.inspection.sharing.share import FORMATS, share
from azure_openai_proxy.inspection.threads import details, diff, sockets
from azure_openai_proxy.inspection.threads.store import Threads
from support.conversations import START, responses, user

if TYPE_CHECKING:
    from pathlib import Path

    from support.conversations import Json

SYSTEM = "be good"


def socket(*messages: WebSocketMessage, path: str = "/v1/responses", metadata: Json | None = None) -> http.HTTPFlow:
    """A WebSocket that is open."""
    made = tflow.twebsocketflow()
    made.request.path = path
    made.request.headers["x-session-id"] = "s1"
    made.request.timestamp_start = made.request.timestamp_end = START - 1
    made.server_conn.timestamp_start = None
    made.metadata = {f"{PREFIX}{name}": value for name, value in (metadata or {}).items()}
    assert made.websocket
    made.websocket.timestamp_end = None
    made.websocket.messages = list(messages)
    return made


def message(at: float, event: object, *, client: bool = False) -> WebSocketMessage:
    content = event if isinstance(event, bytes) else json.dumps(event).encode()
    return WebSocketMessage(Opcode.TEXT, client, content, START + at)


def create(at: float, given: object, **more: Any) -> WebSocketMessage:
    return message(at, {"type": "response.create", "model": "gpt-5", "input": given, **more}, client=True)


def created(at: float, id: str) -> WebSocketMessage:
    return message(at, {"type": "response.created", "response": {"id": id, "status": "in_progress", "output": []}})


def completed(at: float, id: str, *output: Json, read: int = 2000, cached: int = 0, kind: str = "completed") -> WebSocketMessage:
    usage = {"input_tokens": read, "output_tokens": 5, "input_tokens_details": {"cached_tokens": cached}}
    response = {"id": id, "model": "gpt-5-2026", "status": kind, "output": output, "usage": usage}
    return message(at, {"type": f"response.{kind}", "response": response})


def said(text: str) -> Json:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def called(id: str) -> Json:
    return {"type": "function_call", "call_id": id, "name": "look", "arguments": "{}"}


def conversation() -> list[WebSocketMessage]:
    """Two calls: a tool call, and its result with `previous_response_id`."""
    return [
        create(0, [user("find it")], instructions=SYSTEM),
        created(0.5, "resp_1"),
        message(0.6, {"type": "response.output_text.delta", "delta": "x"}),
        completed(1, "resp_1", called("c1")),
        create(
            3, [{"type": "function_call_output", "call_id": "c1", "output": "42"}], instructions="be bad", previous_response_id="resp_1"
        ),
        created(3.5, "resp_2"),
        completed(4, "resp_2", said("It is 42."), read=2100),
    ]


def loaded(*flows: http.HTTPFlow) -> Threads:
    threads = Threads()
    list(threads.load(flows))
    return threads


def test_responses_are_calls_of_a_thread() -> None:
    """With times, tokens, new messages, tool calls and the reason why the cache was not used, as over HTTP."""
    record = {"client": "alice", "input_tokens": 4100}
    known = {"operation": "WS /v1/responses", "backend": "west", "deployment": "prod", "record": record, "input_tokens": 4100}
    one = socket(*conversation(), metadata=known)
    threads = loaded(one)
    (thread,) = threads.report()["threads"]
    first, second = thread["calls"]
    assert [f"{one.id}.1", f"{one.id}.2"] == [first["id"], second["id"]]
    assert ("find it", "alice", 4100, 10, 4000) == (
        *(thread["title"], thread["client"], thread["input_tokens"], thread["output_tokens"]),
        thread["duration_ms"],
    )
    assert ("gpt-5", "prod", "west", 200, None) == tuple(first[name] for name in ("model", "deployment", "backend", "status", "error"))
    assert {"first_byte": 500, "total": 1000, "azure": {}} == first["latency_ms"]
    assert (["look"], 1, 1) == (first["tool_calls"], first["new_messages"], second["new_messages"])
    assert {"expected_tokens": 1920, "cached_tokens": 0, "broken_by": {"block": "system", "index": None}} == second["cache"]
    assert "single_calls" not in threads.report()
    assert "s1" == threads.call(first["id"]).session
    shown = details.thread(threads, thread["id"])["calls"]
    assert ["system", "user"] == [block["kind"] for block in shown[0]["new"]]
    assert "42" == shown[0]["answer"][0]["result"]["text"]
    assert "It is 42." == shown[1]["answer"][0]["text"]
    assert ("tokens", 2005) == (shown[1]["context"]["unit"], shown[1]["context"]["history"])
    assert "type" not in shown[0]["parameters"]
    for format in FORMATS:
        text = share(threads, format, [thread["id"]])
        assert format == "json" or "It is 42." in text
    flows = [found for call in (first, second) if (found := threads.flow(call["id"]))]
    assert "system" in {entry["block"] for entry in diff.compare(flows[0], flows[1]) if entry["change"] == "changed"}
    assert [each.id for each in flows] == threads.calls_of(one.id)
    assert [thread["id"]] == threads.threads_of(one.id)
    assert (one.id, one.id, "other") == (threads.flow_id(thread["id"]), threads.flow_id(second["id"]), threads.flow_id("other"))


def test_a_file(tmp_path: Path) -> None:
    """A saved WebSocket is read as a live one."""
    path = tmp_path / "x.flows"
    with path.open("wb") as file:
        FlowWriter(file).add(socket(*conversation()))
    with path.open("rb") as file:
        flows = [one for one in io.FlowReader(file).stream() if isinstance(one, http.HTTPFlow)]
    assert [2] == [len(thread["calls"]) for thread in loaded(*flows).report()["threads"]]


def test_it_goes_on_over_http() -> None:
    """A later request that names a response of the WebSocket continues its thread."""
    one = socket(*conversation())
    later = responses([user("and now?")], [said("no")], at=9, extra={"previous_response_id": "resp_2"}, headers={"x-session-id": "s1"})
    later.client_conn = one.client_conn
    assert [3] == [len(thread["calls"]) for thread in loaded(one, later).report()["threads"]]


def test_it_continues_calls_over_http() -> None:
    """A response may name one of a request that started after the WebSocket was opened, and was read after it."""
    one = socket(create(8, "and now?", previous_response_id="resp_0"), created(9, "resp_1"), completed(10, "resp_1", said("no")))
    before = responses("find it", [said("so")], id="resp_0", at=2, headers={"x-session-id": "s1"})
    more = responses(
        "or this", [said("so")], id="resp_00", at=1, headers={"x-session-id": "s1"}, extra={"previous_response_id": "resp_unknown"}
    )
    before.client_conn = more.client_conn = one.client_conn
    threads = loaded(one, before, more)
    assert [2, 1] == [len(thread["calls"]) for thread in threads.report()["threads"]]
    assert [before.id, f"{one.id}.1"] == [call["id"] for call in threads.report()["threads"][0]["calls"]]


def test_two_conversations() -> None:
    """One WebSocket may have several threads."""
    one = socket(
        *(create(0, "one two"), created(1, "a"), completed(2, "a", said("uno"))),
        *(create(3, "three four"), created(4, "b"), completed(5, "b", said("tres"))),
    )
    threads = loaded(one)
    assert [f"{one.id}.1", f"{one.id}.2"] == threads.threads_of(one.id) == threads.thread_ids


def test_it_is_read_while_it_runs() -> None:
    """A WebSocket without a response is a single call. Its responses run, end, and stay in their threads."""
    messages = conversation()
    one = socket()
    assert one.websocket
    threads = loaded(one)
    assert [one.id] == [call["id"] for call in threads.report()["single_calls"]]
    one.websocket.messages.append(messages[0])
    assert f"{one.id}.1" == threads.update(one)
    ((call,),) = (thread["calls"] for thread in threads.report()["threads"])
    assert (None, None) == (call["status"], call["input_tokens"])
    assert "single_calls" not in threads.report()
    one.websocket.messages.append(messages[1])
    assert [] == threads.read(one)
    one.websocket.messages += messages[2:]
    assert 2 == len(threads.read(one))
    assert f"{one.id}.1" == threads.update(one), "what was read and not added is read again"
    assert threads.update(one) is None
    one.metadata[f"{PREFIX}record"] = {"client": "bob"}
    threads.update(one)
    assert ["bob"] == [thread["client"] for thread in threads.report()["threads"]]


def test_messages_that_were_dropped() -> None:
    """The call stays, without its texts; later messages are read once."""
    messages = conversation()
    one = socket(*messages[:4])
    assert one.websocket
    threads = loaded(one)
    del messages[:4]
    one.websocket.messages = messages
    gc.collect()
    threads.update(one)
    (thread,) = threads.report()["threads"]
    assert [2000, 2100] == [call["input_tokens"] for call in thread["calls"]]
    first, second = details.thread(threads, thread["id"])["calls"]
    assert ([], []) == (first["new"], first["answer"])
    assert "It is 42." == second["answer"][0]["text"]


def test_errors() -> None:
    """An error ends the response that runs. One without a response is no call."""
    error = {"code": "rate_limit_exceeded", "message": "slow down"}
    one = socket(
        message(0, {"type": "error", "error": error}),
        message(0.1, b'{"type": "response.create"', client=True),
        *(create(1, "a b"), message(2, {"type": "error", "status": 429, "error": error})),
        *(create(3, "a b"), created(4, "r"), message(5, {"type": "error", "status": "x", "error": error})),
        *(create(6, "a b"), created(7, "q"), completed(8, "q", said("c"), kind="failed")),
    )
    calls = [call for thread in loaded(one).report()["threads"] for call in thread["calls"]]
    assert [(429, "429"), (500, "500"), (200, None)] == [(call["status"], call["error"]) for call in calls]
    assert [False, True, True] == [call["retry"] for call in calls]


def test_a_response_that_is_cut_off() -> None:
    """The end of the WebSocket ends it. Its texts are those that arrived."""
    item = {"type": "message", "id": "m", "role": "assistant", "content": []}
    one = socket(
        create(0, "a b"),
        created(1, "r"),
        message(2, {"type": "response.output_item.added", "item": item}),
        message(3, {"type": "response.output_text.delta", "item_id": "m", "delta": "so far"}),
        WebSocketMessage(Opcode.BINARY, False, b"x", START + 3),
    )
    assert one.websocket
    threads = loaded(one)
    one.websocket.timestamp_end = START + 4
    threads.update(one)
    (call,) = details.thread(threads, f"{one.id}.1")["calls"]
    assert ("the WebSocket was closed", "so far", 4000) == (call["error"], call["answer"][0]["text"], call["latency_ms"]["total"])


def test_the_older_form() -> None:
    """The members of the request may be in `response`."""
    one = socket(message(0, {"type": "response.create", "response": {"model": "m", "input": "hello you"}}, client=True))
    assert "hello you" == loaded(one).report()["threads"][0]["title"]


def test_realtime_stays_a_single_call() -> None:
    """Only WebSockets of the Responses API have threads."""
    threads = loaded(socket(*conversation(), path="/v1/realtime?model=x"))
    assert ([], ["realtime"]) == (threads.report()["threads"], [call["operation"] for call in threads.report()["single_calls"]])


def test_removal() -> None:
    """With the flow, all its calls are removed. A flow that replaces another of the same id is read anew."""
    one = socket(*conversation())
    threads = loaded(one)
    other = one.copy()
    other.id = one.id
    threads.update(other)
    assert [2] == [len(thread["calls"]) for thread in threads.report()["threads"]]
    threads.remove(one.id)
    assert {"threads": []} == threads.report()
    assert [one.id] == threads.calls_of(one.id)
    threads.update(other)
    del one, other
    gc.collect()
    id = threads.thread_ids[0]
    assert threads.flow(id) is None


def test_what_is_unknown() -> None:
    """Neither a response of another name nor a flow that is gone."""
    one = socket(*conversation())
    found = sockets.Socket(one)
    found.read(one)
    assert found.part("other") is None
    assert (0, None) == (sockets.size(responses([], [])), sockets.stamp(responses([], [])))
    assert sockets.size(one) > 500
    assert (7, START + 4, None) == sockets.stamp(one)
    assert (0, None, None) == sockets.stamp(socket())
    plain = one.copy()
    plain.websocket = None
    assert [] == sockets.Socket(plain).read(plain)
    del one
    gc.collect()
    assert found.part(found.ids[0]) is None


EVENTS = st.dictionaries(
    st.sampled_from(["type", "response", "error", "status", "input", "previous_response_id", "model"]),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["response.create", "response.created", "error"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "output", "type", "usage", "input"]), inner),
        max_leaves=8,
    ),
)


@given(st.lists(st.tuples(st.floats(), st.booleans(), EVENTS | st.binary(max_size=20))), st.integers(0, 5))
def test_any_messages(events: list[tuple[float, bool, Any]], dropped: int) -> None:
    """Messages of any form and time are read, shown and shared."""
    messages = []
    for at, client, event in events:
        for kind in ("response.create" if client else "response.completed", None):
            made = message(0, {**event, "type": kind} if kind and isinstance(event, dict) else event, client=client)
            made.timestamp = at
            messages.append(made)
    one = socket(*messages)
    threads = loaded(one)
    assert one.websocket
    del messages, one.websocket.messages[:dropped]
    one.websocket.timestamp_end = START
    threads.update(one)
    for id in threads.thread_ids:
        details.thread(threads, id)
    for format in FORMATS:
        share(threads, format).encode()


@pytest.mark.parametrize("most", [0, 1])
def test_the_number_of_responses_is_bounded(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further ones are not read."""
    monkeypatch.setattr(sockets, "MOST", most)
    assert most == len(loaded(socket(*conversation())).report()["threads"])


def test_the_number_of_running_responses_is_bounded() -> None:
    """Responses that a client requests without an end of those before would each have all events of the WebSocket."""
    one = socket(*[create(at, f"hello {at}") for at in range(200)])
    assert sockets.MOST_RUNNING == len(sockets.Socket(one).read(one))
