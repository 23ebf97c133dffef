"""Reports and the removal of old rows, on both databases."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from azure_openai_proxy.accounting.ledger import report
from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.ledger.report import VALUES, NoLedger, prune, usage
from azure_openai_proxy.accounting.ledger.schema import CALLS, ONCE
from azure_openai_proxy.accounting.record import NO_TOKENS, Tokens
from support.examples import examples
from support.ledger import call, rows, write

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.ledger.database import Database
    from azure_openai_proxy.accounting.record import CallRecord

NOON = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)


def hours(number: float) -> float:
    return (NOON + dt.timedelta(hours=number)).timestamp()


CALLS_MADE = [
    call(time=hours(0)),
    call(time=hours(1), session="t", client="bob", tokens=Tokens(input=1, cache_write_input=1, output=2), cost_usd=None),
    call(time=hours(2), model="o3", backend="west", status=500, usage_state="none", tokens=NO_TOKENS, cost_usd=None),
    call(time=hours(-30), model=None, backend=None, client="", session=None, usage_state="unknown", tokens=NO_TOKENS, cost_usd=None),
]


@pytest.fixture
def filled(database: Database) -> Database:
    assert 0 == write(database, CALLS_MADE)
    return database


def group(values: list[Any], **columns: Any) -> dict[str, Any]:
    return columns | dict(zip(VALUES, values, strict=True))


def test_by_model(filled: Database) -> None:
    """Sums are of known values; a sum without any is unknown, and so is the model of a call without one."""
    assert [
        group([1, 0, None, None, None, None, None, None, 1], model=None),
        group([2, 0, 101, 40, 1, 12, 5, 0.25, 0], model="gpt-4o"),
        group([1, 1, None, None, None, None, None, None, 0], model="o3"),
    ] == usage(filled, ["model"], None)


SINCE = (None, NOON - dt.timedelta(hours=40), NOON - dt.timedelta(hours=30), NOON - dt.timedelta(days=99))
BY = (["model"], ["client"], ["day"], ["backend"], ["session"], ["session", "model", "client", "day", "backend"])


def test_every_group_has_the_same_total(filled: Database) -> None:
    """However calls are grouped and from wherever they are read, the groups add up to all calls."""
    for by, since in itertools.product(BY, SINCE):
        found = usage(filled, by, since)
        assert [4, 1, 101, 12, 1] == [
            sum(each[name] or 0 for each in found) for name in ("requests", "failed", "input_tokens", "output_tokens", "unknown_usage")
        ], (by, since)
    assert all([*by, *VALUES] == list(each) for each in found)


@given(
    st.lists(
        st.builds(
            call,
            time=st.floats(hours(-50), hours(50)),
            client=st.sampled_from(["", "a", "b"]),
            model=st.sampled_from([None, "gpt-4o", "o3"]),
            backend=st.sampled_from([None, "east"]),
            status=st.sampled_from([None, 200, 429]),
            usage_state=st.sampled_from(["known", "unknown", "none"]),
            tokens=st.builds(Tokens, input=st.none() | st.integers(0, 10**9), output=st.none() | st.integers(0, 10**9)),
            cost_usd=st.none() | st.integers(0, 10**6).map(float),
            once=st.none() | st.sampled_from(["x", "y"]),
        ),
        max_size=20,
    ),
    st.floats(-60, 60),
)
@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_sums_of_days_are_those_of_the_rows(tmp_path_factory: pytest.TempPathFactory, calls: list[CallRecord], begin: float) -> None:
    """For any calls and any beginning, a report from the sums of days has the totals of a report from the rows."""
    database = parse(f"sqlite:///{tmp_path_factory.mktemp('any')}/usage.db")
    assert 0 == write(database, calls[: len(calls) // 2])
    assert 0 == write(database, calls[len(calls) // 2 :])
    for since in (None, NOON + dt.timedelta(hours=begin)):
        for by in (["model"], ["client", "day"], ["backend"]):
            days, found = usage(database, by, since), usage(database, [*by, "session"], since)
            assert days == [{name: group[name] for name in (*by, *VALUES)} for group in found]


def test_by_several(filled: Database) -> None:
    """Groups of several columns are ordered by them; no client is an empty name."""
    found = usage(filled, ["day", "client", "backend"], None)
    assert [("2026-03-09", "", None), ("2026-03-10", "alice", "east"), ("2026-03-10", "alice", "west"), ("2026-03-10", "bob", "east")] == [
        (each["day"], each["client"], each["backend"]) for each in found
    ]


def test_since(filled: Database) -> None:
    """A report begins exactly at its time, also in the middle of a day."""
    for by, (begin, requests) in itertools.product(("client", "session"), ((-30, 4), (-29, 3), (0, 3), (0.5, 2), (1, 2), (3, 0))):
        found = usage(filled, [by], NOON + dt.timedelta(hours=begin))
        assert requests == sum(each["requests"] for each in found), (by, begin)


def test_prune(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old rows are removed in several transactions, and their sums stay in reports other than by session."""
    monkeypatch.setattr(report, "_AT_ONCE", 1)
    before = usage(filled, ["day", "model"], None)
    assert 2 == prune(filled, NOON + dt.timedelta(minutes=30))
    assert 0 == prune(filled, NOON + dt.timedelta(minutes=30))
    assert ["t", "s"] == [each["session"] for each in rows(filled)]
    assert before == usage(filled, ["day", "model"], None)
    assert 2 == sum(each["requests"] for each in usage(filled, ["session"], None))


