"""Sessions that real agents have recorded against the simulator, as threads. `sessions/record.py` records them."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import io as flow_io

from azure_openai_proxy.inspection.sharing.share import share
from azure_openai_proxy.inspection.threads import details
from azure_openai_proxy.inspection.threads.store import Threads

if TYPE_CHECKING:
    from support.conversations import Json

FOLDER = Path(__file__).parents[3] / "sessions"


class Session:
    """A recorded session and its threads."""

    def __init__(self, name: str) -> None:
        content = gzip.decompress((FOLDER / f"{name}.flows.gz").read_bytes())
        self.flows = list(flow_io.FlowReader(io.BytesIO(content)).stream())
        self.threads = Threads()
        list(self.threads.load(self.flows))
        self.found: list[Json] = self.threads.report()["threads"]


def shape(thread: Json) -> list[Any]:
    """The tools that each call asks for, and why its cache was not used."""
    return [(call["tool_calls"], (call["cache"]["broken_by"] or {}).get("block")) for call in thread["calls"]]


@pytest.mark.parametrize("name", ["agents-responses", "agents-chat"])
def test_openai_agents(name: str) -> None:
    """An agent with parallel tools, a helper as a tool and a handoff is one thread with a child, in both APIs."""
    session = Session(name)
    main, helper = session.found
    assert [helper["id"]] == main["children"]
    assert (main["id"], "Check the list of boxes", "gpt-4.1-mini") == (helper["parent"], helper["title"], helper["model"])
    assert [
        (["look", "count"], None),
        (["ask_helper"], None),
        (["transfer_to_writer"], None),
        (["note"], "tools"),
        ([], None),
    ] == shape(main)
    assert [False, False, False, True, False] == [call["handoff"] for call in main["calls"]]
    assert all(
        call["cache"]["cached_tokens"] == call["cache"]["expected_tokens"] >= 1024 for call in (*main["calls"][1:3], main["calls"][4])
    )
    assert (False, 0) == (main["incomplete"], main["errors"])
    assert main["title"].startswith("Find out how many boxes there are.")
    first, second = details.thread(session.threads, main["id"])["calls"][:2]
    called = [block for block in first["answer"] if block["kind"] == "tool_call"]
    assert ["There is a list at shelf.", "There are 42 boxes."] == [block["result"]["text"] for block in called]
    assert [] == [block["kind"] for block in second["new"] if not block.get("beside_call")]


def test_codex() -> None:
    """Codex with two shell commands is one thread, titled with the user's question, and its repairs are known."""
    session = Session("codex")
    (thread,) = session.found
    assert [(["exec_command"], None), (["exec_command"], None), ([], None)] == shape(thread)
    assert ("gpt-4.1", True) == (thread["model"], thread["title"].startswith("How many lists are there?"))
    first = thread["calls"][0]
    assert (3, True) == (first["attempts"], "client_metadata left out" in first["repairs"])
    assert all(call["cache"]["cached_tokens"] >= 1024 for call in thread["calls"][1:])
    assert set(first["latency_ms"]) == {"first_byte", "total", "azure"}


def test_langgraph() -> None:
    """Two runs with the same question are two threads, and a question after the second one belongs to it."""
    streamed, invoked = Session("langgraph").found
    turns = [(["look", "count"], None), (["count"], None), ([], None)]
    assert (turns, [*turns, ([], None)]) == (shape(streamed), shape(invoked))
    assert [None, None] == [thread["parent"] for thread in (streamed, invoked)]
    assert [2, 3, 2] == [call["new_messages"] for call in streamed["calls"]], "a system prompt and a question, then answers and results"


def test_the_ai_sdk() -> None:
    """Three streamed steps and a second question are one thread, whose tokens are known."""
    (thread,) = Session("ai-sdk").found
    assert [(["look", "count"], None), (["count"], None), ([], None), ([], None)] == shape(thread)
    assert (False, 4) == (thread["incomplete"], len(thread["calls"]))
    assert thread["calls"][0]["latency_ms"]["azure"]["engine_ttft_ms"] > 0


def test_aider() -> None:
    """Two questions in one session of aider, which inserts messages before the second one, are one thread."""
    (thread,) = Session("aider").found
    assert [([], None), ([], None)] == shape(thread)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.flows.gz")), ids=lambda path: path.name)
def test_recordings_have_no_key_and_can_be_shared(path: Path) -> None:
    """Each recorded session can be written in each format, and a recording has only masked keys."""
    assert b"azure-key-0123456789abcdef" not in gzip.decompress(path.read_bytes())
    session = Session(path.name.removesuffix(".flows.gz"))
    for format in ("text", "html", "markdown"):
        assert session.found[0]["title"][:20] in share(session.threads, format, session.threads.thread_ids)
    lines = [json.loads(line) for line in share(session.threads, "jsonl").splitlines()]
    assert len(session.found) == len(lines)
