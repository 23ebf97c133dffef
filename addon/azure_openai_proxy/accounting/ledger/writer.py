"""The thread that writes the ledger.

The event loop appends records to a queue and does nothing else. The thread converts them into rows and writes a batch, in one
transaction, half a second after its first record. If that fails, it keeps the rows, and connects again after at most 1.5 seconds
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
import threading
import time
from itertools import batched, chain, count, islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from .columns import NAMES, USAGE, Rows, storable
from .database import is_about_a_row
from .schema import CALLS, DAYS, ONCE, SUMMED, dialect_insert, migrate
from .state import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
"""The most rows of one transaction."""
TOGETHER = 999
"""Values of one statement for SQLite, after which its thread has to wait for the interpreter's lock. Old versions take no more."""
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
_FAILED, _STATE, _COST, _ESTIMATE = (_AT[name] for name in ("failed", "usage_state", "cost_usd", "estimated_cost_usd"))
_SUMMED = [(name, _AT[name]) for name in (*SUMMED, "estimated_cost_usd")]
_SUMS = [column for column in DAYS.columns if not column.primary_key]
_OF_DAY = [column.name for column in DAYS.primary_key.columns]


class _Item(NamedTuple):
    """A row that waits, in the order of `_NAMES`, and the unique id of its usage."""

    row: tuple[Any, ...]
    once: str  # "": none


