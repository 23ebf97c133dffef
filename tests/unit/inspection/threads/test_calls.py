"""One flow as a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mitmproxy import flow as flows
from mitmproxy.test import tflow

from azure_openai_proxy.accounting.record import Tokens
from azure_openai_proxy.inspection.flow_metadata import ClientRequestHead, pack
from azure_openai_proxy.inspection.threads import calls
from support.conversations import START, Json, assistant, chat, flow, responses, stream, tool_call, user


def read(made: Any) -> calls.Call:
    call = calls.read(made)
    assert call
    return call


RECORD = {
    "client": "team",
    "attempts": [{"backend": "a"}, {"backend": "b"}],
    "repairs": ["max_tokens", 5],
    "overhead": 0.002,
    "latency": {"engine_ttft_ms": 5, "bad": "x"},
    "served_deployment": "spare",
    "response_id": "r-1",
    "price_tier": "batch",
    "zone": "eu",
}


def test_a_flow_with_the_proxy_s_metadata() -> None:
    """Names, attempts, repairs and times are those that the proxy recorded; the tokens are the response's."""
    known = {"operation": "POST /v1/chat/completions", "model": "gpt-4o", "deployment": "prod", "backend": "west", "first_chunk": 0.25}
    head = ClientRequestHead("POST", "/v1/chat/completions", [("Session_ID", "s"), ("user-agent", "App/1 x")])
    made = chat(
        [user("one")], metadata={**known, "record": RECORD, "asked": pack(head), "input_tokens": 3}, path="/openai/v1/chat/completions"
    )
    call = read(made)
    assert ("gpt-4o", "prod", "west", "team", "s", 2, ["max_tokens"]) == (
        *(call.model, call.deployment, call.backend, call.client, call.session, call.attempts, call.repairs),
    )
    assert (Tokens(10, 0, None, 5), START + 0.25, "batch", "eu", "spare", 0.002) == (
        *(call.tokens, call.first_byte, call.tier, call.zone, call.served, call.overhead),
    )
    assert ({"engine_ttft_ms": 5}, "127.0.0.1", "App/1") == (call.latency, call.address, call.agent)


def test_a_flow_without_a_body_has_the_recorded_tokens() -> None:
    """The metadata has the tokens of a stream that was not kept."""
    made = chat([user("one")], body=b"", metadata={"input_tokens": 3, "output_tokens": -1, "cached_input_tokens": True, "stream": True})
    assert (Tokens(3), True) == (read(made).tokens, read(made).stream)


@pytest.mark.parametrize(
    "metadata",
    [
        {"record": 5, "model": 7, "deployment": "", "first_chunk": "x", "asked": 9},
        {"record": {"attempts": 5, "repairs": {}, "overhead": -1, "latency": [], "client": 1}, "operation": 4},
    ],
)
def test_metadata_of_any_type(metadata: Json) -> None:
    """Invalid metadata counts as absent."""
    call = read(chat([user("one")], metadata=metadata))
    assert ("gpt-4o", None, "", 1, [], None) == (call.model, call.deployment, call.client, call.attempts, call.repairs, call.overhead)


def test_a_flow_of_another_program() -> None:
    """Without metadata the path names the deployment and the host counts as the backend."""
    call = read(chat([user("one")], path="/openai/deployments/prod/chat/completions?api-version=1"))
    assert ("prod", "proxy", "chat") == (call.deployment, call.backend, call.kind)
    made = chat([user("one")])
    made.client_conn.peername = None  # type: ignore[assignment]
    made.server_conn.timestamp_start, made.server_conn.timestamp_tcp_setup, made.server_conn.timestamp_tls_setup = START, START + 0.1, None
    assert ("", 0.1) == (read(made).address, round(read(made).connect or 0, 3))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/images/generations", "/v1/images/edits", "/v1/audio/transcriptions"])
def test_the_usage_of_single_calls(path: str) -> None:
    """The usage in a response counts without the proxy's metadata; with it a large body is not read."""
    body = {"usage": {"input_tokens": 30, "output_tokens": 4, "total_tokens": 34}}
    found = read(flow(path, {"model": "m"}, body)).tokens
    assert (30, 4) == (found.input, found.output)
    recorded = read(flow("/v1/images/edits", {}, body, metadata={"input_tokens": 5, "output_tokens": 6}))
    assert (5, 6) == (recorded.tokens.input, recorded.tokens.output)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "chat"),
        ("/responses/", "responses"),
        ("/v1/embeddings", ""),
        ("/openai/v1/images/edits", ""),
        ("/v1/audio/transcriptions", ""),
        ("/v1/models", None),
        ("/v1/responses/resp_1/cancel", None),
    ],
)
def test_which_flows_are_calls(path: str, kind: str | None) -> None:
    """Chats and responses belong to threads, other calls of a model are single, and all else is none."""
    made = flow(path, {}, {})
    assert (kind is not None) == calls.is_call(made)
    call = calls.read(made)
    assert kind == (call.kind if call else None)


