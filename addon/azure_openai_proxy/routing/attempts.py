"""The attempts of one request: the choice of the first backend, and after a failure the failover, the repair or the final error.

After a failure that is specific to a backend (connection failed, 408, 429, 5xx) the request fails over to another backend. A 4xx that
says how to correct the request leads to a repaired request to the same backend. The setting `max_attempts` limits the total, and no
backend is retried for the same cause.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mitmproxy import http

from azure_openai_proxy.api import credentials
from azure_openai_proxy.api.request import Target
from azure_openai_proxy.errors import NotFound, Unavailable, when
from azure_openai_proxy.formats import compression

from . import affinity, health, repair

if TYPE_CHECKING:
    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import ClientRequest
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.errors import Failure

    from .pool import Ticket
    from .state import Shared

__all__ = ["ATTEMPTS", "GIVE_UP", "Attempt", "Attempts", "Decision", "GiveUp", "Plan", "Respond", "Retry"]

ATTEMPTS = "azure_openai_attempts"
"""Key of the attempts in a flow's metadata, which saved flows contain."""
ELSEWHERE = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which another backend may succeed."""
THERE_ONLY = frozenset({401, 403, 404})
"""Statuses that concern one backend's key, permissions or deployments."""
ABSENT_FOR = 30.0
"""Seconds for which other backends are preferred for a deployment after one of `THERE_ONLY`."""
SOONEST = 0.5
"""Least Retry-After, in seconds, of a response after every backend has failed."""
UNSENT = frozenset({"upstream_unreachable", "upstream_connect_timeout", "proxy_shortage"})
"""Failures that occur before any byte of the request is sent."""

_MAX_TOKENS = re.compile(rb'"(?:max_(?:completion_|output_)?tokens|(n|best_of))"\s*+:\s*+([0-9]{1,9})')


class Attempt(NamedTuple):
    backend: str
    cause: str = ""  # why it failed; "" while it is the last one
    repaired: tuple[str, ...] = ()


class Plan(NamedTuple):
    """One attempt: the client's request with the repairs that were applied to it, and where it goes."""

    asked: ClientRequest
    target: Target
    renamed: str | None  # replaces the deployment of every model that the request names
    applied: tuple[repair.Change, ...]


class Retry(NamedTuple):
    """Send the request again."""

    plan: Plan


class Respond(NamedTuple):
    """Give the client this earlier failure, which is more informative than the last one."""

    response: http.Response


class GiveUp(NamedTuple):
    """Give the client the failure itself."""


type Decision = Retry | Respond | GiveUp
"""The decision after a failed attempt."""
GIVE_UP = GiveUp()


