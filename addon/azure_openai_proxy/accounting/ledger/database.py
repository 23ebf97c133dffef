"""The URL of a ledger, and the connections to its database.

SQLite uses a write-ahead log with `synchronous=NORMAL`: a transaction survives the end of the process at any moment (kill -9); the end of
the whole machine can undo the last ones but does not damage the file. A network timeout ends a connection to PostgreSQL whose host
does not answer. No error text contains the password or a row.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from azure_openai_proxy.formats import quoting

from . import INSTALL

__all__ = ["Access", "BadURL", "Database", "Unusable", "is_about_a_row", "parse"]

type Access = Literal["create", "write", "read"]

EXAMPLES = "sqlite:///usage.db or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}
_POSTGRESQL = {
    "application_name": "azure-openai-proxy",
    "client_encoding": "utf8",
    "connect_timeout": "3",  # seconds
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "2",
    "tcp_user_timeout": "4000",  # milliseconds, Linux only
}
"""libpq's parameters, unless the URL has them. They detect a lost host within five seconds."""
_FATAL_IN_SQLITE = {"SQLITE_CANTOPEN", "SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"}
_BUSY_TIMEOUT = 5.0  # seconds
_PRAGMAS = (
    "auto_vacuum=INCREMENTAL",  # has an effect on an empty file only
    "journal_mode=WAL",
    "synchronous=NORMAL",
    f"journal_size_limit={64 << 20}",
)


class BadURL(ValueError):
    """The URL is invalid. The text is one line that does not contain it."""


class Unusable(Exception):
    """The file cannot be used, and waiting would not help."""


class Database(NamedTuple):
    """A database with its connections. `url` is complete; `str()` hides the password."""

    url: sa.URL

    def __str__(self) -> str:
        return quoting.line(self.url.render_as_string(hide_password=True))

    @property
    def is_file(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def connect(self, access: Access) -> sa.Connection:
        """Open a connection. `create`: create the file if it is missing; `write`, `read`: it must exist.

        Raises:
            Unusable: the file is missing or cannot be used.
            DBAPIError: the database cannot be reached.
        """
        engine = self._sqlite(access) if self.is_file else self._postgresql(access)
        try:
            return engine.connect()
        except DBAPIError as error:
            if self.is_file and _is_fatal(error):
                raise self._unusable(error) from None
            raise

    def identity(self) -> tuple[int, int] | None:
        """The device and inode of the file, by which another one of its name differs; None if it is missing or the database is no file."""
        if not self.is_file:
            return None
        try:
            found = Path(self.url.database or "").stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check(self) -> None:
        """Check that the file can be written, without waiting for other processes. Other databases are not checked.

        Raises:
            Unusable: it cannot.
        """
        if not self.is_file:
            return
        try:
            with contextlib.closing(self._open("create", timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            if _is_fatal(error):
                raise self._unusable(error) from None

    def shrink(self) -> None:
        """Give the free pages of a file back, as far as possible. PostgreSQL does this itself."""
        if not self.is_file:
            return
        with contextlib.suppress(sqlite3.Error, Unusable), contextlib.closing(self._open("write")) as connection:
            before = None
            while (free := connection.execute("PRAGMA freelist_count").fetchone()) not in {(0,), before}:
                before = free
                connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()

    def _unusable(self, error: BaseException) -> Unusable:
        return Unusable(f"{self.describe(error)}: {quoting.line(self.url.database or '')}")

    def describe(self, error: BaseException) -> str:
        """Return the cause of an error in one bounded line, without the password and the values of a row."""
        if isinstance(error, DBAPIError):
            error = error.orig or error
        return quoting.cause(error, self.url.password)

    def _sqlite(self, access: Access) -> sa.Engine:
        engine = sa.create_engine("sqlite://", creator=lambda: self._open(access), poolclass=NullPool, hide_parameters=True)
        begin = "BEGIN" if access == "read" else "BEGIN IMMEDIATE"  # a transaction that reads first cannot wait for the lock later
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    def _open(self, access: Access, timeout: float = _BUSY_TIMEOUT) -> sqlite3.Connection:
        path = Path(self.url.database or "").absolute()
        if path.exists() and not path.is_file():  # to open a pipe would wait for its other end
            raise Unusable(f"not a regular file: {quoting.line(self.url.database or '')}")
        if access == "create":
            with contextlib.suppress(OSError):  # the next call reports it
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # a row shows who used what
        mode = "ro" if access == "read" else "rw"
        # Without an isolation level the module begins no transactions of its own.
        connection = sqlite3.connect(f"{path.as_uri()}?mode={mode}", timeout, uri=True, isolation_level=None, check_same_thread=False)
        try:
            for pragma in _PRAGMAS if access == "create" else ():
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _postgresql(self, access: Access) -> sa.Engine:
        arguments: dict[str, Any] = {name: value for name, value in _POSTGRESQL.items() if name not in self.url.query}
        # A pooler such as PgBouncer may not support prepared statements.
        arguments["prepare_threshold"] = None
        engine = sa.create_engine(self.url, connect_args=arguments, poolclass=NullPool, hide_parameters=True)
        if access == "read":
            return engine.execution_options(postgresql_readonly=True)
        sa.event.listen(engine, "begin", _limit_transaction)
        return engine


def parse(text: str) -> Database:
    """Parse the URL of a ledger.

    Raises:
        BadURL: it is invalid, its driver is unknown or not installed.
    """
    try:
        if text != quoting.line(text):
            raise ValueError  # noqa: TRY301 - a path with a control character
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise BadURL(f"not the URL of a database: write {EXAMPLES}") from None
    if (driver := _DRIVERS.get(url.drivername)) is None:
        raise BadURL(f"unknown database or driver: write {EXAMPLES}")
    database = Database(url.set(drivername=driver))
    if database.is_file:
        if not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.query or url.host:
            raise BadURL("SQLite needs a file and no parameters: sqlite:///usage.db, or sqlite:////var/lib/usage.db for an absolute path")
        return database
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise BadURL(f"{url.port} is not a port: write one from 1 to 65535")
    if any("password" in name or "secret" in name for name in url.query):  # it would be in the log
        raise BadURL("a password belongs before the host: postgresql+psycopg://USER:PASSWORD@HOST/DATABASE")
    try:
        import psycopg.conninfo  # noqa: PLC0415 - only PostgreSQL needs it
    except ImportError:
        raise BadURL(f"PostgreSQL needs psycopg: {INSTALL}") from None
    try:
        psycopg.conninfo.make_conninfo("", **{name: str(value) for name, value in url.query.items()})
    except psycopg.Error:
        raise BadURL("its query has a parameter that PostgreSQL does not know") from None
    return database


def is_about_a_row(error: BaseException) -> bool:
    """Return whether an error is about the values of a row, so that the same rows would fail again."""
    if isinstance(error, sa.exc.StatementError) and not isinstance(error, DBAPIError):
        return True  # a value of a wrong type
    return isinstance(error, sa.exc.DataError | sa.exc.IntegrityError)


def _is_fatal(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        error = error.orig or error
    name = getattr(error, "sqlite_errorname", "")
    return any(name == fatal or name.startswith(f"{fatal}_") for fatal in _FATAL_IN_SQLITE)


def _limit_transaction(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
    connection.exec_driver_sql("SET LOCAL statement_timeout = '10s'")
