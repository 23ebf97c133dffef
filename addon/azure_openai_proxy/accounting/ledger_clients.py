"""The managed clients and the budgets of this process, as the ledger says.

Until the ledger was read once, the valid keys and the sums of budgets are unknown, so requests are refused. While it is down the last
known keys hold. A budget's sum has the costs that others wrote into the ledger, and all charges of this process, written or not.
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import TYPE_CHECKING

from .budgets import owners, period_start

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .budgets import Budgets, Charge
    from .clients import Directory
    from .ledger.state import LedgerState

__all__ = ["WAITING", "LedgerClients"]

logger = logging.getLogger(__name__)

WAITING = (
    "The database of azure_openai_ledger was not read yet, so client keys and budgets are unknown. Try again soon. "
    "azure_openai_client_auth=off serves requests without client keys."
)


class LedgerClients:
    """Applies each state of the ledger. All methods run on the event loop."""

    def __init__(self, directory: Directory, budgets: Budgets) -> None:
        self._directory = directory
        self._budgets = budgets
        self.shared = False  # replicas share their charges, so that a sum may be ahead of the ledger
        self._was_read = False
        self._charged: dict[str, dict[dt.date, float]] = {}  # by client and by day, since this process began
        self._others: Mapping[tuple[str, dt.date], float] = {}
        self._without_group: set[str] = set()  # clients that are refused for it

    def expect(self, *, ledger: bool, off: bool) -> None:
        """Wait for the first reading, if there is a ledger and client keys are not off."""
        self._directory.waiting = WAITING if ledger and not off and not self._was_read else ""

    def charged(self, charge: Charge) -> None:
        """Keep a charge of this process, which the ledger may not have yet."""
        day = dt.datetime.fromtimestamp(charge.time, dt.UTC).date()
        days = self._charged.setdefault(charge.client, {})
        days[day] = days.get(day, 0.0) + charge.usd

    def apply(self, state: LedgerState) -> None:
        """Use the keys and the sums of the database."""
        self._was_read = True
        self._directory.waiting = ""
        self._directory.use_managed(state.clients)
        if state.ever:
            self._directory.had_clients = True
        missing = {client.name: client.group for client in state.clients if client.group and client.group not in self._directory.groups}
        for name in sorted(missing.keys() - self._without_group):
            logger.warning(
                "The key %s is refused: it is in the group %s, which azure_openai_client_groups does not have", name, missing[name]
            )
        self._without_group = set(missing)
        self._others = state.others
        self._use_sums()

    def _use_sums(self) -> None:
        now = self._budgets.now()
        sums: dict[str, tuple[dt.datetime, float]] = {}
        for client in self._directory.clients.values():
            for owner, budget in owners(client, self._directory.group(client)):
                start = period_start(budget.period, now)
                before = sums[owner][1] if owner in sums else 0.0
                sums[owner] = (start, before + self._spent(client.name, start.date()))
        for owner, (start, usd) in sums.items():
            self._budgets.set_used(owner, start, max(usd, self._budgets.used(owner, start)) if self.shared else usd)

    def _spent(self, name: str, start: dt.date) -> float:
        mine = sum(usd for day, usd in self._charged.get(name, {}).items() if day >= start)
        return max(0.0, self._others.get((name, start), 0.0) + mine)
