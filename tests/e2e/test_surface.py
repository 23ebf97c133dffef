"""Responses other than chats: typed events, binary bodies, addresses, and unchanged files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from azure_simulator import Gate
from azure_simulator.binary import BYTES, JSONL
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator import Simulator
    from conftest import Proxies


@pytest.fixture(params=["2024-10-21", "2025-04-01-preview", "v1"])
def client(request: pytest.FixtureRequest, azure: Simulator, proxy: Proxies) -> Iterator[httpx.Client]:
    through = proxy(azure_openai_apiversion=request.param)
    headers = {"authorization": f"Bearer {azure.key}"}
    with httpx.Client(base_url=through.url, headers=headers, trust_env=False, timeout=PATIENCE) as client:
        yield client


RESPONSE = {"model": "gpt-4o", "input": "one two three"}


def test_a_response_is_openais(client: httpx.Client) -> None:
    """It has nothing of the content filter, and all of the rest."""
    answer = client.post("/v1/responses", json=RESPONSE).json()

    assert "content_filters" not in answer
    assert ("response", "You said: one two three") == (answer["object"], answer["output"][0]["content"][0]["text"])


def test_typed_events_keep_their_names_and_come_one_by_one(client: httpx.Client, azure: Simulator) -> None:
    """While Azure holds back the third event, two are here; no event has anything of the filter, and none says [DONE]."""
    gate = Gate(before=2)
    azure.faults.next(gate)
    text = ""
    with client.stream("POST", "/v1/responses", json=RESPONSE | {"stream": True}) as answer:
        for piece in answer.iter_text():
            text += piece
            if "response.in_progress" in text and text.endswith("\n\n"):
                gate.release()

    events = [dict(line.split(": ", 1) for line in event.split("\n")) for event in text.strip().split("\n\n")]
    assert [event["event"] for event in events] == [json.loads(event["data"])["type"] for event in events]
    assert ["response.created", "response.completed"] == [events[0]["event"], events[-1]["event"]]
    assert "content_filter" not in text
    assert "[DONE]" not in text


def test_images_have_nothing_of_the_filter(client: httpx.Client) -> None:
    """Nor do their parts."""
    answer = client.post("/v1/images/generations", json={"model": "gpt-image-1", "prompt": "a corgi"}).json()

    assert [["b64_json"]] == [list(image) for image in answer["data"]]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/v1/files/file-1/content", BYTES),
        ("/v1/files/jsonl/content", JSONL),
        ("/v1/containers/c/files/f/content", BYTES),
        ("/v1/skills/s/content", BYTES),
        ("/v1/skills/s/versions/1/content", BYTES),
        ("/v1/videos/v/content", BYTES),
        ("/v1/live/sessions/s/content", BYTES),
    ],
)
def test_downloads_come_byte_for_byte(path: str, expected: bytes, client: httpx.Client) -> None:
    """What a file has is the file's, even where it looks like something of Azure's."""
    assert expected == client.get(path).content


def test_speech_streams(client: httpx.Client, azure: Simulator) -> None:
    """The first bytes are here while Azure holds back the next."""
    gate = Gate(before=1)
    azure.faults.next(gate)
    with client.stream("POST", "/v1/audio/speech", json={"model": "tts-1", "input": "hello", "voice": "alloy"}) as answer:
        pieces = answer.iter_raw()
        first = next(pieces)
        gate.release()
        rest = b"".join(pieces)

    assert ("audio/mpeg", bytes(range(256)) * 8 + b"hello") == (answer.headers["content-type"], first + rest)


def test_transcriptions_stream(client: httpx.Client) -> None:
    """Their events have their names in the data; a [DONE] of Azure's does no harm."""
    form = {"model": "whisper-1", "stream": "true"}
    answer = client.post("/v1/audio/transcriptions", data=form, files={"file": ("a.wav", b"RIFF")})
    if answer.status_code == 400:  # the GA version has no streams here
        assert "stream" in answer.json()["error"]["message"]
        return

    data = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
    assert ["transcript.text.delta", "transcript.text.done"] == list(dict.fromkeys(value["type"] for value in data))


def test_an_address_at_azure_is_the_proxy_s(client: httpx.Client) -> None:
    """A call is where the client asked for it, and not at Azure."""
    session = (None, '{"type":"realtime","model":"gpt-realtime"}', "application/json")
    answer = client.post("/v1/realtime/calls", files={"sdp": (None, "v=0", "application/sdp"), "session": session})

    assert 201 == answer.status_code
    assert client.base_url.join("/v1/realtime/calls/rtc_1") == client.base_url.join(answer.headers["location"])
    assert answer.text.startswith("v=0")


def test_what_openai_adds_tomorrow_goes_to_v1(client: httpx.Client, azure: Simulator) -> None:
    """No row names it; Azure's 404 comes back in OpenAI's shape."""
    answer = client.post("/v1/dreams/{dream_id}/replay?a=b", json={"model": "gpt-4o"})

    assert ("POST", "/openai/v1/dreams/%7Bdream_id%7D/replay?a=b") == (azure.requests[0].method, azure.requests[0].path)
    assert (404, "invalid_request_error") == (answer.status_code, answer.json()["error"]["type"])


@pytest.mark.parametrize("path", ["/v1/dashboard/billing/subscription", "/dashboard/billing/subscription"])
def test_front_ends_find_their_billing(path: str, client: httpx.Client, azure: Simulator) -> None:
    """With and without /v1 they get what they look for, and Azure is not asked."""
    assert "hard_limit_usd" in client.get(path).json()
    assert [] == azure.requests
