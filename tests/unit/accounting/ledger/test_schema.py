"""The versions of the schema, on both databases."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from azure_openai_proxy.accounting.ledger import schema
from azure_openai_proxy.accounting.ledger.schema import SCHEMA, TooNew, Upgrade, migrate, version

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.ledger.database import Database

VERSIONS = Path(__file__).parent / "versions"
NOW = schema.UPGRADES
NEWEST = 1 + len(NOW)
NEXT = (*NOW, Upgrade(1, ["ALTER TABLE azure_openai_proxy_calls ADD COLUMN of_a_later_version DOUBLE PRECISION"]))
LATER = (
    *NEXT,
    Upgrade(NEWEST + 2, ["CREATE TABLE azure_openai_proxy_later (name TEXT PRIMARY KEY)", "DROP TABLE azure_openai_proxy_once"]),
)


def applied(database: Database) -> list[int]:
    with database.connect("read") as connection:
        return list(connection.scalars(sa.select(SCHEMA.c.version).order_by(SCHEMA.c.version)))


def tables(database: Database) -> set[str]:
    with database.connect("read") as connection:
        return set(sa.inspect(connection).get_table_names())


def test_a_new_database(database: Database) -> None:
    """A new database gets all tables, in one step, and then nothing more."""
    with database.connect("create") as connection:
        with connection.begin():
            assert 0 == version(connection)
        assert [True, False] == [migrate(connection), migrate(connection)]
    assert [NEWEST] == applied(database)
    assert {f"azure_openai_proxy_{name}" for name in ("schema", "calls", "days", "once", "keys", "ever")} == tables(database)


def test_an_upgrade(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older database gets the statements of each version after its own, once."""
    with database.connect("create") as connection:
        migrate(connection)
        monkeypatch.setattr(schema, "UPGRADES", NEXT)
        migrate(connection)
        monkeypatch.setattr(schema, "UPGRADES", LATER)
        assert [True, False] == [migrate(connection), migrate(connection)]
    assert [NEWEST, NEWEST + 1, NEWEST + 2] == applied(database)
    assert "azure_openai_proxy_later" in tables(database)


def test_an_upgrade_that_fails(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade is applied as a whole or not at all."""
    with database.connect("create") as connection:
        migrate(connection)
        monkeypatch.setattr(schema, "UPGRADES", (*NEXT, Upgrade(1, ["CREATE TABLE azure_openai_proxy_later (x INT)", "nonsense"])))
        with pytest.raises(sa.exc.DBAPIError):
            migrate(connection)
    assert [NEWEST] == applied(database)
    assert "azure_openai_proxy_later" not in tables(database)


def test_an_older_proxy(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older proxy goes on writing to a newer schema that only adds to its own, and refuses one that changes it."""
    with database.connect("create") as connection:
        monkeypatch.setattr(schema, "UPGRADES", NEXT)
        migrate(connection)
        monkeypatch.setattr(schema, "UPGRADES", NOW)
        assert not migrate(connection)
        monkeypatch.setattr(schema, "UPGRADES", LATER)
        migrate(connection)
        monkeypatch.setattr(schema, "UPGRADES", NOW)
        with pytest.raises(TooNew, match=rf"\(version {NEWEST + 2}\): update this proxy"):
            migrate(connection)


def structure(database: Database) -> dict[str, object]:
    """The columns, keys and indexes of all tables, in no particular order."""
    with database.connect("read") as connection:
        inspector = sa.inspect(connection)
        return {
            name: (
                {each["name"]: (str(each["type"]), each["nullable"]) for each in inspector.get_columns(name)},
                inspector.get_pk_constraint(name)["constrained_columns"],
                {(each["name"], *each["column_names"]) for each in inspector.get_indexes(name)},
            )
            for name in inspector.get_table_names()
        }


def test_every_version_becomes_the_newest(database: Database, another: Database) -> None:
    """The first version that was released, upgraded, has the same tables as a new database: a change needs an upgrade."""
    script = (VERSIONS / f"1.{database.url.get_backend_name()}.sql").read_text()
    with database.connect("create") as connection:
        with connection.begin():
            for statement in script.split(";\n")[:-1]:
                connection.exec_driver_sql(statement)
            connection.execute(sa.insert(SCHEMA).values(version=1, oldest=1, applied=dt.datetime.now(dt.UTC)))
        migrate(connection)
    with another.connect("create") as connection:
        migrate(connection)
    assert structure(database) == structure(another)
    assert applied(database)[-1:] == applied(another)


def test_replicas_that_start_together(database: Database) -> None:
    """Of several replicas that start together exactly one creates the tables, and none fails."""
    count = 6
    ready, results, errors = threading.Barrier(count), [], []

    def replica() -> None:
        try:
            with database.connect("create") as connection:
                ready.wait(30)
                results.append(migrate(connection))
        except BaseException as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    if database.is_file:
        with database.connect("create"):
            pass  # the mode of the file is not part of the schema
    threads = [threading.Thread(target=replica) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors
    assert [False] * (count - 1) + [True] == sorted(results)
    assert [NEWEST] == applied(database)
