"""The queries of `azure-openai-proxy usage`.

A report adds up the sums of whole days, which stay when old rows are removed, and the rows of the day on which it begins. Only a report by
session reads all rows. Nothing here creates a database or a table.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from .columns import GROUPS
from .schema import CALLS, DAYS, SUMMED, dialect_insert, version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .database import Database

__all__ = ["VALUES", "NoLedger", "prune", "usage"]

VALUES = ("requests", "failed", *SUMMED, "unknown_usage")
"""The other columns of a report."""
_AT_ONCE = 5_000
"""Rows that one transaction removes, so that the proxy is not kept from writing for long."""


class NoLedger(Exception):
    """The database has no tables of a ledger."""

    def __init__(self) -> None:
        super().__init__("the database has no ledger: the proxy creates it when it starts with azure_openai_ledger")


def usage(database: Database, by: Sequence[str], since: dt.datetime | None) -> list[dict[str, Any]]:
    """Return a row for each group, ordered by the group's columns. None in a group's column is unknown.

    Args:
        database: the ledger.
        by: some of `GROUPS`.
        since: the earliest `time` of a call; None: all calls.

    Raises:
        NoLedger: the proxy has never written to the database.
        TooNew: this version cannot read it.
        Unusable, SQLAlchemyError: the database cannot be read.
    """
    if "session" in by:
        parts = [_of_calls(by, [CALLS.c.time >= since] if since else [])]
    elif since:
        parts = [_of_calls(by, [CALLS.c.day == since.date(), CALLS.c.time >= since]), _of_days(by, [DAYS.c.day > since.date()])]
    else:
        parts = [_of_days(by, [])]
    every = sa.union_all(*parts).subquery()
    groups = [every.c[name] for name in by]
    query = sa.select(*groups, *(sa.func.sum(every.c[name]).label(name) for name in VALUES)).group_by(*groups)
    with database.connect("read") as connection, connection.begin():
        _require(connection)
        found = [_converted(dict(each)) for each in connection.execute(query).mappings()]
    return sorted(found, key=lambda group: [(group[name] is not None, group[name] or "") for name in by])


def prune(database: Database, before: dt.datetime) -> int:
    """Remove the rows of calls before a time, and return their number. The sums of days and the unique ids stay.

    Calls before that day that have no usage then count under no model.

    Raises:
        NoLedger, TooNew, Unusable, SQLAlchemyError: as for `usage`.
    """
    key = sa.tuple_(CALLS.c.writer, CALLS.c.number)
    some = sa.select(CALLS.c.writer, CALLS.c.number).where(CALLS.c.time < before).order_by(CALLS.c.time).limit(_AT_ONCE)
    removed = 0
    with database.connect("write") as connection:
        with connection.begin():
            _require(connection)
        while True:
            with connection.begin():
                count = connection.execute(sa.delete(CALLS).where(key.in_(some))).rowcount
            removed += count
            if count < _AT_ONCE:
                break
        with connection.begin():
            _merge(connection, before.date())
    database.shrink()
    return removed


def _merge(connection: sa.Connection, before: dt.date) -> None:
    """Merge the sums of old calls without usage into those without a model.

    Most of such calls failed. Clients can request any number of models that do not exist, which must not fill the database.
    """
    unused = [DAYS.c[name].is_(None) for name in (*SUMMED, "estimated_cost_usd")]
    old = sa.and_(DAYS.c.day < before, DAYS.c.model != "", *unused)
    counts = ("requests", "failed", "unknown_usage")
    groups = [DAYS.c.day, DAYS.c.client, DAYS.c.backend]
    select = sa.select(*groups, sa.literal(""), *(sa.func.sum(DAYS.c[name]) for name in counts)).where(old).group_by(*groups)
    insert = dialect_insert(connection.dialect.name)(DAYS).from_select(["day", "client", "backend", "model", *counts], select)
    added = {name: DAYS.c[name] + insert.excluded[name] for name in counts}
    connection.execute(insert.on_conflict_do_update(index_elements=DAYS.primary_key.columns, set_=added))
    connection.execute(sa.delete(DAYS).where(old))


def _require(connection: sa.Connection) -> None:
    if not version(connection):
        raise NoLedger


def _of_calls(by: Sequence[str], conditions: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    """Select the groups of the rows."""
    groups = [CALLS.c[name] if name == "day" else sa.func.coalesce(CALLS.c[name], "").label(name) for name in by]
    values = {
        "requests": sa.func.count(),
        "failed": _count(CALLS.c.failed),
        **{name: sa.func.sum(CALLS.c[name]) for name in SUMMED},
        "unknown_usage": _count(CALLS.c.usage_state == "unknown"),
    }
    return sa.select(*groups, *(values[name].label(name) for name in VALUES)).where(*conditions).group_by(*(CALLS.c[name] for name in by))


def _of_days(by: Sequence[str], conditions: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    return sa.select(*(DAYS.c[name] for name in by), *(DAYS.c[name] for name in VALUES)).where(*conditions)


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def _converted(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group with JSON's types."""
    for name in VALUES:
        value = group[name]
        group[name] = value if value is None else round(float(value), 10) if name == "cost_usd" else int(value)
    for name in group.keys() & set(GROUPS):
        if isinstance(group[name], dt.date):
            group[name] = group[name].isoformat()
        elif name != "client":
            group[name] = group[name] or None
    return group
