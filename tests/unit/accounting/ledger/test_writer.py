"""The thread that writes, with a database that fails in every way."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DataError, OperationalError

from azure_openai_proxy.accounting.ledger import writer as module
from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.ledger.report import usage
from azure_openai_proxy.accounting.ledger.schema import DAYS, TooNew
from azure_openai_proxy.accounting.ledger.writer import QUEUE, Writer
from azure_openai_proxy.accounting.record import Tokens
from support.ledger import call, rows, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azure_openai_proxy.accounting.ledger.database import Database
    from azure_openai_proxy.accounting.ledger.state import LedgerState
    from azure_openai_proxy.accounting.record import CallRecord
    from support.postgres import Postgres

WAIT = 30.0


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are retried at once."""
    monkeypatch.setattr(module, "RETRY", (0.0, 0.0, 0.001))


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, module.logger.name)
    return caplog


class Faults:
    """Raises an error in place of, or after, the next inserts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[Exception] = []
        self.after = False
        self.done = threading.Event()
        insert = module._insert

        def faulty(connection: sa.Connection, batch: list[Any]) -> None:
            if self.errors and not self.after:
                raise self.errors.pop(0)
            insert(connection, batch)
            if self.errors:
                raise self.errors.pop(0)
            self.done.set()

        monkeypatch.setattr(module, "_insert", faulty)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.fixture
def started(database: Database) -> Iterator[Callable[[], Writer]]:
    writers: list[Writer] = []

    def start() -> Writer:
        writers.append(Writer(database))
        writers[-1].start()
        return writers[-1]

    yield start
    for each in writers:
        each.close()


def lost_connection() -> OperationalError:
    return OperationalError("INSERT secret", {"x": "secret"}, Exception("connection lost"))


def days(database: Database) -> list[dict[str, Any]]:
    """The sums of each day."""
    with database.connect("read") as connection:
        return [dict(each) for each in connection.execute(sa.select(DAYS)).mappings()]


def test_rows_and_sums(database: Database) -> None:
    """All records become rows, numbered in their order, and the sums of their days."""
    assert 0 == write(database, [call(str(number), client=f"c{number % 3}") for number in range(2500)])
    found = rows(database)
    assert [(number, str(number)) for number in range(2500)] == [(each["number"], each["request_id"]) for each in found]
    assert Counter(c0=834, c1=833, c2=833) == {each["client"]: each["requests"] for each in usage(database, ["client"], None)}


def test_rows_that_come_together(database: Database) -> None:
    """Their sums are those of each day, client, model and backend; no model and one without a name are the same."""
    writer = Writer(database)
    writer.start()
    models = ("gpt-4o", "", None)
    writer.put([call(str(number), client=f"c{number % 2}", model=models[number % 3], cost_usd=None) for number in range(60)])
    writer.close()
    assert [str(number) for number in range(60)] == [each["request_id"] for each in rows(database)]
    found = {(each["client"], each["model"]): (each["requests"], each["input_tokens"], each["cost_usd"]) for each in days(database)}
    assert {(client, model): (count, 100 * count, None) for client in ("c0", "c1") for model, count in (("gpt-4o", 10), ("", 20))} == found


def test_rows_arrive_while_the_proxy_runs(database: Database, started: Callable[[], Writer], faults: Faults) -> None:
    """A record is written without a further one, soon after it came."""
    started().put([call()])
    assert faults.done.wait(WAIT)
    assert 1 == len(rows(database))


def test_usage_that_several_calls_show(database: Database) -> None:
    """Of all rows with the same unique id, over batches and replicas, the first has the usage; the others have none."""
    write(database, [call("1", once="resp_1"), call("2"), call("3", once="resp_1")])
    write(database, [call("4", once="resp_1"), call("5", once="resp_0")])
    found = {each["request_id"]: (each["input_tokens"], each["cost_usd"], each["usage_state"]) for each in rows(database)}
    known, nothing = (100, 0.25, "known"), (None, None, "none")
    assert {"1": known, "2": known, "3": nothing, "4": nothing, "5": known} == found
    (total,) = usage(database, ["model"], None)
    assert (5, 300, 0.75) == (total["requests"], total["input_tokens"], total["cost_usd"])


def test_replicas_with_the_same_ids_and_days(database: Database) -> None:
    """Replicas that write the same ids and days at once wait for each other, and every usage is counted once."""
    calls = [call(str(number), once=f"resp_{number % 50}", client=f"c{number % 7}") for number in range(600)]
    threads = [threading.Thread(target=write, args=(database, calls if even else calls[::-1])) for even in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (total,) = usage(database, ["model"], None)
    assert (1200, 50 * 100) == (total["requests"], total["input_tokens"])
    assert 1200 == len(rows(database))


def test_a_database_that_is_down(database: Database, started: Callable[[], Writer], faults: Faults, info: Any, fast: None) -> None:
    """Rows are kept while the database cannot be written, and the log says so once, and when it works again."""
    faults.errors = [lost_connection() for _ in range(5)]
    writer = started()
    writer.put([call()])
    assert faults.done.wait(WAIT)
    writer.close()
    assert 1 == len(rows(database))
    assert 0 == writer.lost
    assert 1 == info.text.count("The ledger cannot be written")
    assert "connection lost" in info.text
    assert 1 == info.text.count("is written again")
    assert "secret" not in info.text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not remove a file that is open")
def test_a_file_that_is_removed(tmp_path: Path, fast: None, info: Any) -> None:
    """Later rows are in a new file with this name, and so are the keys and sums that are read."""
    path = tmp_path / "usage.db"
    database = parse(f"sqlite:///{path}")
    states: queue.Queue[LedgerState] = queue.Queue()
    writer = Writer(database)
    writer.follow(states.put)
    writer.start()
    writer.put([call("1", client="alice")])
    while writer._waiting:
        states.get(timeout=WAIT)
    for name in ("", "-wal", "-shm"):
        Path(f"{path}{name}").unlink(missing_ok=True)
    writer.put([call("2", client="alice")])
    writer.close()
    assert ["2"] == [row["request_id"] for row in rows(database)]
    assert (0, 1) == (writer.lost, info.text.count("was removed or replaced"))
    assert {"alice"} == {client for client, _ in writer._written}


def test_a_commit_whose_answer_was_lost(database: Database, started: Callable[[], Writer], faults: Faults, fast: None) -> None:
    """A batch that was committed although the connection failed is not written twice."""
    faults.errors, faults.after = [lost_connection()], True
    writer = started()
    for number in range(3):
        writer.put([call(str(number), once=f"resp_{number}")])
    writer.close()
    assert 3 == len(rows(database))
    (total,) = usage(database, ["model"], None)
    assert (3, 300) == (total["requests"], total["input_tokens"])


@pytest.mark.slow  # 10,000 rows are the documented limit
def test_a_full_queue(database: Database, faults: Faults, info: Any) -> None:
    """Beyond 10,000 rows new ones are counted as lost, which the log says once a minute; the others are written later."""
    writer = Writer(database)
    for number in range(QUEUE + 5):
        writer.put([call(str(number))])
    assert 5 == writer.lost
    assert 1 == info.text.count("Rows of the ledger are lost")
    assert "its queue is full" in info.text
    writer.start()
    writer.close()
    assert [str(number) for number in range(QUEUE)] == [each["request_id"] for each in rows(database)]


def test_a_row_that_the_database_rejects(database: Database, started: Callable[[], Writer], monkeypatch: Any, info: Any) -> None:
    """A row with a value that the database rejects is counted as lost, and all others are written."""
    insert = module._insert

    def reject(connection: sa.Connection, batch: list[Any]) -> None:
        if any("3" in rows.columns[module._NAMES.index("request_id")] for rows in batch):
            raise DataError("INSERT", {}, Exception("out of range"))
        insert(connection, batch)

    monkeypatch.setattr(module, "_insert", reject)
    writer = started()
    writer.put([call("0")])
    writer.put([call(str(number)) for number in range(1, 5)])
    writer.put([call("5")])
    writer.close()
    assert ["0", "1", "2", "4", "5"] == [each["request_id"] for each in rows(database)]
    assert 1 == writer.lost
    assert "Rows of the ledger are lost (1 so far): out of range" in info.text


def test_a_record_that_is_none(database: Database, info: Any) -> None:
    """A record that cannot be converted is counted as lost, and all others are written."""
    assert 1 == write(database, [call("1"), call("2", time="noon"), call("3")])
    assert ["1", "3"] == [each["request_id"] for each in rows(database)]


def test_hostile_text(database: Database) -> None:
    """NUL, surrogates, quotes and long texts are stored in both databases."""
    text = "'; DROP TABLE x; --\0\ud800\u202e😀" * 99
    fields = ("request_id", "client", "session", "path", "model", "backend", "user_agent", "error_code", "response_model")
    assert 0 == write(database, [call(**dict.fromkeys(fields, text), once=text, tokens=Tokens(input=10**400))])
    (found,) = rows(database)
    assert all(found[name].startswith("'; DROP TABLE x; --\ufffd\ufffd") for name in fields)
    assert found["input_tokens"] is None


def test_the_end_while_the_database_is_down(database: Database, monkeypatch: pytest.MonkeyPatch, info: Any) -> None:
    """The end waits for a few attempts only, and rows that remain are lost and logged."""

    def connect(*_: object) -> None:
        raise lost_connection()

    monkeypatch.setattr(type(database), "connect", connect)
    assert 3 == write(database, [call(), call(), call()])
    assert "Rows of the ledger are lost (3 so far): the proxy stopped" in info.text


def test_the_end_while_the_database_hangs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end does not wait for a database that does not answer."""
    answer = threading.Event()

    def connect(*_: object) -> None:
        answer.wait(WAIT)
        raise lost_connection()

    monkeypatch.setattr(module, "CLOSING", 0.05)
    monkeypatch.setattr(type(database), "connect", connect)
    writer = Writer(database)
    writer.start()
    writer.put([call()])
    writer.close()
    assert 1 == writer.lost
    answer.set()
    writer._thread.join()


