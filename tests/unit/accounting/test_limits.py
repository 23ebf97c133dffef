"""The counters of limits in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.limits import Claim, LocalLimits, Refused, Reservation, Use, claims
from azure_openai_proxy.config.clients import Client, Group, Limits

if TYPE_CHECKING:
    from collections.abc import Sequence


class Clock:
    now = 1000.5

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> LocalLimits:
    return LocalLimits(clock)


def tokens(limit: int, take: int) -> Claim:
    return Claim("client a", "tokens_per_minute", limit, take, "client a:tokens_per_minute")


def requests(limit: int, owner: str = "client a") -> Claim:
    return Claim(owner, "requests_per_minute", limit, 1, f"{owner}:requests_per_minute")


def place(limit: int) -> Claim:
    return Claim("client a", "max_parallel", limit, 1, "client a:max_parallel")


def admitted(store: LocalLimits, *wanted: Claim) -> Reservation:
    found = store.reserve(wanted)
    assert isinstance(found, Reservation)
    return found


def seen(store: LocalLimits, wanted: Claim) -> Sequence[Use]:
    """The use of a limit after a request was admitted."""
    return store.look(admitted(store, wanted).claims)


def refused(store: LocalLimits, *wanted: Claim) -> Refused:
    found = store.reserve(wanted)
    assert isinstance(found, Refused)
    return found


def test_claims_are_those_of_client_and_group() -> None:
    """All limits of both are claimed together; tokens are capped at what an empty window has."""
    group = Group(name="g", limits=Limits(tokens_per_minute=5000, max_parallel=9))
    client = Client(name="a", limits=Limits(3, 100, 2))
    assert [
        ("client a:requests_per_minute", 3, 1),
        ("client a:tokens_per_minute", 100, 100),
        ("client a:max_parallel", 2, 1),
        ("group g:tokens_per_minute", 5000, 700),
        ("group g:max_parallel", 9, 1),
    ] == [(one.key, one.limit, one.take) for one in claims(client, group, 700)]
    assert [] == claims(Client(name="b"), None, 700)
    assert ["group h:requests_per_minute"] == [
        one.key for one in claims(Client(name="b"), Group(name="h", limits=Limits(requests_per_minute=1)), 1)
    ]


def test_a_window_slides(store: LocalLimits, clock: Clock) -> None:
    """A request counts for 60 seconds from the beginning of its second, and the wait is exact."""
    assert [Use(1, 59.5)] == seen(store, requests(2))
    clock.now += 10
    assert [Use(2, 59.5)] == seen(store, requests(2))
    found = refused(store, requests(2))
    assert (49.5, [Use(2, 59.5)]) == (found.wait, found.uses)
    clock.now = 1060.0
    assert [Use(2, 60.0)] == seen(store, requests(2))


def test_all_claims_are_reserved_or_none(store: LocalLimits) -> None:
    """A request that one limit refuses takes nothing of the others, and the limit with the longest wait is named."""
    admitted(store, requests(1, "group g"))
    found = refused(store, place(5), requests(9), requests(1, "group g"))
    assert "group g" == found.claim.owner
    assert [0, 0, 1] == [use.used for use in store.look([place(5), requests(9), requests(1, "group g")])]


def test_real_tokens_replace_the_reserved_ones(store: LocalLimits, clock: Clock) -> None:
    """Real usage counts in the second in which it is known; a second settlement does nothing."""
    held = admitted(store, tokens(1000, 900))
    found = refused(store, tokens(1000, 900))
    assert 59.5 == found.wait
    clock.now += 5
    store.settle(held, 16)
    store.settle(held, 500)
    assert [Use(16, 59.5)] == store.look([tokens(1000, 0)])
    assert 916 == seen(store, tokens(1000, 900))[0].used


def test_unknown_usage_leaves_the_reserved_tokens(store: LocalLimits) -> None:
    """Without real usage the reservation stays; zero tokens give all of it back."""
    assert [Use(0, 0.0)] == store.look([tokens(1000, 0)])
    assert [Use(0, 0.0)] == seen(store, tokens(1000, 0))
    store.settle(admitted(store, tokens(1000, 300)))
    store.settle(admitted(store, tokens(1000, 200)), 0)
    assert [300] == [use.used for use in store.look([tokens(1000, 0)])]


def test_a_refund_gives_all_back(store: LocalLimits) -> None:
    """A request that is refused for another reason counts nothing."""
    store.settle(admitted(store, requests(2), tokens(1000, 300), place(1)), refund=True)
    assert [0, 0, 0] == [use.used for use in store.look([requests(2), tokens(1000, 0), place(1)])]
    assert 0.0 == store.look([requests(2)])[0].reset


def test_a_settlement_after_the_window_counts_the_real_tokens(store: LocalLimits, clock: Clock) -> None:
    """Nothing is given back to a bucket that has left the window."""
    held = admitted(store, tokens(1000, 900))
    clock.now += 120
    store.settle(held, 40)
    assert [40] == [use.used for use in store.look([tokens(1000, 0)])]
    clock.now += 5
    again = admitted(store, tokens(1000, 1))
    clock.now += 5
    store.settle(again, 2)
    assert [42] == [use.used for use in store.look([tokens(1000, 0)])]


def test_a_place_is_free_after_its_request(store: LocalLimits) -> None:
    """The wait for a place is one second, and a request that ends frees its own."""
    first, _ = admitted(store, place(2)), admitted(store, place(2))
    found = refused(store, place(2))
    assert (1.0, [Use(2, 0.0)]) == (found.wait, found.uses)
    store.settle(first)
    assert 2 == seen(store, place(2))[0].used


@pytest.mark.parametrize("back", [1, 30, 900])
def test_a_clock_that_was_set_back(store: LocalLimits, clock: Clock, back: int) -> None:
    """Amounts leave the window a minute later, not when the clock has come back."""
    admitted(store, tokens(1000, 400))
    clock.now += 2
    later = admitted(store, tokens(1000, 500))
    clock.now -= back
    refused(store, tokens(1000, 200))
    store.settle(later, 50)
    clock.now += 61
    assert [Use(1000, 59.5)] == seen(store, tokens(1000, 1000))


def test_the_wait_is_never_over_a_minute(store: LocalLimits, clock: Clock) -> None:
    """A limit that was lowered below one request's tokens waits for the whole window; so does a clock that was set back."""
    admitted(store, tokens(1000, 900))
    assert 60.0 == refused(store, tokens(100, 200)).wait
    clock.now -= 30
    assert 59.5 == refused(store, tokens(1000, 900)).wait
    assert [Use(950, 59.5)] == seen(store, tokens(1000, 50))
    assert (100, 0) == (Use(900, 0).remaining(1000), Use(1001, 0).remaining(1000))
