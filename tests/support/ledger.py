"""Usage records for tests of the ledger, and its rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from azure_openai_proxy.accounting.ledger.schema import CALLS
from azure_openai_proxy.accounting.ledger.writer import Writer
from azure_openai_proxy.accounting.record import CallRecord, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from azure_openai_proxy.accounting.ledger.database import Database

__all__ = ["call", "rows", "write"]


def call(name: str = "r", **changes: Any) -> CallRecord:
    """A chat that cost something."""
    values: dict[str, Any] = {
        "time": time.time(),
        "request_id": name,
        "trace_id": "0" * 32,
        "client": "alice",
        "session": "s",
        "operation": "chat.completions",
        "model": "gpt-4o",
        "backend": "east",
        "status": 200,
        "usage_state": "known",
        "tokens": Tokens(input=100, cached_input=40, output=10, reasoning_output=5),
        "cost_usd": 0.25,
        "duration": 1.5,
    }
    return CallRecord(**values | changes)


def write(database: Database, calls: Iterable[CallRecord]) -> int:
    """Write records with a writer of their own, and return how many it lost."""
    writer = Writer(database)
    writer.start()
    for each in calls:
        writer.put([each])
    writer.close()
    return writer.lost


def rows(database: Database) -> list[dict[str, Any]]:
    """All rows of calls, in the order in which they were written by each process."""
    with database.connect("read") as connection:
        return [dict(each) for each in connection.execute(sa.select(CALLS).order_by(CALLS.c.writer, CALLS.c.number)).mappings()]