def test_no_calls() -> None:
    """Other protocols, other methods and incomplete requests are no calls; a WebSocket is a single one."""
    made = chat([user("x")], running=True)
    made.request.timestamp_end = None
    get = chat([])
    get.request.method = "GET"
    assert [None, None, False] == [calls.read(made), calls.read(get), calls.is_call(tflow.ttcpflow())]
    socket = tflow.twebsocketflow()
    socket.request.path = "/v1/realtime?model=x"
    assert ("", "realtime") == (read(socket).kind, read(socket).operation)


def test_how_calls_end() -> None:
    """A call runs, is complete, was refused, failed in its stream, or was broken off."""
    running, done, refused = chat([user("x")], running=True), chat([user("x")]), chat([user("x")], status=400, body={"error": "no"})
    broken = chat([user("x")], body=stream({"choices": []}, done=False))
    assert broken.response
    broken.error, broken.response.timestamp_end = flows.Error("Client disconnected.", START + 3), None
    nothing = chat([user("x")], running=True)
    nothing.error = flows.Error("no address", START + 2)
    late = responses("x", [], body=stream({"type": "response.failed", "response": {"error": {"type": "server_error"}}}, done=False))
    found = [read(made) for made in (running, done, refused, broken, nothing, late)]
    assert [True, False, False, False, False, False] == [call.running for call in found]
    assert ["", "", "400", "Client disconnected.", "no address", "server_error"] == [call.error for call in found]
    assert [False, False, True, False, True, True] == [call.failed for call in found]
    assert [None, START + 1, START + 1, START + 3, START + 2, START + 1] == [call.ended for call in found]
    assert [False, False, True, True, True, True] == [call.broken for call in found]


def test_texts() -> None:
    """A call has a title, its answer's tool calls, and the texts of its messages until it is in a thread."""
    made = chat([{"role": "system", "content": "s"}, user("  a\nb  ")], assistant("ok", *(tool_call(f"c{n}") for n in range(5000))))
    call = read(made)
    assert ("a b", 5000, 5001) == (call.title, len(call.tool_calls), len(call.answers))
    assert "" == read(chat([user("")])).title


def test_titles_end_with_a_whole_word() -> None:
    """A long title is cut before a word, so that it has no part of a key; a single long word is cut anywhere."""
    assert "word" == read(chat([user("word " + "x" * 300)])).title
    assert calls.LONGEST_TITLE == len(read(chat([user("x" * 300)])).title)
    assert "a" == read(chat([user("a" + " " * 500 + "b")])).title


@pytest.mark.parametrize("messages", [["ab"], [5], [None, ["x", "y"]], [{"role": "user", "x": "y"}], [{"role": 5, "content": "x"}]])
def test_messages_of_any_type(messages: list[Any]) -> None:
    """A message of any type is one item."""
    assert len(messages) == len(read(chat(messages)).prompt.items)


def test_a_message_in_two_forms_is_the_same() -> None:
    """A text and a list with the text give the same key, so that a conversation goes on in either form."""
    plain, parts = (read(chat([{"role": "user", "content": content}])).prompt for content in ("hi ", [{"type": "text", "text": "hi"}]))
    assert plain.keys == parts.keys
    assert plain.items != parts.items


def test_titles_are_those_of_the_user() -> None:
    """What a coding agent writes before the user's message is no title, unless there is nothing else before the answer."""
    context = user("<environment_context>\n<cwd>/x</cwd>\n</environment_context>")
    assert "do it" == read(chat([context, user("do it"), assistant("done"), user("more")])).title
    assert "<environment_context> <cwd>/x</cwd> </environment_context>" == read(chat([context, assistant("done"), user("more")])).title


def test_a_form_is_not_read() -> None:
    """The body of an upload is not parsed."""
    assert None is read(flow("/v1/audio/transcriptions", b"--x\r\n", json.dumps({"text": "x"}).encode())).model
