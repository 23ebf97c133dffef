"""The backends as they are now: who is asked next, and what is remembered of those that were.

What has failed concerns a backend as a whole, what it refused (429, a key, a deployment that is not there) the deployment alone:
another model may do well on the same backend. Nothing here reads a clock of its own or waits.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from .health import Health, Limit
from .policies import Candidate, LowestPriority

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .backends import Backend
    from .policies import Policy

__all__ = ["Pool", "Ticket", "View"]

STALE = 60.0
"""Seconds after which a time to first byte says nothing any more."""
BEST, ABSENT = 0, 3  # the first rank and the last
MOST_LIMITS = 256
"""Deployments remembered for each backend; clients may ask for any name."""
_NO_LIMIT = Limit()
_SHARE = 0.3  # of the newest time to first byte in the running mean


@dataclass(slots=True)
class _Known:
    backend: Backend
    health: Health = field(default_factory=Health)
    limits: OrderedDict[str, Limit] = field(default_factory=OrderedDict)
    in_flight: int = 0
    first_byte: float | None = None
    heard: float = 0.0

    def limit(self, deployment: str) -> Limit:
        return self.limits.get(deployment, _NO_LIMIT)

    def set(self, deployment: str, limit: Limit) -> None:
        self.limits[deployment] = limit
        self.limits.move_to_end(deployment)
        while len(self.limits) > MOST_LIMITS:
            self.limits.popitem(last=False)


@dataclass(slots=True, eq=False)
class Ticket:
    """One request under way at a backend, from `Pool.begin` to `Pool.end`."""

    known: _Known
    deployment: str
    began: float
    probe: bool
    over: bool = False


class View(NamedTuple):
    """A backend as a person sees it."""

    backend: Backend
    state: str
    in_flight: int
    cooling: float  # seconds left
    first_byte: float | None
    refused: Mapping[str, float]  # deployment to seconds left
    absent: Mapping[str, float]  # the same, of what it had not when it was last asked


class Pool:
    def __init__(self, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None, policy: Policy | None = None) -> None:
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - to spread load, not to keep secrets
        self._policy = policy or LowestPriority()
        self._known: dict[str, _Known] = {}

    def update(self, backends: Sequence[Backend]) -> None:
        """These are the backends from now on. What is known of one stays as long as its name and address do."""
        before = self._known
        self._known = {}
        for backend in backends:
            known = before.get(backend.name)
            if known is None or (known.backend.base, known.backend.token) != (backend.base, backend.token):
                known = _Known(backend)
            known.backend = backend
            self._known[backend.name] = known

    # -- choosing

    def choose(
        self, backends: Sequence[Backend], deployment: Callable[[Backend], str], *, tokens: int = 0, tried: Collection[str] = ()
    ) -> Backend | None:
        """Who should take a request of about so many tokens; None if it is of no use to ask any of those that are left.

        First those that are well and have the tokens; then those that are well but said they have too few left; then those that
        failed of late, for they may be back. One that told when to come back is asked before only when it is the only one there is, and
        one that had no such deployment when none of the others is to be waited for: then it is the client's affair.
        """
        if len(backends) == 1:  # there is no choice
            return backends[0] if backends[0].name not in tried else None
        left = [backend for backend in backends if backend.name not in tried] if tried else backends
        if not left:
            return None
        drawn, now = self._policy.draw(left, self._rng), self._clock()
        ranks, limited = self._ranked(drawn, deployment, tokens, now)
        if limited or max(ranks) > BEST:  # not all that were drawn are well: see what the others are
            ranks, limited = self._ranked(left, deployment, tokens, now)
        if not ranks or (limited and min(ranks) == ABSENT):
            return None
        return self._policy.choose(ranks[min(ranks)], self._rng).backend

    def _ranked(
        self, backends: Sequence[Backend], deployment: Callable[[Backend], str], tokens: int, now: float
    ) -> tuple[dict[int, list[Candidate]], bool]:
        """By how well they could take it, and whether one of them refuses for now and is left out."""
        ranks: dict[int, list[Candidate]] = {}
        limited = False
        for backend in backends:
            known = self._of(backend)
            limit = known.limit(deployment(backend))
            state = known.health.state(now)
            if limit.refuses(now):
                limited = True
                continue
            well = 2 if state in ("cooling", "probing") else BEST if limit.covers(tokens, now) else 1
            rank = ABSENT if limit.is_absent(now) else well
            first_byte = known.first_byte if now - known.heard < STALE else None
            ranks.setdefault(rank, []).append(Candidate(backend, known.in_flight, first_byte))
        return ranks, limited

    def soonest(self, backends: Sequence[Backend], deployment: Callable[[Backend], str]) -> float | None:
        """Seconds until the first of them is to be asked again; None if one may be now."""
        now = self._clock()
        waits: list[float] = []
        elsewhere: list[float] = []
        for backend in backends:
            known = self._of(backend)
            limit = known.limit(deployment(backend))
            (elsewhere if limit.is_absent(now) else waits).append(max(known.health.until, limit.until) - now)
        soonest = min(waits or elsewhere, default=0.0)
        return soonest if soonest > 0 else None

    # -- what happens to a request

    def begin(self, backend: Backend, deployment: str) -> Ticket:
        known, now = self._of(backend), self._clock()
        probe = known.health.state(now) == "probe"
        known.health = known.health.asked(now)
        known.in_flight += 1
        return Ticket(known, deployment, now, probe)

    def answers(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        """The head of a good answer is there."""
        known, now = ticket.known, self._clock()
        took = now - ticket.began
        fresh = known.first_byte is not None and now - known.heard < STALE
        known.first_byte = known.first_byte + _SHARE * (took - known.first_byte) if fresh and known.first_byte is not None else took
        known.heard = now
        known.health = Health()
        known.set(ticket.deployment, known.limit(ticket.deployment).answered(now, headers))

    def declined(self, ticket: Ticket) -> None:
        """An answer that is the client's affair, from a backend that is well."""
        ticket.known.health = Health()
        self.end(ticket)

    def refused(self, ticket: Ticket, wait: float) -> None:
        """This deployment is not to be asked for so many seconds; the backend is well."""
        known = ticket.known
        known.health = Health()
        known.set(ticket.deployment, known.limit(ticket.deployment).refused(self._clock(), wait))
        self.end(ticket)

    def missed(self, ticket: Ticket, wait: float) -> None:
        """It had no such deployment, or not for this key: for so many seconds others are asked first. The backend is well."""
        known = ticket.known
        known.health = Health()
        known.set(ticket.deployment, known.limit(ticket.deployment).missed(self._clock(), wait))
        self.end(ticket)

    def failed(self, ticket: Ticket, wait: float | None = None) -> None:
        known = ticket.known
        # Of many that were under way when it broke, the first is a failure of the backend's; the others say the same.
        if known.health.state(self._clock()) != "cooling" or ticket.probe:
            known.health = known.health.failed(self._clock(), self._rng.random(), wait)
        self.end(ticket)

    def end(self, ticket: Ticket) -> None:
        """The request is over. If it has brought no news, the next one is the probe."""
        if not ticket.over:
            ticket.over = True
            ticket.known.in_flight -= 1
            if ticket.probe:
                ticket.known.health = ticket.known.health.left()

    # -- seeing

    def views(self) -> list[View]:
        now = self._clock()
        return [
            View(
                known.backend,
                known.health.state(now),
                known.in_flight,
                max(0.0, known.health.until - now),
                known.first_byte if now - known.heard < STALE else None,
                {name: limit.until - now for name, limit in known.limits.items() if limit.refuses(now)},
                {name: limit.absent - now for name, limit in known.limits.items() if limit.is_absent(now)},
            )
            for known in self._known.values()
        ]

    def _of(self, backend: Backend) -> _Known:
        """A request may have come under settings that are no more: what is learned of such a backend is forgotten."""
        return self._known.get(backend.name) or _Known(backend)
