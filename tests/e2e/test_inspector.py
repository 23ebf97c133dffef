"""Calls as threads, through a real mitmdump with two backends: the reasons of cache misses, sessions, and the command on the saved file."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from mitmproxy import http, io
from websockets.sync.client import ClientConnection, connect

from azure_simulator import PromptCache, Simulator, planned, status
from support.mitmweb import mitmweb
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Decoy

type Json = dict[str, Any]

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}
    for name in ("look", "count", "ask")
]
DAY = 24 * 3600.0
BREAKS = {
    "tool order": "tools",
    "another tool": "tools",
    "a date in the system prompt": "system",
    "a space": "system",
    "an edited message": "message",
    "a reformatted answer": "message",
    "dropped messages": "message",
    "model": "model",
    "response format": "response_format",
    "failover": "backend",
    "expiry": "expired",
    "cache key": "prompt_cache_key",
    "nothing": None,
}


def facts(name: str) -> str:
    """A text of more than 1,024 tokens that begins with the name, so that no other conversation shares its prompt."""
    return f"{name}: " + "the archive has forty rooms and each has a list. " * 120


class World:
    """Two resources behind a mitmdump that saves its flows."""

    def __init__(self, west: Simulator, east: Simulator, proxy: Mitmdump) -> None:
        self.west, self.east = west, east
        self.later = 0.0  # seconds that the caches are ahead of the clock
        self.http = httpx.Client(base_url=f"{proxy.url}/v1", timeout=PATIENCE, trust_env=False)
        for azure in (west, east):
            azure.script, azure.prompt_cache = planned, PromptCache(lambda: time.time() + self.later)

    def chat(self, body: Json, **headers: str) -> Json:
        """Send a chat. Return the answer as a message of the next one."""
        response = self.http.post("/chat/completions", json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})
        message: Json = response.raise_for_status().json()["choices"][0]["message"]
        return {name: message[name] for name in ("role", "content", "tool_calls") if message.get(name) or name == "content"}

    def conversation(self, name: str) -> None:
        """Two calls, a change, another call that misses the cache, and one that finds it again."""
        body: Json = {"model": "gpt-4o", "tools": copy.deepcopy(TOOLS), "messages": [{"role": "system", "content": facts(name)}]}
        for turn in range(5):
            body["messages"].append({"role": "user", "content": f"{name} {turn} " + "and more words " * 60})
            if turn == 3:
                self.change(name, body)
            body["messages"].append(self.chat(body))

    def change(self, name: str, body: Json) -> None:
        messages = body["messages"]
        match name:
            case "tool order":
                body["tools"].reverse()
            case "another tool":
                body["tools"].pop()
            case "a date in the system prompt":
                messages[0]["content"] = f"2026-11-28 {messages[0]['content']}"
            case "a space":
                messages[0]["content"] = messages[0]["content"].replace(" ", "  ", 1)
            case "an edited message":
                messages[1]["content"] += "edited"
            case "a reformatted answer":
                messages[2]["content"] += "\n"
            case "dropped messages":
                del messages[1:3]
            case "model":
                body["model"] = "gpt-4.1"
            case "response format":
                body["response_format"] = {"type": "text"}
            case "failover":
                self.west.faults.next(status(503))
            case "expiry":
                self.later += DAY + 60
            case "cache key":
                body["prompt_cache_key"] = "new"


def record(world: World) -> None:
    """All conversations of the tests."""
    for name in BREAKS:
        if name != "failover":
            world.conversation(name)
    # A session with two helpers that have the same prompt, and a retry of the main conversation.
    main: Json = {"model": "gpt-4o", "tools": TOOLS, "messages": [{"role": "user", "content": "session {look count} {ask}"}]}
    for _ in range(2):
        main["messages"].append(answer := world.chat(main, x_session_id="s-1"))
        main["messages"] += [{"role": "tool", "tool_call_id": call["id"], "content": "found"} for call in answer["tool_calls"]]
    helpers: list[Json] = [{"model": "gpt-4o", "messages": [{"role": "user", "content": "help"}]} for _ in range(2)]
    for helper in helpers:
        helper["messages"].append(world.chat(helper, x_session_id="s-1"))
    for helper in helpers:
        helper["messages"].append({"role": "user", "content": "more"})
        world.chat(helper, x_session_id="s-1")
    for azure in (world.west, world.east):
        azure.faults.next(status(400))
    assert 400 == world.http.post("/chat/completions", json=main, headers={"x-session-id": "s-1"}).status_code
    for azure in (world.west, world.east):
        azure.faults.clear()
    world.chat(main, x_session_id="s-1")
    # A stream, a chain of responses, and embeddings.
    stream = {"model": "gpt-4o", "messages": [{"role": "user", "content": "stream"}], "stream": True}
    assert "[DONE]" in world.http.post("/chat/completions", json=stream).text
    first = world.http.post("/responses", json={"model": "gpt-4o", "input": "chain", "instructions": facts("chain")}).json()
    more = {"model": "gpt-4o", "input": "go on", "instructions": facts("chain"), "previous_response_id": first["id"]}
    assert "response.completed" in world.http.post("/responses", json={**more, "stream": True}).text
    assert 200 == world.http.post("/embeddings", json={"model": "text-embedding-3-small", "input": "x"}).status_code
    world.conversation("failover")  # at the end: the first backend is used again at a time that depends on the machine


@pytest.fixture(scope="module")
def file(confdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved flows. The conversation whose cache has expired took place on two days."""
    home = tmp_path_factory.mktemp("inspector")
    with Simulator() as west, Simulator() as east:
        entries = [
            {"name": name, "endpoint": azure.http_url, "token": azure.key, "priority": priority}
            for name, azure, priority in (("west", west, 1), ("east", east, 2))
        ]
        (home / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}))
        with Mitmdump(home, confdir, options={"save_stream_file": home / "flows"}) as proxy:
            world = World(west, east, proxy)
            with world.http:
                record(world)
    with (home / "flows").open("rb") as saved:
        flows = [flow for flow in io.FlowReader(saved).stream() if isinstance(flow, http.HTTPFlow)]
    with (home / "session.flows").open("wb") as changed:
        for flow in flows:
            if b"expiry 3" in (flow.request.raw_content or b"") and flow.response and flow.response.timestamp_end:
                flow.request.timestamp_start += DAY + 60
                flow.response.timestamp_end += DAY + 60
            io.FlowWriter(changed).add(flow)
    return home / "session.flows"


