"""The part of the ledger that running replicas read every few seconds: the managed keys, and the sums of costs for budgets.

The costs of the present and the last day are read each time; those of earlier days change rarely, so they are read again every few minutes.
A file of SQLite that no other connection has written to is not read.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import sqlalchemy as sa

from azure_openai_proxy.accounting.budgets import period_start
from azure_openai_proxy.config.clients import PERIODS, Budget, Client, ClientKey, Limits

from . import keys
from .schema import DAYS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from azure_openai_proxy.config.clients import Period

    from .keys import ManagedKey

__all__ = ["OLDER_EVERY", "LedgerState", "Reader", "client", "spent"]

OLDER_EVERY = 300.0
"""Seconds between two readings of the costs of earlier days."""

type Sums = dict[tuple[str, dt.date], float]  # by client and the first day of a period, in USD


class LedgerState(NamedTuple):
    """The client keys and the sums of costs in the database at one moment."""

    clients: tuple[Client, ...]
    ever: bool  # it has or had a managed key
    others: Mapping[tuple[str, dt.date], float]  # costs that this process did not write, by client and the first day of a period


def client(key: ManagedKey) -> Client:
    """Return the client of a managed key."""
    found = [(key.key_sha256, None), (key.previous_sha256, _utc(key.previous_until))]
    return Client(
        name=key.name,
        keys=tuple(ClientKey(sha256, until) for text, until in found if (sha256 := _digest(text))),
        models=key.models,
        limits=Limits(key.requests_per_minute, key.tokens_per_minute, key.max_parallel),
        budget=None if key.budget_usd is None else Budget(key.budget_usd, cast("Period", key.budget_period)),
        group=key.client_group or "",
        expires=_utc(key.expires),
        backends=key.backends,
        disabled=key.disabled,
        unmetered=key.unmetered,
    )


def _utc(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else keys.utc(seconds)


def _digest(text: str | None) -> bytes:
    """The hash that a row has; b"" if there is none, or if it is not a SHA-256."""
    try:
        found = bytes.fromhex(text or "")
    except ValueError:
        return b""
    return found if len(found) == 32 else b""


class Reader:
    """Reads the state, with a copy of what changes rarely."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._state: tuple[sa.Connection, object, dt.date, LedgerState] | None = None  # the last one, and when it was read
        self._older: Sums = {}
        self._older_until = -math.inf
        self._older_before: dt.date | None = None

    def unchanged(self, connection: sa.Connection) -> LedgerState | None:
        """Return the last state, if no other connection has written to the database since then. Only SQLite can tell.

        `connection` is the one that this process writes with, outside a transaction.
        """
        if self._state is None or self._clock() >= self._older_until:
            return None
        before, version, day, state = self._state
        today = dt.datetime.fromtimestamp(self._clock(), dt.UTC).date()
        return state if connection is before and day == today and version is not None and version == _version(connection) else None

    def read(self, connection: sa.Connection, written: Mapping[tuple[str, dt.date], float]) -> LedgerState:
        """Read the state in the transaction of `connection`. `written` are the costs of this process in it, by client and day."""
        version = _version(connection)
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        starts = [period_start(period, now).date() for period in PERIODS]
        recent = now.date() - dt.timedelta(days=1)
        if recent != self._older_before or self._clock() >= self._older_until:
            self._older = _sums(connection, DAYS.c.day < recent, starts)
            self._older_before, self._older_until = recent, self._clock() + OLDER_EVERY
        sums = dict(self._older)
        for key, usd in _sums(connection, DAYS.c.day >= recent, starts).items():
            sums[key] = sums.get(key, 0.0) + usd
        for (name, day), usd in written.items():
            for start in {start for start in starts if day >= start}:
                sums[name, start] = sums.get((name, start), 0.0) - usd
        state = LedgerState(tuple(map(client, keys.read(connection))), keys.ever(connection), sums)
        self._state = connection, version, now.date(), state
        return state


def _version(connection: sa.Connection) -> object:
    """A number that changes when another connection writes to the file of SQLite; None for PostgreSQL."""
    driver: Any = connection.connection.driver_connection
    return driver.execute("PRAGMA data_version").fetchone() if connection.dialect.name == "sqlite" else None


def _cost() -> sa.ColumnElement[float]:
    return sa.func.coalesce(DAYS.c.cost_usd, 0.0) + sa.func.coalesce(DAYS.c.estimated_cost_usd, 0.0)


def _sums(connection: sa.Connection, condition: sa.ColumnElement[bool], starts: list[dt.date]) -> Sums:
    sums = [sa.func.sum(sa.case((DAYS.c.day >= start, _cost()), else_=0.0)) for start in starts]
    query = sa.select(DAYS.c.client, *sums).where(condition, DAYS.c.client != "").group_by(DAYS.c.client)
    return {(name, start): float(usd) for name, *all in connection.execute(query) for start, usd in zip(starts, all, strict=True)}


def spent(connection: sa.Connection, name: str, first: dt.date, last: dt.date) -> float:
    """Return the cost of a client's calls of these days, in USD."""
    query = sa.select(sa.func.sum(_cost())).where(DAYS.c.client == name, DAYS.c.day >= first, DAYS.c.day <= last)
    return float(connection.scalar(query) or 0.0)
