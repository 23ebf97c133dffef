"""Whether a call used the prompt cache as far as the call before it in its thread makes possible, and why it did not.

Azure caches the start of a prompt of 1,024 tokens and more, in steps of 128 tokens. The cause of a miss is the first block that differs
from the earlier request, in the order in which the prompt has them; if the rest of the prompt is unchanged, it is outside the prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.formats.sequences import common_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .calls import Call

__all__ = ["NOTHING", "Break", "Verdict", "before", "known", "new_items", "verdict"]

SHORTEST = 1024
"""Tokens of the shortest prompt that Azure caches."""
STEP = 128
LONGEST_TIME = 24 * 3600.0
"""Seconds after which a cached prompt is gone."""


class Break(NamedTuple):
    block: str  # model, tools, response_format, system, message, short, backend, expired, prompt_cache_key, unexplained
    message: int | None = None  # its index, as the request has it


class Verdict(NamedTuple):
    expected: int = 0  # tokens
    cached: int | None = None
    broken_by: Break | None = None


NOTHING = Verdict()


def before(calls: Sequence[Call], place: int, continues: Call | None = None) -> Call | None:
    """The last call before the one at `place` whose prompt Azure had read when that one started.

    `continues`: the call that it continues, which counts even if its end was seen later than this start.
    """
    call = calls[place]
    for other in reversed(calls[:place]):
        read = other is continues or (other.ended is not None and other.ended <= call.started)
        if not other.broken and not other.running and read and other.tokens.input is not None:
            return other
    return None


def verdict(earlier: Call | None, call: Call) -> Verdict:
    """The verdict on a call. `earlier` is the call before it."""
    cached = call.tokens.cached_input
    if call.failed or call.tokens.input is None:
        return Verdict(0, 0 if call.failed else cached)
    cached = cached or 0
    read = earlier.tokens.input or 0 if earlier else 0
    if earlier is None or read < SHORTEST:
        return Verdict(0, cached)
    expected = read // STEP * STEP
    possible = min(expected, call.tokens.input // STEP * STEP)  # a shorter prompt may be cached completely
    return Verdict(expected, cached, _cause(earlier, call) if cached < max(possible, STEP) else None)


def _cause(earlier: Call, call: Call) -> Break:
    if (call.tokens.input or 0) < SHORTEST:
        return Break("short")
    if block := _first_difference(earlier, call):
        return block
    if call.started - (earlier.ended or earlier.started) > _lifetime(earlier, call):
        return Break("expired")
    places = ((earlier.backend, call.backend), (earlier.deployment, call.deployment), (earlier.served, call.served))
    if any(one and other and one != other for one, other in places):
        return Break("backend")
    if earlier.cache_key != call.cache_key:
        return Break("prompt_cache_key")
    return Break("unexplained")


def _first_difference(earlier: Call, call: Call) -> Break | None:
    if earlier.model and call.model and earlier.model != call.model:
        return Break("model")
    old, new = earlier.prompt, call.prompt
    stored = _is_stored(call) or _is_stored(earlier)  # the earlier messages are at Azure
    systems = (old.instructions, new.instructions) if stored else (old.system, new.system)
    for name, one, other in (("tools", old.tools, new.tools), ("response_format", old.format, new.format), ("system", *systems)):
        if one != other:
            return Break(name)
    return None if stored else _first_message(old.items[old.system_items :], new.items[new.system_items :], new.system_items)


def _first_message(old: Sequence[int], new: Sequence[int], start: int) -> Break | None:
    same = common_prefix(old, new)
    return None if same == min(len(old), len(new)) else Break("message", start + same)


def _lifetime(earlier: Call, call: Call) -> float:
    return earlier.ttl or call.ttl or LONGEST_TIME


def _is_stored(call: Call) -> bool:
    """Whether the messages before those of the request are at Azure."""
    return bool(call.previous or call.conversation)


def known(calls: Sequence[Call], place: int) -> list[Call]:
    """The calls whose messages the one at `place` may repeat, the latest last: the call before it, and those that left theirs at Azure."""
    found: list[Call] = []
    for other in reversed(calls[:place]):
        found.append(other)
        if _is_stored(calls[place]) or not _is_stored(other):
            break
    return found[::-1]


def new_items(earlier: Sequence[Call], call: Call) -> int:
    """The number of input items that the earlier requests did not have. `earlier` is what `known` returns."""
    items = call.prompt.items
    if _is_stored(call):
        return len(items)
    old = [item for one in earlier for item in one.prompt.items]
    same = common_prefix(old, items)
    rest: dict[int, int] = {}
    for item in old[same:]:
        rest[item] = rest.get(item, 0) + 1
    count = 0
    for item in items[same:]:
        if rest.get(item, 0):
            rest[item] -= 1
        else:
            count += 1
    return count
