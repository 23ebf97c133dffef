"""What the simulator reported of the tokens of each request, as far as it has sent it, and faults that make it report other tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .answers import Answer, dumps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .calls import Call
    from .faults import Fault

__all__ = ["reporting", "sent_usage"]

type Json = dict[str, Any]


def sent_usage(answer: Answer, *, ended: bool) -> Json | None:
    """The usage in the part of the answer that was sent: all of it, or the part before the first step (a cut, a gate)."""
    if answer.status != 200 or (not ended and answer.first):
        return None
    parts: list[bytes] = []
    for part in answer.parts:
        if isinstance(part, bytes):
            parts.append(part)
        elif not ended:
            break
    found = None
    for document in _documents(b"".join(parts), answer.headers):
        usage = document.get("usage") or (document.get("response") or {}).get("usage")
        found = usage or found
    return found


def _documents(body: bytes, headers: Mapping[str, str]) -> list[Json]:
    """The JSON object of a body, or those of its events."""
    kind = headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        lines = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: {")]
    else:
        lines = [body] if kind.startswith("application/json") else []
    return [value for value in map(_loaded, lines) if isinstance(value, dict)]


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # cut off
        return None


def reporting(usage: Json) -> Fault:
    """The answer, JSON or events, with these members in its usage."""

    def changed(document: Json) -> Json:
        if document.get("usage"):
            document = {**document, "usage": document["usage"] | usage}
        if (document.get("response") or {}).get("usage"):
            document = {**document, "response": changed(document["response"])}
        return document

    def part_of(part: bytes) -> bytes:
        head, data, rest = part.partition(b"data: ") if b"data: " in part else (b"", b"", part)
        value = _loaded(rest)
        if not isinstance(value, dict):
            return part
        return head + data + dumps(changed(value)) + (b"\n\n" if data else b"")

    def fault(answer: Answer, call: Call) -> Answer:
        return replace(answer, parts=tuple(part_of(part) if isinstance(part, bytes) else part for part in answer.parts))

    return fault
