"""The pool of backends, with a clock that the test sets."""

from __future__ import annotations

import functools
import logging
import random
from collections import Counter
from dataclasses import replace

import pytest

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.routing import pool as pools
from azure_openai_proxy.routing.pool import Event, Pool

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
    choice = pool.choose(backends, lambda _: deployment, tokens=tokens, tried=tried)
    return choice.backend.name if choice else None


def test_spill_over(pool: Pool, clock: Clock) -> None:
    """Requests go to the lowest priority, spill over after a 429 for that deployment only, and return after its Retry-After."""
    assert "a" == chosen(pool)
    pool.rate_limited(pool.begin(A, "d"), 10)
    assert ("b", "a") == (chosen(pool), chosen(pool, deployment="other"))
    clock.now += 10
    assert "a" == chosen(pool)


def test_reasons(pool: Pool, clock: Clock) -> None:
    """The reason says whether the backend is the only one, the one of the lowest priority, one of several, or checked after a failure."""

    def reason(*backends: Backend) -> str:
        choice = pool.choose(backends, lambda _: "d")
        assert choice
        ticket = pool.begin(choice.backend, "d", reason=choice.reason)
        pool.end(ticket)
        return ticket.reason

    even = tuple(replace(backend, priority=0) for backend in ALL)
    assert ("only", "priority", "weight", "weight") == (reason(A), reason(*ALL), reason(*even), reason(*even[:2]))
    pool.rate_limited(pool.begin(A, "d"), 10)
    assert ("priority", "only", "weight") == (reason(*ALL), reason(A, B), reason(*even))
    assert "priority" == reason(A, B, C, replace(C, name="e"))
    pool.failed(pool.begin(B, "d"))
    assert ("only", "only") == (reason(*ALL), reason(*even))
    clock.now += 1
    assert "probe" == reason(*ALL)


