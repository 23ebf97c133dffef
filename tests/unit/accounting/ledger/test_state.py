"""The managed keys and the sums of costs, as running replicas read them."""

from __future__ import annotations

import asyncio
import datetime as dt
import queue
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from azure_openai_proxy.accounting.accounts import Accounts
from azure_openai_proxy.accounting.ledger import keys, sink, writer
from azure_openai_proxy.accounting.ledger.keys import ManagedKey
from azure_openai_proxy.accounting.ledger.schema import DAYS, ONCE, migrate
from azure_openai_proxy.accounting.ledger.state import OLDER_EVERY, LedgerState, Reader, client
from azure_openai_proxy.accounting.ledger.writer import Writer
from azure_openai_proxy.config.clients import Budget, Client, ClientKey, Limits, digest
from azure_openai_proxy.config.settings import Settings
from support.ledger import call, write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from azure_openai_proxy.accounting.ledger.database import Database

NOW = dt.datetime(2026, 8, 13, 12, tzinfo=dt.UTC)  # a Thursday
TOTAL, MONTH, WEEK, DAY = dt.date(1970, 1, 1), dt.date(2026, 8, 1), dt.date(2026, 8, 10), dt.date(2026, 8, 13)
HOUR = 3600.0


def at(*days: float) -> list[float]:
    """Times so many days before now."""
    return [NOW.timestamp() - 24 * HOUR * each for each in days]


def read(reader: Reader, database: Database, written: Mapping[tuple[str, dt.date], float] | None = None) -> LedgerState:
    with database.connect("create") as connection:
        migrate(connection)
        with connection.begin():
            return reader.read(connection, written or {})


@pytest.mark.parametrize(("expires", "year"), [(1e12, 9999), (float("inf"), 9999), (-1e12, 1), (float("nan"), 1), (-1.0, 1969)])
def test_a_time_that_does_not_exist(expires: float, year: int) -> None:
    """A key with such a time ends at the nearest one; it does not hide the other keys, of which one may be disabled now."""
    found = client(ManagedKey(name="alice", expires=expires)).expires
    assert found
    assert year == found.year


def test_a_whole_client() -> None:
    """A managed key becomes a client with all its rights and limits; the key before a rotation has an end."""
    key = ManagedKey(
        name="alice",
        key_sha256=digest("new").hex(),
        previous_sha256=digest("old").hex(),
        previous_until=100.0,
        expires=200.0,
        disabled=True,
        models=("gpt-*",),
        backends=("east",),
        requests_per_minute=1,
        tokens_per_minute=2,
        max_parallel=3,
        budget_usd=4.5,
        budget_period="week",
        client_group="search",
        unmetered=True,
    )
    assert client(key) == Client(
        name="alice",
        keys=(ClientKey(digest("new")), ClientKey(digest("old"), dt.datetime.fromtimestamp(100, dt.UTC))),
        models=("gpt-*",),
        limits=Limits(1, 2, 3),
        budget=Budget(4.5, "week"),
        group="search",
        expires=dt.datetime.fromtimestamp(200, dt.UTC),
        backends=("east",),
        disabled=True,
        unmetered=True,
    )


@pytest.mark.parametrize("text", ["", "not hexadecimal", "abcd"])
def test_a_row_without_a_hash(text: str) -> None:
    """A row whose hash is invalid has no key."""
    assert Client(name="alice") == client(ManagedKey(name="alice", key_sha256=text))


def test_the_sums_of_each_period(database: Database) -> None:
    """Costs are summed by client and period, estimated ones included; calls without a client or a cost add nothing."""
    write(database, [call(time=time, cost_usd=usd) for time, usd in zip(at(0, 1, 3, 9, 50), (1, 2, 4, 8, 16), strict=True)])
    write(
        database,
        [call(time=at(0)[0], client="bob", cost_usd=None, estimated_cost_usd=0.5), call(time=at(0)[0], client="bob", cost_usd=None)],
    )
    write(database, [call(time=at(0)[0], client="")])
    found = read(Reader(NOW.timestamp), database).others
    assert {TOTAL: 31, MONTH: 15, WEEK: 7, DAY: 1} == {start: found["alice", start] for start in (TOTAL, MONTH, WEEK, DAY)}
    assert {0.5} == {found["bob", start] for start in (TOTAL, MONTH, WEEK, DAY)}
    assert {"alice", "bob"} == {name for name, _ in found}


