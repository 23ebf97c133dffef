"""What all shared documents of a thread have in common: its details without secrets, and the words for its numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.inspection import usage_text
from azure_openai_proxy.inspection.threads import calls, details

if TYPE_CHECKING:
    from azure_openai_proxy.inspection.threads.report import Json
    from azure_openai_proxy.inspection.threads.store import Threads

    from .redact import Redactor

__all__ = ["BLOCKS", "LONGEST_TEXT", "call_line", "heading", "report_of", "thread_line", "thread_of", "whole_words", "why"]

LONGEST_TEXT = 500_000
"""Characters of a block."""
LONGEST_THREAD = 5_000_000
"""Characters of a thread."""

_PART_OF_WORD = re.compile(r"[\w+/=.~%@:-]*\Z", re.ASCII)

BLOCKS = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "reasoning": "reasoning",
    "tool_call": "tool call",
    "tool_result": "tool result",
    "other": "other",
}


def thread_of(threads: Threads, id: str, redactor: Redactor) -> Json:
    """The details of a thread without what `redactor` removes.

    Raises:
        KeyError: there is no such thread.
    """
    found = details.thread(threads, id, longest=LONGEST_TEXT)
    found["title"] = _title(found["title"])
    left = LONGEST_THREAD
    for call in found["calls"]:
        del call["client_address"]
        for block in (*call["new"], *call["answer"]):
            text = block["text"]
            if len(text) > left or "more_characters" in block:
                block["text"] = whole_words(text[:left])
                block["more_characters"] = block.get("more_characters", 0) + len(text) - len(block["text"])
            left = max(0, left - len(text))
    return redactor.redact(found)


def report_of(report: Json, redactor: Redactor) -> Json:
    """A report without what `redactor` removes.

    A title of one long word is cut in the word, whose part may be a part of a key that is not recognised.
    """
    threads = [{**thread, "title": _title(thread["title"])} for thread in report["threads"]]
    return redactor.redact({**report, "threads": threads})


def _title(title: str) -> str:
    return _PART_OF_WORD.sub("", title) or "…" if len(title) == calls.LONGEST_TITLE else title


def whole_words(text: str) -> str:
    """The text without its last word, which may be a part of a secret."""
    return text[: max(text.rfind(" "), text.rfind("\n"), 0)]


def heading(block: Json) -> str:
    """`tool call get_weather`."""
    return " ".join(filter(None, [BLOCKS.get(block["kind"], "other"), block["name"]]))


def thread_line(thread: Json) -> str:
    """`gpt-4o · 3 calls · 4.2 s · 4,200+10 tokens (1,920 cached) · $0.01 · 1 error`."""
    calls = thread["call_count"] if "call_count" in thread else len(thread["calls"])
    parts = [thread["client"], thread["model"], f"{calls} call{'' if calls == 1 else 's'}"]
    parts += [_duration(thread["duration_ms"]), tokens(thread), usage_text.cost(thread["cost_usd"])]
    if thread["errors"]:
        parts.append(f"{thread['errors']} error{'' if thread['errors'] == 1 else 's'}")
    return " · ".join(filter(None, parts))


def call_line(call: Json) -> str:
    """`gpt-4o → prod @ west · 200 · 1,204+87 tokens (1,024 cached) · $0.0031 · 1.2 s · retry`."""
    model = call["model"] or ""
    if call["deployment"] and call["deployment"] != model:
        model = f"{model} → {call['deployment']}" if model else call["deployment"]
    place = f"{model} @ {call['backend']}" if call["backend"] else model
    status = str(call["status"]) if call["status"] is not None else "no response" if call["error"] else "running"
    parts = [place, status, tokens(call), usage_text.cost(call["cost_usd"]), _duration(call["latency_ms"]["total"])]
    if call["error"] and call["error"] != status:
        parts.append(call["error"])
    if call["attempts"] > 1:
        parts.append(f"{call['attempts']} attempts")
    parts += [*call["repairs"], "retry" if call["retry"] else "", "handoff" if call["handoff"] else ""]
    return " · ".join(filter(None, parts))


def tokens(one: Json) -> str:
    """`1,204+87 tokens (1,024 cached)`; `? tokens` if they are unknown."""
    if one["input_tokens"] is None:
        return "? tokens"
    cached = f" ({one['cached_input_tokens']:,} cached)" if one["cached_input_tokens"] else ""
    output = "?" if one["output_tokens"] is None else f"{one['output_tokens']:,}"
    return f"{one['input_tokens']:,}+{output} tokens{cached}"


_CAUSES = {
    "model": "another model",
    "tools": "the tools or their order changed",
    "response_format": "the response format changed",
    "system": "the system prompt changed",
    "backend": "another backend or deployment",
    "expired": "the cached prompt has expired",
    "short": "the prompt is shorter than 1,024 tokens",
    "prompt_cache_key": "prompt_cache_key changed",
    "unexplained": "no visible cause",
}


def why(verdict: Json) -> str:
    """Why the cache was not used, such as `cache: 0 of 1,920 tokens: message 3 changed`; "" if it was."""
    broken: Any = verdict["broken_by"]
    if broken is None:
        return ""
    cause = f"message {broken['index']} changed" if broken["block"] == "message" else _CAUSES[broken["block"]]
    return f"cache: {verdict['cached_tokens'] or 0:,} of {verdict['expected_tokens']:,} tokens: {cause}"


def _duration(milliseconds: int | None) -> str:
    return "" if milliseconds is None else f"{milliseconds / 1000:,.1f} s"
