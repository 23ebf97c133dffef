"""A database for each test: the same tests run on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.ledger import writer
from azure_openai_proxy.accounting.ledger.database import Database, parse

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import Postgres


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'usage.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.create()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how fast the machine writes."""
    monkeypatch.setattr(writer, "CLOSING", 60.0)


@pytest.fixture
def database(url: str) -> Database:
    return parse(url)


@pytest.fixture
def another(database: Database, tmp_path: Path, request: pytest.FixtureRequest) -> Database:
    """A second empty database of the same kind."""
    if database.is_file:
        return parse(f"sqlite:///{tmp_path / 'another.db'}")
    postgres: Postgres = request.getfixturevalue("postgres")
    return parse(postgres.create())