def test_the_rows_of_this_process_are_not_others(database: Database) -> None:
    """The rows that this process has written are subtracted, in every period that contains its day."""
    write(database, [call(time=time, cost_usd=1) for time in at(0, 9)])
    found = read(Reader(NOW.timestamp), database, {("alice", DAY): 1.0, ("alice", DAY - dt.timedelta(days=9)): 1.0}).others
    assert {0.0} == {found["alice", start] for start in (TOTAL, MONTH, WEEK, DAY)}


def test_earlier_days_are_read_again_after_some_minutes(database: Database) -> None:
    """The sums of earlier days are kept for some minutes, or until the day changes."""
    now = NOW.timestamp()
    reader = Reader(lambda: now)
    write(database, [call(time=at(9)[0], cost_usd=1)])
    for passed, expected in [(0.0, 1), (60.0, 1), (240.0, 2)]:
        now += passed
        assert expected == read(reader, database).others["alice", TOTAL]
        if not passed:
            write(database, [call(time=at(9)[0], cost_usd=1)])


def test_a_file_that_is_unchanged(database: Database) -> None:
    """It is read when another connection has written to it, on another day, after some minutes, and by a new connection."""
    now = NOW.timestamp()
    reader = Reader(lambda: now)
    with database.connect("create") as connection, database.connect("create") as other:
        migrate(connection)

        def read_again() -> LedgerState | None:
            known = reader.unchanged(connection)
            with connection.begin():
                reader.read(connection, {})
            return known

        def write_once(writing: sa.Connection, id: str) -> None:
            with writing.begin():
                writing.execute(sa.insert(ONCE).values(id=id, day=DAY))

        assert read_again() is None
        known = read_again()
        assert (known == LedgerState((), ever=False, others={})) is database.is_file
        write_once(connection, "own")
        assert (read_again() is None) is not database.is_file
        write_once(other, "other")
        assert read_again() is None
        assert (reader.unchanged(connection) is None) is not database.is_file
        assert reader.unchanged(other) is None
        for seconds in (OLDER_EVERY, 86400.0):
            now += seconds
            assert read_again() is None


def test_a_writer_that_is_followed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is followed passes on the state at its start, and then every few seconds, without its own rows."""
    monkeypatch.setattr(writer, "READ_EVERY", 0.05)
    states: queue.Queue[LedgerState] = queue.Queue()
    writing = Writer(database)
    writing.follow(states.put)
    writing.start()
    assert LedgerState((), ever=False, others={}) == states.get(timeout=20)
    assert writing.tried.wait(20)
    keys.create(database, ManagedKey(name="alice"))
    writing.put([call(cost_usd=3.0)])
    write(database, [call(cost_usd=0.5)])
    found = states.get(timeout=20)
    while found.others.get(("alice", TOTAL)) != pytest.approx(0.5):
        found = states.get(timeout=20)
    assert (["alice"], True) == ([each.name for each in found.clients], found.ever)
    writing.close()


async def test_a_ledger_that_is_followed(database: Database) -> None:
    """The accounts pass the ledger's state on, on the event loop, before their start is over; costs of days can be asked for."""
    states: list[tuple[LedgerState, asyncio.AbstractEventLoop]] = []
    keys.create(database, ManagedKey(name="alice"))
    write(database, [call(time=time, cost_usd=1) for time in at(0, 1, 2)])
    accounts = Accounts()
    assert await accounts.spent("alice", DAY, DAY) is None
    accounts.receive_ledger = lambda state: states.append((state, asyncio.get_running_loop()))
    await accounts.start(Settings(ledger=database.url.render_as_string(hide_password=False)))
    ((state, loop), *_) = states
    assert ["alice"] == [each.name for each in state.clients]
    assert loop is asyncio.get_running_loop()
    assert 2.0 == await accounts.spent("alice", DAY - dt.timedelta(days=1), DAY)
    assert 0.0 == await accounts.spent("bob", DAY, DAY)
    await accounts.close()


async def test_costs_of_a_database_that_is_gone(tmp_path: Path) -> None:
    """While the database cannot be read, the cost is unknown."""
    ledger = sink.open_sink(Settings(ledger=f"sqlite:///{tmp_path}/none.db"))
    assert await ledger.spent("alice", DAY, DAY) is None


def test_the_loop_is_closed(database: Database) -> None:
    """A state that is read after the end of the event loop is dropped."""

    async def follow() -> Writer:
        ledger = sink.open_sink(Settings(ledger=database.url.render_as_string(hide_password=False)))
        ledger.follow(lambda _: pytest.fail("not called"))
        return ledger._writer

    writing = asyncio.run(follow())
    writing.start()
    assert writing.tried.wait(20)
    writing.close()
    with database.connect("read") as connection:
        assert 0 == connection.scalar(sa.select(sa.func.count()).select_from(DAYS))
