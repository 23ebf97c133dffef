"""The pool of backends: health and rate limits of each one, and the choice of the backend for the next attempt.

A failed connection concerns all requests of a backend. A response (5xx, 429, deployment not found) concerns the deployment alone:
another model may still work on the same backend. If clients send their own keys, a 429 concerns only that key. The module takes its
clock as an argument and never waits.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from .health import MAX_COOL_DOWN, Health, Limit
from .load_balancing import Candidate, Load, LowestPriority, first_choice, is_crowded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from azure_openai_proxy.api.backend import Backend

    from .load_balancing import Policy

__all__ = ["BOUND", "OWNER", "PROBE", "Choice", "Event", "Pool", "Ticket", "View"]

logger = logging.getLogger(__name__)

ONLY = "only"
"""Reason for a backend: no other one can take the request now."""
OWNER = "owner"
"""It made an object that the request names."""
BOUND = "bound"
"""Earlier requests of the session were sent to it."""
PRIORITY = "priority"
"""It alone has the lowest priority."""
WEIGHT = "weight"
"""It was chosen among several by load and weight."""
PROBE = "probe"
"""Its cool-down has ended and this request checks it."""

STALE = 60.0
"""Seconds after which a measured time to first byte expires."""
BEST, ABSENT = 0, 3  # the first rank and the last
MOST_LIMITS = 256
"""Greatest number of deployments in each table of a backend. Clients may request any name."""
_NO_LIMIT = Limit()
_HEALTHY = Health()
_UNFIT = ("cooling", "probing")
_SHARE = 0.3  # weight of the newest time to first byte in the moving average


type Event = Literal["down", "failing", "limit", "absent", "tokens", "up"]
"""A change of a backend or a deployment. `down`: no connection; `up`: it works again."""

type _Key = tuple[str, bytes]  # a deployment, and the scope of a client's own key: b"" for the proxy's


def _set[K, V](table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > MOST_LIMITS:
        table.popitem(last=False)


class Choice(NamedTuple):
    backend: Backend
    reason: str


@dataclass(slots=True)
class _Known:
    backend: Backend
    health: Health = field(default_factory=Health)  # of its connections
    failing: OrderedDict[str, Health] = field(default_factory=OrderedDict)  # deployments that failed recently
    limits: OrderedDict[_Key, Limit] = field(default_factory=OrderedDict)
    absent: OrderedDict[str, float] = field(default_factory=OrderedDict)  # deployment to the time until which other backends are preferred
    in_flight: int = 0
    load: Load = field(default_factory=Load)
    first_byte: float | None = None
    last_success: float = 0.0
    reason: str = ""  # for the last request

    def key(self, deployment: str, scope: bytes) -> _Key:
        return deployment, b"" if self.backend.token or self.backend.entra else scope

    def limit(self, key: _Key) -> Limit:
        return self.limits.get(key, _NO_LIMIT)

    def trouble(self, deployment: str) -> Health:
        return self.failing.get(deployment, _HEALTHY)

    def fit(self, deployment: str, now: float) -> bool:
        """Whether neither the backend nor the deployment is in its cool-down or being probed."""
        if self.health.state(now) in _UNFIT:
            return False
        return not self.failing or self.trouble(deployment).state(now) not in _UNFIT

    def reached(self) -> None:
        """The backend has responded, in any way."""
        if self.health.failures:
            logger.info("The backend %s can be reached again.", self.backend.name)
        self.health = _HEALTHY

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
    probes_backend: bool
    probes_deployment: bool
    over: bool = False
    reason: str = ""
    probes_limit: bool = False  # whose cool-down is capped

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
    reason: str = ""  # why the last request was sent to it


class Pool:
    def __init__(self, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None, policy: Policy | None = None) -> None:
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, not for cryptography
        self._policy = policy or LowestPriority()
        self._known: dict[str, _Known] = {}
        self.publish: Callable[[Event, str, str], None] | None = None  # gets what other replicas should know: a backend, a deployment

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
        bound: Sequence[str] = (),
    ) -> Choice | None:
        """Choose the backend for a request of about `tokens` tokens, with the reason; None if no backend is left that may be used now.

        `deployment` gives a backend's deployment for the request. `tried` are the names that are excluded. `scope` identifies a
        client's own key. `bound` are the names of the backends that served the session, the last one first.

        Healthy backends whose reported budget suffices come first, then healthy backends with too little left, then those in their
        cool-down, which may have recovered. A rate-limited backend is used before its Retry-After only if it is the sole candidate.
        A backend without the deployment is used last, and only if none is rate-limited: the client then receives its 404.
        """
        if len(backends) == 1:  # the sole candidate, whatever its state
            return Choice(backends[0], ONLY) if backends[0].name not in tried else None
        left = [backend for backend in backends if backend.name not in tried] if tried else backends
        if not left:
            return None
        drawn, now = left if bound else self._policy.draw(left, self._rng), self._clock()
        ranks, limited = self._ranked(drawn, deployment, tokens, scope, now)
        others = len(drawn) < len(left)
        if limited or max(ranks) > BEST:  # not all that were drawn are healthy: rank all of them
            others = False
            ranks, limited = self._ranked(left, deployment, tokens, scope, now)
        if not ranks or (limited and min(ranks) == ABSENT):
            return None
        usable = ranks[min(ranks)]
        if bound and len(usable) > 1:
            offered = {candidate.backend.name: candidate for candidate in first_choice(usable)}
            for name in bound:
                if (mine := offered.get(name)) and not is_crowded(mine, offered.values()):
                    return Choice(mine.backend, BOUND)
        backend = self._policy.choose(usable, self._rng).backend
        if len(usable) == 1:
            return Choice(backend, PRIORITY if others else ONLY)
        return Choice(backend, WEIGHT if sum(one.backend.order == backend.order for one in usable) > 1 else PRIORITY)

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
            first_byte = known.first_byte if now - known.last_success < STALE else None
            ranks.setdefault(rank, []).append(Candidate(backend, known.in_flight, first_byte, limit.size, known.load))
        return ranks, limited

    def is_healthy(self, backend: Backend, deployment: str, *, tokens: int = 0, scope: bytes = b"") -> bool:
        """Whether the backend has no failure or limit that concerns a request of about so many tokens."""
        return min(self._ranked((backend,), lambda _: deployment, tokens, scope, self._clock())[0], default=ABSENT) == BEST

    def soonest(
        self, backends: Sequence[Backend], deployment: Callable[[Backend], str], *, tokens: int = 0, scope: bytes = b""
    ) -> float | None:
        """Seconds until the first of the backends is available by what Azure said, however short its cool-down is; None if one is."""
        now = self._clock()
        waits: list[float] = []
        elsewhere: list[float] = []
        for backend in backends:
            known = self._of(backend)
            name = deployment(backend)
            limit = known.limit(known.key(name, scope))
            refused = limit.uncapped_until if tokens >= limit.least else now
            until = max(known.health.uncapped_until, known.trouble(name).uncapped_until, refused)
            (elsewhere if known.is_absent(name, now) else waits).append(until - now)
        soonest = min(waits or elsewhere, default=0.0)
        return soonest if soonest > 0 else None

    # -- the life of a request

    def begin(self, backend: Backend, deployment: str, *, scope: bytes = b"", reason: str = "") -> Ticket:
        """Open the ticket of a request. `reason` is that of the choice; if the request is a probe, the reason of the ticket is `PROBE`."""
        known, now = self._of(backend), self._clock()
        backend_probe = known.health.state(now) == "probe"
        known.health = known.health.started(now)
        deployment_probe = bool(known.failing) and known.trouble(deployment).state(now) == "probe"
        if deployment_probe:
            known.failing[deployment] = known.trouble(deployment).started(now)
        key = known.key(deployment, scope)
        limit_probe = bool(known.limits) and known.limit(key).is_due(now)
        if limit_probe:
            known.limits[key] = known.limits[key].started()
        known.in_flight += 1
        known.load.take()
        known.reason = reason = PROBE if (backend_probe or deployment_probe or limit_probe) and reason in (PRIORITY, WEIGHT) else reason
        return Ticket(known, key, now, backend_probe, deployment_probe, reason=reason, probes_limit=limit_probe)

    def succeeded(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        """Record the head of a successful response."""
        known, now = ticket.known, self._clock()
        took = now - ticket.began
        fresh = known.first_byte is not None and now - known.last_success < STALE
        known.first_byte = known.first_byte + _SHARE * (took - known.first_byte) if fresh and known.first_byte is not None else took
        known.last_success = now
        if self.publish and (known.health.failures or known.trouble(ticket.deployment).failures or ticket.deployment in known.absent):
            self._publish("up", ticket)
        known.reached()
        known.recovered(ticket.deployment)
        known.absent.pop(ticket.deployment, None)
        limit = known.limit(ticket.key).succeeded(now, headers)
        if ticket.probes_limit:
            limit, ticket.probes_limit = limit.lifted(), False
        if limit.tokens is not None or now < limit.uncapped_until:
            _set(known.limits, ticket.key, limit)
            self._publish("tokens", ticket)
        else:
            known.limits.pop(ticket.key, None)

    def upgraded(self, ticket: Ticket) -> None:
        """Record a 101. How long it took says nothing about other responses."""
        ticket.known.reached()
        ticket.known.recovered(ticket.deployment)
        ticket.known.absent.pop(ticket.deployment, None)

    def client_error(self, ticket: Ticket) -> None:
        """Record an error that the client caused: the backend is healthy."""
        ticket.known.reached()
        self.end(ticket)

    def rate_limited(self, ticket: Ticket, wait: float, *, tokens: int = 0, most: float = MAX_COOL_DOWN) -> None:
        """Record a 429: the deployment is not used with this key for `wait` seconds, or for `most` seconds and then by one probe.

        `tokens` is the size of the refused request.
        """
        known = ticket.known
        known.reached()
        known.recovered(ticket.deployment)
        limit = known.limit(ticket.key)
        if ticket.probes_limit:
            limit, ticket.probes_limit = limit.lifted(), False
        _set(known.limits, ticket.key, limit.rate_limited(self._clock(), wait, tokens, most))
        self._publish("limit", ticket)
        self.end(ticket)

    def deployment_missing(self, ticket: Ticket, wait: float) -> None:
        """Record that the deployment does not exist or the key may not use it: other backends are preferred for `wait` seconds."""
        ticket.known.reached()
        _set(ticket.known.absent, ticket.deployment, self._clock() + wait)
        self._publish("absent", ticket)
        self.end(ticket)

    def unreachable(self, ticket: Ticket) -> None:
        """Record a failed connection, which concerns all deployments of the backend."""
        known = ticket.known
        # Of many requests in flight during one outage only the first counts as a failure.
        if known.health.state(self._clock()) != "cooling" or ticket.probes_backend:
            if not known.health.failures:
                logger.warning("The backend %s cannot be reached: it is out of use until a request reaches it.", known.backend.name)
            known.health = known.health.failed(self._clock(), self._rng.random())
            self._publish("down", ticket)
        self.end(ticket)

    def failed(self, ticket: Ticket, wait: float | None = None, most: float = MAX_COOL_DOWN) -> None:
        """Record a failure of the deployment. Other deployments of the backend stay in use. `wait` is its Retry-After in seconds, `most`
        the longest cool-down.
        """
        known, deployment = ticket.known, ticket.deployment
        known.reached()
        trouble = known.trouble(deployment)
        if trouble.state(self._clock()) != "cooling" or ticket.probes_deployment:
            _set(known.failing, deployment, trouble.failed(self._clock(), self._rng.random(), wait, most))
            self._publish("failing", ticket)
        self.end(ticket)

    def end(self, ticket: Ticket) -> None:
        """Close the ticket. If it was a probe without a result, the next request becomes the probe."""
        if not ticket.over:
            ticket.over = True
            known = ticket.known
            known.in_flight -= 1
            if ticket.probes_backend:
                known.health = known.health.left()
            if ticket.probes_limit and ticket.key in known.limits:
                known.limits[ticket.key] = known.limits[ticket.key].left()
            if ticket.probes_deployment and ticket.deployment in known.failing:
                known.failing[ticket.deployment] = known.failing[ticket.deployment].left()

    # -- replicas

    def _publish(self, event: Event, ticket: Ticket) -> None:
        if self.publish is not None and not (ticket.key[1] and event in ("limit", "tokens")):  # not the limits of a client's own key
            self.publish(event, ticket.known.backend.name, ticket.deployment)

    def shown(self, event: Event, backend: str, deployment: str) -> list[float]:
        """The state of a deployment for other replicas: numbers, with times as seconds from now."""
        known, now = self._known.get(backend), self._clock()
        if known is None:
            return []
        limit = known.limit((deployment, b""))
        match event:
            case "down" | "failing":
                health = known.health if event == "down" else known.trouble(deployment)
                return [health.failures, health.until - now, health.uncapped_until - now] if health.failures else []
            case "limit":
                return [limit.until - now, limit.uncapped_until - now, limit.least] if now < limit.uncapped_until else []
            case "absent":
                return [known.absent.get(deployment, now) - now]
            case "tokens":
                return [] if limit.tokens is None else [limit.tokens, limit.renewed - now, limit.size or 0]
        return [0]

    def learn(self, event: Event, backend: str, deployment: str, values: Sequence[float], age: float) -> None:
        """Take over what another replica showed `age` seconds ago. A cool-down that this process has stays if it ends later."""
        if (known := self._known.get(backend)) is None:
            return
        now = self._clock() - age
        match event, values:
            case "down" | "failing", [failures, until, uncapped]:
                health = known.health if event == "down" else known.trouble(deployment)
                if now + until > max(health.until, self._clock()):
                    health = Health(int(failures), now + until, uncapped_until=now + uncapped)
                    if event == "down":
                        if not known.health.failures:
                            logger.warning("Another replica cannot reach the backend %s: it is out of use.", backend)
                        known.health = health
                    else:
                        _set(known.failing, deployment, health)
            case "limit", [until, uncapped, least]:
                limit = known.limit((deployment, b""))
                if now + uncapped > max(limit.uncapped_until, self._clock()):
                    limit = replace(limit, until=now + until, uncapped_until=now + uncapped, least=int(least))
                    _set(known.limits, (deployment, b""), limit)
            case "absent", [until]:
                _set(known.absent, deployment, max(known.absent.get(deployment, now), now + until))
            case "tokens", [tokens, renewed, size]:
                limit = replace(known.limit((deployment, b"")), tokens=int(tokens), renewed=now + renewed, size=int(size) or None)
                _set(known.limits, (deployment, b""), limit)
            case "up", _:
                known.reached()
                known.recovered(deployment)
                known.absent.pop(deployment, None)

    # -- inspection

    def is_up(self, backend: str, deployment: str) -> bool:
        """Whether a deployment may be used now with the proxy's key: no failure or 429 keeps it in a cool-down. False if it is unknown."""
        known, now, name = self._known.get(backend), self._clock(), deployment.lower()
        if known is None:
            return False
        cooling = known.health.state(now) == "cooling" or known.trouble(name).state(now) == "cooling"
        return not (cooling or known.is_absent(name, now) or now < known.limit((name, b"")).until)

    def views(self) -> list[View]:
        now = self._clock()
        return [
            View(
                known.backend,
                known.health.state(now),
                known.in_flight,
                max(0.0, known.health.until - now),
                known.first_byte if now - known.last_success < STALE else None,
                {_label(key): limit.until - now for key, limit in known.limits.items() if now < limit.until},
                {name: health.until - now for name, health in known.failing.items() if health.state(now) == "cooling"},
                {name: until - now for name, until in known.absent.items() if now < until},
                known.reason,
            )
            for known in self._known.values()
        ]

    def _of(self, backend: Backend) -> _Known:
        """The state of a backend, or a temporary one if a newer configuration no longer contains the backend."""
        return self._known.get(backend.name) or _Known(backend)


def _label(key: _Key) -> str:
    deployment, scope = key
    return f"{deployment} (a client's own key)" if scope else deployment
