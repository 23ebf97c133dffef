"""The managed client keys of a ledger.

A key is `sk-` and 256 random bits. The database has its SHA-256 only, so that nobody can read a key from it; a hash without a salt is safe
because a random secret of that length cannot be guessed. Running replicas read the table every few seconds (`writer`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from .schema import EVER, KEYS, dialect_insert, migrate, version

if TYPE_CHECKING:
    from .database import Database

__all__ = ["PREFIX", "KeyExists", "ManagedKey", "NoKey", "create", "delete", "disable", "ever", "find", "listed", "read", "rotate", "utc"]

PREFIX = "sk-"
_LISTS = ("models", "backends")


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FIRST, _LAST = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)


class KeyExists(Exception):
    """There is a managed key of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a key of this name already: {name}")


class NoKey(Exception):
    """There is no managed key of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no key of this name: {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedKey:
    """A row of `KEYS`, without secrets. Times are Unix time in seconds."""

    name: str
    key_sha256: str = ""  # hexadecimal
    previous_sha256: str | None = None  # the key before the last rotation, valid until `previous_until`
    previous_until: float | None = None
    created: float = 0.0
    expires: float | None = None
    disabled: bool = False
    models: tuple[str, ...] = ()  # empty: all
    backends: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel: int | None = None
    budget_usd: float | None = None
    budget_period: str | None = None
    client_group: str | None = None
    unmetered: bool = False


def utc(seconds: float) -> dt.datetime:
    """Return a time of a row, or the nearest one that Python has: one row with a wrong time must not hide the others."""
    try:
        return _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        return _LAST if seconds > 0 else _FIRST
    except ValueError:  # not a number
        return _FIRST


def create(database: Database, wanted: ManagedKey) -> tuple[ManagedKey, str]:
    """Store a new key and return it with its secret, which is not stored. The database and its tables are created if they are missing.

    Raises:
        KeyExists: the name is taken.
        TooNew, Unusable, SQLAlchemyError: the database cannot be written.
    """
    secret = _secret()
    key = dataclasses.replace(wanted, key_sha256=_hash(secret), created=time.time())
    with database.connect("create") as connection:
        migrate(connection)
        insert = dialect_insert(connection.dialect.name)
        with connection.begin():
            statement = insert(KEYS).values(_row(key)).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
            if not connection.execute(statement).rowcount:
                raise KeyExists(key.name)
            connection.execute(insert(EVER).values(name="keys").on_conflict_do_nothing())
    return key, secret


def rotate(database: Database, name: str, grace: float) -> tuple[ManagedKey, str]:
    """Replace a key by a new one, and return that with its secret. The old one stays valid for `grace` seconds.

    Raises:
        NoKey: the name is unknown.
        TooNew, Unusable, SQLAlchemyError: the database cannot be written.
    """
    secret = _secret()
    with database.connect("write") as connection:
        migrate(connection)
        with connection.begin():
            before = _one(connection, name)
            previous = (before.key_sha256, time.time() + grace) if grace else (None, None)
            key = dataclasses.replace(before, key_sha256=_hash(secret), previous_sha256=previous[0], previous_until=previous[1])
            connection.execute(sa.update(KEYS).where(KEYS.c.name == name).values(_row(key)))
    return key, secret


def disable(database: Database, name: str) -> ManagedKey:
    """Refuse a key from now on. Raises as `rotate` does."""
    with database.connect("write") as connection:
        migrate(connection)
        with connection.begin():
            key = dataclasses.replace(_one(connection, name), disabled=True)
            connection.execute(sa.update(KEYS).where(KEYS.c.name == name).values(disabled=True))
    return key


def delete(database: Database, name: str) -> ManagedKey:
    """Remove a key. Its calls stay in the ledger. Raises as `rotate` does."""
    with database.connect("write") as connection:
        migrate(connection)
        with connection.begin():
            key = _one(connection, name)
            connection.execute(sa.delete(KEYS).where(KEYS.c.name == name))
    return key


def find(database: Database, name: str) -> ManagedKey:
    """Return the key of a name. Raises as `rotate` does."""
    for key in listed(database):
        if key.name == name:
            return key
    raise NoKey(name)


def listed(database: Database) -> list[ManagedKey]:
    """Return all keys, by name. A database without a ledger has none.

    Raises:
        TooNew, Unusable, SQLAlchemyError: the database cannot be read.
    """
    with database.connect("read") as connection, connection.begin():
        return read(connection) if version(connection) > 1 else []


def read(connection: sa.Connection) -> list[ManagedKey]:
    """Return all keys, by name, in the transaction of `connection`."""
    return [_key(dict(row)) for row in connection.execute(sa.select(KEYS).order_by(KEYS.c.name)).mappings()]


def ever(connection: sa.Connection) -> bool:
    """Return whether the ledger has or had a managed key."""
    return connection.scalar(sa.select(EVER.c.name).where(EVER.c.name == "keys")) is not None


def _one(connection: sa.Connection, name: str) -> ManagedKey:
    query = sa.select(KEYS).where(KEYS.c.name == name)
    if connection.dialect.name == "postgresql":
        query = query.with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NoKey(name)
    return _key(dict(row))


def _key(row: dict[str, Any]) -> ManagedKey:
    return ManagedKey(**row | {name: tuple(json.loads(row[name])) if row[name] else () for name in _LISTS})


def _row(key: ManagedKey) -> dict[str, Any]:
    row = dataclasses.asdict(key)
    return row | {name: json.dumps(row[name]) if row[name] else None for name in _LISTS}


def _secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
