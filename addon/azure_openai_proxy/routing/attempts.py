"""One request, sent until it is answered: to which backend first, and after a failure what to do next.

A failure that another backend may be spared (no way there, 408, 429, 5xx) moves the request on; a refusal that says what to change
sends it again to the same one. Never more often than the settings say, and never twice to one backend for the same cause.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mitmproxy import http

from azure_openai_proxy.api import credentials
from azure_openai_proxy.api import request as azure_request
from azure_openai_proxy.errors import NotFound, Unavailable, when
from azure_openai_proxy.formats import compression

from . import affinity, health, repair
from .entra_tokens import Tokens

if TYPE_CHECKING:
    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import Asked
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.mitmproxy_patches.install import Failure

    from .pool import Pool, Ticket

__all__ = ["ATTEMPTS", "Attempt", "Attempts", "Shared"]

ATTEMPTS = "azure_openai_attempts"
"""The name in a flow's metadata, which a saved flow keeps."""
ELSEWHERE = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that another backend may not give."""
THERE_ONLY = frozenset({401, 403, 404})
"""Answers that say something of one backend's key, rights or deployments."""
ABSENT_FOR = 30.0
"""Seconds for which others are asked first for a deployment after one of those."""
SOONEST = 0.5
"""Seconds: a client that was just failed by every backend is told to come back no sooner."""
UNSENT = frozenset({"upstream_unreachable", "upstream_connect_timeout", "proxy_shortage"})
"""Failures before anything of the request was sent."""

_MAX_TOKENS = re.compile(rb'"(?:max_(?:completion_|output_)?tokens|(n|best_of))"\s*+:\s*+([0-9]{1,9})')


class Attempt(NamedTuple):
    backend: str
    cause: str = ""  # why it was not the last; "" while it is
    repaired: tuple[str, ...] = ()


@dataclass(slots=True)
class Shared:
    """What requests know of each other."""

    pool: Pool
    owners: affinity.Owners = field(default_factory=affinity.Owners)
    learned: repair.Learned = field(default_factory=repair.Learned)
    tokens: Tokens = field(default_factory=Tokens)  # of Entra ID
    backends: tuple[Backend, ...] = ()

    def use(self, backends: tuple[Backend, ...]) -> None:
        """Those of the settings in force now. What was learned of others is forgotten."""
        if backends != self.backends:
            self.backends = backends
            self.pool.update(backends)
            self.learned.clear()
            self.tokens.use(backends)

    def unusable(self) -> str | None:
        """Why no request would do well now; None: at least one backend can be reached, as far as is known."""
        views = self.pool.views()
        return "no backend is usable now" if views and all(view.state == "cooling" for view in views) else None

    def has_token(self, backend: Backend) -> bool:
        return not backend.entra or self.tokens.token(backend) is not None


