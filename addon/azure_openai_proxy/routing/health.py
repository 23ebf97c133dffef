"""Whether a backend, or one deployment of it, should be asked now: values and what changes them. `now` is any clock's, in seconds.

A failure takes a backend or a deployment out for a while that doubles with each further one; after that a single request tries it,
the probe, and only when that is answered do the others come. A 429 is no failure: it says when to come back, and then everybody may.
"""

from __future__ import annotations

import email.utils
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Health", "Limit", "duration", "wait"]

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
NO_HINT = 10.0
"""Seconds after a 429 that does not say when to come back."""
LARGE = 16_384
"""Tokens of a request from which on a 429 says little about smaller ones: Azure gives it to what exceeds the limit by itself."""
LONGEST_WAIT = 300.0
"""Seconds after which it is asked again, whatever it said: Retry-After of a day was seen on one 500 (Azure/azure-sdk-for-net#44222)."""

type State = Literal["healthy", "cooling", "probe", "probing"]


@dataclass(frozen=True, slots=True)
class Health:
    failures: int = 0  # in a row
    until: float = -math.inf
    probing: bool = False

    def state(self, now: float) -> State:
        if now < self.until:
            return "cooling"
        if not self.failures:
            return "healthy"
        return "probing" if self.probing else "probe"

    def failed(self, now: float, jitter: float, wait: float | None = None) -> Health:
        """`jitter` is from 0 to 1; `wait` what the answer said."""
        backoff = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(self.failures, 16)) * (0.5 + jitter / 2)
        return Health(self.failures + 1, now + (backoff if wait is None else wait))

    def asked(self, now: float) -> Health:
        return replace(self, probing=True) if self.state(now) == "probe" else self

    def left(self) -> Health:
        """The probe brought no news: its client went away."""
        return replace(self, probing=False)

    def answered(self) -> Health:
        return Health()


@dataclass(frozen=True, slots=True)
class Limit:
    """Of one deployment and key: until when it refuses, and what its last good answer said that remains."""

    until: float = -math.inf
    least: int = 0  # tokens of a request that it refuses
    tokens: int | None = None
    renewed: float = -math.inf  # when the tokens are whole again

    def refuses(self, now: float, tokens: int) -> bool:
        return now < self.until and tokens >= self.least

    def covers(self, tokens: int, now: float) -> bool:
        """Whether it should have enough left for a request of so many tokens."""
        return self.tokens is None or now >= self.renewed or tokens <= self.tokens

    def refused(self, now: float, wait: float, tokens: int = 0) -> Limit:
        least = tokens if tokens >= LARGE else 0
        return replace(self, until=max(self.until, now + wait), least=min(least, self.least) if now < self.until else least)

    def answered(self, now: float, headers: Mapping[str, str]) -> Limit:
        remaining, reset = headers.get("x-ratelimit-remaining-tokens", ""), duration(headers.get("x-ratelimit-reset-tokens", ""))
        if not re.fullmatch("[0-9]{1,12}", remaining) or reset is None:
            return replace(self, tokens=None)
        return replace(self, tokens=int(remaining), renewed=now + min(LONGEST_WAIT, reset))


def wait(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds until Azure wants to be asked again; None where it does not say. `wall` is the time of day, for dates.

    Where no header says it plainly it is the later of the two resets, of those limits that have nothing left.
    """
    said = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", said):
        return min(LONGEST_WAIT, float(said) / 1000)
    said = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", said):
        return min(LONGEST_WAIT, float(said))
    if (date := _date(said)) is not None:
        return min(LONGEST_WAIT, max(0.0, date - wall))
    resets = [
        reset
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0"
        and (reset := duration(headers.get(f"x-ratelimit-reset-{what}", ""))) is not None
    ]
    return min(LONGEST_WAIT, max(resets)) if resets else None


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if 0 < len(text) <= _LONGEST_HEADER else None
    except (ValueError, OverflowError, OSError):  # no date, or one that this computer cannot tell
        return None


_LONGEST_HEADER = 64
"""Characters of a header's value that is read; the dates and durations that servers send are shorter."""
_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s)")
_UNIT = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def duration(text: str) -> float | None:
    """Azure's plain seconds, or OpenAI's `1h2m3s` and `20ms`, in seconds."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    if not text or len(text) > _LONGEST_HEADER or _PARTS.sub("", text):
        return None
    return sum(float(number) * _UNIT[unit] for number, unit in _PARTS.findall(text))
