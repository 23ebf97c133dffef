"""The attempts of one request: the choice of the first backend, and after a failure the failover, the repair or the final error.

After a failure that is specific to a backend (connection failed, 408, 429, 5xx) the request fails over to another backend. A 4xx that
says how to correct the request leads to a repaired request to the same backend. The setting `max_attempts` limits the total, and no
backend is retried for the same cause. `candidates` chooses the backends, and `failures` classifies what went wrong.
"""

from __future__ import annotations

import logging
import time
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy.api.request import Target
from azure_openai_proxy.errors import UNSENT, Failure, retry_after
from azure_openai_proxy.formats import compression

from . import affinity, failures, health, item_owners, learned_repairs, repair, repair_changes, tiers
from .candidates import Candidates
from .decisions import GIVE_UP, Attempt, Plan, Respond, Retry
from .failures import BACKEND_STATUSES, FAILOVER_STATUSES
from .usage_refusals import FIRST_VERSION, is_refusal, may_use_data_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import ClientRequest
    from azure_openai_proxy.api.response_items import Item
    from azure_openai_proxy.config.settings import Settings

    from .decisions import Decision, GiveUp
    from .pool import Ticket
    from .state import Shared

__all__ = ["ATTEMPTS", "Attempts"]

logger = logging.getLogger(__name__)

ATTEMPTS = "azure_openai_attempts"
"""Key of the attempts in a flow's metadata, which saved flows contain."""
ABSENT_FOR = 30.0
"""Seconds for which other backends are preferred for a deployment after one of `BACKEND_STATUSES`."""
SOONEST = 0.5
"""Least Retry-After, in seconds, of a response after every backend has failed."""

_USAGE_OPTIONS = frozenset({b"stream_options", b"include_usage"})


