"""A session for the inspector's page: an agent with tools, a subagent, an image, a break of the prompt cache, and hostile texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mitmproxy.io import FlowWriter

from support.conversations import assistant, chat, failed, flow, responses, tool_call, user

if TYPE_CHECKING:
    from pathlib import Path

    from mitmproxy import http

__all__ = ["HOSTILE", "TITLE", "session", "write"]

TITLE = "Fix the failing test of the parser"
IMAGE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGP8z4APMOGVHbbSDAwASjoBD3wkPyMAAAAASUVORK5CYII="
AUDIO = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
HOSTILE = (
    "<img src=x onerror=\"window.executed='img'\"><script>window.executed='script'</script><svg onload=\"window.executed='svg'\">"
    "</pre></div><iframe src=\"javascript:parent.executed='frame'\"></iframe>{{7*7}} \x1b[31mred\x1b[0m \u202egpj.exe\udcff\x00"
)


def _system(date: str) -> dict[str, Any]:
    return {"role": "system", "content": f"You are a coding agent. Today is {date}. " + "Read a file before you change it. " * 40}


def _facts(backend: str = "west", **more: Any) -> dict[str, Any]:
    return {"operation": "POST /v1/chat/completions", "model": "gpt-4o", "deployment": "prod", "backend": backend, **more}


def session() -> list[http.HTTPFlow]:
    """The flows of the session, in the order of their start."""
    asked = {"role": "user", "content": [{"type": "text", "text": TITLE}, {"type": "image_url", "image_url": {"url": IMAGE}}]}
    read = assistant(
        None, tool_call("call_1", "read_file", '{"path": "parser.py"}'), tool_call("call_2", "read_file", '{"path": "test_parser.py"}')
    )
    results = [
        {"role": "tool", "tool_call_id": "call_1", "content": "def parse(text): return text.split(',')"},
        {"role": "tool", "tool_call_id": "call_2", "content": "assert ['a', 'b'] == parse('a;b')"},
    ]
    spawned = assistant(None, tool_call("call_3", "agent", '{"task": "Find all callers of parse"}'))
    found = {"role": "tool", "tool_call_id": "call_3", "content": "There is one caller: main.py."}
    start, later = [_system("2026-11-28"), asked], [_system("2026-11-29"), asked]
    record = {
        "attempts": [{"backend": "west", "outcome": "429"}, {"backend": "east", "outcome": "ok"}],
        "repairs": ["max_tokens → max_completion_tokens"],
        "client": "alice",
        "overhead": 0.0013,
        "latency": {"pre_inference_ms": 31, "engine_ttft_ms": 140, "service_ttft_ms": 180, "total_duration_ms": 900},
    }
    sound = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": AUDIO, "format": "wav"}}]}
    return [
        chat(start, read, read=2048, metadata=_facts(record={"client": "alice"})),
        chat([*start, read, *results], spawned, read=2304, cached=1920, at=3, metadata=_facts("east", record=record)),
        chat(
            [{"role": "system", "content": "You search code."}, user("Find all callers of parse")],
            assistant("There is one caller: main.py."),
            at=5,
            metadata=_facts(),
        ),
        chat([*later, read, *results, spawned, found], assistant("I split at semicolons now."), read=2432, at=8, metadata=_facts()),
        failed([user("What is the weather in Oslo?")], 429, at=20, model="gpt-4.1"),
        responses([sound], [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Silence."}]}], at=30),
        flow("/v1/embeddings", {"model": "text-embedding-3-small", "input": "abc"}, {"data": [], "usage": {"prompt_tokens": 3}}, at=40),
    ]


def write(path: Path, flows: list[http.HTTPFlow]) -> Path:
    """A file that `mitmweb -r` opens."""
    with path.open("wb") as file:
        writer = FlowWriter(file)
        for one in flows:
            one.live = False
            writer.add(one)
    return path