def inspect(file: Path, *arguments: str) -> str:
    """The output of the command, in a process without settings."""
    command = [sys.executable, "-m", "azure_openai_proxy.cli.command", "inspect", str(file), *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")} | {"HOME": str(file.parent)}
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=file.parent.parent, env=env).stdout


@pytest.fixture(scope="module")
def found(file: Path) -> Json:
    report: Json = json.loads(inspect(file, "--format", "json"))
    return report


def titled(found: Json, title: str) -> list[Json]:
    return [thread for thread in found["threads"] if thread["title"] == title]


@pytest.mark.parametrize(("name", "block"), BREAKS.items())
def test_each_miss_has_its_reason(name: str, block: str | None, found: Json) -> None:
    """The fourth call of each conversation misses the cache for the named reason, and no other call misses it."""
    (thread,) = [one for one in found["threads"] if one["title"].startswith(f"{name} 0 ")]
    verdicts = [call["cache"] for call in thread["calls"]]
    found_again = verdicts[4:] if name != "failover" else []
    blocks = [(verdict["broken_by"] or {}).get("block") for verdict in (*verdicts[:4], *found_again)]
    assert [None, None, None, block, *(None for _ in found_again)] == blocks
    assert all(verdict["expected_tokens"] >= 1024 for verdict in verdicts[1:])
    if block == "message":
        assert {"an edited message": 1, "a reformatted answer": 2, "dropped messages": 1}[name] == verdicts[3]["broken_by"]["index"]
    if name == "failover":
        assert (["west", "east"], 2) == ([call["backend"] for call in thread["calls"][2:4]], thread["calls"][3]["attempts"])
    assert not thread["incomplete"]
    assert thread["cost_usd"] > 0


def test_a_session_with_helpers_and_a_retry(found: Json) -> None:
    """A session is a thread with two children of the same prompt, and a failed call and its retry are calls of it."""
    (main,) = titled(found, "session {look count} {ask}")
    helpers = titled(found, "help")
    assert [helper["id"] for helper in helpers] == main["children"]
    assert [2, 2] == [len(helper["calls"]) for helper in helpers]
    assert [(["look", "count"], 200), (["ask"], 200), ([], 400), ([], 200)] == [
        (call["tool_calls"], call["status"]) for call in main["calls"]
    ]
    assert ([False, False, False, True], 1, False) == ([call["retry"] for call in main["calls"]], main["errors"], main["incomplete"])
    assert [1, 3, 2, 0] == [call["new_messages"] for call in main["calls"]]
    assert 0 == main["calls"][2]["cost_usd"]