@dataclass(slots=True)
class Attempts:
    """The attempts of one request, of which `tried[-1]` is the current one."""

    settings: Settings
    shared: Shared
    call: Call
    client_request: InitVar[ClientRequest]
    reads_usage: bool = False  # the usage of a stream is needed
    client: InitVar[str] = ""  # configured name of the client
    tried: list[Attempt] = field(default_factory=list)
    backend: Backend | None = None  # of the current attempt
    ticket: Ticket | None = None
    plan: Plan | None = None
    candidates: Candidates = field(init=False)
    _changes: list[repair_changes.Change] = field(default_factory=list)  # repairs of this request at this backend
    _changed: int = 0
    _usage_refused: bool = False  # this backend has refused the request for the usage
    _lost: bool = False  # one attempt ended without a response after Azure may have received the whole request
    _best: http.Response | None = None  # the most informative failure so far
    _unrepaired: Target | None = None  # of the current attempt, without its repairs
    _in_stream: list[bool] = field(default_factory=list)  # of each failure: it is an error at the beginning of a stream

    def __post_init__(self, client_request: ClientRequest, client: str) -> None:
        self.candidates = Candidates(self.settings, self.shared, self.call, client_request, client)

    @property
    def tier_dropped(self) -> str:
        """The tier that the last attempt is sent without; "" for none."""
        return self.candidates.tier_dropped

    @property
    def dropped(self) -> int:
        """The number of items that are left out of the request, because no backend can read them."""
        return self.candidates.dropped

    # -- the request of an attempt

    def first(self) -> Plan:
        """Choose the first backend and make the request for it.

        Raises:
            NotFound: no backend has the model.
            Unavailable: no candidate can be used now.
        """
        return self._ask(*self.candidates.first())

    def _ask(self, backend: Backend, reason: str = "") -> Plan:
        """Make the request for `backend`. Without a `reason`, which is for another attempt at the same backend, the previous one stays."""
        if backend is not self.backend:
            self._changes = []  # another backend may refuse these repairs
            self._usage_refused = False
        self.backend = backend
        deployment = None if self.call.model is None else self.candidates.deployment(backend)
        self._unrepaired = target = Target.of(self.call, backend, deployment, self.candidates.client_request.query.api_version)
        known = self.shared.learned.get(self._learned(backend)) if self.shared.learned and self.settings.repair else ()
        changes = [*known, *(change for change in self._changes if change not in known)]
        if self.candidates.tier_dropped:
            changes.append(repair_changes.TierDropped(self.candidates.tier_dropped))
        scope = self.candidates.key_scope(backend) if len(self.settings.backends) > 1 else b""  # a single backend needs no scope
        reason = reason or self.tried[-1].reason
        self.ticket = self.shared.pool.begin(backend, self.candidates.entry(backend), scope=scope, reason=reason)
        if _logs_debug():
            logger.debug("%s: backend %s, reason: %s", self.call.operation, backend.name, self.ticket.reason)
        route = repair.route(self.candidates.client_request, backend, changes)
        if route.backend is not backend or route.deployment:
            deployment = None if deployment is None else route.deployment or deployment
            target = Target.of(self.call, route.backend, deployment, route.client_request.query.api_version)
        add_usage = self.reads_usage and self._may_add_usage(backend, target, known)
        self.plan = Plan(route.client_request, target, route.deployment, route.applied, add_usage)
        repaired = tuple(map(str, route.applied)) if route.applied else ()
        if self.dropped:
            repaired = (f"{self.dropped} items with encrypted reasoning left out", *repaired)
        self.tried.append(Attempt(backend.name, repaired=repaired, reason=self.ticket.reason))
        return self.plan

    def _may_add_usage(self, backend: Backend, target: Target, known: Sequence[repair_changes.Change]) -> bool:
        """Whether the usage of a stream can be requested: the client did not, and the deployment is not known to refuse it."""
        call, version = self.call, target.form.version
        if not call.stream or call.asks_usage or call.endpoint.response_kind != "chat" or self._usage_refused:
            return False
        if version[:1].isdigit() and version < FIRST_VERSION:
            return False
        refused = any(isinstance(change, repair_changes.Drop | repair_changes.Moved) and change.mark in _USAGE_OPTIONS for change in known)
        return not refused and self._learned(backend) not in self.shared.usage_refusals

    def _learned(self, backend: Backend) -> learned_repairs.Key:
        """The key of the repairs for requests like this one at the backend of the current attempt."""
        assert self._unrepaired, "there is an attempt"
        version = f"{self.call.native} {self._unrepaired.form.version}" if self.call.native else ""
        candidates = self.candidates
        return learned_repairs.Key(backend.name, candidates.entry(backend), self.call.endpoint.path, version, candidates.key_scope(backend))

    def _learn(self, backend: Backend) -> None:
        """Remember the repairs that apply to every client's requests."""
        chose = bool(self.call.native and self.candidates.client_request.query.api_version)
        if chose and any(isinstance(change, repair_changes.Version) for change in self._changes):
            return
        self.shared.learned.add(self._learned(backend), filter(repair_changes.lasts, self._changes))

    # -- the result of an attempt

    def succeeded(self, headers: http.Headers) -> None:
        """Record the head of a successful response."""
        if self.ticket and self.backend:
            self.shared.pool.succeeded(self.ticket, headers)
            self.candidates.bind(self.backend)
            if self._changes:
                self._learn(self.backend)
            if self._usage_refused and not may_use_data_sources(self.candidates.client_request.content):
                self.shared.usage_refusals.add(self._learned(self.backend))
            for id in affinity.ids(self.call) if len(self.settings.backends) > 1 else ():
                self.shared.owners.add(id, self.backend.name)

    def upgraded(self) -> None:
        """Record that the connection was upgraded to a WebSocket."""
        assert self.ticket
        self.shared.pool.upgraded(self.ticket)

    def created(self, body: bytes) -> None:
        """Record the current backend as the owner of the objects that this response created."""
        if len(self.settings.backends) > 1:
            self._claim(affinity.kept(self.call, self.candidates.client_request.content, body))

    @property
    def makes_items(self) -> bool:
        """Whether events or frames of the response may carry items that only one backend stores."""
        return len(self.settings.backends) > 1 and (self.call.method == "WS" or self.call.path.startswith("/responses"))

    def item(self, event: bytes) -> None:
        """Record the current backend as the owner of the item in an event or a frame, if there is one."""
        if affinity.ITEM in event:
            self._claim(affinity.made(event))

    def _claim(self, made: list[str]) -> None:
        if self.backend:
            for id in made:
                self.shared.owners.claim(id, self.backend.name)

    def end(self) -> None:
        """End the current attempt: its response is complete, or the client has left."""
        if self.ticket:
            self.shared.pool.end(self.ticket)

    def could_move(self) -> bool:
        """Whether another backend could take the request if the current attempt fails now."""
        candidates = self.candidates
        if len(candidates.backends) < 2 or candidates.client_request.more or len(self.tried) >= self.settings.max_attempts:
            return False
        assert self.backend
        if candidates.tier_dropped or not self._is_repeatable():
            return False
        return candidates.choose(candidates.dead | {self.backend.name}) is not None

    def next_attempt(self, what: Failure | http.Response, *, in_stream: bool = False) -> Decision:
        """Decide how to continue after a failure that occurred before the client received anything.

        `in_stream`: the failure is an error at the beginning of a stream.
        """
        candidates = self.candidates
        self._in_stream.append(in_stream)
        assert self.backend
        self._note(what)
        self._report_to_pool(what)
        if self.plan and self.plan.add_usage and isinstance(what, http.Response) and is_refusal(what):
            self._usage_refused = True
            return Retry(self._ask(self.backend))
        if candidates.item is not None and not isinstance(what, http.Response) and what.code in failures.GONE:
            return self._owner_gone(candidates.item, what)
        if candidates.client_request.more or len(self.tried) >= self.settings.max_attempts:  # (a streamed request body is not kept)
            return self._most_useful(what)
        if isinstance(what, http.Response) and (changes := self._repairs(what)):
            self._changes += changes
            self._changed += len(changes)
            return Retry(self._ask(self.backend))
        candidates.dead |= {self.backend.name}
        if not candidates.tier_dropped and self._movable(what):
            # The last attempt is kept for the one without the tier.
            last = self.settings.tier_fallback and candidates.tier and len(self.tried) + 1 >= self.settings.max_attempts
            chosen = None if last else candidates.choose()
            if chosen is None and isinstance(what, http.Response):
                chosen = candidates.choose_without_tier()
            if chosen:
                self._keep(what)
                return Retry(self._ask(chosen.backend, f"failover from {self.backend.name}"))
        return self._most_useful(what)

    def _owner_gone(self, item: Item, what: Failure) -> Decision:
        """Decide after the only backend that can read an item did not answer."""
        assert self.backend
        gone = self.backend
        self.candidates.lose_owner(gone.name)
        may_move = self.settings.drop_lost_items and len(self.tried) < self.settings.max_attempts and self._movable(what)
        if may_move and (chosen := self.candidates.choose_after_owner()):
            return Retry(self._ask(chosen.backend, f"failover from {gone.name}"))
        return Respond(Failure(503, item_owners.GONE, item_owners.message(item, gone.name, "it cannot be reached")))

    def broke_off(self, failure: Failure) -> None:
        """Record the failure of an attempt after the client received a part of its response. There is no retry."""
        assert self.ticket
        assert self.backend
        self._note(failure)
        if self.call.method == "WS":  # an upgraded connection may end at any time, and not every peer ends it with a close frame
            self.shared.pool.end(self.ticket)
        else:
            self.shared.pool.failed(self.ticket)
            self.candidates.unbind(self.backend)

    def _note(self, what: Failure | http.Response) -> None:
        self.tried[-1] = self.tried[-1]._replace(cause=failures.cause(what))

    def _report_to_pool(self, what: Failure | http.Response) -> None:
        assert self.ticket
        assert self.backend
        pool = self.shared.pool
        if not isinstance(what, http.Response):
            if what.code == "proxy_shortage":
                pool.end(self.ticket)  # says nothing about the backend
            else:
                (pool.unreachable if what.code in UNSENT else pool.failed)(self.ticket)
                self.candidates.unbind(self.backend)
            return
        status = what.status_code
        wait = health.wait(what.headers, time.time())
        if status in FAILOVER_STATUSES:
            self.candidates.unbind(self.backend)
        if status == 429:
            wait = health.NO_HINT if wait is None else wait
            pool.rate_limited(self.ticket, wait, tokens=self.candidates.tokens(), most=self.settings.max_cool_down)
        elif status in FAILOVER_STATUSES:
            pool.failed(self.ticket, wait, self.settings.max_cool_down)
        elif failures.is_tier_refusal(what, self.call.tier):
            pool.deployment_missing(self.ticket, tiers.REFUSED_FOR)
        elif len(self.candidates.backends) > 1 and self._own_key() and failures.is_missing(what):
            pool.deployment_missing(self.ticket, ABSENT_FOR)
        else:
            pool.client_error(self.ticket)

    def _own_key(self) -> bool:
        """Whether the refused key is the proxy's, not the client's."""
        return bool(self.backend and (self.backend.token or self.backend.entra))

    def _movable(self, what: Failure | http.Response) -> bool:
        """Whether the request may fail over to another backend."""
        if not isinstance(what, http.Response):
            if what.code == "proxy_shortage":
                return False  # this machine is out of sockets, whichever backend is used
            if what.code in UNSENT:
                return True
            first = not self._lost
            self._lost = True  # Azure may have processed and billed the request
            return first and self._is_repeatable()
        if failures.is_tier_refusal(what, self.call.tier):
            return self._is_repeatable()
        if self._is_unknown_there(what):
            return self._is_repeatable()
        if what.status_code == 404:
            return self._is_repeatable() or bool(affinity.ids(self.call))
        moves = what.status_code in FAILOVER_STATUSES or (what.status_code in BACKEND_STATUSES and self._own_key())
        return moves and self._is_repeatable()

    def _is_repeatable(self) -> bool:
        return failures.is_repeatable(self.call, self.candidates.client_request)

    def _is_unknown_there(self, response: http.Response) -> bool:
        """Whether another backend may have made the object that the request refers to, because the proxy does not know its owner."""
        candidates = self.candidates
        if candidates.item is not None or len(candidates.backends) < 2 or self.call.items is None:
            return False
        return failures.is_unknown(response)

    def _repairs(self, response: http.Response) -> list[repair_changes.Change]:
        assert self.backend
        assert self.plan
        if not self.settings.repair or self._changed >= repair.MOST:
            return []
        mapped = self.call.model is not None and (
            self.backend.models is not None or self.settings.mapper.mapped(self.call.model) is not None
        )
        target = self.plan.target
        dated = not target.form.path.startswith("/openai/v1")
        case = repair.Case(self.call, self.plan.client_request, dated, target.deployment or "", mapped)
        found = repair.find(response.status_code, compression.content_or_nothing(response), case)
        return [] if any(change in self._changes or change in self.plan.applied for change in found) else found

    # -- when no backend is left

    def _keep(self, what: Failure | http.Response) -> None:
        if isinstance(what, http.Response) and (self._best is None or self._is_as_useful(what, self._best)):
            self._best = what

    def _is_as_useful(self, response: http.Response, best: http.Response) -> bool:
        return failures.rank(response, self.call.tier) >= failures.rank(best, self.call.tier)

    def _most_useful(self, what: Failure | http.Response) -> Respond | GiveUp:
        best = self._best
        # If each attempt failed in its stream, the client gets the last error.
        if best is None or all(self._in_stream) or (isinstance(what, http.Response) and self._is_as_useful(what, best)):
            if isinstance(what, http.Response):
                self.set_retry_after(what.headers, what.status_code)
            return GIVE_UP
        self.set_retry_after(best.headers, best.status_code)
        return Respond(best)

    def set_retry_after(self, headers: http.Headers, status: int) -> None:
        """Set Retry-After on a failure that a later retry may not have."""
        if status not in FAILOVER_STATUSES:
            return
        if len(self.candidates.backends) > 1:
            headers.update(retry_after(max(SOONEST, self.candidates.wait() or 0.0)))
        elif "retry-after" in headers and (wait := health.wait(headers, time.time())):
            headers.update(retry_after(wait))  # some clients read `retry-after-ms` only

    # -- inspection

    def summary(self) -> list[dict[str, Any]]:
        """The attempts as the flow's metadata has them."""
        return [{"backend": attempt.backend, "cause": attempt.cause, "repaired": list(attempt.repaired)} for attempt in self.tried]

    def headers(self) -> dict[str, str]:
        """The response headers that report the attempts, for a client that requested them."""
        if not self.tried:  # every backend is over its rate limit
            return {"x-azure-openai-proxy-attempts": "0"}
        last = self.tried[-1]
        fields = {
            "x-azure-openai-proxy-backend": last.backend,
            "x-azure-openai-proxy-attempts": str(len(self.tried)),
            "x-azure-openai-proxy-reason": last.reason,
        }
        if last.repaired:
            fields["x-azure-openai-proxy-repaired"] = ", ".join(last.repaired)
        return fields


_DEBUG = logger.makeRecord(__name__, logging.DEBUG, __file__, 0, "", (), None)


def _logs_debug() -> bool:
    """Whether a handler takes debug messages. mitmproxy's logger accepts them all, and making one that nobody reads takes 10 µs."""
    at: logging.Logger | None = logger
    while at:
        for handler in at.handlers:
            if handler.level <= logging.DEBUG and handler.filter(_DEBUG):
                return True
        at = at.parent if at.propagate else None
    return False