class Writer:
    """Writes records to one database, in a thread of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._name = secrets.randbits(52)
        self._numbered = 0
        self._rows = Rows()
        self._incoming: collections.deque[CallRecord] = collections.deque()
        self._pending: collections.deque[_Item] = collections.deque()
        self._size = BATCH
        self._refused = 0  # records that the full queue did not take; counted by the event loop
        self._dropped = 0  # rows that could not be written; counted by the thread
        self._logged = -LOG_EVERY  # when lost rows were logged
        self._down: str | None = None  # the logged reason why the database cannot be written
        self._connection: sa.Connection | None = None
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
        """Queue records. This never waits."""
        taken = calls[: max(0, QUEUE - len(self._incoming) - len(self._pending))]
        if refused := len(calls) - len(taken):
            self._refused += refused
            self._log_lost("its queue is full")
        self._incoming.extend(taken)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write the rows that wait, for a few seconds at most. Rows that remain are counted as lost."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSING)
        if remaining := len(self._incoming) + len(self._pending):
            self._refused += remaining
            self._log_lost("the proxy stopped", always=True)

    # The thread

    def _run(self) -> None:
        delay = 0.0  # the first connection is opened at once
        failures = 0
        while True:
            closing = self._closing.wait(delay)
            self._wake.clear()
            self._convert()
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
            if closing and not self._incoming:
                self._disconnect()
                return
            if self._receive is None:
                self._wake.wait()
            else:
                self._wake.wait(max(0.0, self._next_reading - time.monotonic()))
            delay = INTERVAL

    def _convert(self) -> None:
        """Make rows of the new records. A row is bounded in size, a record may not be."""
        calls = [self._incoming.popleft() for _ in range(len(self._incoming))]
        try:
            self._pending.extend(self._items(calls))
        except Exception:  # noqa: BLE001 - a record is invalid
            for call in calls:
                try:
                    self._pending.extend(self._items([call]))
                except Exception:
                    logger.exception("A usage record could not be stored")
                    self._drop("a record is invalid")

    def _items(self, calls: list[CallRecord]) -> list[_Item]:
        rows = self._rows.of(calls, repeat(self._name), count(self._numbered))
        self._numbered += len(rows)
        return [_Item(row, storable(call.once) if call.once else "") for call, row in zip(calls, rows, strict=True)]

    def _read_and_write(self) -> None:
        """Read the keys and sums if it is time, and write all pending rows."""
        if self._connection is None:
            self._connection = self._connect()
        if self._receive and time.monotonic() >= self._next_reading:
            with self._connection.begin():
                state = self._reader.read(self._connection, self._written)
            self._receive(state)
            self._next_reading = time.monotonic() + READ_EVERY
        self._write(self._connection)

    def _write(self, connection: sa.Connection) -> None:
        while self._pending:
            batch = list(islice(self._pending, self._size))
            try:
                _insert(connection, batch)
            except Exception as error:
                if not is_about_a_row(error):
                    raise
                if len(batch) == 1:
                    self._pending.popleft()
                    self._drop(self._database.describe(error))
                self._size = 1  # find the row
                continue
            for _ in batch:
                self._has_written(self._pending.popleft())
            self._size = min(BATCH, 2 * self._size)

    def _has_written(self, item: _Item) -> None:
        if charged := (item.row[_COST] or 0.0) + (item.row[_ESTIMATE] or 0.0):
            key = (item.row[_CLIENT], item.row[_DAY])
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
        while highest is not None and self._pending and self._pending[0].row[-1] <= highest:
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


def _insert(connection: sa.Connection, batch: list[_Item]) -> None:
    """Write rows and their sums in one transaction.

    Rows of several replicas can have the same unique id. Its usage is part of the first row, and null in the others. Ids and days are
    written in order, so that replicas wait for each other and never in a circle.
    """
    new_id, add_days = _statements(connection.dialect.name)
    with connection.begin():
        rows = [item.row for item in batch]
        for index in sorted((index for index, item in enumerate(batch) if item.once), key=lambda index: batch[index].once):
            if not connection.execute(new_id, {"id": batch[index].once, "day": rows[index][_DAY]}).rowcount:
                rows[index] = _without_usage(rows[index])
        _insert_rows(connection, rows)
        connection.execute(add_days, _sums(rows))


@functools.cache
def _statements(dialect: str) -> tuple[sa.Executable, sa.Executable]:
    """Return the statements that insert a new id and add to the sums of days. Building them takes longer than running them."""
    insert = dialect_insert(dialect)
    new_id = insert(ONCE).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    add = insert(DAYS)
    sums = {column.name: sa.func.coalesce(column + add.excluded[column.name], column, add.excluded[column.name]) for column in _SUMS}
    return new_id, add.on_conflict_do_update(index_elements=DAYS.primary_key.columns, set_=sums)


def _without_usage(row: tuple[Any, ...]) -> tuple[Any, ...]:
    changed = list(row)
    for name in USAGE:
        changed[_AT[name]] = None
    changed[_STATE] = "none"
    return tuple(changed)


def _insert_rows(connection: sa.Connection, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows of `CALLS`. Their values need no conversion by SQLAlchemy, which would take most of the time of a batch.

    For SQLite, columns that are null in all rows are left out.
    """
    if connection.dialect.name == "postgresql":
        times = [dt.datetime.fromtimestamp(row[_TIME], dt.UTC) for row in rows]
        rows = [(*row[:_TIME], time, *row[_TIME + 1 :]) for row, time in zip(rows, times, strict=True)]
        connection.exec_driver_sql(_statement(_NAMES, 1).replace("?", "%s"), rows)
        return
    columns = list(zip(*rows, strict=True))
    days = {day: str(day) for day in set(columns[_DAY])}
    columns[_DAY] = tuple([days[day] for day in columns[_DAY]])
    columns[_TIME] = tuple(map(_time_text, columns[_TIME]))
    used = [index for index, values in enumerate(columns) if values[0] is not None or values.count(None) < len(rows)]
    names = tuple([_NAMES[index] for index in used])
    for some in batched(zip(*(columns[index] for index in used), strict=True), TOGETHER // len(used)):
        connection.exec_driver_sql(_statement(names, len(some)), tuple(chain.from_iterable(some)))


def _time_text(seconds: float) -> str:
    """A Unix time in SQLAlchemy's form for SQLite."""
    whole, microseconds = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_second_text(whole)}.{microseconds:06}"


@functools.lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


@functools.lru_cache(maxsize=128)
def _statement(names: tuple[str, ...], count: int) -> str:
    """Return the statement that inserts so many rows with these columns."""
    row = f"({', '.join('?' * len(names))})"
    return f"INSERT INTO {CALLS.name} ({', '.join(names)}) VALUES {', '.join([row] * count)}"  # noqa: S608 - names of columns


def _sums(rows: list[tuple[Any, ...]]) -> list[Row]:
    """Return the rows of `DAYS` to add. A sum without a known value is null."""
    days: dict[tuple[dt.date, str, str, str], list[tuple[Any, ...]]] = {}
    for each in rows:
        days.setdefault((each[_DAY], each[_CLIENT], each[_MODEL] or "", each[_BACKEND] or ""), []).append(each)
    return [dict(zip(_OF_DAY, key, strict=True)) | _summed(days[key]) for key in sorted(days)]


def _summed(rows: list[tuple[Any, ...]]) -> Row:
    known = {name: [value for row in rows if (value := row[index]) is not None] for name, index in _SUMMED}
    return {
        "requests": len(rows),
        "failed": sum(row[_FAILED] for row in rows),
        "unknown_usage": sum(row[_STATE] == "unknown" for row in rows),
        **{name: sum(values) if values else None for name, values in known.items()},
    }