def test_a_connection_that_does_not_close(
    database: Database, started: Callable[[], Writer], faults: Faults, fast: None, monkeypatch: Any
) -> None:
    """An error on closing a broken connection does not end the thread."""
    close = sa.Connection.close
    failing = [OSError("broken")]

    def broken(connection: sa.Connection) -> None:
        close(connection)
        if failing:
            raise failing.pop()

    faults.errors = [lost_connection()]
    writer = started()
    monkeypatch.setattr(sa.Connection, "close", broken)
    writer.put([call()])
    assert faults.done.wait(WAIT)
    assert 1 == len(rows(database))


def test_a_schema_of_a_newer_proxy(database: Database, monkeypatch: pytest.MonkeyPatch, info: Any) -> None:
    """A database that this version cannot write is reported, and its rows are lost."""

    def migrate(_: object) -> None:
        raise TooNew(9)

    monkeypatch.setattr(module, "migrate", migrate)
    assert 1 == write(database, [call()])
    assert "update this proxy" in info.text


@pytest.mark.slow
def test_postgresql_restarts(postgres: Postgres, fast: None, info: Any) -> None:
    """Rows that come while PostgreSQL is stopped are written when it runs again."""
    database = parse(postgres.create())
    writer = Writer(database)
    writer.start()
    writer.put([call("before")])
    for _ in range(600):
        if not writer._waiting:
            break
        threading.Event().wait(0.05)
    postgres.stop()
    try:
        writer.put([call("during")])
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host=str(postgres.folder), user="ledger")
        for _ in range(600):
            if "cannot be written" in info.text:
                break
            threading.Event().wait(0.05)
    finally:
        postgres.start()
    writer.put([call("after")])
    writer.close()
    assert ["before", "during", "after"] == [each["request_id"] for each in rows(database)]
    assert 0 == writer.lost
    assert "pass" not in info.text


