"""The rules by which `make soak` judges how often a request was sent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from soak_edges import Arrival, problem

ANSWERED, OTHER, THIRD = (Arrival(edge, 2, reused=False, sent="everything") for edge in "abc")
BROKEN = Arrival("a", 1, reused=True, sent="an event")
BEGUN = Arrival("a", 1, reused=True, sent="some bytes")
STALE, NEW, LAST = Arrival("a", 1, reused=True), Arrival("a", 2, reused=False), Arrival("b", 1, reused=False)


@pytest.mark.parametrize(
    "arrivals, outcome",
    [
        ([ANSWERED], "JSON"),
        ([STALE, ANSWERED], "stream"),
        ([NEW, OTHER], "JSON"),
        ([BEGUN, OTHER], "JSON"),
        ([OTHER, replace(NEW, moved=True)], "JSON"),
        ([STALE, NEW, OTHER], "JSON"),
        ([NEW, LAST], "502 {}"),
        ([], "502 {}"),
        ([BROKEN], "interrupted stream with an error"),
    ],
)
def test_what_is_allowed(arrivals: list[Arrival], outcome: str) -> None:
    """A stale connection once for each backend, and one other backend."""
    assert problem(arrivals, outcome) is None


@pytest.mark.parametrize(
    "arrivals, outcome, says",
    [
        ([], "JSON", "not the response"),
        ([BEGUN, ANSWERED], "JSON", "not for a stale connection"),
        ([ANSWERED, ANSWERED], "JSON", "again after a response"),
        ([BROKEN, OTHER], "stream", "again after a response"),
        ([NEW, ANSWERED], "JSON", "not for a stale connection"),
        ([STALE, STALE, ANSWERED], "JSON", "not for a stale connection"),
        ([NEW, LAST, THIRD], "JSON", "third backend"),
        ([NEW, LAST], "JSON", "not the response"),
        ([ANSWERED], "502 {}", "not the response"),
        ([BROKEN], "stream", "not the response"),
        ([ANSWERED], "response to another request: x", "not the response"),
    ],
)
def test_what_is_not(arrivals: list[Arrival], outcome: str, says: str) -> None:
    """Anything else, and a client that got another outcome than its last arrival had."""
    assert says in (problem(arrivals, outcome) or "")