@dataclass(slots=True)
class Attempts:
    settings: Settings
    shared: Shared
    call: Call
    asked: Asked
    tried: list[Attempt] = field(default_factory=list)
    backend: Backend | None = None  # the one that is asked now
    ticket: Ticket | None = None
    route: repair.Route | None = None
    began: bool = False  # the client has something of the answer
    _changes: list[repair.Change] = field(default_factory=list)  # made for this request, at this backend
    _changed: int = 0
    _dead: set[str] = field(default_factory=set)  # not to be asked again
    _lost: bool = False  # one attempt ended without a response after Azure may have had the whole request
    _best: http.Response | None = None  # the most useful failure so far
    _candidates: tuple[Backend, ...] = ()
    _scope: bytes | None = None  # of the client's own key, once it was needed

    # -- the first

    def first(self) -> repair.Route:
        """Whom to ask, and with what.

        Raises:
            ProxyError: nobody can be asked.
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

    def _ask(self, backend: Backend) -> repair.Route:
        if backend is not self.backend:
            self._changes = []  # what one backend wants another may refuse
        known = self.shared.learned.get(self._learned(backend)) if self.shared.learned and self.settings.repair else ()
        changes = [*known, *(change for change in self._changes if change not in known)]
        self.backend = backend
        scope = self._key_scope(backend) if len(self.settings.backends) > 1 else b""  # with one there is no choice to make
        self.ticket = self.shared.pool.begin(backend, self._entry(backend), scope=scope)
        self.route = repair.route(self.asked, backend, changes)
        self.tried.append(Attempt(backend.name, repaired=tuple(map(str, self.route.applied))))
        return self.route

    def _deployment(self, backend: Backend) -> str:
        if self.call.model is None:
            return ""
        return backend.deployment(self.call.model, self.settings.mapper, native=bool(self.call.native))

    def _entry(self, backend: Backend) -> str:
        """The name under which a deployment is remembered. Azure does not tell `GPT-4o` from `gpt-4o`."""
        return self._deployment(backend).lower()

    def _key_scope(self, *backends: Backend) -> bytes:
        """What tells this client's own key from others; b"" where the proxy's keys are used."""
        if all(backend.token or backend.entra for backend in backends):
            return b""
        if self._scope is None:
            self._scope = credentials.scope(self.asked.headers, self.asked.query.api_key)
        return self._scope

    def _learned(self, backend: Backend) -> repair.Key:
        version = ""
        if self.call.native:
            form = azure_request.form(self.call, self._deployment(backend), backend, self.asked.query.api_version)
            version = f"{self.call.native} {form.version}"
        return repair.Key(backend.name, self._entry(backend), self.call.endpoint.path, version, self._key_scope(backend))

    def _learn(self, backend: Backend) -> None:
        """Remember for all clients what any of them would have to change."""
        chose = bool(self.call.native and self.asked.query.api_version)
        if chose and any(isinstance(change, repair.Version) for change in self._changes):
            return
        self.shared.learned.add(self._learned(backend), filter(repair.lasts, self._changes))

    def _tokens(self) -> int:
        """An estimate, made as Azure makes its own: from the length, and the most that may come back."""
        most, times = 0, 1
        for found in _MAX_TOKENS.finditer(self.asked.content, 0, affinity.READ_AT_MOST):
            if found[1]:
                times = max(times, int(found[2]))
            else:
                most = max(most, int(found[2]))
        return len(self.asked.content) // 4 + most * times

    # -- what comes of it

    def answers(self, headers: http.Headers, *, streams: bool) -> None:
        """The head of a good answer. One that `streams` is the client's from here on."""
        self.began = streams
        if self.ticket and self.backend:
            self.shared.pool.answers(self.ticket, headers)
            if self._changes:
                self._learn(self.backend)
            for id in affinity.ids(self.call) if len(self.settings.backends) > 1 else ():
                self.shared.owners.add(id, self.backend.name)

    def created(self, answer: bytes) -> None:
        """Remember who has what this answer made."""
        if len(self.settings.backends) > 1:
            self._claim(affinity.kept(self.call, self.asked.content, answer))

    @property
    def makes_items(self) -> bool:
        """Whether events or frames of the answer may tell of items that only one of the backends will know."""
        return len(self.settings.backends) > 1 and (self.call.method == "WS" or self.call.path.startswith("/responses"))

    def item(self, event: bytes) -> None:
        """Remember who has the item of an event or a frame, if it has one."""
        if affinity.ITEM in event:
            self._claim(affinity.made(event))

    def _claim(self, made: list[str]) -> None:
        if self.backend:
            for id in made:
                self.shared.owners.claim(id, self.backend.name)

    def end(self) -> None:
        if self.ticket:
            self.shared.pool.end(self.ticket)

    def again(self, what: Failure | http.Response) -> repair.Route | http.Response | None:
        """After a failure: the request to send now, or an earlier failure that tells the client more, or None."""
        assert self.backend
        assert self.ticket
        assert self.route
        cause = str(what.status_code) if isinstance(what, http.Response) else what.code
        self.tried[-1] = self.tried[-1]._replace(cause=cause)
        if self.began:
            self.shared.pool.failed(self.ticket)
            return None
        self._tell_pool(what)
        if self.asked.more or len(self.tried) >= self.settings.max_attempts:  # (a body that went on as it came is gone)
            return self._most_useful(what)
        if isinstance(what, http.Response) and (changes := self._repairs(what)):
            self._changes += changes
            self._changed += len(changes)
            return self._ask(self.backend)
        self._dead.add(self.backend.name)
        if self._movable(what) and (chosen := self._choose()):
            self._keep(what)
            return self._ask(chosen)
        return self._most_useful(what)

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
        """Whether the proxy's own key was refused, and not the client's."""
        return bool(self.backend and (self.backend.token or self.backend.entra))

    def _movable(self, what: Failure | http.Response) -> bool:
        """Whether another backend may be asked after this."""
        if not isinstance(what, http.Response):
            if what.code == "proxy_shortage":
                return False  # this machine has no connection for any backend
            if what.code in UNSENT:
                return True
            first = not self._lost
            self._lost = True  # Azure may have done the work, and bill it
            return first and self._repeatable()
        if what.status_code == 404:
            return self._repeatable() or bool(affinity.ids(self.call))
        moves = what.status_code in ELSEWHERE or (what.status_code in THERE_ONLY and self._own_key())
        return moves and self._repeatable()

    def _repeatable(self) -> bool:
        """Whether it does no harm to have it done twice."""
        if self.call.method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "WS"):
            return True
        if self.call.method != "POST" or not self.call.endpoint.repeatable:
            return False
        return b'"background"' not in self.asked.content or not repair.read(self.asked).get("background")

    def _repairs(self, response: http.Response) -> list[repair.Change]:
        assert self.backend
        assert self.route
        if not self.settings.repair or self._changed >= repair.MOST:
            return []
        deployment = self.route.deployment or self._deployment(self.backend)
        mapped = self.call.model is not None and (
            self.backend.models is not None or self.settings.mapper.mapped(self.call.model) is not None
        )
        form = azure_request.form(self.call, deployment, self.route.backend, self.asked.query.api_version)
        dated = not form.path.startswith("/openai/v1")
        case = repair.Case(self.call, self.route.asked, dated, deployment, mapped)
        found = repair.find(response.status_code, compression.content_or_nothing(response), case)
        return [] if any(change in self._changes or change in self.route.applied for change in found) else found

    # -- when nobody can take it

    def _keep(self, what: Failure | http.Response) -> None:
        if isinstance(what, http.Response) and (self._best is None or _use(what) >= _use(self._best)):
            self._best = what

    def _most_useful(self, what: Failure | http.Response) -> http.Response | None:
        best = self._best
        if best is None or (isinstance(what, http.Response) and _use(what) >= _use(best)):
            if isinstance(what, http.Response):
                self.say_when(what.headers, what.status_code)
            return None
        self.say_when(best.headers, best.status_code)
        return best

    def wait(self) -> float | None:
        """Seconds until the soonest of those that could take it returns."""
        if not self._candidates:
            return None
        return self.shared.pool.soonest(self._candidates, self._entry, tokens=self._tokens(), scope=self._key_scope(*self._candidates))

    def say_when(self, headers: http.Headers, status: int) -> None:
        """Tell the client when to come back, on a failure that time may heal."""
        if status in ELSEWHERE and len(self._candidates) > 1:
            headers.update(when(max(SOONEST, self.wait() or 0.0)))

    # -- seeing

    def seen(self) -> list[dict[str, Any]]:
        """For the flow's metadata."""
        return [{"backend": attempt.backend, "cause": attempt.cause, "repaired": list(attempt.repaired)} for attempt in self.tried]

    def headers(self) -> dict[str, str]:
        """For whoever asked to see it in the answer."""
        told = {"x-azure-openai-proxy-backend": self.tried[-1].backend, "x-azure-openai-proxy-attempts": str(len(self.tried))}
        if repaired := self.tried[-1].repaired:
            told["x-azure-openai-proxy-repaired"] = ", ".join(repaired)
        return told

    def comment(self) -> str:
        """In one line; "" where the first attempt was the only one, and nothing was changed."""
        if len(self.tried) == 1 and not self.tried[0].repaired:
            return ""
        steps = [
            attempt.backend + "".join(f" [{text}]" for text in attempt.repaired) + (f": {attempt.cause}" if attempt.cause else "")
            for attempt in self.tried
        ]
        return " -> ".join(steps)


def _is_missing(response: http.Response) -> bool:
    """Whether the deployment is not there, or not for this key: not when it is a path, an id or a version that the client named."""
    if response.status_code == 404:
        code = repair.said(response.get_content(strict=False) or b"").get("code")
        return isinstance(code, str) and code.lower() == "deploymentnotfound"
    return response.status_code == 401 or (
        response.status_code == 403 and bool(repair.said(response.get_content(strict=False) or b""))
    )  # (a front's 403 without Azure's error may be for the text of one prompt)


def _use(response: http.Response) -> int:
    """How much a failure tells the client: when to come back, before what is broken, before what one backend has not."""
    status = response.status_code
    if status == 429:
        return 3
    return 1 if status in THERE_ONLY else 2 if status in ELSEWHERE else 4
