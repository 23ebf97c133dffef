"""The managed keys, on both databases."""

from __future__ import annotations

import functools
import hashlib
import time
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from azure_openai_proxy.accounting.ledger import keys, schema
from azure_openai_proxy.accounting.ledger.keys import KeyExists, ManagedKey, NoKey

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.ledger.database import Database

WHOLE = ManagedKey(
    name="alice",
    models=("gpt-4*", "o3"),
    backends=("east",),
    requests_per_minute=10,
    tokens_per_minute=10_000,
    max_parallel=3,
    budget_usd=12.5,
    budget_period="month",
    client_group="search",
    expires=2e9,
    unmetered=True,
)


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def has_had_keys(database: Database) -> bool:
    with database.connect("read") as connection, connection.begin():
        return keys.ever(connection)


def test_a_new_key(database: Database) -> None:
    """A key is stored as a hash of its secret of 256 bits, with everything that was given."""
    before = time.time()
    key, secret = keys.create(database, WHOLE)
    assert secret.startswith("sk-")
    assert len(secret) == len("sk-") + 43
    assert sha256(secret) == key.key_sha256
    assert before <= key.created <= time.time()
    assert [key] == keys.listed(database)
    assert key == keys.find(database, "alice")
    another, _ = keys.create(database, ManagedKey(name="Bob"))
    assert [another, key] == sorted(keys.listed(database), key=lambda each: each.name)
    assert has_had_keys(database)


def test_a_taken_name(database: Database) -> None:
    """A second key of a name is refused, and the first one stays."""
    key, _ = keys.create(database, WHOLE)
    with pytest.raises(KeyExists, match="already: alice"):
        keys.create(database, ManagedKey(name="alice"))
    assert [key] == keys.listed(database)


def test_rotation(database: Database) -> None:
    """A rotated key has a new secret and all else as before; the old one ends at once, or after the grace."""
    first, _ = keys.create(database, WHOLE)
    second, secret = keys.rotate(database, "alice", 0)
    assert (sha256(secret), None, None) == (second.key_sha256, second.previous_sha256, second.previous_until)
    before = time.time()
    third, _ = keys.rotate(database, "alice", 60)
    assert second.key_sha256 == third.previous_sha256
    assert third.previous_until
    assert before + 60 <= third.previous_until <= time.time() + 60
    assert third == keys.find(database, "alice")
    assert 3 == len({first.key_sha256, second.key_sha256, third.key_sha256})


def test_the_end_of_a_key(database: Database) -> None:
    """A disabled key stays in the list, a deleted one does not, and the ledger keeps in mind that it had one."""
    keys.create(database, WHOLE)
    assert keys.disable(database, "alice").disabled
    assert keys.find(database, "alice").disabled
    assert "alice" == keys.delete(database, "alice").name
    assert [] == keys.listed(database)
    assert has_had_keys(database)


def test_an_unknown_name(database: Database) -> None:
    """An unknown name is an error of every command."""
    keys.create(database, WHOLE)
    for change in (keys.disable, keys.delete, keys.find, functools.partial(keys.rotate, grace=0)):
        with pytest.raises(NoKey, match="no key of this name: bob"):
            change(database, "bob")


def test_a_database_without_keys(database: Database) -> None:
    """A database without a ledger has no keys, and a new ledger never had one."""
    with database.connect("create") as connection:
        assert [] == keys.listed(database)
        schema.migrate(connection)
        with connection.begin():
            assert not keys.ever(connection)
            assert [] == keys.read(connection)
    assert [] == keys.listed(database)


def test_the_secret_is_not_in_the_database(database: Database) -> None:
    """No column of any table has the secret."""
    _, secret = keys.create(database, WHOLE)
    _, new = keys.rotate(database, "alice", 60)
    with database.connect("read") as connection:
        dump = str([list(connection.execute(sa.select(table))) for table in schema.METADATA.sorted_tables])
    assert sha256(secret) in dump
    assert not any(each.removeprefix("sk-") in dump for each in (secret, new))