def test_sums_of_unknown_values(database: Database) -> None:
    """The sum of a day is null until a value is known, in any order of batches."""
    for tokens in (Tokens(), Tokens(input=5), Tokens(), Tokens(input=7)):
        write(database, [call(tokens=tokens, cost_usd=None)])
    (day,) = days(database)
    assert (4, 12, None, None) == (day["requests"], day["input_tokens"], day["output_tokens"], day["cost_usd"])


@pytest.mark.parametrize("count", [1, 100])
def test_rows_of_one_statement(count: int, database: Database) -> None:
    """Each row is written once, also those that do not fill a statement."""
    assert 0 == write(database, [call(str(number)) for number in range(count)])
    assert [str(number) for number in range(count)] == [each["request_id"] for each in rows(database)]


def test_keys_and_sums_are_passed_on_without_a_change(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every time, also if the database need not be read again."""
    monkeypatch.setattr(module, "READ_EVERY", 0.0)
    states: list[LedgerState] = []
    third = threading.Event()

    def receive(state: LedgerState) -> None:
        states.append(state)
        if len(states) == 3:
            third.set()

    writer = Writer(database)
    writer.follow(receive)
    writer.start()
    try:
        assert third.wait(WAIT)
    finally:
        writer.close()
    assert [states[0]] * 3 == states[:3]


def write_together(database: Database, calls: list[CallRecord]) -> None:
    """Write records that the sink gets together."""
    writer = Writer(database)
    writer.put(calls)
    writer.start()
    writer.close()
    assert 0 == writer.lost


@pytest.mark.parametrize("count", [1, 3_000])
def test_equal_rows(count: int, database: Database) -> None:
    """Rows that differ in nothing but their number are rows of their own."""
    write_together(database, [call(time=1_800_000_000.0)] * count)
    assert [count] == [day["requests"] for day in days(database)]
    assert list(range(count)) == [each["number"] for each in rows(database)]


def test_equal_and_different_values(database: Database, another: Database) -> None:
    """Rows that are written together have the values of rows that are written one by one."""
    values = [("a", 0.5, 7, True), ("a", None, 7, False), (None, 0.5, 7, None)]
    calls = [
        call(str(number), session=session, cost_usd=cost, tokens=Tokens(input=tokens), spillover=spillover, model="m")
        for number, (session, cost, tokens, spillover) in enumerate(values)
    ]
    write_together(database, calls)
    write(another, calls)
    written = rows(database)
    assert values == [(each["session"], each["cost_usd"], each["input_tokens"], each["spillover"]) for each in written]
    assert [{**each, "writer": 0} for each in rows(another)] == [{**each, "writer": 0} for each in written]
