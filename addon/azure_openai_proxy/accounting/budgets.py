"""What clients and groups have spent in the present period of their budgets."""

from __future__ import annotations

import datetime as dt
import math
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from azure_openai_proxy.config.clients import Budget, Client, Group, Period

__all__ = ["TOTAL", "BudgetState", "Budgets", "Charge", "has_budget", "owners", "period_start"]

TOTAL = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""The beginning of a budget that is never renewed."""


class Charge(NamedTuple):
    """An amount that was spent."""

    client: str
    group: str  # "": none
    usd: float
    time: float  # Unix time in seconds


class BudgetState(NamedTuple):
    """A budget, and what was spent of it."""

    owner: str  # "client NAME" or "group NAME"
    budget: Budget
    used: float
    start: dt.datetime
    resets_at: dt.datetime | None  # None: never

    @property
    def remaining(self) -> float:
        return max(0.0, self.budget.usd - self.used)

    @property
    def gone(self) -> bool:
        return self.used >= self.budget.usd


class _Present(NamedTuple):
    """The present period of budgets."""

    start: dt.datetime
    end: dt.datetime | None  # None: it never ends
    during: tuple[float, float]  # the same, in seconds of Unix time


class Refresh(Protocol):
    def __call__(self, states: Iterable[BudgetState], *, wait: bool) -> Awaitable[None] | None: ...


def period_start(period: Period, now: dt.datetime) -> dt.datetime:
    """The beginning of the period that contains `now`, both in UTC."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "day":
            return day
        case "week":
            return day - dt.timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
    return TOTAL


def _next(period: Period, start: dt.datetime) -> dt.datetime | None:
    match period:
        case "day":
            return start + dt.timedelta(days=1)
        case "week":
            return start + dt.timedelta(days=7)
        case "month":
            return (start + dt.timedelta(days=32)).replace(day=1)
    return None


def has_budget(client: Client, group: Group | None) -> bool:
    """Whether a client or its group has a budget."""
    return client.budget is not None or (group is not None and group.budget is not None)


def owners(client: Client, group: Group | None) -> list[tuple[str, Budget]]:
    """The budgets that a client's calls are charged to."""
    found = [(f"client {client.name}", client.budget)] if client.budget else []
    if group and group.budget:
        found.append((f"group {group.name}", group.budget))
    return found


class Budgets:
    """Sums per owner and period. Others may set a sum (from the ledger, or from other replicas), and get each charge."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.on_charge: Callable[[Charge], None] | None = None
        self.on_refresh: Refresh | None = None
        self._used: dict[str, tuple[dt.datetime, float]] = {}  # owner: start of the period, sum
        self._periods: dict[Period, _Present] = {}

    def now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.clock(), dt.UTC)

    def state(self, owner: str, budget: Budget) -> BudgetState:
        """A budget's state now."""
        start, end, _ = self.period(budget.period)
        return BudgetState(owner, budget, self.used(owner, start), start, end)

    def period(self, period: Period) -> _Present:
        """The present period. A request asks for it ten times."""
        now = self.clock()
        known = self._periods.get(period)
        if known is None or not known.during[0] <= now < known.during[1]:
            start = period_start(period, dt.datetime.fromtimestamp(now, dt.UTC))
            end = _next(period, start)
            known = _Present(start, end, (start.timestamp(), end.timestamp() if end else math.inf))
            self._periods[period] = known
        return known

    def states(self, client: Client, group: Group | None) -> list[BudgetState]:
        """The budgets of a client and its group."""
        return [self.state(owner, budget) for owner, budget in owners(client, group)]

    def refresh(self, client: Client, group: Group | None, *, wait: bool) -> Awaitable[None] | None:
        """Ask other replicas what was spent of budgets that are near their end. None: there is nothing to wait for."""
        return self.on_refresh(self.states(client, group), wait=wait) if self.on_refresh else None

    def used(self, owner: str, start: dt.datetime) -> float:
        """What an owner has spent since `start`, the beginning of the present period."""
        known = self._used.get(owner)
        return known[1] if known and known[0] == start else 0.0

    def set_used(self, owner: str, start: dt.datetime, usd: float) -> None:
        """Replace the sum of a period, by what the ledger or all replicas together know."""
        self._used[owner] = (start, usd)

    def charge(self, client: Client, group: Group | None, usd: float) -> list[BudgetState]:
        """Charge a call to the budgets of a client and its group, in the period in which its cost is known. Return their states."""
        states = []
        for owner, budget in owners(client, group):
            start, end, _ = self.period(budget.period)
            used = self.used(owner, start) + usd
            self._used[owner] = (start, used)
            states.append(BudgetState(owner, budget, used, start, end))
        if self.on_charge:
            self.on_charge(Charge(client.name, group.name if group else "", usd, self.clock()))
        return states