def test_other_calls(found: Json) -> None:
    """A stream has known tokens though the client did not ask, a chain of responses uses its cache, and embeddings are single."""
    (stream,) = titled(found, "stream")
    assert (False, 320) == (stream["incomplete"], stream["calls"][0]["latency_ms"]["azure"]["service_ttft_ms"])
    (chain,) = titled(found, "chain")
    assert [None, None] == [call["cache"]["broken_by"] for call in chain["calls"]]
    assert chain["calls"][1]["cache"]["cached_tokens"] >= chain["calls"][1]["cache"]["expected_tokens"] >= 1024
    assert ["embeddings"] == [call["operation"] for call in found["single_calls"]]


def test_the_command_writes_each_format(file: Path, found: Json) -> None:
    """One thread as text, HTML, Markdown and JSONL, without the names of the tools that a pattern removes."""
    (main,) = titled(found, "session {look count} {ask}")
    for format in ("text", "html", "markdown", "jsonl"):
        text = inspect(file, "--thread", main["id"][:13], "--format", format, "--redact", "lo+k,found")
        assert "count" in text
        assert "look" not in text
        assert "found" not in text


def test_the_commands_in_mitmweb(azure: Simulator, decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """The commands show the threads of the list, and write one without keys."""
    azure.prompt_cache = PromptCache()
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": azure.key}
    with mitmweb(tmp_path, confdir, decoy.port, **options) as web:
        with httpx.Client(base_url=f"{web.proxy.url}/v1", timeout=PATIENCE, trust_env=False) as client:
            body: Json = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": facts("web") + azure.key}]}
            for system in ("", "be good"):
                given = {**body, "messages": [*([{"role": "system", "content": system}] if system else []), *body["messages"]]}
                assert 200 == client.post("/chat/completions", json=given).status_code
                body["messages"] += [{"role": "assistant", "content": "fine"}, {"role": "user", "content": "go on"}]
        assert "2 calls" in web.command("azure.threads")
        assert "the system prompt changed" in web.command("azure.cache", "@all")
        assert "── user\ngo on" in web.command("azure.thread", "@focus")
        assert "≠ system 0: inserted" in web.command("azure.diff", "@all")
        file = tmp_path / "shared"
        assert web.command("azure.share", "jsonl", "@all", str(file)).startswith(f"Written to {file}; removed: 1 key")
        (line,) = file.read_text().splitlines()
        assert azure.key not in line
        assert ["system", "user", "assistant", "user", "assistant"] == [message["role"] for message in json.loads(line)["messages"]]


def test_a_websocket_in_mitmweb(azure: Simulator, decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """Each response of a WebSocket is a call, and one that names another continues its thread, also while the WebSocket is open."""
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": azure.key, "azure_openai_model_mapper": "chat=gpt-4o"}
    with mitmweb(tmp_path, confdir, decoy.port, **options) as web:
        asked: Json = {"type": "response.create", "model": "chat", "input": "say something", "instructions": "be brief"}
        with connect(web.proxy.url.replace("http", "ws", 1) + "/v1/responses", open_timeout=PATIENCE, close_timeout=PATIENCE) as client:
            first = _response(client, asked)
            _response(client, {**asked, "input": "and more", "previous_response_id": first["id"]})
            _response(client, {**asked, "input": "another thing"})
            _response(client, {**asked, "model": "none"})
            overview = web.command("azure.threads")
            assert ["say something", "another thing"] == re.findall(r"^[ \w.-]*  (say something|another thing)$", overview, re.MULTILINE)[
                :2
            ]
            shown = web.http.get("/azure/api/threads").raise_for_status().json()["threads"]
            assert sorted([2, 1, 1]) == sorted(one["call_count"] for one in shown)
        id = next(one["id"] for one in shown if one["call_count"] == 2)
        thread = web.http.get("/azure/api/thread", params={"id": id}).raise_for_status().json()
        one, two = thread["calls"]
        assert [("system", "be brief"), ("user", "say something")] == [(block["kind"], block["text"]) for block in one["new"]]
        assert [("user", "and more")] == [(block["kind"], block["text"]) for block in two["new"]]
        assert (200, 2, id.partition(".")[0]) == (two["status"], two["output_tokens"], two["flow"])
        assert "another thing" in web.command("azure.thread", "@all")


def _response(client: ClientConnection, asked: Json) -> Json:
    """Request a response, and return it at its end."""
    client.send(json.dumps(asked))
    while True:
        event: Json = json.loads(client.recv(timeout=PATIENCE))
        if event["type"] in ("response.completed", "error"):
            return dict(event.get("response", event))
