"""What the simulator says that a call used: it follows from the request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Simulator, refusals, reshape, usage

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = "/openai/v1/chat/completions"
LONG = [{"role": "user", "content": "word " * 1100}]
HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def azure(shared: Simulator) -> Simulator:
    shared.reset()
    return shared


@pytest.fixture
def http(azure: Simulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=azure.http_url, headers={"api-key": azure.key}, trust_env=False, timeout=10) as client:
        yield client


def used(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    response = http.post(path, json=body)
    assert 200 == response.status_code, response.text
    return response.json()["usage"]


def test_chats(http: httpx.Client) -> None:
    """Long prompts are cached in steps of 128, a longer retention writes the rest, an effort reasons, audio counts in both directions."""
    plain = used(http, CHAT, {"model": "gpt-4o", "messages": HELLO})
    assert (0, 0) == (plain["prompt_tokens_details"]["cached_tokens"], plain["completion_tokens_details"]["reasoning_tokens"])
    cached = used(http, CHAT, {"model": "gpt-5-mini", "messages": LONG, "reasoning_effort": "high", "prompt_cache_retention": "24h"})
    details = {"audio_tokens": 0, "cache_write_tokens": cached["prompt_tokens"] - 1024, "cached_tokens": 1024}
    assert (details, 256) == (cached["prompt_tokens_details"], cached["completion_tokens_details"]["reasoning_tokens"])
    sound = [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "input_audio", "input_audio": {}}]}]
    spoken = used(http, CHAT, {"model": "gpt-4o", "messages": sound, "modalities": ["text", "audio"], "audio": {"voice": "x"}})
    assert (10, spoken["completion_tokens"] // 3 * 2) == (
        spoken["prompt_tokens_details"]["audio_tokens"],
        spoken["completion_tokens_details"]["audio_tokens"],
    )


def test_responses(http: httpx.Client) -> None:
    """The same for the Responses API; one in the background is completed at its first GET."""
    body = {"model": "gpt-5-mini", "input": "hello there", "reasoning": {"effort": "low"}}
    assert {"reasoning_tokens": 16} == used(http, "/openai/v1/responses", body)["output_tokens_details"]
    begun = http.post("/openai/v1/responses", json={**body, "background": True}).json()
    ended = http.get(f"/openai/v1/responses/{begun['id']}").json()
    assert (True, None, True, "completed") == (begun["background"], begun["usage"], ended["background"], ended["status"])
    assert ended["usage"]["total_tokens"] > 0


def test_images_and_audio(http: httpx.Client) -> None:
    """Images count by their number, audio by its length, and an older model says seconds."""
    drawn = used(http, "/openai/v1/images/generations", {"model": "gpt-image-1", "prompt": "a cat", "n": 2})
    assert (2, 544, 546) == (drawn["input_tokens"], drawn["output_tokens"], drawn["total_tokens"])
    for model, unit in (("whisper", "duration"), ("gpt-4o-transcribe", "tokens")):
        heard = http.post("/openai/v1/audio/transcriptions", data={"model": model}, files={"file": ("a.wav", b"x" * 500)}).json()
        assert unit == heard["usage"]["type"]
    assert 15 == heard["usage"]["input_token_details"]["audio_tokens"]
    assert {"input_tokens": 1, "output_tokens": 20, "total_tokens": 21} == usage.speech({"input": "hi"}, b"x" * 2050)


def test_realtime() -> None:
    """Half of the audio input is cached, and each token that is spoken has two of audio."""
    asked = {"input": [{"content": [{"type": "input_audio"}, {"type": "input_text", "text": "hi"}]}], "output_modalities": ["audio"]}
    found = usage.realtime(asked, 2)
    assert {"text_tokens": 5, "audio_tokens": 7, "image_tokens": 0} == found["input_token_details"]["cached_tokens_details"]
    assert {"text_tokens": 2, "audio_tokens": 4} == found["output_token_details"]
    assert found["total_tokens"] == found["input_tokens"] + found["output_tokens"]


def test_batches(http: httpx.Client) -> None:
    """A batch that is completed says what it used."""
    assert "usage" not in http.get("/openai/v1/batches/batch_1").json()
    ended = http.get("/openai/v1/batches/batch_done_1").json()
    assert ("batch_done_1", "completed", usage.BATCH) == (ended["id"], ended["status"], ended["usage"])


def test_who_answered(azure: Simulator, http: httpx.Client) -> None:
    """A tier is said wherever there is an id; spillover in headers."""
    azure.faults.next(reshape.tier("priority"), reshape.spilled("gpt-4o-paygo"), times=3)
    whole = http.post(CHAT, json={"model": "gpt-4o", "messages": HELLO})
    assert ("priority", "gpt-4o-paygo", "gpt-4o") == (
        whole.json()["service_tier"],
        whole.headers["x-ms-deployment-name"],
        whole.headers["x-ms-spillover-from-gpt-4o"],
    )
    stream = http.post(CHAT, json={"model": "gpt-4o", "messages": HELLO, "stream": True}).text
    assert all('"service_tier":"priority"' in line for line in stream.split("\n\n")[1:-2])
    events = http.post("/openai/v1/responses", json={"model": "gpt-4o", "input": "hi", "stream": True}).text
    assert events.count('"service_tier":"priority"') == events.count('"object":"response"')


def test_where_stream_options_are_refused(azure: Simulator, http: httpx.Client) -> None:
    """By old versions, with data of one's own, and by a deployment that does not know them."""
    body = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    path = "/openai/deployments/gpt-4o/chat/completions?api-version="
    assert 400 == http.post(f"{path}2024-06-01", json=body).status_code
    assert 200 == http.post(f"{path}2024-10-21", json=body).status_code
    own = http.post(f"{path}2024-10-21", json={**body, "data_sources": [{}]})
    assert (400, "Validation error at #/stream_options: Extra inputs are not permitted") == (
        own.status_code,
        own.json()["error"]["message"],
    )
    azure.faults.always(refusals.stream_options, deployment="gpt-4o")
    refused = http.post(f"{path}2024-10-21", json=body)
    assert (400, "Unrecognized request argument supplied: stream_options") == (refused.status_code, refused.json()["error"]["message"])
    assert 200 == http.post(f"{path}2024-10-21", json={"messages": HELLO, "stream": True}).status_code


def test_each_chunk_has_null_with_include_usage(http: httpx.Client) -> None:
    """As Azure has it, in chats and in completions; the last chunk of a chat has Azure's own times too."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for path, body in (
        (CHAT, {"model": "gpt-4o", "messages": HELLO}),
        ("/openai/v1/completions", {"model": "gpt-35-turbo-instruct", "prompt": "hi"}),
    ):
        _, *events, last = [
            json.loads(event.removeprefix("data: ")) for event in http.post(path, json=body | options).text.split("\n\n")[:-2]
        ]
        assert all(event["usage"] is None for event in events)
        assert last["usage"]["total_tokens"]
        assert ("latency_checkpoint" in last) is (path == CHAT)