@dataclass(slots=True)
class Attempts:
    settings: Settings
    shared: Shared
    call: Call
    asked: ClientRequest
    tried: list[Attempt] = field(default_factory=list)
    backend: Backend | None = None  # of the current attempt
    ticket: Ticket | None = None
    plan: Plan | None = None
    _changes: list[repair.Change] = field(default_factory=list)  # repairs of this request at this backend
    _changed: int = 0
    _dead: set[str] = field(default_factory=set)  # backends that are not used again
    _lost: bool = False  # one attempt ended without a response after Azure may have received the whole request
    _best: http.Response | None = None  # the most informative failure so far
    _candidates: tuple[Backend, ...] = ()
    _deployments: dict[str, str] = field(default_factory=dict)  # by the name of the backend
    _scope: bytes | None = None  # of the client's own key; computed on first use

    # -- the first attempt

    def first(self) -> Plan:
        """Choose the first backend and make the request for it.

        Raises:
            NotFound: no backend has the model.
            Unavailable: no candidate can be used now.
        """
        backends = self.settings.backends
        able = tuple(backend for backend in backends if backend.serves(self.call.model))
        if not able:
            raise NotFound(
                f"The model `{self.call.model}` does not exist: no backend has it. Configured: {', '.join(self.settings.listed.names())}.",
                param="model",
                code="model_not_found",
            )
        owner = self.shared.owners.of(self.call, self.asked.content) if len(backends) > 1 else None
        own = tuple(backend for backend in backends if backend.name == owner) if owner else ()
        self._candidates = own or able
        chosen = self._choose()
        if chosen is None:
            raise Unavailable(*self._unavailable())
        return self._ask(chosen)

    def _unavailable(self) -> tuple[int, str, str, float | None]:
        if not any(map(self.shared.has_token, self._candidates)):
            return 503, "entra_token_unavailable", "The proxy has no token of Microsoft Entra ID: its log says why.", None
        wait = self.wait()
        return 429, "rate_limit_exceeded", "Every backend of the proxy that has this model is over its rate limit.", wait

    def _choose(self) -> Backend | None:
        backends = [backend for backend in self._candidates if self.shared.has_token(backend)]
        tokens, scope = (self._tokens(), self._key_scope(*backends)) if len(backends) > 1 else (0, b"")
        return self.shared.pool.choose(backends, self._entry, tokens=tokens, tried=self._dead, scope=scope)

    def _ask(self, backend: Backend) -> Plan:
        if backend is not self.backend:
            self._changes = []  # another backend may refuse these repairs
        known = self.shared.learned.get(self._learned(backend)) if self.shared.learned and self.settings.repair else ()
        changes = [*known, *(change for change in self._changes if change not in known)]
        self.backend = backend
        scope = self._key_scope(backend) if len(self.settings.backends) > 1 else b""  # a single backend needs no scope
        self.ticket = self.shared.pool.begin(backend, self._entry(backend), scope=scope)
        route = repair.route(self.asked, backend, changes)
        deployment = None if self.call.model is None else route.deployment or self._deployment(backend)
        target = Target.of(self.call, route.backend, deployment, route.asked.query.api_version)
        self.plan = Plan(route.asked, target, route.deployment, route.applied)
        self.tried.append(Attempt(backend.name, repaired=tuple(map(str, route.applied))))
        return self.plan

    def _deployment(self, backend: Backend) -> str:
        if self.call.model is None:
            return ""
        if (known := self._deployments.get(backend.name)) is None:
            known = backend.deployment(self.call.model, self.settings.mapper, native=bool(self.call.native))
            self._deployments[backend.name] = known
        return known

    def _entry(self, backend: Backend) -> str:
        """The deployment's key in the pool's tables. Azure compares deployment names without regard to case (`GPT-4o`, `gpt-4o`)."""
        return self._deployment(backend).lower()

    def _key_scope(self, *backends: Backend) -> bytes:
        """A digest of the client's own key; b"" where the proxy's keys are used."""
        if all(backend.token or backend.entra for backend in backends):
            return b""
        if self._scope is None:
            self._scope = credentials.scope(self.asked.headers, self.asked.query.api_key)
        return self._scope

    def _learned(self, backend: Backend) -> repair.Key:
        version = ""
        if self.call.native:
            target = Target.of(self.call, backend, self._deployment(backend), self.asked.query.api_version)
            version = f"{self.call.native} {target.form.version}"
        return repair.Key(backend.name, self._entry(backend), self.call.endpoint.path, version, self._key_scope(backend))

    def _learn(self, backend: Backend) -> None:
        """Remember the repairs that apply to every client's requests."""
        chose = bool(self.call.native and self.asked.query.api_version)
        if chose and any(isinstance(change, repair.Version) for change in self._changes):
            return
        self.shared.learned.add(self._learned(backend), filter(repair.lasts, self._changes))

    def _tokens(self) -> int:
        """Estimated tokens of the request, computed as Azure computes it: from the body's length and the maximum output."""
        most, times = 0, 1
        for found in _MAX_TOKENS.finditer(self.asked.content, 0, affinity.READ_AT_MOST):
            if found[1]:
                times = max(times, int(found[2]))
            else:
                most = max(most, int(found[2]))
        return len(self.asked.content) // 4 + most * times

    # -- the result of an attempt

    def answers(self, headers: http.Headers) -> None:
        """Record the head of a successful response."""
        if self.ticket and self.backend:
            self.shared.pool.answers(self.ticket, headers)
            if self._changes:
                self._learn(self.backend)
            for id in affinity.ids(self.call) if len(self.settings.backends) > 1 else ():
                self.shared.owners.add(id, self.backend.name)

    def created(self, answer: bytes) -> None:
        """Record the current backend as the owner of the objects that this response created."""
        if len(self.settings.backends) > 1:
            self._claim(affinity.kept(self.call, self.asked.content, answer))

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
        if self.ticket:
            self.shared.pool.end(self.ticket)

    def next_attempt(self, what: Failure | http.Response) -> Decision:
        """Decide how to continue after a failure that occurred before the client received anything."""
        assert self.backend
        self._note(what)
        self._tell_pool(what)
        if self.asked.more or len(self.tried) >= self.settings.max_attempts:  # (a streamed request body is not kept)
            return self._most_useful(what)
        if isinstance(what, http.Response) and (changes := self._repairs(what)):
            self._changes += changes
            self._changed += len(changes)
            return Retry(self._ask(self.backend))
        self._dead.add(self.backend.name)
        if self._movable(what) and (chosen := self._choose()):
            self._keep(what)
            return Retry(self._ask(chosen))
        return self._most_useful(what)

    def broke_off(self, failure: Failure) -> None:
        """Record the failure of an attempt after the client received a part of its response. There is no retry."""
        assert self.ticket
        self._note(failure)
        self.shared.pool.failed(self.ticket)

    def _note(self, what: Failure | http.Response) -> None:
        cause = str(what.status_code) if isinstance(what, http.Response) else what.code
        self.tried[-1] = self.tried[-1]._replace(cause=cause)

    def _tell_pool(self, what: Failure | http.Response) -> None:
        assert self.ticket
        pool = self.shared.pool
        if not isinstance(what, http.Response):
            if what.code == "proxy_shortage":
                pool.declined(self.ticket)
            else:
                (pool.unreachable if what.code in UNSENT else pool.failed)(self.ticket)
            return
        status = what.status_code
        wait = health.wait(what.headers, time.time())
        if status == 429:
            pool.refused(self.ticket, health.NO_HINT if wait is None else wait, tokens=self._tokens())
        elif status in ELSEWHERE:
            pool.failed(self.ticket, wait)
        elif len(self._candidates) > 1 and self._own_key() and _is_missing(what):
            pool.missed(self.ticket, ABSENT_FOR)
        else:
            pool.declined(self.ticket)

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
            return first and self._repeatable()
        if what.status_code == 404:
            return self._repeatable() or bool(affinity.ids(self.call))
        moves = what.status_code in ELSEWHERE or (what.status_code in THERE_ONLY and self._own_key())
        return moves and self._repeatable()

    def _repeatable(self) -> bool:
        """Whether the request is safe to send twice."""
        if self.call.method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "WS"):
            return True
        if self.call.method != "POST" or not self.call.endpoint.repeatable:
            return False
        return b'"background"' not in self.asked.content or not repair.read(self.asked).get("background")

    def _repairs(self, response: http.Response) -> list[repair.Change]:
        assert self.backend
        assert self.plan
        if not self.settings.repair or self._changed >= repair.MOST:
            return []
        mapped = self.call.model is not None and (
            self.backend.models is not None or self.settings.mapper.mapped(self.call.model) is not None
        )
        target = self.plan.target
        dated = not target.form.path.startswith("/openai/v1")
        case = repair.Case(self.call, self.plan.asked, dated, target.deployment or "", mapped)
        found = repair.find(response.status_code, compression.content_or_nothing(response), case)
        return [] if any(change in self._changes or change in self.plan.applied for change in found) else found

    # -- when no backend is left

    def _keep(self, what: Failure | http.Response) -> None:
        if isinstance(what, http.Response) and (self._best is None or _use(what) >= _use(self._best)):
            self._best = what

    def _most_useful(self, what: Failure | http.Response) -> Respond | GiveUp:
        best = self._best
        if best is None or (isinstance(what, http.Response) and _use(what) >= _use(best)):
            if isinstance(what, http.Response):
                self.say_when(what.headers, what.status_code)
            return GIVE_UP
        self.say_when(best.headers, best.status_code)
        return Respond(best)

    def wait(self) -> float | None:
        """Seconds until the first candidate leaves its cool-down; None if one is available."""
        if not self._candidates:
            return None
        return self.shared.pool.soonest(self._candidates, self._entry, tokens=self._tokens(), scope=self._key_scope(*self._candidates))

    def say_when(self, headers: http.Headers, status: int) -> None:
        """Set Retry-After on a failure that a later retry may not have."""
        if status in ELSEWHERE and len(self._candidates) > 1:
            headers.update(when(max(SOONEST, self.wait() or 0.0)))

    # -- inspection

    def seen(self) -> list[dict[str, Any]]:
        """The attempts as the flow's metadata has them."""
        return [{"backend": attempt.backend, "cause": attempt.cause, "repaired": list(attempt.repaired)} for attempt in self.tried]

    def headers(self) -> dict[str, str]:
        """The response headers that report the attempts, for a client that requested them."""
        told = {"x-azure-openai-proxy-backend": self.tried[-1].backend, "x-azure-openai-proxy-attempts": str(len(self.tried))}
        if repaired := self.tried[-1].repaired:
            told["x-azure-openai-proxy-repaired"] = ", ".join(repaired)
        return told


def _is_missing(response: http.Response) -> bool:
    """Whether the deployment does not exist or the key may not use it. A wrong path, id or version of the client does not count."""
    if response.status_code == 404:
        code = repair.said(response.get_content(strict=False) or b"").get("code")
        return isinstance(code, str) and code.lower() == "deploymentnotfound"
    return response.status_code == 401 or (
        response.status_code == 403 and bool(repair.said(response.get_content(strict=False) or b""))
    )  # (a gateway's 403 without Azure's error object may concern the text of one prompt)


def _use(response: http.Response) -> int:
    """Rank of a failure by how much it helps the client: other 4xx first, then 429, then 5xx, then a deployment missing at one backend."""
    status = response.status_code
    if status == 429:
        return 3
    return 1 if status in THERE_ONLY else 2 if status in ELSEWHERE else 4