def test_a_bound_session(pool: Pool) -> None:
    """A session's backend is preferred among those of the lowest priority that can be used, unless it has far more load than another."""
    d, e = (replace(A, name=name) for name in "de")
    pool.update((A, B, d, e))

    def pick(bound: str, tokens: int = 0) -> tuple[str, str]:
        choice = pool.choose((A, B, d, e), lambda _: "d", tokens=tokens, bound=(bound,))
        assert choice
        return choice.backend.name, choice.reason

    assert [("e", "bound")] * 9 == [pick("e") for _ in range(9)]
    assert {"weight"} == {reason for _, reason in (pick("b"), pick("gone"))}
    running = [pool.begin(e, "d") for _ in range(8)]
    assert "e" != pick("e")[0]
    balanced = [pool.begin(backend, "d") for backend in (A, d) for _ in range(4)]
    assert ("e", "bound") == pick("e")
    for ticket in (*running, *balanced):
        pool.end(ticket)
    pool.succeeded(pool.begin(e, "d"), {"x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "60"})
    assert ("e", "bound") == pick("e", tokens=10)
    assert "e" != pick("e", tokens=11)[0]
    for backend in (A, d):
        pool.rate_limited(pool.begin(backend, "d"), 10)
    assert ("b", "only") == pick("e", tokens=11)
    pool.rate_limited(pool.begin(B, "d"), 10)
    assert ("e", "only") == pick("e", tokens=11)


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
    pool.succeeded(again, {})
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
    pool.client_error(probe)
    again = pool.begin(A, "d")
    pool.failed(again)
    assert 1 <= pool.views()[0].failing["d"] <= 2
    clock.now += 2
    answered = pool.begin(A, "d")
    pool.succeeded(answered, {})
    pool.end(answered)
    assert "a" == chosen(pool)
    pool.failed(pool.begin(A, "d"))
    pool.rate_limited(pool.begin(A, "d"), 0)
    assert "a" == chosen(pool)


def test_a_clients_own_key(pool: Pool) -> None:
    """A rate limit is per client key at a backend without a configured key, and shared at one with a configured key."""
    pool.update((A, replace(B, token="sesame")))
    pool.rate_limited(pool.begin(A, "d", scope=b"one"), 10)
    pool.rate_limited(pool.begin(B, "d", scope=b"one"), 10)
    backends = A, replace(B, token="sesame")
    one = pool.choose(backends, lambda _: "d", scope=b"one")
    two = pool.choose(backends, lambda _: "d", scope=b"two")
    assert (None, "a") == (one, two and two.backend.name)
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
        pool.rate_limited(pool.begin(backend, "d"), 60)
    assert {"49"} == {chosen(pool, many) for _ in range(50)}


def test_no_healthy_backend(pool: Pool) -> None:
    """Without a healthy backend a failed one is used, a rate-limited one is not, and a sole backend is used in any case."""
    pool.rate_limited(pool.begin(A, "d"), 10)
    pool.rate_limited(pool.begin(C, "d"), 20)
    pool.failed(pool.begin(B, "d"))
    assert ("b", None) == (chosen(pool), chosen(pool, tried=("b",)))
    assert "a" == chosen(pool, (A,))
    pool.rate_limited(pool.begin(B, "d"), 5)
    assert None is chosen(pool)
    assert 5 == pool.soonest(ALL, lambda _: "d")
    assert None is pool.soonest(ALL, lambda _: "other")
    assert None is pool.soonest((), lambda _: "d")


def test_a_backend_without_the_deployment(pool: Pool, clock: Clock) -> None:
    """A backend without the deployment comes last, is not used while others are rate-limited, and is used if no backend has it."""
    pool.deployment_missing(pool.begin(A, "d"), 30)
    assert ("b", "a") == (chosen(pool), chosen(pool, (A,)))
    pool.rate_limited(pool.begin(B, "d"), 10)
    pool.rate_limited(pool.begin(C, "d"), 20)
    assert None is chosen(pool)
    assert 10 == pool.soonest(ALL, lambda _: "d")
    pool.deployment_missing(pool.begin(B, "d"), 30)
    clock.now += 20
    assert "c" == chosen(pool)
    pool.deployment_missing(pool.begin(C, "d"), 30)
    assert ("a", "b") == (chosen(pool), chosen(pool, tried=("a",)))
    assert None is pool.soonest(ALL, lambda _: "d")
    assert {"d": 10} == pool.views()[0].absent
    pool.succeeded(pool.begin(A, "d"), {})
    assert {} == pool.views()[0].absent


def test_tokens(pool: Pool, clock: Clock) -> None:
    """A backend with too few tokens is skipped until its reset, and used if no backend has more."""
    ticket = pool.begin(A, "d")
    pool.succeeded(ticket, {"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "30"})
    pool.end(ticket)
    assert ("a", "b", "a") == (chosen(pool, tokens=100), chosen(pool, tokens=101), chosen(pool, (A,), tokens=101))
    clock.now += 30
    assert "a" == chosen(pool, tokens=101)


def test_client_errors_end_the_cool_down(pool: Pool) -> None:
    """A 400 ends the cool-down of the backend."""
    pool.unreachable(pool.begin(A, "d"))
    pool.client_error(pool.begin(A, "d"))
    assert "healthy" == pool.views()[0].state


def test_time_to_first_byte(pool: Pool, clock: Clock) -> None:
    """The time to first byte is a moving average that expires after a minute."""
    for took in (1.0, 2.0):
        ticket = pool.begin(A, "d")
        assert 1 == pool.views()[0].in_flight
        clock.now += took
        pool.succeeded(ticket, {})
        pool.end(ticket)
        pool.end(ticket)
    assert 0 == pool.views()[0].in_flight
    assert pytest.approx(1.3) == pool.views()[0].first_byte
    clock.now += 61
    assert None is pool.views()[0].first_byte


def test_other_settings(pool: Pool) -> None:
    """State is kept while name, address and key are the same, and requests in flight at a removed backend end without error."""
    ticket, gone = pool.begin(A, "d"), pool.begin(B, "d")
    pool.rate_limited(pool.begin(A, "d"), 10)
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
        pool.rate_limited(pool.begin(A, f"d{number}"), 10)
        pool.deployment_missing(pool.begin(B, f"d{number}"), 10)
        pool.failed(pool.begin(C, f"d{number}"), 10)
    a, b, c = pool.views()
    assert [["d6", "d7", "d8"]] * 3 == [list(a.refused), list(b.absent), list(c.failing)]
    pool.succeeded(pool.begin(A, "new"), {})
    assert ["d6", "d7", "d8"] == list(pool.views()[0].refused)  # a limit without information is not stored


def test_whether_a_deployment_is_up(pool: Pool, clock: Clock) -> None:
    """It is down while a failure, a 429 or a missing deployment keeps it in a cool-down. Names are compared without regard to case."""
    assert [True, True, False] == [pool.is_up(name, "d") for name in ("a", "b", "gone")]
    pool.rate_limited(pool.begin(A, "d"), 10)
    pool.failed(pool.begin(B, "d"))
    pool.deployment_missing(pool.begin(C, "d"), 10)
    assert [False, True, False, True, False, True] == [pool.is_up(name, deployment) for name in "abc" for deployment in ("D", "other")]
    pool.unreachable(pool.begin(A, "other"))
    assert not pool.is_up("a", "another")
    clock.now += 100
    assert [True, True, True] == [pool.is_up(name, "d") for name in "abc"]


DAY = 86_400.0


def test_a_retry_after_of_a_day(pool: Pool, clock: Clock) -> None:
    """The cool-down is capped and ends with one probe, while the other requests go elsewhere; a refused probe begins it anew."""
    pool.rate_limited(pool.begin(A, "d"), DAY, most=300)
    clock.now += 299
    assert "b" == chosen(pool)
    for _ in range(3):
        clock.now += 301
        assert ("a", "a") == (chosen(pool), chosen(pool))
        probe = pool.begin(A, "d", reason="priority")
        assert ("probe", "b", "b") == (probe.reason, chosen(pool), chosen(pool))
        pool.rate_limited(probe, DAY, most=300)
        assert "b" == chosen(pool)
    clock.now += 301
    pool.end(pool.begin(A, "d"))
    assert "a" == chosen(pool)
    probe = pool.begin(A, "d", reason="priority")
    pool.succeeded(probe, {})
    pool.end(probe)
    second = pool.begin(A, "d", reason="priority")
    assert ("a", "priority") == (chosen(pool), second.reason)


def test_the_true_time(pool: Pool, clock: Clock) -> None:
    """The shortest Retry-After of all backends counts, not the end of the cool-downs."""
    for backend, hours in ((A, 24), (B, 2), (C, 3)):
        pool.rate_limited(pool.begin(backend, "d"), hours * 3600, most=300)
    assert (7200, None) == (pool.soonest(ALL, lambda _: "d"), chosen(pool))
    clock.now += 301
    for backend in ALL:
        pool.begin(backend, "d")
    assert (6899, None) == (pool.soonest(ALL, lambda _: "d"), chosen(pool))
    pool.failed(pool.begin(A, "e"), DAY, 300)
    assert DAY == pool.soonest((A,), lambda _: "e")
    assert 300 == pool.views()[0].failing["e"]


def test_a_probe_that_fails_otherwise(pool: Pool, clock: Clock) -> None:
    """Its limit is still to be probed, once its cool-down for the failure is over; a newer Retry-After replaces the older one."""
    pool.rate_limited(pool.begin(A, "d"), DAY, most=300)
    clock.now += 300
    pool.failed(pool.begin(A, "d"))
    assert "b" == chosen(pool)
    clock.now += 1
    probe = pool.begin(A, "d", reason="priority")
    assert "probe" == probe.reason
    pool.rate_limited(probe, 10)
    clock.now += 10
    assert None is pool.soonest((A,), lambda _: "d")
    assert "a" == chosen(pool)


def test_a_probe_whose_limit_was_forgotten(pool: Pool, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its ticket changes nothing."""
    pool.rate_limited(pool.begin(A, "d"), DAY, most=300)
    clock.now += 300
    probe = pool.begin(A, "d")
    monkeypatch.setattr(pools, "MOST_LIMITS", 1)
    pool.rate_limited(pool.begin(A, "e"), 10)
    pool.end(probe)
    assert {"e"} == set(pool.views()[0].refused)


def requests(pool: Pool, clock: Clock, backends: tuple[Backend, ...], count: int, seconds: float = 0.02, **headers: str) -> Counter[str]:
    """Sequential requests, each of which takes about so long; how many of them each backend got."""
    rng, got = random.Random(3), Counter[str]()
    for _ in range(count):
        choice = pool.choose(backends, lambda _: "d")
        assert choice
        got[choice.backend.name] += 1
        ticket = pool.begin(choice.backend, "d")
        clock.now += seconds * rng.uniform(0.2, 5)
        pool.succeeded(ticket, {name.replace("_", "-"): value for name, value in headers.items()})
        pool.end(ticket)
    return got


@pytest.mark.parametrize("count", [2, 3])
def test_sequential_requests_are_shared(count: int, pool: Pool, clock: Clock) -> None:
    """Backends of one priority and weight get about the same number, whatever their first measured times."""
    same = tuple(replace(backend, priority=0) for backend in ALL[:count])
    pool.update(same)
    got = requests(pool, clock, same, 60)
    assert min(got.values()) >= 60 / count * 2 / 3
    assert count == len(got)


@pytest.mark.parametrize("count", [60, 100, 200])
def test_weights(count: int, pool: Pool, clock: Clock) -> None:
    """Of weights 9 and 1 the smaller one gets a tenth, whether requests are sequential or parallel."""
    two = replace(A, priority=0, weight=9), replace(B, priority=0)
    pool.update(two)
    assert 0.05 <= requests(pool, clock, two, count)["b"] / count <= 0.15
    running = Counter[str]()
    for _ in range(count):
        choice = pool.choose(two, lambda _: "d")
        assert choice
        pool.begin(choice.backend, "d")
        running[choice.backend.name] += 1
    assert 0.05 <= running["b"] / count <= 0.15


def test_after_its_absence_a_backend_is_not_flooded(pool: Pool, clock: Clock) -> None:
    """It gets its share again, and no requests in compensation."""
    two = replace(A, priority=0), replace(B, priority=0)
    pool.update(two)
    pool.rate_limited(pool.begin(two[0], "d"), 60)
    assert {"b": 50} == requests(pool, clock, two, 50)
    clock.now += 60
    assert 5 <= requests(pool, clock, two, 10)["a"] <= 6


def test_rate_limits_are_weights(pool: Pool, clock: Clock) -> None:
    """Of equal weights the backend with twice the tokens per minute gets two thirds; configured weights take precedence."""
    for weight, least, most in ((1, 36, 44), (2, 16, 24)):
        two = replace(A, priority=0), replace(B, priority=0, weight=weight)
        pool.update(two)
        for backend, size in zip(two, ("200000", "100000"), strict=True):
            limits = {"x-ratelimit-limit-tokens": size, "x-ratelimit-remaining-tokens": size, "x-ratelimit-reset-tokens": "60"}
            ticket = pool.begin(backend, "d")
            pool.succeeded(ticket, limits)
            pool.end(ticket)
        got = Counter[str]()
        for _ in range(60):
            choice = pool.choose(two, lambda _: "d")
            assert choice
            got[choice.backend.name] += 1
            pool.end(pool.begin(choice.backend, "d"))
        assert least <= got["a"] <= most


def test_provisioned_throughput_first(pool: Pool, clock: Clock) -> None:
    """Before standard of the same priority, whatever the weights, until a 429 or its tokens say that it is full; then first again."""
    ptu, paid = replace(A, priority=0, kind="provisioned"), replace(B, priority=0, weight=100)
    pool.update((paid, ptu))
    first = pool.choose((paid, ptu), lambda _: "d")
    assert first
    assert ("a", "priority") == (first.backend.name, first.reason)
    pool.rate_limited(pool.begin(ptu, "d"), 10)
    assert "b" == chosen(pool, (paid, ptu))
    clock.now += 10
    assert "a" == chosen(pool, (paid, ptu))
    pool.succeeded(pool.begin(ptu, "d"), {"x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "20"})
    assert ("b", "a") == (chosen(pool, (paid, ptu), tokens=11), chosen(pool, (paid, ptu), tokens=10))
    clock.now += 20
    assert "a" == chosen(pool, (paid, ptu), tokens=11)
    assert "c" == chosen(pool, (replace(C, priority=0), replace(ptu, priority=1)))


class Replicas:
    """Two pools of the same backends, each of which learns what the other publishes."""

    def __init__(self, clock: Clock) -> None:
        self.one, self.two = Pool(clock), Pool(clock)
        self.said: list[str] = []
        for pool, other in ((self.one, self.two), (self.two, self.one)):
            pool.update((A, B))
            pool.publish = functools.partial(self._pass_on, pool, other)

    def _pass_on(self, pool: Pool, other: Pool, event: Event, backend: str, deployment: str) -> None:
        self.said.append(event)
        other.learn(event, backend, deployment, pool.shown(event, backend, deployment), 0.0)

    def up(self, deployment: str = "d") -> tuple[bool, bool]:
        return self.one.is_up("a", deployment), self.two.is_up("a", deployment)


def test_cool_downs_of_another_replica(clock: Clock) -> None:
    """Each kind of cool-down that one replica begins holds in the other, and ends at the same time or when it works again."""
    replicas = Replicas(clock)
    one, two = replicas.one, replicas.two
    one.unreachable(one.begin(A, "d"))
    assert (False, False) == replicas.up("other")
    clock.now += 2
    two.succeeded(two.begin(A, "d"), {})
    assert (True, True) == replicas.up("other")
    one.failed(one.begin(A, "d"), 20.0)
    assert (False, False) == replicas.up()
    assert (True, True) == replicas.up("other")
    clock.now += 20
    two.succeeded(two.begin(A, "d"), {})
    one.deployment_missing(one.begin(A, "d"), 10.0)
    assert (False, False) == replicas.up()
    clock.now += 10
    one.rate_limited(one.begin(A, "d"), 60.0)
    assert (False, False) == replicas.up()
    clock.now += 60
    assert (True, True) == replicas.up()
    assert ["down", "up", "failing", "up", "absent", "limit"] == replicas.said


def test_remaining_tokens_of_another_replica(clock: Clock) -> None:
    """The tokens that a deployment has left count in each replica; those of a client's own key are not published."""
    replicas = Replicas(clock)
    headers = {"x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "60"}
    own = b"a client's own key"
    replicas.one.succeeded(replicas.one.begin(A, "d", scope=own), headers)
    replicas.one.rate_limited(replicas.one.begin(A, "d", scope=own), 60.0)
    assert [] == replicas.said
    replicas.one.succeeded(replicas.one.begin(A, "d"), headers)
    both = [replica.choose((A, B), lambda _: "d", tokens=50) for replica in (replicas.one, replicas.two)]
    assert [B, B] == [choice and choice.backend for choice in both]
    assert [10, 60, 0] == replicas.two.shown("tokens", "a", "d")


@pytest.mark.parametrize("told", [False, True])
def test_the_log_of_an_outage(told: bool, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line when a backend cannot be reached, also if another replica says so, and one when it responds again."""
    caplog.set_level(logging.INFO)
    pool = Pool(clock)
    pool.update((A,))
    for _ in range(3):
        if told:
            pool.learn("down", "a", "d", [1, 60, 60], 0.0)
        else:
            pool.unreachable(pool.begin(A, "d"))
        clock.now += 3600
    ticket = pool.begin(A, "d")
    pool.succeeded(ticket, {})
    pool.end(ticket)
    pool.succeeded(pool.begin(A, "d"), {})
    down, up = [record.getMessage() for record in caplog.records]
    assert down == (
        "Another replica cannot reach the backend a: it is out of use."
        if told
        else "The backend a cannot be reached: it is out of use until a request reaches it."
    )
    assert "The backend a can be reached again." == up


def test_what_replicas_do_not_take_over(clock: Clock) -> None:
    """A cool-down that is over or shorter, an unknown backend, and a state that is over have no effect."""
    pool = Pool(clock)
    pool.update((A,))
    events: list[Event] = ["down", "failing", "limit", "tokens"]
    for event in events:
        assert [] == pool.shown(event, "a", "d")
        pool.learn(event, "a", "d", [], 0.0)
    assert [0] == pool.shown("absent", "a", "d")
    assert ([], [0]) == (pool.shown("up", "unknown", "d"), pool.shown("up", "a", "d"))
    pool.learn("down", "unknown", "d", [1, 60, 60], 0.0)
    for event in events[:2]:
        pool.learn(event, "a", "d", [1, 60, 60], 61.0)
    pool.learn("limit", "a", "d", [60, 60, 0], 61.0)
    pool.learn("absent", "a", "d", [60], 61.0)
    assert pool.is_up("a", "d")
    pool.learn("failing", "a", "d", [3, 60, 60], 1.0)
    pool.learn("failing", "a", "d", [1, 5, 5], 0.0)
    assert [3, 59, 59] == pool.shown("failing", "a", "d")
    pool.learn("absent", "a", "d", [60], 1.0)
    pool.learn("absent", "a", "d", [5], 0.0)
    assert [59] == pool.shown("absent", "a", "d")


@pytest.mark.parametrize("slow", ["a", "b"])
def test_one_slow_response(slow: str, pool: Pool, clock: Clock) -> None:
    """It does not leave its backend without requests: of weights 9 and 1 both still get about their share."""
    two = replace(A, priority=0, weight=9), replace(B, priority=0)
    pool.update(two)
    for backend in two:
        ticket = pool.begin(backend, "d")
        clock.now += 20 if backend.name == slow else 0.1
        pool.succeeded(ticket, {})
        pool.end(ticket)
    assert 5 <= requests(pool, clock, two, 100)["b"] <= 15
