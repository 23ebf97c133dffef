"""The tables, and their versions.

A new database gets the tables below. An older one gets the statements of `UPGRADES`, one version after the other. Replicas that start
together do this once: one holds a lock (an advisory lock in PostgreSQL, the write lock in SQLite), the others then find the new version.

An upgrade only adds tables and nullable columns, so that replicas of the version before can go on writing while the others are replaced.
If that is impossible, `oldest` of the upgrade says which versions can still write. A test compares an upgraded database of the first
version with a new one.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from .columns import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CALLS", "DAYS", "EVER", "KEYS", "ONCE", "SUMMED", "UPGRADES", "TooNew", "Upgrade", "dialect_insert", "migrate", "version"]

_LOCK = 0x617A6F6169  # an arbitrary number, the same in every replica
_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "text": sa.Text(),
    "integer": sa.BigInteger(),
    "number": sa.Double(),
    "boolean": sa.Boolean(),
    "time": sa.DateTime(timezone=True),
    "day": sa.Date(),
}
_REQUIRED = {"time", "day", "client", "failed"}

SUMMED = ("input_tokens", "cached_input_tokens", "cache_write_input_tokens", "output_tokens", "reasoning_output_tokens", "cost_usd")
"""The columns of a call whose sums are kept. A sum is null as long as no value is known."""

METADATA = sa.MetaData()

SCHEMA = sa.Table(
    "azure_openai_proxy_schema",
    METADATA,
    sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("oldest", sa.Integer(), nullable=False),  # version of the schema that a proxy must know to write
    sa.Column("applied", sa.DateTime(timezone=True), nullable=False),
)
"""One row for each version that this database has had."""

CALLS = sa.Table(
    "azure_openai_proxy_calls",
    METADATA,
    # A process numbers its rows, so that a row whose commit was in doubt is not written twice.
    sa.Column("writer", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
    *(sa.Column(column.name, _TYPES[column.type], nullable=column.name not in _REQUIRED) for column in COLUMNS),
    sa.Index("azure_openai_proxy_calls_time", "time"),
)
"""One row for each call."""

DAYS = sa.Table(
    "azure_openai_proxy_days",
    METADATA,
    sa.Column("day", sa.Date(), primary_key=True),
    *(sa.Column(name, sa.Text(), primary_key=True) for name in ("client", "model", "backend")),  # "": none
    *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("requests", "failed")),
    *(sa.Column(name, sa.Double() if name == "cost_usd" else sa.BigInteger()) for name in SUMMED),
    sa.Column("unknown_usage", sa.BigInteger(), nullable=False),
    sa.Column("estimated_cost_usd", sa.Double()),
)
"""The sums of each day, written with the rows. They stay when old rows are removed."""

ONCE = sa.Table(
    "azure_openai_proxy_once",
    METADATA,
    sa.Column("id", sa.Text(), primary_key=True),
    sa.Column("day", sa.Date(), nullable=False),
)
"""The ids of usage that several calls can show, such as that of a background response. They stay when old rows are removed."""


KEYS = sa.Table(
    "azure_openai_proxy_keys",
    METADATA,
    sa.Column("name", sa.Text(), primary_key=True),
    sa.Column("key_sha256", sa.Text(), nullable=False),  # hexadecimal
    sa.Column("previous_sha256", sa.Text()),  # the key before the last rotation, valid until `previous_until`
    sa.Column("previous_until", sa.Double()),
    sa.Column("created", sa.Double(), nullable=False),  # times are Unix time in seconds
    sa.Column("expires", sa.Double()),
    sa.Column("disabled", sa.Boolean(), nullable=False),
    sa.Column("models", sa.Text()),  # lists are JSON; null: all
    sa.Column("backends", sa.Text()),
    sa.Column("requests_per_minute", sa.BigInteger()),
    sa.Column("tokens_per_minute", sa.BigInteger()),
    sa.Column("max_parallel", sa.BigInteger()),
    sa.Column("budget_usd", sa.Double()),
    sa.Column("budget_period", sa.Text()),
    sa.Column("client_group", sa.Text()),
    sa.Column("unmetered", sa.Boolean(), nullable=False),
)
"""The managed client keys: a hash of each, and its limits."""

EVER = sa.Table("azure_openai_proxy_ever", METADATA, sa.Column("name", sa.Text(), primary_key=True))
"""Facts that stay true: a row `keys` as soon as there was a managed key, so that deleting the last one does not open the proxy."""


class Upgrade(NamedTuple):
    """The statements from one version of the schema to the next, with the types of PostgreSQL."""

    oldest: int
    statements: Sequence[str]


UPGRADES: tuple[Upgrade, ...] = (
    Upgrade(
        1,
        [
            "ALTER TABLE azure_openai_proxy_calls ADD COLUMN estimated_cost_usd DOUBLE PRECISION",
            "ALTER TABLE azure_openai_proxy_days ADD COLUMN estimated_cost_usd DOUBLE PRECISION",
            """
            CREATE TABLE azure_openai_proxy_keys (
                name TEXT NOT NULL, key_sha256 TEXT NOT NULL, previous_sha256 TEXT, previous_until DOUBLE PRECISION,
                created DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION, disabled BOOLEAN NOT NULL, models TEXT, backends TEXT,
                requests_per_minute BIGINT, tokens_per_minute BIGINT, max_parallel BIGINT,
                budget_usd DOUBLE PRECISION, budget_period TEXT, client_group TEXT, unmetered BOOLEAN NOT NULL, PRIMARY KEY (name)
            )
            """,
            "CREATE TABLE azure_openai_proxy_ever (name TEXT NOT NULL, PRIMARY KEY (name))",
        ],
    ),
)
"""The upgrades to version 2, 3, ..."""


class TooNew(Exception):
    """A newer proxy has changed the schema in a way that this version does not know."""

    def __init__(self, found: int) -> None:
        super().__init__(f"a newer version of the proxy changed its schema (version {found}): update this proxy")


def dialect_insert(dialect: str) -> Callable[[sa.Table], Any]:
    """Return the function for INSERT statements with ON CONFLICT, which both databases have."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert


