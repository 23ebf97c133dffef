"""The backends that may serve one request, and the choice among them: ownership of objects, bindings of sessions, tiers, health."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from azure_openai_proxy.api import credentials, response_items
from azure_openai_proxy.errors import NotFound, Unavailable

from . import affinity, item_owners, sessions, tiers
from .pool import OWNER, Choice

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import ClientRequest
    from azure_openai_proxy.config.settings import Settings

    from .state import Shared

__all__ = ["Candidates"]

logger = logging.getLogger(__name__)

_MAX_TOKENS = re.compile(rb'"(?:max_(?:completion_|output_)?tokens|(n|best_of))"\s*+:\s*+([0-9]{1,9})')


@dataclass(slots=True)
class Candidates:
    """The backends that may serve one request. `client_request` is without the items that no backend can read."""

    settings: Settings
    shared: Shared
    call: Call
    client_request: ClientRequest
    client: str = ""  # configured name of the client
    backends: tuple[Backend, ...] = ()  # set by `first`
    dead: frozenset[str] = frozenset()  # backends that are not used again
    item: response_items.Item | None = None  # that only one backend can read
    dropped: int = 0  # number of items that are left out of the request
    tier: str = ""  # of the current attempt
    tier_dropped: str = ""  # the tier that the last attempt is sent without
    _deployments: dict[str, str] = field(default_factory=dict)  # by the name of the backend
    _size: int | None = None  # tokens; computed on first use
    _scope: bytes | None = None  # of the client's own key; computed on first use
    _session: bytes | None = None  # key of the session; None: there is none, or one backend only
    _unreachable: frozenset[str] = frozenset()  # owners of items that did not answer
    _whole: ClientRequest | None = None  # the client's request, if items of it are left out

    # -- the choice

    def first(self) -> tuple[Backend, str]:
        """Choose the first backend. Return it with the reason.

        Raises:
            NotFound: no backend has the model.
            Unavailable: no candidate can be used now.
        """
        able = self._able()
        if not able:
            raise NotFound(
                f"The model `{self.call.model}` does not exist: no backend has it. Configured: {', '.join(self.settings.listed.names())}.",
                param="model",
                code="model_not_found",
            )
        own = self._owner() if self.shared.owners else ()
        self.backends = own or able
        if self.call.session is not None and len(able) > 1:
            client = self.client.encode() or self._client_scope()
            self._session = sessions.key(client, self.call.model, self.call.session)
        self.tier = self.call.tier
        if not own and self.call.items and (preferred := self._preferred(able)):
            return preferred, OWNER
        chosen = self.choose() or self.choose_without_tier()
        if chosen is None:
            raise Unavailable(*self._unavailable())
        return chosen.backend, OWNER if own else chosen.reason

    def choose(self, tried: Collection[str] | None = None) -> Choice | None:
        """Choose a backend that is not in `tried`, by default those that are not used again. None if there is none."""
        backends = [backend for backend in self.backends if self.shared.has_token(backend)]
        tokens, scope = (self.tokens(), self.key_scope(*backends)) if len(backends) > 1 else (0, b"")
        bound = () if self._session is None else self.shared.sessions.backends(self._session, self.settings.affinity_timeout)
        excluded = self.dead if tried is None else tried
        return self.shared.pool.choose(backends, self.entry, tokens=tokens, tried=excluded, scope=scope, bound=bound)

    def choose_without_tier(self) -> Choice | None:
        """Choose the backend for one last attempt without the tier, if no backend serves the tier and the configuration allows it."""
        if not (self.settings.tier_fallback and self.tier):
            return None
        tier, dead, self.tier, self.dead = self.tier, self.dead, "", frozenset()
        if chosen := self.choose():
            self.tier_dropped = tier
            logger.info(
                "%s: no backend serves service_tier %s now, last attempt at %s without it", self.call.operation, tier, chosen.backend.name
            )
            return chosen
        self.tier, self.dead = tier, dead
        return None

    def lose_owner(self, name: str) -> None:
        """Record that the only backend that can read an item did not answer."""
        self._unreachable |= {name}
        self.dead |= {name}

    def choose_after_owner(self) -> Choice | None:
        """Choose a backend after `lose_owner`, for the request without the items of that one. None if it still needs such a backend."""
        own = self._owner_of_items()
        if self.item is not None and own[0].name in self._unreachable:
            return None
        self.backends = own or self._able()
        return self.choose()

    def _able(self) -> tuple[Backend, ...]:
        return tuple(backend for backend in self.settings.backends if backend.serves(self.call.model))

    def _unavailable(self) -> tuple[int, str, str, float | None]:
        if not any(map(self.shared.has_token, self.backends)):
            return 503, "entra_token_unavailable", "The proxy has no token of Microsoft Entra ID: its log says why.", None
        wait = self.wait()
        return 429, "rate_limit_exceeded", "Every backend of the proxy that has this model is over its rate limit.", wait

    # -- owners of objects

    def _owner(self) -> tuple[Backend, ...]:
        """The only backend that stores the object that the request names; () if any backend may be used.

        Raises:
            NotFound: an item's backend is configured no longer.
        """
        backends = self.settings.backends
        if self.call.items and (own := self._owner_of_items()):
            return own
        owner = self.shared.owners.of(self.call, self.client_request.content)
        return tuple(backend for backend in backends if backend.name == owner) if owner else ()

    def _owner_of_items(self) -> tuple[Backend, ...]:
        """The same for the items of earlier responses. Items of backends that are gone are left out, if the settings say so."""
        names = {backend.name for backend in self.settings.backends}
        found = item_owners.decide(
            self.call.items or (),
            self.shared.owners,
            lambda name: name not in names or name in self._unreachable,
            drop=self.settings.drop_lost_items,
        )
        if found.dropped:
            self._whole = whole = self._whole or self.client_request
            content, large = response_items.without(whole.content, whole.large, found.dropped)
            self.client_request, self.dropped = whole._replace(content=content, large=large), len(found.dropped)
            logger.warning(
                "%s: %d items with encrypted reasoning of %s are left out, because no other backend can read them",
                self.call.operation,
                self.dropped,
                ", ".join(found.of),
            )
        if (item := found.item) is None:
            self.item = None
            return ()
        if found.owner not in names:
            raise NotFound(item_owners.message(item, found.owner, "it is configured no longer"), param="input", code=item_owners.GONE)
        self.item = item
        return tuple(backend for backend in self.settings.backends if backend.name == found.owner)

    def _preferred(self, able: Sequence[Backend]) -> Backend | None:
        """The backend that made the newest item which any backend can read, if that backend is healthy."""
        name = item_owners.preferred(self.call.items or (), self.shared.owners)
        backend = next((backend for backend in able if backend.name == name), None)
        if backend is None or not self.shared.has_token(backend):
            return None
        healthy = self.shared.pool.is_healthy(backend, self.entry(backend), tokens=self.tokens(), scope=self.key_scope(backend))
        return backend if healthy else None

    # -- the binding of the session

    def bind(self, backend: Backend) -> None:
        """Bind the session to the backend that serves the request."""
        if self._session is not None:
            self.shared.sessions.served(self._session, backend.name, self.settings.affinity_sessions)

    def unbind(self, backend: Backend) -> None:
        """End the binding of the session, because the backend has failed."""
        if self._session is not None:
            self.shared.sessions.failed(self._session, backend.name)

    # -- what the pool needs to know

    def deployment(self, backend: Backend) -> str:
        """The name of the model at a backend; "" for a request without a model."""
        if self.call.model is None:
            return ""
        if (known := self._deployments.get(backend.name)) is None:
            known = backend.deployment(self.call.model, self.settings.mapper, native=bool(self.call.native))
            self._deployments[backend.name] = known
        return known

    def entry(self, backend: Backend) -> str:
        """The deployment's key in the pool's tables. Azure compares deployment names without regard to case (`GPT-4o`, `gpt-4o`)."""
        return tiers.entry(self.deployment(backend).lower(), self.tier)

    def key_scope(self, *backends: Backend) -> bytes:
        """A digest of the client's own key; b"" where the proxy's keys are used."""
        if all(backend.token or backend.entra for backend in backends):
            return b""
        return self._client_scope()

    def _client_scope(self) -> bytes:
        if self._scope is None:
            self._scope = credentials.scope(self.client_request.headers, self.client_request.query.api_key)
        return self._scope

    def tokens(self) -> int:
        """Estimated tokens of the request, computed as Azure computes it: from the body's length and the maximum output."""
        if self._size is not None:
            return self._size
        most, times = 0, 1
        for found in _MAX_TOKENS.finditer(self.client_request.content, 0, affinity.READ_AT_MOST):
            if found[1]:
                times = max(times, int(found[2]))
            else:
                most = max(most, int(found[2]))
        self._size = len(self.client_request.content) // 4 + most * times
        return self._size

    def wait(self) -> float | None:
        """Seconds until the first candidate is available by what Azure said; None if one is."""
        if not self.backends:
            return None
        return self.shared.pool.soonest(self.backends, self.entry, tokens=self.tokens(), scope=self.key_scope(*self.backends))
