"""The JSON of threads, as the page shows it and `azure-openai-proxy inspect` prints it. docs/inspector.md describes it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from . import cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .calls import Call
    from .grouping import Thread

__all__ = ["Json", "call", "single", "summary", "thread"]

type Json = dict[str, Any]
type Cost = Callable[[Call], float | None]


def iso(seconds: float) -> str:
    """`2026-11-28T10:00:00.000Z`. A time that no date can have counts as the first one."""
    try:
        time = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError):
        time = dt.datetime.fromtimestamp(0, dt.UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03}Z"


def _milliseconds(start: float | None, end: float | None) -> int | None:
    return None if start is None or end is None else max(0, round((end - start) * 1000))


def cost_of(call: Call, cost: Cost) -> float | None:
    """The cost of a call; a failed one has none."""
    return 0.0 if call.failed else cost(call)


def call(one: Call, earlier: Call | None, before: Sequence[Call], cost: Cost, *, retry: bool = False) -> Json:
    """A call of a thread. `before` are those that `cache.known` returns, and `earlier` is the last one whose prompt may be cached."""
    verdict = cache.verdict(earlier, one)
    broken = verdict.broken_by
    return {
        **_members(one, cost),
        "new_messages": cache.new_items(before, one),
        "tool_calls": list(one.tool_calls),
        "cache": {
            "expected_tokens": verdict.expected,
            "cached_tokens": verdict.cached,
            "broken_by": {"block": broken.block, "index": broken.message} if broken else None,
        },
        "retry": retry,
        "handoff": _is_handoff(before[-1] if before else None, one),
    }


def _is_handoff(previous: Call | None, one: Call) -> bool:
    """Whether another agent takes over: the system prompt or the model changes within a conversation."""
    if previous is None or not previous.prompt.items:
        return False
    stored = one.previous or one.conversation
    old, new = previous.prompt, one.prompt
    system = old.instructions != new.instructions if stored else old.system != new.system
    return previous.model != one.model or (system and old.tools != new.tools)


def single(one: Call, cost: Cost) -> Json:
    """A call that belongs to no thread: embeddings, images, audio, realtime."""
    return {"operation": one.operation, **_members(one, cost)}


def _members(one: Call, cost: Cost) -> Json:
    tokens = one.tokens
    return {
        "id": one.id,
        "started": iso(one.started),
        "model": one.model,
        "deployment": one.deployment,
        "backend": one.backend,
        "status": one.status,
        "error": one.error or None,
        "attempts": one.attempts,
        "repairs": list(one.repairs),
        "input_tokens": 0 if one.failed else tokens.input,
        "cached_input_tokens": _part(tokens.cached_input, one),
        "output_tokens": _part(tokens.output, one) if not one.kind or one.failed else tokens.output,
        "cost_usd": cost_of(one, cost),
        "latency_ms": {
            "first_byte": _milliseconds(one.started, one.first_byte),
            "total": _milliseconds(one.started, one.ended),
            "azure": dict(one.latency),
        },
    }


def _part(count: int | None, one: Call) -> int | None:
    """A count of tokens. Azure leaves out some that are 0."""
    return 0 if one.failed or (count is None and one.tokens.input is not None) else count


def summary(one: Thread, calls: Sequence[Json]) -> Json:
    """A thread without its calls. `calls` are its calls as `call` returns them. Running calls do not count in the sums."""
    done = [json for each, json in zip(one.calls, calls, strict=True) if not each.running]
    first = one.calls[0]
    ends = [each.ended for each in one.calls if each.ended is not None]
    tokens = {name: _sum(json[name] for json in done) for name in ("input_tokens", "cached_input_tokens", "output_tokens")}
    return {
        "id": one.id,
        "title": next((each.title for each in one.calls if each.title), ""),
        "client": next((each.client for each in one.calls if each.client), ""),
        "model": next((each.model for each in one.calls if each.model), None),
        "started": iso(first.started),
        "duration_ms": _milliseconds(first.started, max(ends, default=first.started)),
        **tokens,
        "cost_usd": _rounded(_sum(json["cost_usd"] for json in done)),
        "incomplete": None in tokens.values(),
        "errors": sum(each.broken for each in one.calls),
        "parent": one.parent.id if one.parent else None,
        "children": [child.id for child in one.children],
    }


def thread(one: Thread, calls: Sequence[Json]) -> Json:
    return {**summary(one, calls), "calls": list(calls)}


def _sum(values: Iterable[float | None]) -> Any:
    """The sum; None if a value is unknown."""
    total: float = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 9)
