"""The conversion of a record into a row."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.accounting.ledger.columns import COLUMNS, GROUPS, MOST_KINDS, NAMES, USAGE, Rows, row
from azure_openai_proxy.accounting.record import AttemptRecord, Tokens
from support.ledger import call
from support.metering import of_kind


def test_a_whole_row() -> None:
    """Each column has its part of the record, in milliseconds where the record has seconds."""
    attempt = AttemptRecord("east", "d", "ok", 0.0, 1.0)
    found = row(
        call(
            time=86400.5,
            tokens=Tokens(8, 7, 6, 5, 4, 3, 2, 1),
            attempts=(attempt, attempt),
            repairs=("max_tokens", "role"),
            status=500,
            first_byte=0.25,
        )
    )
    assert (86400.5, dt.date(1970, 1, 2)) == (found["time"], found["day"])
    assert [8, 7, 6, 5, 4, 3, 2, 1, 0.25, None] == [found[name] for name in USAGE]
    assert (2, "max_tokens,role", True, 1500.0, 250.0, None) == tuple(
        found[name] for name in ("attempts", "repairs", "failed", "duration_ms", "first_byte_ms", "overhead_ms")
    )


def test_the_tables_names() -> None:
    """Names are unique, each column is described, and groups and usage are columns."""
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    assert all(column.description for column in COLUMNS)
    assert {*GROUPS, *USAGE} <= {*names}


@given(st.text(max_size=300))
def test_a_text_that_every_database_takes(text: str) -> None:
    """A text is bounded, can be encoded, has no NUL, and is otherwise unchanged."""
    stored: str = row(call(session=text))["session"]
    assert "\0" not in stored
    assert stored == stored.encode().decode()
    assert len(stored) == min(200, len(text))
    assert all(left in (right, "\ufffd") for left, right in zip(stored, text, strict=False))


@pytest.mark.parametrize("text", ["a\0b", "a\udfffb"])
def test_characters_that_databases_reject(text: str) -> None:
    """NUL and lone surrogates are replaced."""
    assert "a\ufffdb" == row(call(user_agent=text))["user_agent"]


@pytest.mark.parametrize("value, stored", [(5, 5), (0, 0), (10**12, None), (-(10**30), None), (math.nan, None), (math.inf, None)])
def test_impossible_numbers(value: Any, stored: object) -> None:
    """A number that would overflow sums, or is none, is unknown."""
    assert stored == row(call(tokens=Tokens(input=value)))["input_tokens"]
    assert stored == row(call(cost_usd=value))["cost_usd"]


def test_rows_of_several_kinds() -> None:
    """A row does not depend on those that are made with it, nor on what is remembered of its kind."""
    calls = [of_kind(call(str(number), model=f"m{number % 2}", tokens=Tokens(number or None))) for number in range(4)]
    rows = Rows()
    for _ in range(2):
        assert list(map(row, calls)) == [dict(zip(NAMES, each, strict=True)) for each in zip(*rows.columns(calls), strict=True)]


def test_kinds_are_bounded() -> None:
    """Many kinds do not fill the memory."""
    rows = Rows()
    for number in range(MOST_KINDS + 2):
        rows.columns([of_kind(call(model=str(number)))])
    assert 0 < len(rows._shared) <= MOST_KINDS
