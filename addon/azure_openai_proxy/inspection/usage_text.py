"""Tokens, cost and usage record of a call, for the comment and the metadata of its flow and for `azure.explain`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.formats import quoting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from azure_openai_proxy.accounting.record import AttemptRecord, CallRecord, Tokens

__all__ = ["cost", "describe", "metadata", "tokens"]

_SMALLEST = 9  # decimal places of a cost
_UNNAMED = frozenset({"tokens", "attempts", "kind"})  # members that are named differently, or are of the sinks alone

_INTERNAL = frozenset({"by_model", "gen_ai_operation", "in_websocket", "once", "parent_span_id", "span_id", "time", "traced"})
_IN_OTHER_LINES = frozenset({"backend", "deployment", "host", "method", "model", "operation", "path", "port", "repairs", "status"})
_NOT_SHOWN = _INTERNAL | _IN_OTHER_LINES
"""Members that `azure.explain` leaves out of the usage: only the sinks need them, or another line has them."""


def tokens(counts: Tokens) -> str:
    """`1,204+87 tokens (1,024 cached)`; "" if no count is known. The cached tokens are a part of the first number."""
    known = [f"{count:,}" for count in (counts.input, counts.output) if count is not None]
    if not known:
        return ""
    unknown_input = "?+" if counts.input is None else ""
    return f"{unknown_input}{'+'.join(known)} tokens" + (f" ({counts.cached_input:,} cached)" if counts.cached_input else "")


def cost(usd: float | None) -> str:
    """`$0.0031`, with two significant digits below a dollar; "" if it is unknown."""
    if usd is None or not math.isfinite(usd) or usd < 0:
        return ""
    if usd >= 1 or not usd:
        return f"${usd:,.2f}"
    return f"${usd:.{min(_SMALLEST, 1 - math.floor(math.log10(usd)))}f}"


def metadata(record: CallRecord) -> dict[str, Any]:
    """The record as metadata that can be saved: the counts and the cost by name, and all known members together as `record`.

    The filter `~meta azure_openai_cost_usd:.0.0[1-9]` finds flows by cost.
    """
    counts = {f"{name}_tokens": count for name, count in record.tokens._asdict().items() if count is not None}
    members = {name: _plain(value) for name, value in _members(record) if value not in (None, "", ())}
    costs = {} if record.cost_usd is None else {"cost_usd": record.cost_usd}
    return {**counts, **costs, "record": {**members, **counts}}


def _members(record: CallRecord) -> Iterator[tuple[str, Any]]:
    yield from ((name, getattr(record, name)) for name in record.__dataclass_fields__ if name not in _UNNAMED)
    yield "attempts", tuple(map(_attempt, record.attempts))


def _attempt(attempt: AttemptRecord) -> dict[str, Any]:
    return {"backend": attempt.backend, "deployment": attempt.deployment, "outcome": attempt.outcome, "seconds": _duration(attempt)}


def _duration(attempt: AttemptRecord) -> float:
    return round(attempt.ended - attempt.started, 4)


def _plain(value: Any) -> Any:
    """A value as flow files can have it."""
    if isinstance(value, str):
        return quoting.line(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, _SMALLEST)
    return dict(value) if hasattr(value, "items") else value


def describe(known: Mapping[str, Any]) -> str:
    """The saved record in one line, without `_NOT_SHOWN`; "" without one.

    A flow file is untrusted input: any other value than a mapping counts as none.
    """
    record = known.get("record")
    if not isinstance(record, dict):
        return ""
    return ", ".join(f"{name} {_text(value)}" for name, value in record.items() if name not in _NOT_SHOWN)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + "; ".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_text(item)}" for name, item in value.items()) + ")"
    if isinstance(value, float):
        return f"{value:.{_SMALLEST}f}".rstrip("0").rstrip(".")
    return f"{value:,}" if type(value) is int else str(value)
