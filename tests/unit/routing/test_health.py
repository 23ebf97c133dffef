"""Cool-down, probes and rate limits, with a number as the clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azure_openai_proxy.routing.health import LARGE, LONGEST_BACKOFF, LONGEST_WAIT, Health, Limit, duration, wait


def test_a_failure_and_its_probe() -> None:
    """A failure starts a cool-down, then one request is the probe, and its success admits all others."""
    failed = Health().failed(100, jitter=1)
    assert ("cooling", "probe") == (failed.state(100.9), failed.state(101))
    probing = failed.started(101)
    assert ("probing", "probe") == (probing.state(101), probing.left().state(101))
    assert ("healthy", "healthy") == (probing.succeeded().state(101), Health().started(0).state(0))


@given(st.integers(1, 40), st.floats(0, 1))
def test_backoff_doubles_to_a_limit(failures: int, jitter: float) -> None:
    """For each number of failures and each jitter the cool-down is at least half the nominal backoff and at most the limit."""
    health = Health()
    for _ in range(failures):
        health = health.failed(0, jitter)
    due = min(LONGEST_BACKOFF, 2.0 ** (failures - 1))
    assert due / 2 <= health.until <= due


def test_retry_after_replaces_the_backoff() -> None:
    """The Retry-After of a 503 replaces the backoff."""
    assert 7 == Health().failed(0, 0.5, wait=7).until


def test_a_limit() -> None:
    """A limit refuses until its cool-down ends, and a low token budget counts until its reset."""
    limit = Limit().rate_limited(0, 10).rate_limited(1, 2)
    assert (True, False) == (limit.refuses(9, 0), limit.refuses(10, 0))
    told = Limit().succeeded(0, {"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "30"})
    assert (True, False, True) == (told.covers(100, 0), told.covers(101, 29), told.covers(101, 30))


def test_a_large_request_that_is_refused() -> None:
    """A 429 for a large request applies only to requests of at least that size, and one for a small request to all."""
    large = Limit().rate_limited(0, 10, 100_000)
    assert (False, True, False) == (large.refuses(9, 99_999), large.refuses(9, 100_000), large.refuses(10, 100_000))
    assert large.rate_limited(1, 10, 200_000).refuses(9, 100_000)
    assert large.rate_limited(1, 10, LARGE - 1).refuses(9, 0)
    assert not large.rate_limited(1, 10, 5).rate_limited(20, 10, 100_000).refuses(21, 5)


@pytest.mark.parametrize(
    "headers", [{}, {"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "0"}, {"x-ratelimit-remaining-tokens": "1"}]
)
def test_a_missing_budget(headers: dict[str, str]) -> None:
    """A missing budget and Azure's -1 do not make a deployment less preferred."""
    assert Limit().succeeded(0, headers).covers(10**9, 0)


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 10),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "later"}, None),
        ({"retry-after": "999999999"}, LONGEST_WAIT),
        ({}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "5"}, 5),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "5",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "250ms",
            },
            5,
        ),
        (
            {
                "x-ratelimit-remaining-requests": "3",
                "x-ratelimit-reset-requests": "5",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "250ms",
            },
            0.25,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "whenever"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """`retry-after-ms` comes first, then `retry-after`, then the later reset of the exhausted limits."""
    assert seconds == wait(headers, wall=50)


@pytest.mark.parametrize(
    "text, seconds", [("10", 10), ("1h2m3s", 3723), ("20ms", 0.02), ("1m0.5s", 60.5), ("", None), ("-1", None), ("1d", None)]
)
def test_durations(text: str, seconds: float | None) -> None:
    """Azure's and OpenAI's duration formats are parsed."""
    assert seconds == duration(text)


_HEADERS = (
    "retry-after",
    "retry-after-ms",
    *(f"x-ratelimit-{what}-{of}" for what in ("reset", "remaining") for of in ("tokens", "requests")),
)
_DATES = st.sampled_from(["Mon, 01 Jan {} 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00", "Mon, 01 Jan 2026 00:00:00 +{}", "01 Jan 2026 {}:00"])
_HOSTILE = st.text("0123456789.smh-+eEinfa \x1b٣") | st.builds(str.format, _DATES, st.integers(0, 10**20))


@given(st.fixed_dictionaries(dict.fromkeys(_HEADERS, _HOSTILE)))
@example(dict.fromkeys(_HEADERS, "9" * 12_000))
@example(dict.fromkeys(_HEADERS, "1h" * 12_000))
@example({"retry-after": "Mon, 01 Jan 99999999999999 00:00:00 GMT"})
@example({"retry-after": "Mon, 01 Jan 2026 00:00:00 +99999999999999"})
def test_hostile_headers(headers: dict[str, str]) -> None:
    """A hostile header value raises no error, and a wait that it yields is at most the longest wait."""
    found = wait(headers, wall=50)
    assert found is None or 0 <= found <= LONGEST_WAIT
    assert not math.isnan(Limit().succeeded(0, headers).renewed)


@pytest.mark.parametrize("text", ["9" * 12_000, "9" * 12_000 + "x", "1h" * 12_000, "1." + "9" * 12_000 + "s"])
def test_a_long_duration_is_not_read(text: str) -> None:
    """An overlong duration is not parsed, because the work would grow with the square of its length."""
    assert duration(text) is None
