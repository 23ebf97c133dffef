"""The sums of budgets in Redis: one hash for each period, from owners to USD.

The server adds to the sum that the first replica knew when it charged, so that a server without data continues the sums of the ledger. A
sum never falls within a period: of the sums of the server, the ledger and this process the highest counts.

The sums of all replicas are read twice a second or so. Near the end of a budget each request asks for them, so that it ends with the call
that crosses it.
"""

from __future__ import annotations

import functools
import itertools
import math
from contextlib import suppress
from typing import TYPE_CHECKING

from azure_openai_proxy.accounting.budgets import owners

from .link import PREFIX, Down
from .scripts import CHARGE

if TYPE_CHECKING:
    import asyncio
    import datetime as dt
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import Any

    from azure_openai_proxy.accounting.budgets import Budgets, BudgetState, Charge
    from azure_openai_proxy.accounting.clients import Directory
    from azure_openai_proxy.config.clients import Period

    from .link import Link

__all__ = ["SharedBudgets"]

KEEP: dict[Period, int] = {"day": 2 * 86400, "week": 8 * 86400, "month": 32 * 86400, "total": 0}
"""Seconds for which the hash of a period is kept after a charge; 0: for ever."""
AT_ONCE = 500
"""Charges of one command."""
POLL_EVERY = 2
"""Ticks between two readings of the sums."""
NEAR = 100
"""A budget is near its end if fewer calls than these are left of it, each as expensive as the most expensive one of this process so far."""


type _Key = tuple[str, Period, dt.datetime]
"""An owner, and a period by its beginning."""


class SharedBudgets:
    """A listener of the link that sends the charges of this process, and reads the sums."""

    def __init__(self, link: Link, budgets: Budgets, directory: Directory) -> None:
        self._link = link
        self._budgets = budgets
        self._directory = directory
        self._unsent: dict[_Key, float] = {}
        self._most: dict[str, float] = {}  # the most expensive charge of this process, by owner
        self._ticks = 0

    def charged(self, charge: Charge) -> None:
        """Send a charge of this process, which `Budgets` has counted."""
        client = self._directory.clients.get(charge.client)
        if client is None:
            return  # it was deleted meanwhile
        for owner, budget in owners(client, self._directory.groups.get(charge.group)):
            key = (owner, budget.period, self._budgets.period(budget.period).start)
            self._unsent[key] = self._unsent.get(key, 0.0) + charge.usd
            self._most[owner] = max(charge.usd, self._most.get(owner, 0.0))
        if self._link.up:
            self._send()

    def joined(self, *, lost: bool) -> None:  # noqa: ARG002 - of the interface
        self._send()

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, {}
        for charges in itertools.batched(unsent.items(), AT_ONCE):
            keys: list[str] = []
            arguments: list[Any] = []
            for (owner, period, start), usd in charges:
                before = max(0.0, self._budgets.used(owner, start) - usd)
                keys.append(_hash(period, start))
                arguments += (owner, repr(before), repr(usd), KEEP[period])
            self._link.run(CHARGE, keys, *arguments).add_done_callback(functools.partial(self._sent, charges))

    def _sent(self, charges: Sequence[tuple[_Key, float]], sent: asyncio.Future[Any]) -> None:
        if sent.cancelled() or sent.exception():
            for key, usd in charges:
                self._unsent[key] = self._unsent.get(key, 0.0) + usd
        else:
            for ((owner, _, start), _), sum in zip(charges, sent.result(), strict=True):
                self._raise(owner, start, sum)

    def refresh(self, states: Iterable[BudgetState], *, wait: bool) -> Awaitable[None] | None:
        """Ask for the sums of budgets that are near their end. Without `wait`, a later command of the same moment waits for the reply."""
        asked = None
        for state in states:
            if self._link.up and not state.gone and state.remaining < NEAR * self._most.get(state.owner, state.budget.usd):
                known = functools.partial(self._known, state)
                asked = self._link.ask_soon("HGET", PREFIX + _hash(state.budget.period, state.start), state.owner, late=known)
                asked.add_done_callback(functools.partial(self._refreshed, known))
        return _answered(asked) if asked and wait else None

    @staticmethod
    def _refreshed(known: Callable[[bytes | None], None], asked: asyncio.Future[Any]) -> None:
        if not asked.cancelled() and not asked.exception():
            known(asked.result())

    def _known(self, state: BudgetState, sum: bytes | None) -> None:
        if sum is not None:
            self._raise(state.owner, state.start, sum)

    async def tick(self) -> None:
        """Read the sums of all replicas."""
        self._ticks += 1
        if self._ticks % POLL_EVERY:
            return
        clients, groups = self._directory.clients.values(), self._directory.groups.values()
        for period in {one.budget.period for some in (clients, groups) for one in some if one.budget}:
            start = self._budgets.period(period).start
            sums: dict[bytes, bytes] = await self._link.ask("HGETALL", PREFIX + _hash(period, start))
            for owner, usd in sums.items():
                self._raise(owner.decode(errors="replace"), start, usd)

    def _raise(self, owner: str, start: dt.datetime, sum: bytes) -> None:
        """Use a sum of the server, if it is a number and higher than the known one."""
        try:
            usd = float(sum)
        except (TypeError, ValueError):
            return
        if math.isfinite(usd) and usd > self._budgets.used(owner, start):
            self._budgets.set_used(owner, start, usd)


async def _answered(asked: asyncio.Future[Any]) -> None:
    """Wait for the last of some replies, which come in the order of the commands; not longer than for those about limits."""
    with suppress(Down, TimeoutError):
        await asked


def _hash(period: Period, start: dt.datetime) -> str:
    return f"budgets:{period}:{start.date().isoformat()}"
