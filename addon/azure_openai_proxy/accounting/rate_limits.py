"""The remaining rate limits of a deployment, from the headers of Azure's last response."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NO_REMAINING", "REMAINING", "Remaining", "updated"]

REMAINING = ("x-ratelimit-remaining-tokens", "x-ratelimit-remaining-requests")
"""The headers, in the order of `Remaining`."""
DIGITS = 15


class Remaining(NamedTuple):
    """None: no response has said it."""

    tokens: int | None = None
    requests: int | None = None


NO_REMAINING = Remaining()


def updated(before: Remaining, headers: Mapping[str, str]) -> Remaining:
    """Return the remaining limits after a response. A missing or invalid header changes nothing."""
    tokens, requests = headers.get(REMAINING[0]), headers.get(REMAINING[1])
    return Remaining(
        before.tokens if tokens is None else _count(tokens, before.tokens),
        before.requests if requests is None else _count(requests, before.requests),
    )


def _count(text: str, before: int | None) -> int | None:
    return int(text) if len(text) <= DIGITS and text.isascii() and text.isdigit() else before
