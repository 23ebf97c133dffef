"""The pool of backends: health and rate limits of each one, and the choice of the backend for the next attempt.

A failed connection concerns all requests of a backend. A response (5xx, 429, deployment not found) concerns the deployment alone:
another model may still work on the same backend. If clients send their own keys, a 429 concerns only that key. The module takes its
clock as an argument and never waits.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from .health import Health, Limit
from .load_balancing import Candidate, LowestPriority

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from azure_openai_proxy.api.backend import Backend

    from .load_balancing import Policy

__all__ = ["Pool", "Ticket", "View"]

STALE = 60.0
"""Seconds after which a measured time to first byte expires."""
BEST, ABSENT = 0, 3  # the first rank and the last
MOST_LIMITS = 256
"""Greatest number of deployments in each table of a backend. Clients may request any name."""
_NO_LIMIT = Limit()
_WELL = Health()
_UNFIT = ("cooling", "probing")
_SHARE = 0.3  # weight of the newest time to first byte in the moving average


type _Key = tuple[str, bytes]  # a deployment, and the scope of a client's own key: b"" for the proxy's


def _set[K, V](table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > MOST_LIMITS:
        table.popitem(last=False)


@dataclass(slots=True)
class _Known:
    backend: Backend
    health: Health = field(default_factory=Health)  # of its connections
    failing: OrderedDict[str, Health] = field(default_factory=OrderedDict)  # deployments that failed recently
    limits: OrderedDict[_Key, Limit] = field(default_factory=OrderedDict)
    absent: OrderedDict[str, float] = field(default_factory=OrderedDict)  # deployment to the time until which other backends are preferred
    in_flight: int = 0
    first_byte: float | None = None
    heard: float = 0.0

    def key(self, deployment: str, scope: bytes) -> _Key:
        return deployment, b"" if self.backend.token or self.backend.entra else scope

    def limit(self, key: _Key) -> Limit:
        return self.limits.get(key, _NO_LIMIT)

    def trouble(self, deployment: str) -> Health:
        return self.failing.get(deployment, _WELL)

    def fit(self, deployment: str, now: float) -> bool:
        """Whether neither the backend nor the deployment is in its cool-down or being probed."""
        if self.health.state(now) in _UNFIT:
            return False
        return not self.failing or self.trouble(deployment).state(now) not in _UNFIT

    def is_absent(self, deployment: str, now: float) -> bool:
        return now < self.absent.get(deployment, now)

    def recovered(self, deployment: str) -> None:
        self.failing.pop(deployment, None)


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in flight at a backend, from `Pool.begin` to `Pool.end`."""

    known: _Known
    key: _Key
    began: float
    probe: bool  # it probes the backend
    trial: bool  # it probes the deployment
    over: bool = False

    @property
    def deployment(self) -> str:
        return self.key[0]


class View(NamedTuple):
    """The state of a backend, for display."""

    backend: Backend
    state: str
    in_flight: int
    cooling: float  # seconds left
    first_byte: float | None
    refused: Mapping[str, float]  # deployment to seconds left of its rate limit
    failing: Mapping[str, float]  # deployment to seconds left of its cool-down
    absent: Mapping[str, float]  # deployment that was not found to seconds for which other backends are preferred


