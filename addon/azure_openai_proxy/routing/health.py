"""Health and rate limit of a backend or one of its deployments, as immutable values. `now` is the time of any clock, in seconds.

A failure starts a cool-down, which doubles with each further failure. After the cool-down one request is sent as a probe; other
requests follow once the probe succeeds. A 429 is not a failure: it says when to retry, and from then on all requests may. A cool-down
shorter than the Retry-After ends with a probe too.
"""

from __future__ import annotations

import email.utils
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_COOL_DOWN", "NO_HINT", "Health", "Limit", "duration", "wait"]

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
NO_HINT = 10.0
"""Cool-down in seconds after a 429 without a Retry-After."""
LARGE = 16_384
"""Tokens from which on a request's 429 does not apply to smaller requests: Azure sends 429 if one request alone exceeds the limit."""
LONGEST_WAIT = 30 * 86_400.0
"""Upper limit of a Retry-After, in seconds."""
MAX_COOL_DOWN = 300.0
"""Longest cool-down, unless the configuration says otherwise. One 500 had a Retry-After of a day (Azure/azure-sdk-for-net#44222)."""
RENEWED_WITHIN = 300.0
"""Seconds after which a token budget counts as renewed at the latest."""

_COUNT = re.compile("[0-9]{1,12}")
_SECONDS = re.compile("[0-9]{1,9}")

type State = Literal["healthy", "cooling", "probe", "probing"]


@dataclass(frozen=True, slots=True)
class Health:
    failures: int = 0  # in a row
    until: float = -math.inf
    probing: bool = False
    uncapped_until: float = -math.inf  # the end of the cool-down without `max_cool_down`

    def state(self, now: float) -> State:
        if now < self.until:
            return "cooling"
        if not self.failures:
            return "healthy"
        return "probing" if self.probing else "probe"

    def failed(self, now: float, jitter: float, wait: float | None = None, most: float = MAX_COOL_DOWN) -> Health:
        """The health after a failure. `jitter` is from 0 to 1; `wait` is the response's Retry-After, `most` the longest cool-down."""
        backoff = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(self.failures, 16)) * (0.5 + jitter / 2)
        wait = backoff if wait is None else wait
        return Health(self.failures + 1, now + min(most, wait), uncapped_until=now + wait)

    def started(self, now: float) -> Health:
        return replace(self, probing=True) if self.state(now) == "probe" else self

    def left(self) -> Health:
        """The health after a probe without a result, because its client disconnected."""
        return replace(self, probing=False)

    def succeeded(self) -> Health:
        return Health()


@dataclass(frozen=True, slots=True)
class Limit:
    """Rate limit of one deployment and key: when its cool-down ends, and the tokens that its last successful response reported as left."""

    until: float = -math.inf
    uncapped_until: float = -math.inf  # the end of the Retry-After: later than `until` if that is capped
    probing: bool = False
    least: int = 0  # refuses requests of at least so many tokens
    tokens: int | None = None
    renewed: float = -math.inf  # when the token budget is full again
    size: int | None = None  # tokens per minute

    def refuses(self, now: float, tokens: int) -> bool:
        return tokens >= self.least and (now < self.until or (self.probing and now < self.uncapped_until))

    def is_due(self, now: float) -> bool:
        """Whether the next request is the probe that ends a capped cool-down."""
        return self.until <= now < self.uncapped_until and not self.probing

    def started(self) -> Limit:
        return replace(self, probing=True)

    def left(self) -> Limit:
        """The limit after a probe without a result."""
        return replace(self, probing=False)

    def lifted(self) -> Limit:
        """The limit after a probe: the Retry-After no longer counts."""
        return replace(self, until=-math.inf, uncapped_until=-math.inf, probing=False, least=0)

    def covers(self, tokens: int, now: float) -> bool:
        """Whether the reported budget suffices for a request of so many tokens."""
        return self.tokens is None or now >= self.renewed or tokens <= self.tokens

    def rate_limited(self, now: float, wait: float, tokens: int = 0, most: float = MAX_COOL_DOWN) -> Limit:
        """The limit after a 429 with this Retry-After. `most` is the longest cool-down."""
        least = tokens if tokens >= LARGE else 0
        return replace(
            self,
            until=max(self.until, now + min(most, wait)),
            uncapped_until=max(self.uncapped_until, now + wait),
            least=min(least, self.least) if now < self.until else least,
        )

    def succeeded(self, now: float, headers: Mapping[str, str]) -> Limit:
        remaining, reset = headers.get("x-ratelimit-remaining-tokens", ""), headers.get("x-ratelimit-reset-tokens", "")
        seconds = duration(reset) if reset else None
        if seconds is None or not _COUNT.fullmatch(remaining):
            return self if self.tokens is None else replace(self, tokens=None)
        size = headers.get("x-ratelimit-limit-tokens", "")
        return replace(
            self,
            tokens=int(remaining),
            renewed=now + min(RENEWED_WITHIN, seconds),
            size=int(size) if _COUNT.fullmatch(size) and int(size) else None,
        )


def wait(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds to wait according to the response's headers; None without a usable one. `wall` is the Unix time, for dates.

    `retry-after-ms` comes before `retry-after`. Without either it is the later reset of the rate limits that have nothing left.
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
    except (ValueError, OverflowError, OSError):  # not a date, or out of the platform's range
        return None


_LONGEST_HEADER = 64
"""Greatest length of a header value that is parsed. Dates and durations that servers send are shorter."""
_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s)")
_UNIT = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def duration(text: str) -> float | None:
    """Parse Azure's plain seconds or OpenAI's `1h2m3s` and `20ms`, into seconds; None if it is neither."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if not text or len(text) > _LONGEST_HEADER or _PARTS.sub("", text):
        return None
    return sum(float(number) * _UNIT[unit] for number, unit in _PARTS.findall(text))
