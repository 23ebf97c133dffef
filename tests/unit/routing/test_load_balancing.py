"""Load-balancing policies."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.routing.load_balancing import BetterOfTwo, Candidate, FairShare, LowestPriority
from support.round_robin import RoundRobin


def candidate(name: str, in_flight: int = 0, first_byte: float | None = None, priority: int = 0, weight: int = 1) -> Candidate:
    backend = Backend(name=name, base=Base("https", name, 443), apiversion="v1", priority=priority, weight=weight)
    return Candidate(backend, in_flight, first_byte)


RNG = random.Random(1)


def test_the_fastest_is_the_one_with_the_least_to_do() -> None:
    """The backend with the lowest weighted load is chosen, and an unmeasured one counts as being as fast as the fastest."""
    idle, busy, slow = candidate("idle", 0, 1.0), candidate("busy", 3, 1.0), candidate("slow", 0, 9.0)
    assert idle is FairShare().choose([busy, slow, idle], RNG)
    assert "heavy" == FairShare().choose([candidate("heavy", 3, 1.0, weight=9), busy], RNG).backend.name
    assert "new" == FairShare().choose([candidate("busy", 1, 0.5), candidate("new")], RNG).backend.name


def test_the_better_of_two_drawn() -> None:
    """The worst of three backends is never chosen, the others are, and a backend is drawn in proportion to its weight."""
    three = [candidate("a", 0, 1.0), candidate("b", 1, 1.0), candidate("c", 9, 9.0)]
    taken = Counter(BetterOfTwo().choose(three, RNG).backend.name for _ in range(300))
    assert {"a", "b"} == set(taken)
    heavy = [candidate(name, weight=8 if name == "a" else 1) for name in "abcd"]
    drawn = Counter(backend.name for _ in range(2000) for backend in BetterOfTwo().draw([one.backend for one in heavy], RNG)[:1])
    assert drawn["a"] > 3 * drawn["b"]


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_drawn_backends(count: int) -> None:
    """A random policy draws two different backends of the lowest priority, and a deterministic one draws all."""
    backends = [candidate(str(number), priority=number >= count).backend for number in range(count + 10)]
    for _ in range(100):
        drawn = LowestPriority().draw(backends, RNG)
        assert min(2, count) == len(set(drawn)) == len(drawn)
        assert {0} == {backend.priority for backend in drawn}
    assert backends == FairShare().draw(backends, RNG) == RoundRobin().draw(backends, RNG)


def test_the_lowest_priority_first() -> None:
    """The lowest priority value is chosen regardless of load."""
    reserved = candidate("reserved", 50, 5.0, priority=0)
    assert reserved is LowestPriority().choose([candidate("spill", priority=1), reserved], RNG)


def test_round_robin() -> None:
    """Each backend is chosen in turn."""
    policy, three = RoundRobin(), [candidate(name) for name in "abc"]
    assert "bcabca" == "".join(policy.choose(three, RNG).backend.name for _ in range(6))
