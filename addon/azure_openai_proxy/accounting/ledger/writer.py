"""The thread that writes the ledger.

The event loop makes rows of the records that it gets together, and appends them to a queue. The thread writes what is in the queue, in
one transaction, half a second after the first record. If that fails, it keeps the rows, and connects again after at most 1.5 seconds
and a connection attempt of three. Beyond `QUEUE` rows, new ones are counted as lost.

A writer that is followed also reads the keys and the sums of costs every two seconds, on the same connection, and passes them on.

A commit whose answer was lost may have succeeded. The rows of a process are numbered, so the highest number in the database shows
after a new connection which rows it has.
"""

from __future__ import annotations

import collections
import datetime as dt
import functools
import logging
import secrets
import sqlite3
import threading
import time
from itertools import batched, chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from azure_openai_proxy.accounting.record import batch_of

from .columns import NAMES, SHARED, USAGE, Rows, storable
from .database import is_about_a_row
from .schema import CALLS, DAYS, ONCE, SUMMED, dialect_insert, migrate
from .state import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from azure_openai_proxy.accounting.record import CallRecord

    from .columns import Row
    from .database import Database
    from .state import LedgerState

__all__ = ["QUEUE", "Writer"]

logger = logging.getLogger(__name__)

QUEUE = 10_000
"""Rows that wait for the database."""
INTERVAL = 0.5
"""Seconds in which rows are collected for one transaction."""
BATCH = 1_000
"""Rows of one transaction, after which no others are added to it."""
TOGETHER = 2_200 if sqlite3.sqlite_version_info >= (3, 32) else 999
"""Values of one statement for SQLite, after which its thread has to wait for the interpreter's lock. Old versions take no more than 999."""
RETRY = (0.1, 0.5, 1.5)
"""Seconds until a failed database is tried again: after the first failure, the second, and all others."""
READ_EVERY = 2.0
"""Seconds between two readings of the keys and the sums."""
CLOSING = 4.0
"""Seconds that `close` waits for the last rows."""
LOG_EVERY = 60.0
"""Seconds between two log lines about lost rows."""

_NAMES = (*NAMES, "writer", "number")
"""The columns of `CALLS` in the order of a row."""
_AT = {name: index for index, name in enumerate(_NAMES)}
_TIME, _DAY, _CLIENT, _MODEL, _BACKEND = (_AT[name] for name in ("time", "day", "client", "model", "backend"))
_WRITER = frozenset({_AT["writer"]})
_ALIKE = _WRITER | {_AT[name] for name in (*SHARED, "day")}
"""The columns that have one value in most batches. If other ones counted too, SQLite would have to parse more different statements."""
_FAILED, _STATE, _COST, _ESTIMATE = (_AT[name] for name in ("failed", "usage_state", "cost_usd", "estimated_cost_usd"))
_SUMMED = (*SUMMED, "estimated_cost_usd")
_AMOUNTS = (_FAILED, _STATE, *(_AT[name] for name in _SUMMED))
_SUMS = [column for column in DAYS.columns if not column.primary_key]
_OF_DAY = [column.name for column in DAYS.primary_key.columns]


class _Rows(NamedTuple):
    """Rows that wait: the columns in the order of `_NAMES`, and the unique id of the usage of each row, "" for none."""

    columns: list[Sequence[Any]]
    ids: Sequence[str]

    def split(self) -> list[_Rows]:
        """Each row of its own."""
        return [_Rows([(value,) for value in row], (once,)) for once, *row in zip(self.ids, *self.columns, strict=True)]


