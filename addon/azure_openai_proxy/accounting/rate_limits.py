"""The remaining rate limits of a deployment, from the headers of Azure's last response."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NO_REMAINING", "REMAINING", "Limits", "Remaining", "updated"]

REMAINING = ("x-ratelimit-remaining-tokens", "x-ratelimit-remaining-requests")
"""The headers, in the order of `Remaining`."""
DIGITS = 15


class Remaining(NamedTuple):
    """None: no response has said it."""

    tokens: int | None = None
    requests: int | None = None


NO_REMAINING = Remaining()


type Limits = tuple[bytes, bytes]
"""The values of `REMAINING` in one response; b"" for one that is missing."""


def updated(before: Remaining, noted: Sequence[Limits]) -> Remaining:
    """Return the remaining limits after responses with these values. A missing or invalid one changes nothing."""
    return Remaining(*map(_last, zip(*noted, strict=True), before)) if noted else before


def _last(values: Sequence[bytes], before: int | None) -> int | None:
    """Return the newest valid count. Nearly always it is in the last response, and the others need not be read."""
    return next((int(value) for value in reversed(values) if len(value) <= DIGITS and value.isdigit()), before)