def test_prune_bounds_the_sums(database: Database) -> None:
    """Old calls without usage count under no model afterwards, whatever models their clients named; usage stays where it is."""
    failed: dict[str, Any] = {"status": 404, "usage_state": "none", "tokens": NO_TOKENS, "cost_usd": None}
    write(database, [call(time=hours(0), model=f"made-up-{number}", client=f"c{number % 2}", **failed) for number in range(40)])
    write(
        database,
        [call(time=hours(0), model=None, client="c0", backend=None, **failed), call(time=hours(0), client="c0"), call(time=hours(24))],
    )
    write(database, [call(time=hours(24), model="made-up", **failed)])
    for _ in range(2):
        assert 43 >= prune(database, NOON + dt.timedelta(hours=20))
        assert {("c0", None, 21), ("c0", "gpt-4o", 1), ("c1", None, 20), ("alice", "gpt-4o", 1), ("alice", "made-up", 1)} == {
            (group["client"], group["model"], group["requests"]) for group in usage(database, ["client", "model"], None)
        }
        write(database, [])


def test_prune_while_the_proxy_writes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are removed and written at the same time, and none is lost."""
    monkeypatch.setattr(report, "_AT_ONCE", 50)
    write(database, [call(time=hours(0)) for _ in range(500)])
    thread = threading.Thread(target=write, args=(database, [call(time=hours(100)) for _ in range(500)]))
    thread.start()
    assert 500 == prune(database, NOON + dt.timedelta(hours=50))
    thread.join()
    assert 500 == len(rows(database))
    assert 1000 == sum(each["requests"] for each in usage(database, ["day"], None))


def test_a_pruned_id_is_not_counted_again(database: Database) -> None:
    """Usage with a unique id whose row was removed is not counted when another call shows it."""
    write(database, [call(once="batch_1", time=hours(0))])
    prune(database, NOON + dt.timedelta(days=1))
    write(database, [call(once="batch_1", time=hours(48))])
    (found,) = usage(database, ["model"], None)
    assert (2, 100, 0.25) == (found["requests"], found["input_tokens"], found["cost_usd"])
    with database.connect("read") as connection:
        assert [("batch_1", NOON.date())] == [tuple(each) for each in connection.execute(sa.select(ONCE))]


def test_no_ledger(database: Database) -> None:
    """A database without the tables is an error, and gets none."""
    with database.connect("create"):
        pass
    for ask in (lambda: usage(database, ["model"], None), lambda: prune(database, NOON)):
        with pytest.raises(NoLedger):
            ask()
    with database.connect("read") as connection:
        assert not sa.inspect(connection).has_table(CALLS.name)
