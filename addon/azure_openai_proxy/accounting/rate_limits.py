"""The remaining rate limits of a deployment, from the headers of Azure's last response."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["NO_REMAINING", "REMAINING", "Remaining", "updated"]

REMAINING = ("x-ratelimit-remaining-tokens", "x-ratelimit-remaining-requests")
"""The headers, in the order of `Remaining`."""
DIGITS = 15


class Remaining(NamedTuple):
    """None: no response has said it."""

    tokens: int | None = None
    requests: int | None = None


NO_REMAINING = Remaining()


def updated(before: Remaining, heads: Sequence[Mapping[str, str]]) -> Remaining:
    """Return the remaining limits after responses with these headers. A missing or invalid header changes nothing."""
    return Remaining(*[_last(name, heads, count) for name, count in zip(REMAINING, before, strict=True)])


def _last(name: str, heads: Sequence[Mapping[str, str]], before: int | None) -> int | None:
    """Return the newest valid count. Nearly always it is in the last response, and the others need not be read."""
    for head in reversed(heads):
        text = head.get(name, "")
        if len(text) <= DIGITS and text.isascii() and text.isdigit():
            return int(text)
    return before
