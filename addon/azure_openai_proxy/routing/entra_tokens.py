"""Access tokens of Microsoft Entra ID, refreshed in the background: a request uses the current token and never waits for one.

They come from azure-identity, an optional extra that is imported only if a backend is configured for Entra ID.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from azure_openai_proxy.api.backend import Backend

__all__ = ["PATIENCE", "Key", "Tokens", "credential"]

logger = logging.getLogger(__name__)

AHEAD = 240.0
"""Seconds before its expiry at which a token is refreshed. azure-identity refreshes from five minutes before."""
RETRY = 5.0
LOG_EVERY = 60.0
PATIENCE = 10.0
"""Seconds that a request waits at startup for the first token."""

_CLASSES = {
    "default": "DefaultAzureCredential",
    "managed_identity": "ManagedIdentityCredential",
    "workload_identity": "WorkloadIdentityCredential",
    "client_secret": "EnvironmentCredential",  # AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET
    "cli": "AzureCliCredential",
}


# Host suffixes of the US Government and China clouds, with the authority and the scope's domain of each.
_AUTHORITIES = {
    ".azure.us": "login.microsoftonline.us",
    ".microsoft.us": "login.microsoftonline.us",
    ".azure.cn": "login.chinacloudapi.cn",
}
_CLOUDS = {".azure.us": ".azure.us", ".microsoft.us": ".azure.us", ".azure.cn": ".azure.cn"}


class Credential(Protocol):
    async def get_token(self, scope: str) -> Any:
        """A token: an object with `token` and `expires_on`, in seconds since 1970."""
        ...

    async def close(self) -> None: ...


class Key(NamedTuple):
    """Identifies a token. Backends with equal keys share one."""

    kind: str
    authority: str  # "": AZURE_AUTHORITY_HOST or the public cloud's
    scope: str

    @classmethod
    def of(cls, backend: Backend) -> Key:
        # The cloud follows from Azure's host, or behind a gateway from the configured scope.
        named = (backend.base.host, backend.scope.removeprefix("https://").partition("/")[0])
        ending = next((ending for ending in _AUTHORITIES if any(name.endswith(ending) for name in named)), "")
        if ending:
            return cls(backend.entra, _AUTHORITIES[ending], backend.scope or f"https://cognitiveservices{_CLOUDS[ending]}/.default")
        api = "ai" if backend.apiversion in ("v1", "preview") else "cognitiveservices"
        return cls(backend.entra, "", backend.scope or f"https://{api}.azure.com/.default")


def credential(kind: str, authority: str) -> Credential:
    """An asyncio credential of azure-identity.

    Raises:
        ImportError: azure-identity is not installed.
    """
    logging.getLogger("azure").setLevel(logging.CRITICAL)  # `Tokens` logs its failures, once a minute
    identity = importlib.import_module("azure.identity.aio")
    made: Credential = getattr(identity, _CLASSES[kind])(**({"authority": authority} if authority and kind != "cli" else {}))
    return made


@dataclass(slots=True, eq=False)
class _RefreshedToken:
    """One token and the task that refreshes it."""

    token: str = field(default="", repr=False)
    ends: float = 0.0
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    logged: float = 0.0
    task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        assert self.task, "it runs since `use`"
        self.task.cancel()


class Tokens:
    def __init__(self, make: Callable[[str, str], Credential] = credential, clock: Callable[[], float] = time.time) -> None:
        self._make = make
        self._clock = clock
        self._kept: dict[Key, _RefreshedToken] = {}

    def token(self, backend: Backend) -> str | None:
        """The valid token for a backend; None while there is none."""
        kept = self._kept.get(Key.of(backend))
        return kept.token if kept and self._clock() < kept.ends else None

    def use(self, backends: Sequence[Backend]) -> None:
        """Start refreshing the tokens of these backends and stop all others. Call it in the event loop."""
        keys = {Key.of(backend) for backend in backends if backend.entra}
        for key in set(self._kept) - keys:
            self._kept.pop(key).stop()
        for key in keys - set(self._kept):
            self._kept[key] = kept = _RefreshedToken()
            kept.task = asyncio.create_task(self._keep(key, kept))

    @property
    def untried(self) -> bool:
        """Whether the first request for a token is still pending."""
        return bool(self._kept) and not all(kept.tried.is_set() for kept in self._kept.values())

    async def first(self) -> None:
        """Return when each token has been requested once, or after `PATIENCE` seconds."""
        waiting = [asyncio.ensure_future(kept.tried.wait()) for kept in self._kept.values() if not kept.tried.is_set()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=PATIENCE)
            for task in late:
                task.cancel()

    def close(self) -> None:
        self.use(())

    async def _keep(self, key: Key, kept: _RefreshedToken) -> None:
        identity: Credential | None = None
        try:
            while True:
                try:
                    identity = identity or self._make(key.kind, key.authority)
                    found = await identity.get_token(key.scope)
                except Exception as error:  # noqa: BLE001 - azure-identity raises what its transports raise
                    self._log_failure(key, kept, error)
                    pause = RETRY
                else:
                    kept.token, kept.ends = found.token, float(found.expires_on)
                    life = kept.ends - self._clock()
                    pause = max(0.5, life - AHEAD if life > 2 * AHEAD else life / 2)
                kept.tried.set()
                await asyncio.sleep(pause)
        finally:
            if identity:
                await identity.close()

    def _log_failure(self, key: Key, kept: _RefreshedToken, error: Exception) -> None:
        now = self._clock()
        if now - kept.logged >= LOG_EVERY:
            kept.logged = now
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            left = f", the last one is good for {kept.ends - now:.0f} s" if kept.ends > now else ""
            logger.warning("No token of Entra ID (%s, %s)%s: %s", key.kind, key.scope, left, reason)
