"""Load-balancing policies: small values that choose one of several usable backends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from azure_openai_proxy.api.backend import Backend

__all__ = ["BetterOfTwo", "Candidate", "Fastest", "LowestPriority", "Policy"]


class Candidate(NamedTuple):
    backend: Backend
    in_flight: int = 0
    first_byte: float | None = None  # seconds, recent average; None: not measured


class Policy(Protocol):
    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        """Choose one of the candidates, of which there is at least one."""
        ...

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        """The backends that `choose` would compare if all were healthy, so that the pool need not check the others."""
        ...


@dataclass(frozen=True, slots=True)
class Fastest:
    """The backend with the lowest load: (requests in flight + 1) * time to first byte / weight."""

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        known = [candidate.first_byte for candidate in candidates if candidate.first_byte is not None]
        guess = min(known, default=1.0)  # an unmeasured backend counts as the fastest, so that it gets requests

        def burden(candidate: Candidate) -> tuple[float, float]:
            first_byte = guess if candidate.first_byte is None else candidate.first_byte
            return (candidate.in_flight + 1) * max(first_byte, 0.001) / candidate.backend.weight, rng.random()

        return min(candidates, key=burden)

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:  # noqa: ARG002 - no random choice
        return backends


@dataclass(frozen=True, slots=True)
class BetterOfTwo:
    """Power of two choices: draw two backends by weight and take the better, so that not all requests go to the same one."""

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
    """Only the backends with the lowest `priority` value, for example provisioned throughput before pay-as-you-go."""

    then: Policy = field(default_factory=BetterOfTwo)

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        lowest = min(candidate.backend.priority for candidate in candidates)
        return self.then.choose([candidate for candidate in candidates if candidate.backend.priority == lowest], rng)

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        lowest = min(backend.priority for backend in backends)
        return self.then.draw([backend for backend in backends if backend.priority == lowest], rng)