class Writer:
    """Writes records to one database, in a thread of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._name = secrets.randbits(52)
        self._rows = Rows()
        self._pending: collections.deque[_Rows] = collections.deque()
        self._put = 0  # rows that were queued; counted by the event loop
        self._done = 0  # those that were written or dropped; counted by the thread
        self._size = BATCH
        self._refused = 0  # records that became no rows; counted by the event loop
        self._dropped = 0  # rows that could not be written; counted by the thread
        self._logged = -LOG_EVERY  # when lost rows were logged
        self._down: str | None = None  # the logged reason why the database cannot be written
        self._connection: sa.Connection | None = None
        self._identity: tuple[int, int] | None = None  # of the file that the connection has opened
        self._receive: Callable[[LedgerState], None] | None = None
        self._reader = Reader()
        self._next_reading = 0.0
        self._written: dict[tuple[str, dt.date], float] = {}  # costs in the database, by client and day
        self.tried = threading.Event()  # the database was tried once, with any result
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @property
    def lost(self) -> int:
        """Rows that were not written and will not be."""
        return self._refused + self._dropped

    def follow(self, receive: Callable[[LedgerState], None]) -> None:
        """Pass the keys and sums of the database to `receive`, in the thread, from the start on."""
        self._receive = receive

    def start(self) -> None:
        self._thread.start()

    def put(self, calls: Sequence[CallRecord]) -> None:
        """Queue the rows of records. This never waits. A row is bounded in size, a record may not be."""
        room = max(0, QUEUE - self._waiting)
        taken = calls if len(calls) <= room else calls[:room]
        if refused := len(calls) - len(taken):
            self._refused += refused
            self._log_lost("its queue is full")
        if not taken:
            return
        try:
            self._append(taken)
        except Exception:  # noqa: BLE001 - a record is invalid
            for call in taken:
                try:
                    self._append([call])
                except Exception:
                    logger.exception("A usage record could not be stored")
                    self._refused += 1
                    self._log_lost("a record is invalid")
        if not self._wake.is_set():
            self._wake.set()

    def _append(self, calls: Sequence[CallRecord]) -> None:
        calls = batch_of(calls)
        columns, count, first = self._rows.columns(calls), len(calls), self._put
        ids = [storable(once) if once else "" for once in calls.column("once")]
        self._pending.append(_Rows([*columns, (self._name,) * count, range(first, first + count)], ids))
        self._put += count

    @property
    def _waiting(self) -> int:
        """The number of rows in the queue."""
        return self._put - self._done

    def close(self) -> None:
        """Write the rows that wait, for a few seconds at most. Rows that remain are counted as lost."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSING)
        if remaining := self._waiting:
            self._refused += remaining
            self._log_lost("the proxy stopped", always=True)

    # The thread

    def _run(self) -> None:
        delay = 0.0  # the first connection is opened at once
        failures = 0
        while True:
            closing = self._closing.wait(delay)
            self._wake.clear()
            try:
                self._read_and_write()
            except Exception as error:  # noqa: BLE001 - the thread must not end
                self.tried.set()
                self._disconnect()
                self._log_down(error)
                if closing and failures:
                    return
                delay = RETRY[min(failures, len(RETRY) - 1)]
                failures += 1
                continue
            failures = 0
            self.tried.set()
            self._log_up()
            if closing and not self._pending:
                self._disconnect()
                return
            if self._receive is None:
                self._wake.wait()
            else:
                self._wake.wait(max(0.0, self._next_reading - time.monotonic()))
            delay = INTERVAL

    def _read_and_write(self) -> None:
        """Read the keys and sums if it is time, and write all pending rows."""
        if self._connection is not None and self._database.identity() != self._identity:
            logger.warning("The ledger's file was removed or replaced, and is opened again: %s", self._database)
            self._disconnect()
            self._written.clear()  # the new one has none of these
        if self._connection is None:
            self._connection = self._connect()
            self._identity = self._database.identity()
        if self._receive and time.monotonic() >= self._next_reading:
            state = self._reader.unchanged(self._connection)
            if state is None:
                with self._connection.begin():
                    state = self._reader.read(self._connection, self._written)
            self._receive(state)
            self._next_reading = time.monotonic() + READ_EVERY
        self._write(self._connection)

    def _write(self, connection: sa.Connection) -> None:
        while self._pending:
            batch = self._first_rows()
            try:
                _insert(connection, batch)
            except Exception as error:
                if not is_about_a_row(error):
                    raise
                if len(batch) == len(batch[0].ids) == 1:
                    self._pending.popleft()
                    self._done += 1
                    self._drop(self._database.describe(error))
                elif len(batch) == 1:
                    self._pending.popleft()
                    self._pending.extendleft(reversed(batch[0].split()))
                self._size = 1  # find the row
                continue
            for _ in batch:
                self._has_written(self._pending.popleft())
            self._size = min(BATCH, 2 * self._size)

    def _first_rows(self) -> list[_Rows]:
        """The rows of the next transaction: about `_size`."""
        batch: list[_Rows] = []
        count = 0
        for rows in self._pending.copy():  # the event loop may append to it
            batch.append(rows)
            count += len(rows.ids)
            if count >= self._size:
                break
        return batch

    def _has_written(self, rows: _Rows) -> None:
        self._done += len(rows.ids)
        clients, days, costs, estimates = (rows.columns[place] for place in (_CLIENT, _DAY, _COST, _ESTIMATE))
        if clients.count(clients[0]) == days.count(days[0]) == len(rows.ids):  # add them up at once
            clients, days, costs, estimates = clients[:1], days[:1], (_total(costs),), (_total(estimates),)
        for client, day, cost, estimate in zip(clients, days, costs, estimates, strict=True):
            if charged := (cost or 0.0) + (estimate or 0.0):
                key = (client, day)
                self._written[key] = self._written.get(key, 0.0) + charged

    def _connect(self) -> sa.Connection:
        connection = self._database.connect("create")
        try:
            if migrate(connection):
                logger.info("The ledger's tables were created or upgraded: %s", self._database)
            with connection.begin():
                highest = connection.scalar(sa.select(sa.func.max(CALLS.c.number)).where(CALLS.c.writer == self._name))
        except BaseException:
            connection.close()
            raise
        while highest is not None and self._pending and self._pending[0].columns[-1][0] <= highest:
            self._has_written(self._pending.popleft())
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:  # noqa: BLE001 - a broken connection may fail to close, in any way
                logger.debug("The ledger's connection could not be closed: %s", self._database.describe(error))

    # The log

    def _log_down(self, error: BaseException) -> None:
        """Log a failure, once for each reason in a row."""
        reason = self._database.describe(error)
        if reason != self._down:
            self._down = reason
            logger.warning("The ledger cannot be written, and is tried again every few seconds: %s: %s", self._database, reason)

    def _log_up(self) -> None:
        if self._down is not None:
            self._down = None
            logger.info("The ledger is written again: %s", self._database)

    def _drop(self, reason: str) -> None:
        self._dropped += 1
        self._log_lost(reason)

    def _log_lost(self, reason: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self._logged >= LOG_EVERY:
            self._logged = now
            logger.error("Rows of the ledger are lost (%d so far): %s", self.lost, reason)


def _insert(connection: sa.Connection, batch: list[_Rows]) -> None:
    """Write rows and their sums in one transaction.

    Rows of several replicas can have the same unique id. Its usage is part of the first row, and null in the others. Ids and days are
    written in order, so that replicas wait for each other and never in a circle.
    """
    new_id, add_days = _statements(connection.dialect.name)
    with connection.begin():
        written = [rows.columns for rows in batch]
        ids = [(once, at, index) for at, rows in enumerate(batch) if any(rows.ids) for index, once in enumerate(rows.ids) if once]
        for once, at, index in sorted(ids):
            if not connection.execute(new_id, {"id": once, "day": written[at][_DAY][index]}).rowcount:
                written[at] = _without_usage(written[at], index)
        if connection.dialect.name == "postgresql":
            _insert_in_postgresql(connection, written)
        else:
            for columns in written:
                _insert_in_sqlite(connection, columns)
        connection.execute(add_days, _sums(written))


@functools.cache
def _statements(dialect: str) -> tuple[sa.Executable, sa.Executable]:
    """Return the statements that insert a new id and add to the sums of days. Building them takes longer than running them."""
    insert = dialect_insert(dialect)
    new_id = insert(ONCE).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    add = insert(DAYS)
    sums = {column.name: sa.func.coalesce(column + add.excluded[column.name], column, add.excluded[column.name]) for column in _SUMS}
    return new_id, add.on_conflict_do_update(index_elements=DAYS.primary_key.columns, set_=sums)


def _without_usage(columns: list[Sequence[Any]], index: int) -> list[Sequence[Any]]:
    """Return the columns with no usage in one of their rows."""
    changed = list(columns)
    for place, value in ((_STATE, "none"), *((_AT[name], None) for name in USAGE)):
        changed[place] = [*columns[place][:index], value, *columns[place][index + 1 :]]
    return changed


# The values of rows need no conversion by SQLAlchemy, which would take most of the time.


def _insert_in_postgresql(connection: sa.Connection, written: list[list[Sequence[Any]]]) -> None:
    rows: list[tuple[Any, ...]] = []
    for columns in written:
        times = [dt.datetime.fromtimestamp(seconds, dt.UTC) for seconds in columns[_TIME]]
        rows += zip(*columns[:_TIME], times, *columns[_TIME + 1 :], strict=True)
    names, values = ", ".join(_NAMES), ", ".join(["%s"] * len(_NAMES))
    connection.exec_driver_sql(f"INSERT INTO {CALLS.name} ({names}) VALUES ({values})", rows)  # noqa: S608 - names of columns


def _insert_in_sqlite(connection: sa.Connection, columns: list[Sequence[Any]]) -> None:
    """Insert rows. Columns that are null in all of them are left out, and those of `_ALIKE` are passed once if that is possible."""
    written = list(columns)
    days = {day: str(day) for day in set(columns[_DAY])}
    written[_DAY] = [days[day] for day in columns[_DAY]]
    written[_TIME] = _time_texts(columns[_TIME])
    used = [index for index, values in enumerate(written) if values[0] is not None or values.count(None) < len(values)]
    alike = _ALIKE if all(values.count(values[0]) == len(values) for values in (written[index] for index in _ALIKE)) else _WRITER
    common, own = [index for index in used if index in alike], [index for index in used if index not in alike]
    names = tuple([_NAMES[index] for index in (*common, *own)])
    shared = tuple([written[index][0] for index in common])
    for some in batched(zip(*(written[index] for index in own), strict=True), (TOGETHER - len(common)) // len(own)):
        statement = _sqlite_statement(names, len(common), len(some))
        connection.exec_driver_sql(statement, (*shared, *chain.from_iterable(some)))


def _time_texts(times: Sequence[float]) -> list[str]:
    """Unix times in SQLAlchemy's form for SQLite."""
    moments = [round(seconds * 1e6) for seconds in times]
    return [f"{_second_text(moment // 1_000_000)}.{moment % 1_000_000:06}" for moment in moments]


@functools.lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


@functools.lru_cache(maxsize=128)
def _sqlite_statement(names: tuple[str, ...], common: int, count: int) -> str:
    """Return the statement that inserts so many rows with these columns, of which the first ones have the same value in all rows."""
    one, row = (f"({', '.join('?' * number)})" for number in (common, len(names) - common))
    rows = f"(VALUES {one}) AS common CROSS JOIN (VALUES {', '.join([row] * count)}) AS own"
    return f"INSERT INTO {CALLS.name} ({', '.join(names)}) SELECT common.*, own.* FROM {rows}"  # noqa: S608 - names of columns


def _sums(written: list[list[Sequence[Any]]]) -> list[Row]:
    """Return the rows of `DAYS` to add. A sum without a known value is null."""
    days: dict[tuple[Any, ...], list[Iterable[Sequence[Any]]]] = {}
    for columns in written:
        amounts = [columns[place] for place in _AMOUNTS]
        keys = list(zip(*(columns[place] for place in (_DAY, _CLIENT, _MODEL, _BACKEND)), strict=True))
        stored = {key: tuple([value or "" for value in key]) for key in set(keys)}
        if len(stored) == 1:
            days.setdefault(stored[keys[0]], []).append(amounts)
        else:
            rows: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
            for key, row in zip(keys, zip(*amounts, strict=True), strict=True):
                rows.setdefault(stored[key], []).append(row)
            for key, some in rows.items():
                days.setdefault(key, []).append(zip(*some, strict=True))
    found = [_summed(key, map(chain.from_iterable, zip(*parts, strict=True))) for key, parts in days.items()]
    return sorted(found, key=itemgetter(*_OF_DAY))


def _summed(key: tuple[Any, ...], amounts: Iterable[Iterable[Any]]) -> Row:
    """The row of a day from the columns of `_AMOUNTS`."""
    failed, states, *summed = map(list, amounts)
    return {
        **dict(zip(_OF_DAY, key, strict=True)),
        "requests": len(failed),
        "failed": sum(failed),
        "unknown_usage": states.count("unknown"),
        **{name: _total(values) for name, values in zip(_SUMMED, summed, strict=True)},
    }


def _total(values: Sequence[float | None]) -> float | None:
    return sum(filter(None, values)) if values.count(None) < len(values) else None
