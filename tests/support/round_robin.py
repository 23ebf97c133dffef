"""The baseline that load-balancing policies are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.routing.load_balancing import Candidate

__all__ = ["RoundRobin"]


@dataclass(slots=True)
class RoundRobin:
    """Each backend in turn, regardless of load."""

    turn: int = 0

    def choose(self, candidates: Sequence[Candidate], rng: random.Random) -> Candidate:
        self.turn += 1
        return candidates[self.turn % len(candidates)]

    def draw(self, backends: Sequence[Backend], rng: random.Random) -> Sequence[Backend]:
        return backends
