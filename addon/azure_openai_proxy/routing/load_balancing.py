"""Load-balancing policies: small values that choose one of several usable backends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from azure_openai_proxy.api.backend import Backend

__all__ = ["BetterOfTwo", "Candidate", "FairShare", "Load", "LowestPriority", "Policy", "first_choice", "is_crowded"]


SAME = 0.5
"""Seconds. Backends with a shorter time to first byte count as equally fast: such differences are those of the measurement."""

SLOWEST = 2.0
"""A slower backend gets at least half of its share, so that one slow response does not leave it without requests."""


@dataclass(slots=True)
class Load:
    """The share of the requests that a backend has had: each one moves its turn by the cost, which is lower for a larger share."""

    turn: float = 0.0
    cost: float = 1.0

    def take(self) -> None:
        self.turn += self.cost


class Candidate(NamedTuple):
    backend: Backend
    in_flight: int = 0
    first_byte: float | None = None  # seconds, recent average; None: not measured
    limit: int | None = None  # tokens per minute; None: unknown
    load: Load | None = None


class Policy(Protocol):
    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        """Choose one of the candidates, of which there is at least one."""
        ...

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        """The backends that `choose` would compare if all were healthy, so that the pool need not check the others."""
        ...


@dataclass(frozen=True, slots=True)
class FairShare:
    """The backend whose turn it is, with its requests in flight: sequential requests are shared, parallel ones go to the least loaded.

    A share is the weight, or down to half of it for a longer time to first byte. If all weights are equal, it is in proportion to the rate
    limits, once all are known.
    """

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        if len(candidates) == 1:
            return candidates[0]
        fastest, mean = _fastest(candidates), _mean_limit(candidates)
        top = dearest = 0.0
        loads = []
        for backend, _, first_byte, limit, load in candidates:
            load = load or Load()  # noqa: PLW2901 - of a test
            share = backend.weight if mean is None or limit is None else limit / mean
            # An unmeasured backend counts as the fastest, so that it gets requests.
            load.cost = cost = 1 / share if first_byte is None or first_byte <= fastest else min(first_byte / fastest, SLOWEST) / share
            top, dearest = max(top, load.turn), max(dearest, cost)
            loads.append(load)
        # A backend that was not used for a while does not get all requests until it has caught up.
        least = top - dearest
        best: list[Candidate] = []
        lowest = math.inf
        for candidate, load in zip(candidates, loads, strict=True):
            load.turn = max(load.turn, least)
            due = load.turn + (candidate.in_flight + 1) * load.cost
            if due < lowest:
                best, lowest = [candidate], due
            elif due == lowest:
                best.append(candidate)
        return best[0] if len(best) == 1 else rng.choice(best)

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:  # noqa: ARG002 - no random choice
        return backends


def _fastest(candidates: Sequence[Candidate]) -> float:
    """The shortest time to first byte that counts."""
    measured = [one.first_byte for one in candidates if one.first_byte is not None]
    return max(min(measured), SAME) if measured else SAME


def _mean_limit(candidates: Sequence[Candidate]) -> float | None:
    """The mean rate limit if it is known of all and their weights are equal; else the weights count."""
    total, weight = 0, candidates[0].backend.weight
    for one in candidates:
        if one.limit is None or one.backend.weight != weight:
            return None
        total += one.limit
    return total / len(candidates)


@dataclass(frozen=True, slots=True)
class BetterOfTwo:
    """Power of two choices: draw two backends by weight and take the better, so that not all requests go to the same one."""

    better: Policy = field(default_factory=FairShare)

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        if len(candidates) < 3:
            return self.better.choose(candidates, rng)
        return self.better.choose(_two(candidates, [candidate.backend.weight for candidate in candidates], rng), rng)

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        return backends if len(backends) < 3 else _two(backends, [backend.weight for backend in backends], rng)


def _two[T](of: Sequence[T], weights: list[int], rng: random.Random) -> list[T]:
    drawn = []
    for _ in range(2):
        at = rng.choices(range(len(of)), weights)[0]
        weights[at] = 0
        drawn.append(of[at])
    return drawn


def first_choice(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the lowest `priority` value, and of these those with provisioned throughput."""
    lowest = min(candidate.backend.order for candidate in candidates)
    return [candidate for candidate in candidates if candidate.backend.order == lowest]


CROWD = 8
"""Requests in flight at a backend from which on a session may leave it."""


def is_crowded(candidate: Candidate, among: Iterable[Candidate]) -> bool:
    """Whether a session should leave the backend: it has many requests in flight, and for its weight more than twice as many as another."""
    if candidate.in_flight < CROWD:
        return False
    least = min((one.in_flight + 1) / one.backend.weight for one in among)
    return (candidate.in_flight + 1) / candidate.backend.weight > 2 * least


@dataclass(frozen=True, slots=True)
class LowestPriority:
    """Only the backends with the lowest `priority` value, and of these provisioned throughput before pay-as-you-go."""

    then: Policy = field(default_factory=BetterOfTwo)

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        return self.then.choose(first_choice(candidates), rng)

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        lowest = min(backend.order for backend in backends)
        return self.then.draw([backend for backend in backends if backend.order == lowest], rng)
