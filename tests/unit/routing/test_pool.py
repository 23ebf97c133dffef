"""The pool of backends, with a clock that the test sets."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.routing import pool as pools
from azure_openai_proxy.routing.pool import Pool

A, B, C = (Backend(name=name, base=Base("https", name, 443), apiversion="v1", priority=index) for index, name in enumerate("abc"))
ALL = (A, B, C)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> Pool:
    pool = Pool(clock, random.Random(1))
    pool.update(ALL)
    return pool


def chosen(
    pool: Pool, backends: tuple[Backend, ...] = ALL, tokens: int = 0, tried: tuple[str, ...] = (), deployment: str = "d"
) -> str | None:
    backend = pool.choose(backends, lambda _: deployment, tokens=tokens, tried=tried)
    return backend.name if backend else None


def test_spill_over(pool: Pool, clock: Clock) -> None:
    """Requests go to the lowest priority, spill over after a 429 for that deployment only, and return after its Retry-After."""
    assert "a" == chosen(pool)
    pool.refused(pool.begin(A, "d"), 10)
    assert ("b", "a") == (chosen(pool), chosen(pool, deployment="other"))
    clock.now += 10
    assert "a" == chosen(pool)


def test_a_failure_and_its_probe(pool: Pool, clock: Clock) -> None:
    """An unreachable backend cools down for all deployments, and then one probe runs before other requests are admitted."""
    pool.unreachable(pool.begin(A, "d"))
    assert ("b", "b") == (chosen(pool), chosen(pool, deployment="other"))
    clock.now += 1
    assert "a" == chosen(pool)
    probe = pool.begin(A, "d")
    assert "b" == chosen(pool)
    pool.end(probe)
    assert "a" == chosen(pool)
    again = pool.begin(A, "d")
    pool.answers(again, {})
    pool.end(again)
    assert ("a", "healthy") == (chosen(pool), pool.views()[0].state)


def test_a_deployment_that_fails_and_its_probe(pool: Pool, clock: Clock) -> None:
    """A deployment cools down alone; another failure doubles the time, success or a 429 ends it, and a 400 does neither."""
    pool.failed(pool.begin(A, "d"))
    assert ("b", "a", "healthy") == (chosen(pool), chosen(pool, deployment="other"), pool.views()[0].state)
    assert 0.5 <= pool.views()[0].failing["d"] <= 1
    clock.now += 1
    assert {} == pool.views()[0].failing
    probe = pool.begin(A, "d")
    assert ("b", "a") == (chosen(pool), chosen(pool, deployment="other"))
    pool.declined(probe)
    again = pool.begin(A, "d")
    pool.failed(again)
    assert 1 <= pool.views()[0].failing["d"] <= 2
    clock.now += 2
    answered = pool.begin(A, "d")
    pool.answers(answered, {})
    pool.end(answered)
    assert "a" == chosen(pool)
    pool.failed(pool.begin(A, "d"))
    pool.refused(pool.begin(A, "d"), 0)
    assert "a" == chosen(pool)


def test_a_clients_own_key(pool: Pool) -> None:
    """A rate limit is per client key at a backend without a configured key, and shared at one with a configured key."""
    pool.update((A, replace(B, token="sesame")))
    pool.refused(pool.begin(A, "d", scope=b"one"), 10)
    pool.refused(pool.begin(B, "d", scope=b"one"), 10)
    backends = A, replace(B, token="sesame")
    one = pool.choose(backends, lambda _: "d", scope=b"one")
    two = pool.choose(backends, lambda _: "d", scope=b"two")
    assert (None, "a") == (one, two and two.name)
    assert (10, None) == (pool.soonest(backends, lambda _: "d", scope=b"one"), pool.soonest(backends, lambda _: "d", scope=b"two"))
    assert [{"d (a client's own key)": 10}, {"d": 10}] == [view.refused for view in pool.views()]


def test_failures_at_once_are_one(pool: Pool, clock: Clock) -> None:
    """Many simultaneous failures of one outage count once."""
    tickets = [pool.begin(A, "d") for _ in range(20)]
    for ticket in tickets:
        pool.unreachable(ticket)
    assert 0 < pool.views()[0].cooling <= 1
    clock.now += 1
    pool.unreachable(pool.begin(A, "d"))
    assert 1 <= pool.views()[0].cooling <= 2


def test_failures_of_a_deployment_at_once_are_one(pool: Pool) -> None:
    """Requests in flight when a deployment begins to fail do not double its cool-down."""
    first, second = pool.begin(A, "d"), pool.begin(A, "d")
    pool.failed(first)
    before = pool.views()[0].failing
    pool.failed(second)
    assert before == pool.views()[0].failing


def test_two_of_many_are_inspected(pool: Pool) -> None:
    """Two drawn backends are inspected while they are healthy, and otherwise the only healthy one of many is always found."""
    many = tuple(replace(A, name=str(number)) for number in range(50))
    pool.update(many)
    looked: list[str] = []

    def deployment(backend: Backend) -> str:
        looked.append(backend.name)
        return "d"

    assert pool.choose(many, deployment)
    assert 2 == len(looked)
    for backend in many[:25]:
        pool.failed(pool.begin(backend, "d"))
    for backend in many[25:49]:
        pool.refused(pool.begin(backend, "d"), 60)
    assert {"49"} == {chosen(pool, many) for _ in range(50)}


def test_no_healthy_backend(pool: Pool) -> None:
    """Without a healthy backend a failed one is used, a rate-limited one is not, and a sole backend is used in any case."""
    pool.refused(pool.begin(A, "d"), 10)
    pool.refused(pool.begin(C, "d"), 20)
    pool.failed(pool.begin(B, "d"))
    assert ("b", None) == (chosen(pool), chosen(pool, tried=("b",)))
    assert "a" == chosen(pool, (A,))
    pool.refused(pool.begin(B, "d"), 5)
    assert None is chosen(pool)
    assert 5 == pool.soonest(ALL, lambda _: "d")
    assert None is pool.soonest(ALL, lambda _: "other")
    assert None is pool.soonest((), lambda _: "d")


def test_a_backend_without_the_deployment(pool: Pool, clock: Clock) -> None:
    """A backend without the deployment comes last, is not used while others are rate-limited, and is used if no backend has it."""
    pool.missed(pool.begin(A, "d"), 30)
    assert ("b", "a") == (chosen(pool), chosen(pool, (A,)))
    pool.refused(pool.begin(B, "d"), 10)
    pool.refused(pool.begin(C, "d"), 20)
    assert None is chosen(pool)
    assert 10 == pool.soonest(ALL, lambda _: "d")
    pool.missed(pool.begin(B, "d"), 30)
    clock.now += 20
    assert "c" == chosen(pool)
    pool.missed(pool.begin(C, "d"), 30)
    assert ("a", "b") == (chosen(pool), chosen(pool, tried=("a",)))
    assert None is pool.soonest(ALL, lambda _: "d")
    assert {"d": 10} == pool.views()[0].absent
    pool.answers(pool.begin(A, "d"), {})
    assert {} == pool.views()[0].absent


def test_tokens(pool: Pool, clock: Clock) -> None:
    """A backend with too few tokens is skipped until its reset, and used if no backend has more."""
    ticket = pool.begin(A, "d")
    pool.answers(ticket, {"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "30"})
    pool.end(ticket)
    assert ("a", "b", "a") == (chosen(pool, tokens=100), chosen(pool, tokens=101), chosen(pool, (A,), tokens=101))
    clock.now += 30
    assert "a" == chosen(pool, tokens=101)


def test_client_errors_end_the_cool_down(pool: Pool) -> None:
    """A 400 ends the cool-down of the backend."""
    pool.unreachable(pool.begin(A, "d"))
    pool.declined(pool.begin(A, "d"))
    assert "healthy" == pool.views()[0].state


def test_time_to_first_byte(pool: Pool, clock: Clock) -> None:
    """The time to first byte is a moving average that expires after a minute."""
    for took in (1.0, 2.0):
        ticket = pool.begin(A, "d")
        assert 1 == pool.views()[0].in_flight
        clock.now += took
        pool.answers(ticket, {})
        pool.end(ticket)
        pool.end(ticket)
    assert 0 == pool.views()[0].in_flight
    assert pytest.approx(1.3) == pool.views()[0].first_byte
    clock.now += 61
    assert None is pool.views()[0].first_byte


def test_other_settings(pool: Pool) -> None:
    """State is kept while name, address and key are the same, and requests in flight at a removed backend end without error."""
    ticket, gone = pool.begin(A, "d"), pool.begin(B, "d")
    pool.refused(pool.begin(A, "d"), 10)
    pool.update((replace(A, weight=2), replace(B, token="other")))
    pool.end(ticket)
    pool.failed(gone)
    a, b = pool.views()
    assert (2, 0, {"d": 10}) == (a.backend.weight, a.in_flight, a.refused)
    assert ("healthy", 0) == (b.state, b.in_flight)
    pool.end(pool.begin(C, "d"))
    assert 2 == len(pool.views())


def test_memory_is_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are bounded, because clients may request any name."""
    monkeypatch.setattr(pools, "MOST_LIMITS", 3)
    for number in range(9):
        pool.refused(pool.begin(A, f"d{number}"), 10)
        pool.missed(pool.begin(B, f"d{number}"), 10)
        pool.failed(pool.begin(C, f"d{number}"), 10)
    a, b, c = pool.views()
    assert [["d6", "d7", "d8"]] * 3 == [list(a.refused), list(b.absent), list(c.failing)]
    pool.answers(pool.begin(A, "new"), {})
    assert ["d6", "d7", "d8"] == list(pool.views()[0].refused)  # a limit without information is not stored
