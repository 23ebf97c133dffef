"""A session is recorded once; then the same client runs on the recording, with no Azure and no key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from azure_simulator import Delay, Simulator
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Decoy

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the SDK does not

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
DATED = {"role": "system", "content": "Today is {date}."}


def session(url: str, key: str, date: str) -> dict[str, Any]:
    """What a client does, and what it gets. `date` is different each time."""
    got: dict[str, Any] = {}
    said: Any = [{**DATED, "content": DATED["content"].format(date=date)}, {"role": "user", "content": "one two three"}]
    tools: Any = [TOOL]
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        got["chat"] = client.chat.completions.create(model="fast", messages=said, user=date).model_dump()
        stream = client.chat.completions.create(model="fast", messages=said, tools=tools, tool_choice="required", stream=True)
        got["stream"] = [chunk.model_dump() for chunk in stream]
        got["embeddings"] = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"]).model_dump()
        with client.realtime.connect(model="gpt-realtime") as connection:
            events: list[Any] = [connection.recv()]
            connection.session.update(session={"type": "realtime", "instructions": "Be brief."})
            events.append(connection.recv())
            connection.response.create()
            events += [connection.recv() for _ in range(4)]
        got["realtime"] = [event.model_dump() for event in events]
    return got


def recorded(tmp_path: Path, confdir: Path, decoy: Decoy, azure: Simulator) -> tuple[Path, dict[str, Any]]:
    file = tmp_path / "session.flows"
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_model_mapper": "fast=gpt-4o"}
    with Mitmdump(tmp_path / "record", confdir, options=options, args=["-w", str(file)], decoy_port=decoy.port) as recording:
        got = session(recording.url, azure.key, "2026-11-23")
    return file, got


def test_a_session_runs_again_without_azure(tmp_path: Path, confdir: Path, decoy: Decoy) -> None:
    """Chat, a stream with a tool call, embeddings and realtime: the same results, though dates differ, without a request to Azure."""
    with Simulator() as azure:
        file, before = recorded(tmp_path, confdir, decoy, azure)
        url, key = azure.http_url, azure.key
    assert key.encode() not in file.read_bytes()
    args = ["--server-replay", str(file)]
    with Mitmdump(tmp_path / "replay", confdir, args=args, decoy_port=decoy.port) as replaying:
        after = session(replaying.url, "no key at all", "2031-01-01")
        missed = httpx.post(
            f"{replaying.url}/v1/chat/completions", json={"model": "fast", "messages": []}, timeout=PATIENCE, trust_env=False
        )
        tried = list(replaying.connections)
    assert before == after
    assert (404, "not_recorded") == (missed.status_code, missed.json()["error"]["code"])
    assert "Nothing was sent to Azure" in missed.json()["error"]["message"]
    assert [] == [one for one in tried if one in url or "api.openai.com" in one]


def test_a_stream_is_replayed_in_its_pace(tmp_path: Path, confdir: Path, decoy: Decoy) -> None:
    """The chunks come one by one, as they were recorded, and are the same."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}], "stream": True}
    file = tmp_path / "stream.flows"
    with Simulator() as azure:
        azure.faults.always(Delay(0.05, chunk="each"))
        options = {"azure_openai_endpoint": azure.http_url}
        with Mitmdump(tmp_path / "record", confdir, options=options, args=["-w", str(file)], decoy_port=decoy.port) as recording:
            headers = {"api-key": azure.key}
            before = httpx.post(f"{recording.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE, trust_env=False)
    args = ["--server-replay", str(file)]
    with (
        Mitmdump(tmp_path / "replay", confdir, args=args, options={"azure_openai_replay_paced": True}, decoy_port=decoy.port) as replaying,
        httpx.Client(trust_env=False, timeout=PATIENCE) as client,
        client.stream("POST", f"{replaying.url}/v1/chat/completions", json=body) as response,
    ):
        pieces = list(response.iter_raw())
    assert before.content == b"".join(pieces)
    assert len(pieces) > 3
    assert [] == [piece for piece in pieces[:-1] if b"[DONE]" in piece]


def test_an_error_is_replayed(tmp_path: Path, confdir: Path, decoy: Decoy) -> None:
    """As the client saw it."""
    body = json.dumps({"model": "nothing", "messages": [{"role": "user", "content": "hi"}]}).encode()
    file = tmp_path / "error.flows"
    with Simulator() as azure:
        options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": azure.key}
        with Mitmdump(tmp_path / "record", confdir, options=options, args=["-w", str(file)], decoy_port=decoy.port) as recording:
            before = httpx.post(f"{recording.url}/v1/chat/completions", content=body, timeout=PATIENCE, trust_env=False)
    with Mitmdump(tmp_path / "replay", confdir, args=["--server-replay", str(file)], decoy_port=decoy.port) as replaying:
        after = httpx.post(f"{replaying.url}/v1/chat/completions", content=body, timeout=PATIENCE, trust_env=False)
    assert (404, before.json()) == (after.status_code, after.json())