def version(connection: sa.Connection) -> int:
    """Return the version of the schema; 0 if there is none.

    Raises:
        TooNew: this proxy cannot write to it.
    """
    if not sa.inspect(connection).has_table(SCHEMA.name):
        return 0
    found = connection.execute(sa.select(SCHEMA.c.version, SCHEMA.c.oldest).order_by(SCHEMA.c.version.desc()).limit(1)).one()
    if found.oldest > 1 + len(UPGRADES):
        raise TooNew(found.version)
    return int(found.version)


def migrate(connection: sa.Connection) -> bool:
    """Create or upgrade the tables. Return whether there was anything to do.

    Raises:
        TooNew: this proxy cannot write to the database.
    """
    newest = 1 + len(UPGRADES)
    with connection.begin():
        if version(connection) >= newest:
            return False
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        found = version(connection)
        if found >= newest:
            return False  # another replica was faster
        if not found:
            METADATA.create_all(connection)
            _applied(connection, newest, UPGRADES[-1].oldest if UPGRADES else 1)
            return True
        for number, upgrade in enumerate(UPGRADES[found - 1 :], found + 1):
            for statement in upgrade.statements:
                if connection.dialect.name == "sqlite":
                    statement = statement.replace("DOUBLE PRECISION", "DOUBLE")  # noqa: PLW2901 - as `create_all` writes it
                connection.exec_driver_sql(statement)
            _applied(connection, number, upgrade.oldest)
        return True


def _applied(connection: sa.Connection, number: int, oldest: int) -> None:
    connection.execute(sa.insert(SCHEMA).values(version=number, oldest=oldest, applied=dt.datetime.now(dt.UTC)))
