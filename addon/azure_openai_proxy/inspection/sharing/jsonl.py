"""Threads as JSONL, a line each, for evaluations and fine-tuning: `{"messages", "tools"}` of a chat, `{"input", "output"}` of responses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.threads import bodies

from . import document
from .redact import DEEPEST

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.inspection.threads.calls import Call
    from azure_openai_proxy.inspection.threads.report import Json
    from azure_openai_proxy.inspection.threads.store import Threads

    from .redact import Redactor

__all__ = ["line", "lines"]

_ANSWERS = ("role", "content", "refusal", "tool_calls", "function_call", "audio")
"""Members of an answer that a message of a request may have."""


def lines(threads: Threads, ids: list[str], redactor: Redactor) -> str:
    """Return a line for each thread that has a call with texts.

    Raises:
        KeyError: there is no such thread.
    """
    found = (line(threads, id) for id in ids)
    values = [redactor.redact(_cut(value, 0)) for value in found if value is not None]
    return "".join(json.dumps(value) + "\n" for value in redactor.again(values))


def _cut(value: Any, depth: int) -> Any:
    """The value with shorter texts where they are too long to be searched. Images and sounds are not searched."""
    if depth > DEEPEST:
        return None
    if isinstance(value, dict):
        return {name: _cut(member, depth + 1) for name, member in value.items()}
    if isinstance(value, list):
        return [_cut(item, depth + 1) for item in value]
    if isinstance(value, str) and len(value) > document.LONGEST_TEXT and not value.startswith("data:"):
        cut = document.whole_words(value[: document.LONGEST_TEXT])
        return f"{cut}… {len(value) - len(cut):,} more characters"
    return value


def line(threads: Threads, id: str) -> Json | None:
    """The whole conversation of a thread, as its last successful call has it; None without texts.

    Raises:
        KeyError: there is no such thread.
    """
    calls = threads.calls(id)
    done = [call for call in calls if not call.failed and not call.running] or calls
    flow = threads.flow(done[-1].id)
    if flow is None:
        return None
    if done[-1].kind == "responses":
        return _of_responses(threads, done)
    request, output = _read(flow)
    tools: list[Any] = request["tools"] if isinstance(request.get("tools"), list) else []
    if not tools and isinstance(request.get("functions"), list):
        tools = [{"type": "function", "function": function} for function in request["functions"]]
    return {"messages": [*bodies.items(request), *map(_message, output[:1])], "tools": tools}


def _message(answer: Json) -> Json:
    """An answer as a message of the next request has it."""
    found = {name: answer[name] for name in _ANSWERS if answer.get(name) is not None}
    if isinstance(found.get("audio"), dict):
        found["audio"] = {"id": str(found["audio"].get("id") or "")}
    return found if "content" in found or "tool_calls" in found else {**found, "content": ""}


def _of_responses(threads: Threads, calls: list[Call]) -> Json:
    """The input with all that earlier calls left at Azure, and the last output."""
    given: list[Any] = []
    output: list[Json] = []
    for call in calls:
        flow = threads.flow(call.id)
        if flow is None:
            continue
        if call.previous or call.conversation:
            given += output
        else:
            given = []
        request, output = _read(flow)
        given += bodies.items(request)
    return {"input": given, "output": output}


def _read(flow: http.HTTPFlow) -> tuple[Json, list[Json]]:
    saved = flow_metadata.parse(flow)
    return bodies.client_request(flow, saved), bodies.answer(flow, saved).output
