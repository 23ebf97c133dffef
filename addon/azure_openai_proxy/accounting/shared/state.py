"""The shared state of a process: started, replaced and ended as `azure_openai_shared_state` says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from azure_openai_proxy.accounting.limits import LocalLimits

from .backends import SharedBackends
from .budgets import SharedBudgets
from .limits import SharedLimits
from .link import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure_openai_proxy.accounting.budgets import Budgets, Charge
    from azure_openai_proxy.accounting.clients import Directory
    from azure_openai_proxy.accounting.ledger_clients import LedgerClients
    from azure_openai_proxy.accounting.limits import LimitStore
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.routing.state import Shared

__all__ = ["SharedState"]

_LOCAL = "Until then each process counts its limits on its own, so that a client of N processes may use N times its limits."
_REFUSE = "Until then requests of limited clients are refused (azure_openai_shared_state_failure)."


class Teams(Protocol):
    """The state of clients that is shared."""

    directory: Directory
    budgets: Budgets
    limits: LimitStore


class SharedState:
    """Connects the state of backends, the limits and the budgets with Redis while the settings name a server."""

    def __init__(self, routing: Shared, teams: Teams, ledger: LedgerClients) -> None:
        self._routing = routing
        self._teams = teams
        self._ledger = ledger
        self._link: Link | None = None
        self._backends: SharedBackends | None = None
        self._budgets: SharedBudgets | None = None
        self._values: tuple[str, str] | None = None  # the settings that are in force
        self._changing = asyncio.Lock()

    @property
    def up(self) -> bool | None:
        """Whether the server can be reached; None without one."""
        return self._link.up if self._link else None

    @property
    def detail(self) -> str:
        """What `/readyz` adds while the server is down."""
        if self.up is not False or self._values is None:
            return ""
        refused = self._values[1] == "refuse"
        return f"the shared state cannot be reached, {'clients with limits are refused' if refused else 'each process counts on its own'}"

    def differs(self, settings: Settings) -> bool:
        return _values(settings) != self._values

    async def follow(self, settings: Callable[[], Settings]) -> None:
        """Use the server of the present settings."""
        async with self._changing:
            if not self.differs(settings()):
                return
            await self._end()
            self._values = _values(settings())
            if self._values is None:
                return
            url, failure = self._values
            refuse = failure == "refuse"
            self._link = Link(url, _REFUSE if refuse else _LOCAL)
            limits = SharedLimits(self._link, refuse=refuse)
            self._budgets = SharedBudgets(self._link, self._teams.budgets, self._teams.directory)
            self._teams.budgets.on_refresh = self._budgets.refresh
            self._backends = SharedBackends(self._link, self._routing)
            self._link.listeners += [limits, self._budgets, self._backends]
            self._ledger.shared = True
            self._teams.limits = limits
            await self._link.start()

    def charged(self, charge: Charge) -> None:
        """Pass on a charge of this process."""
        self._ledger.charged(charge)
        if self._budgets:
            self._budgets.charged(charge)

    async def close(self) -> None:
        async with self._changing:
            await self._end()

    async def _end(self) -> None:
        link, self._link, self._budgets, self._values = self._link, None, None, None
        backends, self._backends = self._backends, None
        if link and backends:
            backends.close()
            self._ledger.shared = False
            self._teams.budgets.on_refresh = None
            self._teams.limits = LocalLimits()
            await link.close()


def _values(settings: Settings) -> tuple[str, str] | None:
    return (settings.shared_state, settings.shared_state_failure) if settings.shared_state else None
