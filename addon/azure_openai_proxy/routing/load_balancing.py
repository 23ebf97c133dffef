"""Ways to choose among backends that could all take a request. Each is a small value with one method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from azure_openai_proxy.api.backend import Backend

__all__ = ["BetterOfTwo", "Candidate", "Fastest", "LowestPriority", "Policy", "RoundRobin"]


class Candidate(NamedTuple):
    backend: Backend
    in_flight: int = 0
    first_byte: float | None = None  # seconds, of late; None: nobody knows


class Policy(Protocol):
    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        """One of them; there is at least one."""
        ...

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        """Those between which it would choose if all were well: then nobody has to look at the others, however many they are."""
        ...


class _All:
    """It chooses between all of them."""

    __slots__ = ()

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:  # noqa: ARG002 - chance has no part in it
        return backends


@dataclass(frozen=True, slots=True)
class Fastest(_All):
    """The one with the least to do for its weight: requests in flight by time to first byte."""

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        known = [candidate.first_byte for candidate in candidates if candidate.first_byte is not None]
        guess = min(known, default=1.0)  # one that nobody knows gets the chance to show how fast it is

        def burden(candidate: Candidate) -> tuple[float, float]:
            first_byte = guess if candidate.first_byte is None else candidate.first_byte
            return (candidate.in_flight + 1) * max(first_byte, 0.001) / candidate.backend.weight, rng.random()

        return min(candidates, key=burden)


@dataclass(frozen=True, slots=True)
class BetterOfTwo:
    """Two at random (a weight of 2 is drawn twice as often), and the better: a herd does not run to the one that looks best."""

    better: Policy = field(default_factory=Fastest)

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


@dataclass(frozen=True, slots=True)
class LowestPriority:
    """Those of the lowest priority only: provisioned throughput first."""

    then: Policy = field(default_factory=BetterOfTwo)

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        lowest = min(candidate.backend.priority for candidate in candidates)
        return self.then.choose([candidate for candidate in candidates if candidate.backend.priority == lowest], rng)

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        lowest = min(backend.priority for backend in backends)
        return self.then.draw([backend for backend in backends if backend.priority == lowest], rng)


@dataclass(slots=True)
class RoundRobin(_All):
    """Each in turn, whatever it does: what the others are measured against."""

    turn: int = 0

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:  # noqa: ARG002 - chance has no part in it
        self.turn += 1
        return candidates[self.turn % len(candidates)]
