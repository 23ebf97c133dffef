"""Threads as text for a terminal and as Markdown. Every text in it is escaped, so that neither a terminal nor a browser acts on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import quoting
from azure_openai_proxy.inspection import text as readable_text

from . import document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_openai_proxy.inspection.threads.report import Json

__all__ = ["conversation", "markdown", "overview"]

_TICKS = re.compile("`{3,}")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def overview(report: Json) -> str:
    """All threads of a report as text, each with its calls."""
    lines: list[str] = []
    depth: dict[str, int] = {}
    for thread in report["threads"]:
        depth[thread["id"]] = min(20, depth.get(thread["parent"], -1) + 1)
        pad = "  " * depth[thread["id"]]
        lines.append(f"{pad}{thread['id']}  {quoting.line(thread['title']) or '(no message of the user)'}")
        lines.append(f"{pad}    {thread['started']} · {document.thread_line(thread)}")
        for call in thread["calls"]:
            lines.append(f"{pad}    {call['id'][:8]} {document.call_line(call)}")
            lines += [f"{pad}        {reason}" for reason in [document.why(call["cache"])] if reason]
    if single := report.get("single_calls"):
        lines.append("single calls")
        lines += (f"    {call['id'][:8]} {call['operation']} · {_single(call)}" for call in single)
    return "".join(quoting.line(line) + "\n" for line in lines)


def _single(call: Json) -> str:
    return document.call_line({**call, "retry": False, "handoff": False})


def conversation(threads: list[Json]) -> str:
    """Threads with all their texts, for a terminal."""
    return "".join(readable_text.clean("\n".join(_thread(thread))) + "\n" for thread in threads)


def _thread(thread: Json) -> Iterator[str]:
    yield f"━━ {quoting.line(thread['title'])}"
    yield quoting.line(f"{thread['id']} · {thread['started']} · {document.thread_line(thread)}")
    for number, call in enumerate(thread["calls"], 1):
        yield ""
        for block in call["new"]:
            if not block.get("beside_call"):
                yield from _block(block)
        yield quoting.line(f"── call {number} · {document.call_line(call)}")
        if reason := document.why(call["cache"]):
            yield f"   {reason}"
        for block in call["answer"]:
            yield from _block(block)
    yield ""


def _block(block: Json) -> Iterator[str]:
    yield f"── {quoting.line(document.heading(block))}"
    if block["text"]:
        yield block["text"]
    yield from _notes(block)
    if result := block.get("result"):
        yield "── tool result"
        yield result["text"]
        yield from _notes(result)


def _notes(block: Json) -> Iterator[str]:
    yield from (f"[{media['kind']} {media['name']}]".replace(" ]", "]") for media in block.get("media", ()))
    if more := block.get("more_characters"):
        yield f"… {more:,} more characters"


def markdown(threads: list[Json]) -> str:
    """Threads as Markdown, all texts in blocks of code."""
    return "".join(readable_text.clean("\n".join(_markdown(thread))) + "\n" for thread in threads)


def _markdown(thread: Json) -> Iterator[str]:
    yield f"# {_escaped(thread['title']) or 'Thread'}"
    yield f"\n{_escaped(thread['started'])} · {_escaped(document.thread_line(thread))}\n"
    for number, call in enumerate(thread["calls"], 1):
        yield f"\n## Call {number}\n"
        yield f"{_escaped(document.call_line(call))}\n"
        if reason := document.why(call["cache"]):
            yield f"{_escaped(reason)}\n"
        for block in (*(one for one in call["new"] if not one.get("beside_call")), *call["answer"]):
            yield from _markdown_block(block)


def _markdown_block(block: Json) -> Iterator[str]:
    yield f"\n### {_escaped(document.heading(block))}\n"
    yield from _fenced(block)
    if result := block.get("result"):
        yield "\n#### tool result\n"
        yield from _fenced(result)


def _fenced(block: Json) -> Iterator[str]:
    text = "\n".join(filter(None, [block["text"], *_notes(block)]))
    fence = "`" * (max(map(len, _TICKS.findall(text)), default=2) + 1)
    yield f"{fence}text\n{text}\n{fence}"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", quoting.line(text))
