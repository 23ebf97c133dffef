"""The response from Azure: how much of it is held back, and its translation for the client."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
from mitmproxy import http

from azure_openai_proxy.api.response import ResponseStream
from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.egress.interface import Hold
from azure_openai_proxy.routing.decisions import GIVE_UP
from support.exchanges import FILTERED, answering, asking, chat, exchange, sent, two_backends


@pytest.mark.parametrize(
    ("body", "status", "content_type", "streams"),
    [
        (chat(stream=True), 200, "text/event-stream", True),
        (chat(), 200, "text/event-stream; charset=utf-8", True),
        (chat(stream=True), 200, None, True),
        (chat(stream=True), 200, "text/plain", True),
        (chat(stream=True), 200, "application/json", False),
        (chat(stream=True), 400, "text/event-stream", False),
        (chat(), 200, "application/json", False),
        (chat(), 200, None, False),
    ],
)
def test_what_streams(body: bytes, status: int, content_type: str | None, streams: bool) -> None:
    """Decided from the request and the response; an error never streams."""
    response = answering(status, b"", content_type)
    sent(body).response_head(response)
    assert streams == isinstance(response.stream, ResponseStream)


@pytest.mark.parametrize(
    ("path", "method", "content_type"),
    [("/v1/audio/speech", "POST", "audio/mpeg"), ("/v1/files/f/content", "GET", "application/json"), ("/v1/new", "GET", "text/csv")],
)
def test_what_is_opaque_passes(path: str, method: str, content_type: str) -> None:
    """Sound, files and unknown types are not read, whatever their size."""
    response = answering(200, b"", content_type)
    sent(chat() if method == "POST" else b"", path, method).response_head(response)
    assert response.stream is True


def test_an_answer_with_a_secret_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes, and yet it is remembered who made what it names."""
    made: list[bytes] = []
    monkeypatch.setattr("azure_openai_proxy.routing.attempts.Attempts.created", lambda _, answer: made.append(answer))
    response = answering(200, b"")
    sent(b"{}", "/v1/webhook_endpoints").response_head(response)
    assert callable(response.stream)
    passed = [response.stream(piece) for piece in (b'{"id":', b'"we_1"}', b"")]
    assert ([[b'{"id":'], [b'"we_1"}'], []], [b'{"id":"we_1"}']) == (passed, made)


@pytest.mark.parametrize(("path", "done"), [("/v1/chat/completions", True), ("/v1/responses", False)])
def test_only_chats_end_in_done(path: str, done: bool) -> None:
    """Typed events have an end of their own."""
    response = answering(200, b"", "text/event-stream")
    sent(chat(stream=True), path).response_head(response)
    assert callable(response.stream)
    response.stream(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
    assert done == (b"data: [DONE]\n\n" in response.stream(b""))


def test_an_answer_is_shaped() -> None:
    """What Azure added goes, and a page may read the rest."""
    asked, response = sent(), answering(200, FILTERED)
    asked.response_head(response)
    asked.response_body(response)
    assert b'{"choices":[{"index":0}],"model":"gpt-4o"}' == response.content
    assert "https://page.example" == response.headers["access-control-allow-origin"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {"content-length": "42"}),
        ({"transfer-encoding": "chunked"}, {"transfer-encoding": "chunked"}),
        ({"content-encoding": "gzip"}, {"content-encoding": "gzip"}),
    ],
)
def test_a_changed_body_is_framed_as_azures(headers: dict[str, str], expected: dict[str, str]) -> None:
    """It has a length of its own, or is chunked if Azure's was, and keeps the content coding."""
    exchanged, response = sent(), answering(200, b"", **headers)
    response.headers.pop("content-length", None)
    if "transfer-encoding" in headers:
        response.raw_content = FILTERED
    else:
        response.content = FILTERED  # encoded, and with its length
    exchanged.response_head(response)
    exchanged.response_body(response)
    assert {"choices": [{"index": 0}], "model": "gpt-4o"} == response.json()
    framing = {
        name: value for name, value in response.headers.items() if name in ("content-length", "transfer-encoding", "content-encoding")
    }
    if "content-encoding" in headers:
        assert str(len(response.raw_content or b"")) == framing.pop("content-length")
    assert expected == framing


@pytest.mark.parametrize(("normalize", "body"), [(False, FILTERED), (True, b'{"object":"list"}')])
def test_an_answer_that_needs_no_change_has_none(normalize: bool, body: bytes) -> None:
    """Also if normalization is off."""
    asked, response = sent(normalize=normalize), answering(200, body)
    asked.response_head(response)
    asked.response_body(response)
    assert body == response.content


def test_a_compressed_answer_is_shaped() -> None:
    """And stays compressed."""
    asked, response = sent(), answering(200, FILTERED)
    response.encode("gzip")
    asked.response_head(response)
    asked.response_body(response)
    assert b'{"choices":[{"index":0}],"model":"gpt-4o"}' == response.content
    assert "gzip" == response.headers["content-encoding"]


