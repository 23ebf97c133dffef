"""An answer as a value: status, headers, and the parts of its body, with the steps between them.

Everything that makes answers, faults included, is a function that returns an `Answer`; only `delivery` writes one to a socket.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["DONE", "Answer", "Part", "Step", "Wire", "dumps", "event", "insert", "json_answer", "stream_answer", "typed_answer"]


class Wire(Protocol):
    """What a step may do with the connection."""

    def abort(self, *, reset: bool) -> None: ...


class Step(Protocol):
    """Something that happens between two parts of a body: a wait, a gate, the end of the connection."""

    async def run(self, wire: Wire) -> None: ...


type Part = bytes | Step


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    parts: tuple[Part, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    stream: bool = False  # no content-length, each part written by itself
    first: tuple[Step, ...] = ()  # before the status line

    @property
    def body(self) -> bytes:
        """The whole body, steps left out."""
        return b"".join(part for part in self.parts if isinstance(part, bytes))

    def with_headers(self, **headers: str | None) -> Answer:
        """Underscores stand for hyphens; None takes a header away."""
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={name: value for name, value in {**self.headers, **changed}.items() if value is not None})


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8, keys in the order given: Azure's are alphabetical, so the dicts here are written that way."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def event(value: Any) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def json_answer(value: Any, status: int = 200, reason: str | None = None) -> Answer:
    return Answer(status, (dumps(value),), {"content-type": "application/json"}, reason)


def stream_answer(events: Iterable[Any]) -> Answer:
    return Answer(200, (*map(event, events), DONE), {"content-type": "text/event-stream", "x-accel-buffering": "no"}, stream=True)


def typed_answer(events: Iterable[Any]) -> Answer:
    """A stream of events that have names; none says [DONE]."""
    parts = tuple(b"event: " + value["type"].encode() + b"\n" + event(value) for value in events)
    return Answer(200, parts, {"content-type": "text/event-stream; charset=utf-8"}, stream=True)


def insert(answer: Answer, step: Step, chunk: int | None) -> Answer:
    """Let `step` happen before the chunk of that number (from 0), or, with None, before the status line; past the end: before the end."""
    if chunk is None:
        return replace(answer, first=(*answer.first, step))
    chunks = 0
    for index, part in enumerate(answer.parts):
        if isinstance(part, bytes):
            if chunks == chunk:
                return replace(answer, parts=(*answer.parts[:index], step, *answer.parts[index:]))
            chunks += 1
    return replace(answer, parts=(*answer.parts, step))