class Pool:
    def __init__(self, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None, policy: Policy | None = None) -> None:
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, not for cryptography
        self._policy = policy or LowestPriority()
        self._known: dict[str, _Known] = {}

    def update(self, backends: Sequence[Backend]) -> None:
        """Replace the backends. A backend keeps its state while its name, address and key stay the same."""
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
        self,
        backends: Sequence[Backend],
        deployment: Callable[[Backend], str],
        *,
        tokens: int = 0,
        tried: Collection[str] = (),
        scope: bytes = b"",
    ) -> Backend | None:
        """Choose the backend for a request of about so many tokens; None if no backend is left that may be used now.

        `deployment` gives a backend's deployment for the request. `tried` are the names that are excluded. `scope` identifies a
        client's own key.

        Healthy backends whose reported budget suffices come first, then healthy backends with too little left, then those in their
        cool-down, which may have recovered. A rate-limited backend is used before its Retry-After only if it is the sole candidate.
        A backend without the deployment is used last, and only if none is rate-limited: the client then receives its 404.
        """
        if len(backends) == 1:  # the sole candidate, whatever its state
            return backends[0] if backends[0].name not in tried else None
        left = [backend for backend in backends if backend.name not in tried] if tried else backends
        if not left:
            return None
        drawn, now = self._policy.draw(left, self._rng), self._clock()
        ranks, limited = self._ranked(drawn, deployment, tokens, scope, now)
        if limited or max(ranks) > BEST:  # not all that were drawn are healthy: rank all of them
            ranks, limited = self._ranked(left, deployment, tokens, scope, now)
        if not ranks or (limited and min(ranks) == ABSENT):
            return None
        return self._policy.choose(ranks[min(ranks)], self._rng).backend

    def _ranked(
        self, backends: Sequence[Backend], deployment: Callable[[Backend], str], tokens: int, scope: bytes, now: float
    ) -> tuple[dict[int, list[Candidate]], bool]:
        """The candidates by rank, `BEST` to `ABSENT`, and whether a rate-limited backend was left out."""
        ranks: dict[int, list[Candidate]] = {}
        limited = False
        for backend in backends:
            known = self._of(backend)
            name = deployment(backend)
            limit = known.limit(known.key(name, scope))
            fit = known.fit(name, now)
            if limit.refuses(now, tokens):
                limited = True
                continue
            well = 2 if not fit else BEST if limit.covers(tokens, now) else 1
            rank = ABSENT if known.absent and known.is_absent(name, now) else well
            first_byte = known.first_byte if now - known.heard < STALE else None
            ranks.setdefault(rank, []).append(Candidate(backend, known.in_flight, first_byte))
        return ranks, limited

    def soonest(
        self, backends: Sequence[Backend], deployment: Callable[[Backend], str], *, tokens: int = 0, scope: bytes = b""
    ) -> float | None:
        """Seconds until the first of the backends leaves its cool-down; None if one is available."""
        now = self._clock()
        waits: list[float] = []
        elsewhere: list[float] = []
        for backend in backends:
            known = self._of(backend)
            name = deployment(backend)
            limit = known.limit(known.key(name, scope))
            refused = limit.until if limit.refuses(now, tokens) else now
            until = max(known.health.until, known.trouble(name).until, refused)
            (elsewhere if known.is_absent(name, now) else waits).append(until - now)
        soonest = min(waits or elsewhere, default=0.0)
        return soonest if soonest > 0 else None

    # -- the life of a request

    def begin(self, backend: Backend, deployment: str, *, scope: bytes = b"") -> Ticket:
        known, now = self._of(backend), self._clock()
        probe = known.health.state(now) == "probe"
        known.health = known.health.asked(now)
        trial = bool(known.failing) and known.trouble(deployment).state(now) == "probe"
        if trial:
            known.failing[deployment] = known.trouble(deployment).asked(now)
        known.in_flight += 1
        return Ticket(known, known.key(deployment, scope), now, probe, trial)

    def answers(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        """Record the head of a successful response."""
        known, now = ticket.known, self._clock()
        took = now - ticket.began
        fresh = known.first_byte is not None and now - known.heard < STALE
        known.first_byte = known.first_byte + _SHARE * (took - known.first_byte) if fresh and known.first_byte is not None else took
        known.heard = now
        known.health = Health()
        known.recovered(ticket.deployment)
        known.absent.pop(ticket.deployment, None)
        limit = known.limit(ticket.key).answered(now, headers)
        if limit.tokens is not None or now < limit.until:
            _set(known.limits, ticket.key, limit)
        else:
            known.limits.pop(ticket.key, None)

    def declined(self, ticket: Ticket) -> None:
        """Record an error that the client caused: the backend is healthy."""
        ticket.known.health = Health()
        self.end(ticket)

    def refused(self, ticket: Ticket, wait: float, *, tokens: int = 0) -> None:
        """Record a 429: the deployment is not used with this key for `wait` seconds. `tokens` is the size of the refused request."""
        known = ticket.known
        known.health = Health()
        known.recovered(ticket.deployment)
        _set(known.limits, ticket.key, known.limit(ticket.key).refused(self._clock(), wait, tokens))
        self.end(ticket)

    def missed(self, ticket: Ticket, wait: float) -> None:
        """Record that the deployment does not exist or the key may not use it: other backends are preferred for `wait` seconds."""
        ticket.known.health = Health()
        _set(ticket.known.absent, ticket.deployment, self._clock() + wait)
        self.end(ticket)

    def unreachable(self, ticket: Ticket) -> None:
        """Record a failed connection, which concerns all deployments of the backend."""
        known = ticket.known
        # Of many requests in flight during one outage only the first counts as a failure.
        if known.health.state(self._clock()) != "cooling" or ticket.probe:
            known.health = known.health.failed(self._clock(), self._rng.random())
        self.end(ticket)

    def failed(self, ticket: Ticket, wait: float | None = None) -> None:
        """Record a failure of the deployment. Other deployments of the backend stay in use. `wait` is its Retry-After in seconds."""
        known, deployment = ticket.known, ticket.deployment
        known.health = Health()
        trouble = known.trouble(deployment)
        if trouble.state(self._clock()) != "cooling" or ticket.trial:
            _set(known.failing, deployment, trouble.failed(self._clock(), self._rng.random(), wait))
        self.end(ticket)

    def end(self, ticket: Ticket) -> None:
        """Close the ticket. If it was a probe without a result, the next request becomes the probe."""
        if not ticket.over:
            ticket.over = True
            known = ticket.known
            known.in_flight -= 1
            if ticket.probe:
                known.health = known.health.left()
            if ticket.trial and ticket.deployment in known.failing:
                known.failing[ticket.deployment] = known.failing[ticket.deployment].left()

    # -- inspection

    def views(self) -> list[View]:
        now = self._clock()
        return [
            View(
                known.backend,
                known.health.state(now),
                known.in_flight,
                max(0.0, known.health.until - now),
                known.first_byte if now - known.heard < STALE else None,
                {_label(key): limit.until - now for key, limit in known.limits.items() if now < limit.until},
                {name: health.until - now for name, health in known.failing.items() if health.state(now) == "cooling"},
                {name: until - now for name, until in known.absent.items() if now < until},
            )
            for known in self._known.values()
        ]

    def _of(self, backend: Backend) -> _Known:
        """The state of a backend, or a temporary one if a newer configuration no longer contains the backend."""
        return self._known.get(backend.name) or _Known(backend)


def _label(key: _Key) -> str:
    deployment, scope = key
    return f"{deployment} (a client's own key)" if scope else deployment