@pytest.mark.parametrize("status", [200, 400])
def test_a_bomb_is_not_read(status: int) -> None:
    """A good answer that becomes too large is an error instead, and an error has no text."""
    asked = sent()
    response = answering(status, b"")
    response.headers["content-encoding"] = "gzip"
    response.raw_content = gzip.compress(bytes(20 << 20))
    asked.response_head(response)
    asked.response_body(response)
    error = json.loads(response.content or b"")["error"]
    assert 1000 > len(response.raw_content)
    if status == 200:
        assert (502, "upstream_error", None) == (response.status_code, error["code"], response.headers.get("content-encoding"))
        assert "decompress to more than 16,777,216" in error["message"]
    else:
        assert (400, "Azure answered 400 Bad Request and gave no reason.") == (response.status_code, error["message"])


def test_an_error_is_shaped() -> None:
    """With the model that was asked for, those that are configured, and no key."""
    asked, response = sent(), answering(404, b'{"error":{"code":"DeploymentNotFound","message":"client"}}', "text/plain")
    asked.response_head(response)
    asked.response_body(response)
    error = json.loads(response.content or b"")["error"]
    assert "model_not_found" == error["code"]
    assert "gpt-4o" in error["message"]
    assert "client" not in error["message"]
    assert "application/json" == response.headers["content-type"]


def test_addresses_in_the_answer_are_the_proxys() -> None:
    """In its headers and in its body."""
    asked, response = (
        sent(chat()),
        answering(200, b'{"next":"https://r.openai.azure.com/openai/v1/files?after=1"}', location="/openai/v1/x"),
    )
    asked.response_head(response)
    asked.response_body(response)
    assert ("/v1/x", b'{"next":"http://localhost:8080/v1/files?after=1"}') == (response.headers["location"], response.content)


def test_what_is_held() -> None:
    """Failures and JSON until they are complete, streams until they have begun, other responses and those of no attempt not at all."""
    asked = exchange()
    assert (Hold.NOTHING, GIVE_UP) == (asked.hold_mode(answering(503, b"")), asked.next_attempt(asking("GET", "/"), answering(503, b"")))
    asked.request(asking("POST", "/v1/chat/completions", chat(stream=True)))
    assert (Hold.FAILURE, Hold.WHOLE) == (asked.hold_mode(answering(503, b"")), asked.hold_mode(answering(200, b"{}")))
    assert isinstance(asked.hold_mode(answering(200, b"", "text/event-stream")), Peek)


def test_sound_is_not_held() -> None:
    """A response that is neither JSON nor a stream of events passes as it comes."""
    asked = exchange()
    asked.request(asking("POST", "/v1/audio/speech", chat(input="hello", voice="alloy")))
    assert Hold.NOTHING is asked.hold_mode(answering(200, b"RIFF", "audio/wav"))


def test_how_long_the_beginning_of_a_stream_is_held() -> None:
    """Until its first output while another backend could take the request, and for a moment if an earlier one failed in its stream."""
    created = b'event: response.created\ndata: {"type":"response.created"}\n\n'
    response = answering(200, b"", "text/event-stream")
    for in_stream in (True, False):
        asked = two_backends()
        asked.settings = replace(asked.settings, hold_stream=7.0)
        request = asking("POST", "/v1/chat/completions", chat(stream=True))
        asked.request(request)
        first = asked.hold_mode(response)
        assert isinstance(first, Peek)
        assert (7.0, None) == (first.seconds, first.feed(created))
        if in_stream:
            assert first.feed(b'data: {"error":{"code":"server_error"}}\n\n')
        asked.next_attempt(request, answering(503, b""))
        second = asked.hold_mode(response)
        assert isinstance(second, Peek)
        assert (1.0 if in_stream else 7.0, in_stream) == (second.seconds, second.feed(created) is None)


def test_a_filtered_prompt_is_not_to_be_sent_again() -> None:
    """It would be filtered the second time as well."""
    asked = exchange()
    asked.request(asking("POST", "/v1/chat/completions", chat()))
    response = answering(400, b'{"error":{"code":"content_filter","message":"filtered"}}')
    asked.response_head(response)
    asked.response_body(response)
    assert "false" == response.headers["x-should-retry"]


def test_the_usage_of_a_stream_is_hidden() -> None:
    """The usage is requested from Azure where it is needed, and the client that did not ask for it does not see it."""
    sent = exchange(token="configured")
    sent.reads_usage = True
    request = asking("POST", "/v1/chat/completions", chat(stream=True))
    assert sent.request(request) is None
    assert {"include_usage": True} == json.loads(request.content or b"")["stream_options"]
    response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
    sent.response_head(response)
    assert callable(response.stream)
    event = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null,"index":0}]%b}\n\n'
    assert [event % b""] == response.stream(event % b',"usage":null')
    assert [] == response.stream(b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n')
