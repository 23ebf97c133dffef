"""URLs of ledgers, and connections."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, StatementError

from azure_openai_proxy.accounting.ledger.database import BadURL, Database, Unusable, is_about_a_row, parse
from support.postgres import PASSWORD

if TYPE_CHECKING:
    from pathlib import Path

    from azure_openai_proxy.accounting.ledger import database as module
    from support.postgres import Postgres

SECRET = "p-a-s-s-w-o-r-d"


@pytest.mark.parametrize(
    "url, shown",
    [
        ("sqlite:///usage.db", "sqlite:///usage.db"),
        ("sqlite+pysqlite:////var/usage.db", "sqlite:////var/usage.db"),
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        (f"postgresql://u:{SECRET}@h:1/d?sslmode=require", "postgresql+psycopg://u:***@h:1/d?sslmode=require"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    """SQLite and PostgreSQL are accepted, PostgreSQL by its usual schemes too, and the password is hidden."""
    assert shown == str(parse(url))


@pytest.mark.parametrize(
    "url, right",
    [
        ("usage.db", "sqlite:///usage.db"),
        ("sqlite:///a\nb", "sqlite:///usage.db"),
        ("sqlite:///a\0b", "sqlite:///usage.db"),
        (f"postgresql://u:{SECRET}@h:port/d", "not the URL"),
        (f"mysql://u:{SECRET}@h/d", "unknown database or driver"),
        (f"postgresql+psycopg2://u:{SECRET}@h/d", "unknown database or driver"),
        (f"postgresql://u:{SECRET}@h/d?colour=blue", "does not know"),
        (f"postgresql://u@h/d?password={SECRET}", "a password belongs before the host"),
        (f"postgresql://u@h/d?sslpassword={SECRET}", "a password belongs before the host"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///file:usage.db?uri=true", "needs a file"),
        ("sqlite:///usage.db?timeout=9", "no parameters"),
        *((f"postgresql://u:{SECRET}@h:{port}/d", "is not a port: write one from 1 to 65535") for port in (0, 65536, 99999)),
    ],
)
def test_bad_urls(url: str, right: str) -> None:
    """A URL that cannot work is rejected in one line that does not quote it."""
    with pytest.raises(BadURL, match=right) as caught:
        parse(url)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_psycopg_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the error says how to install it; SQLite does not need it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "psycopg.conninfo", raising=False)
    with pytest.raises(BadURL, match=r'pip install "\.\[ledger\]" in the proxy'):
        parse("postgresql://h/d")
    assert parse("sqlite:///usage.db").is_file


# SQLite


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a #?% b.db"


def of(path: Path) -> Database:
    return Database(sa.URL.create("sqlite", database=str(path)))


def test_a_new_file(file: Path) -> None:
    """A new file has a write-ahead log, gives free pages back, and is its owner's alone."""
    with of(file).connect("create") as connection:
        assert ["wal", 1, 2] == [connection.scalar(sa.text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "auto_vacuum")]
    if os.name == "posix":
        assert 0o600 == stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("access", ["write", "read"])
def test_a_missing_file_is_not_created(file: Path, access: module.Access) -> None:
    """Only the proxy creates a file."""
    with pytest.raises(Unusable, match=r"unable to open database file: .*a #"):
        of(file).connect(access)
    assert not file.exists()


def test_reading_does_not_write(file: Path) -> None:
    """A connection for reading cannot write, and reads while another one writes."""
    with of(file).connect("create") as writer, writer.begin():
        writer.exec_driver_sql("CREATE TABLE t (x)")
        with of(file).connect("read") as reader:
            assert [] == reader.exec_driver_sql("SELECT * FROM sqlite_master").all()
    with of(file).connect("read") as reader, pytest.raises(OperationalError, match="readonly"):
        reader.exec_driver_sql("DROP TABLE t")


def test_the_check(file: Path, tmp_path: Path) -> None:
    """The check creates the file, accepts a locked one, and rejects a directory, another file and a missing directory."""
    of(file).check()
    assert file.exists()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        of(file).check()
    (tmp_path / "text").write_text("not a database, but long enough to be one" * 20)
    for path, why in [("text", "not a database"), ("", "not a regular file"), ("missing/u.db", "unable to open")]:
        with pytest.raises(Unusable, match=why):
            of(tmp_path / path).check()
    parse("postgresql://127.0.0.1:1/d").check()  # it is not connected


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe_or_a_directory(tmp_path: Path) -> None:
    """SQLite would wait for the other end of a pipe."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        database = parse(f"sqlite:///{path}")
        database.shrink()
        for open in (database.check, lambda database=database: database.connect("read")):
            with pytest.raises(Unusable, match=f"^not a regular file: {path}$"):
                open()


def test_free_pages_are_given_back(file: Path) -> None:
    """The file shrinks after a removal; a file of another origin stays as it is."""
    with of(file).connect("create") as connection, connection.begin():
        connection.exec_driver_sql("CREATE TABLE t AS SELECT randomblob(9000000)")
    with of(file).connect("write") as connection, connection.begin():
        connection.exec_driver_sql("DROP TABLE t")
    of(file).shrink()
    with closing(sqlite3.connect(file)) as raw:
        assert (0,) == raw.execute("PRAGMA freelist_count").fetchone()
    other = file.with_name("other.db")
    with closing(sqlite3.connect(other)) as raw:
        raw.executescript("CREATE TABLE t AS SELECT randomblob(90000); DROP TABLE t;")
    size = other.stat().st_size
    of(other).shrink()
    assert size == other.stat().st_size


# PostgreSQL


@pytest.mark.slow
def test_the_limits_of_a_transaction(postgres: Postgres) -> None:
    """A transaction that writes waits for locks and results for seconds only, and one that reads cannot write."""
    database = parse(postgres.create())
    with database.connect("create") as connection:
        assert ["5s", "10s"] == [connection.scalar(sa.text(f"SHOW {name}")) for name in ("lock_timeout", "statement_timeout")]
    with database.connect("read") as connection, pytest.raises(sa.exc.InternalError, match="read-only"):
        connection.exec_driver_sql("CREATE TABLE t (x int)")
    database.shrink()


def test_a_server_that_is_stopped() -> None:
    """A server that does not listen is an error without the password."""
    database = parse(f"postgresql://u:{PASSWORD.replace('/', '%2F')}@127.0.0.1:1/d")
    with pytest.raises(OperationalError) as caught:
        database.connect("create")
    assert "refused" in database.describe(caught.value)
    assert PASSWORD not in str(database)


# Errors


def test_an_error_is_one_line_without_the_password() -> None:
    """The cause of an error is bounded, on one line, and free of the password in both of its forms."""
    database = parse("postgresql://u:a%2Fb%2Fc@h/d")
    cause = RuntimeError("\n\nno a/b/c\x1b[2J" + "x" * 999)
    text = database.describe(OperationalError("SELECT secret", {"x": "secret"}, cause))
    assert text.startswith("no ***\\x1b[2J")
    assert len(text) < 310
    assert "ValueError" == database.describe(ValueError())


@pytest.mark.parametrize(
    "error, about",
    [
        (StatementError("m", "s", {}, TypeError()), True),
        (DataError("s", {}, Exception()), True),
        (IntegrityError("s", {}, Exception()), True),
        (OperationalError("s", {}, Exception()), False),
        (OSError(), False),
    ],
)
def test_errors_about_rows(error: Exception, about: bool) -> None:
    """Errors about the values of a row are recognized."""
    assert about == is_about_a_row(error)
