"""The responses of a WebSocket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from azure_openai_proxy.accounting import usage
from azure_openai_proxy.accounting.record import Tokens
from azure_openai_proxy.accounting.socket_responses import MOST, EndedResponse, SocketResponses
from azure_openai_proxy.accounting.usage import Reported
from azure_openai_proxy.api import operation

USAGE = {"input_tokens": 3, "output_tokens": 4}


def of(path: str) -> SocketResponses:
    call = operation.recognise("WS", path, {}, query="model=m")
    assert call
    return SocketResponses(call)


@pytest.fixture
def realtime() -> SocketResponses:
    return of("/v1/realtime")


@pytest.fixture
def responses() -> SocketResponses:
    return of("/v1/responses")


def message(type: str, **members: Any) -> bytes:
    return json.dumps({"type": type, **members}).encode()


def test_a_response(realtime: SocketResponses) -> None:
    """It begins with the client's request, and ends with its usage."""
    realtime.sent(message("session.update"), 0.5)
    realtime.sent(message("response.create"), 1.0)
    assert realtime.received(message("response.created", response={"id": "r"}), 1.5) is None
    assert realtime.received(message("response.output_text.delta", delta="a"), 2.0) is None
    assert realtime.received(message("response.output_text.delta", delta="b"), 3.0) is None
    ended = realtime.received(message("response.done", response={"id": "r", "status": "completed", "usage": USAGE}), 4.0)
    assert ended
    assert (1.0, 2.0, 4.0, 200) == (ended.started, ended.first, ended.ended, ended.status)
    assert Tokens(input=3, output=4) == ended.reported.tokens
    assert [] == realtime.left(5.0)


def test_responses_overlap(realtime: SocketResponses) -> None:
    """Each response has its own start. One that the server began by itself starts with its first message."""
    for id, at in (("a", 1.0), ("b", 2.0)):
        realtime.received(message("response.created", response={"id": id}), at)
    ended = [realtime.received(message("response.done", response={"id": id, "usage": USAGE}), 3.0) for id in ("b", "a", "unknown")]
    assert [2.0, 1.0, 3.0] == [one.started for one in ended if one]


@pytest.mark.parametrize("end", ["response.done", "error"])
def test_large_messages_are_not_parsed_as_a_whole(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id of a response and an error are found in a bounded part of the message, whatever it has beside them."""
    parsed: list[int] = []
    decode = json.JSONDecoder.raw_decode

    def counting(self: json.JSONDecoder, text: str, idx: int = 0) -> tuple[Any, int]:
        parsed.append(len(text))
        return decode(self, text, idx)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counting)
    monkeypatch.setattr(usage, "_decode", json.JSONDecoder().raw_decode)
    responses, long = of("/v1/responses"), ["a"] * 1_000_000
    assert responses.received(message("response.created", response={"id": "r", "instructions": long}), 1.0) is None
    if end == "error":
        ended = responses.received(message("error", status=429, error={"code": "rate_limit_exceeded"}, details=long), 2.0)
    else:
        ended = responses.received(message(end, response={"id": "r", "output": long, "status": "completed"}), 2.0)
    assert ended
    assert (1.0, 200 if end == "response.done" else 429) == (ended.started, ended.status)
    assert 0 < sum(parsed) < 1 << 20  # of messages of 5 MB


def test_a_response_without_usage(realtime: SocketResponses) -> None:
    """It has ended nevertheless, once."""
    realtime.received(message("response.created", response={"id": "r"}), 1.0)
    assert realtime.received(message("response.done", response={"id": "other"}), 2.0) is None
    assert EndedResponse(1.0, None, 3.0, Reported(id="r")) == realtime.received(message("response.done", response={"id": "r"}), 3.0)
    assert realtime.received(message("response.done", response={"id": "r"}), 3.0) is None


@pytest.mark.parametrize(
    "event, status",
    [({"status": 429}, 429), ({"status": 200}, 500), ({"status": "429"}, 500), ({}, 500)],
    ids=["a status", "a status of success", "a text", "none"],
)
def test_an_error_ends_a_response_of_the_responses_api(event: dict[str, Any], status: int, responses: SocketResponses) -> None:
    """The response has the status and the code of the error, and nothing of the response before it."""
    responses.received(message("response.created", response={"id": "a"}), 1.0)
    responses.received(message("response.completed", response={"id": "a", "model": "m", "usage": USAGE}), 2.0)
    responses.sent(message("response.create"), 3.0)
    ended = responses.received(message("error", error={"code": "slow_down"}, **event), 4.0)
    assert EndedResponse(3.0, None, 4.0, Reported(error_code="slow_down"), status) == ended
    assert [] == responses.left(5.0)


def test_an_error_during_a_response(responses: SocketResponses) -> None:
    """It ends the response that runs."""
    responses.received(message("response.created", response={"id": "a"}), 1.0)
    ended = responses.received(message("error", status=500, error={"code": "x"}), 2.0)
    assert ended
    assert 1.0 == ended.started
    assert [] == responses.left(3.0)


def test_a_session_of_realtime_goes_on_after_an_error(realtime: SocketResponses) -> None:
    """Such an error is about a message of the client, not about a response."""
    assert realtime.received(message("error", error={"code": "x"}), 1.0) is None


def test_the_end_of_the_websocket_cuts_responses_off(realtime: SocketResponses) -> None:
    """What was sent of them has no usage."""
    realtime.received(message("response.created", response={"id": "r"}), 1.0)
    realtime.received(message("response.output_audio.delta", delta="a"), 2.0)
    assert [EndedResponse(1.0, 2.0, 9.0, Reported(id="r"))] == realtime.left(9.0)
    assert [] == realtime.left(9.0)


@pytest.mark.parametrize(
    "content",
    [
        b'"response.created"',
        b'"response.created" \xff',
        b'["response.created"]',
        message("response.created"),
        message("response.created", response={"id": 7}),
        message("response.created", response={"id": "x" * 300}),
        message("response.created", response={"id": ""}),
        b"[" * 100_000 + b'"response.created"',
    ],
)
def test_a_message_that_is_not_valid(content: bytes, realtime: SocketResponses) -> None:
    """It begins nothing."""
    assert realtime.received(content, 1.0) is None
    assert [] == realtime.left(2.0)


def test_the_number_of_responses_is_bounded(realtime: SocketResponses) -> None:
    """An upstream that begins responses without end uses bounded memory."""
    for number in range(2 * MOST):
        realtime.received(message("response.created", response={"id": str(number)}), 1.0)
    assert MOST == len(realtime.left(2.0))
