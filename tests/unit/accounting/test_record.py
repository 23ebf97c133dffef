"""The usage record."""

from __future__ import annotations

import dataclasses

import pytest

from azure_openai_proxy.accounting.record import (
    COMMON,
    NO_TOKENS,
    OWN,
    Batch,
    CallKind,
    CallRecord,
    Tokens,
    batch_of,
    milliseconds,
)


def test_the_sum_of_tokens() -> None:
    """Known counts are added, and a count that is unknown in both stays unknown."""
    assert Tokens(3, 5, None, 7, 4) == Tokens(1, 5, None, 7).plus(Tokens(2, None, None, None, 4))


@pytest.mark.parametrize("status, work", [(200, True), (101, False), (404, False), (None, False)])
def test_whether_names_work(status: int | None, work: bool) -> None:
    """The names of a request are known to exist only if a response succeeded."""
    assert work == CallRecord(time=0, request_id="", trace_id="", status=status).names_work


def test_a_changed_record() -> None:
    """It leaves its kind, because sinks use what they remember of a kind."""
    record = CallKind(status=200).record()
    record.change(status=503)
    assert (503, None) == (record.status, record.kind)


def test_milliseconds() -> None:
    """They have three decimals."""
    assert [None, 12.346, 0.0] == milliseconds((None, 0.0123456, 0.0))


def test_columns() -> None:
    """A batch reads each member once, and converts it once."""
    batch = batch_of([CallRecord(time=at, request_id="r", trace_id="", tokens=Tokens(1, 2, None, 4), duration=at) for at in (0.0, 1.0)])
    assert [(4, 4), ("r", "r"), (1, 1), (0.0, 1.0)] == [*map(batch.column, ["tokens.output", "request_id", "tokens.input", "time"])]
    assert [0.0, 1000.0] == batch.column("duration", milliseconds)
    assert batch.column("duration", milliseconds) is batch.column("duration", milliseconds)
    assert batch is batch_of(batch)


def own(**members: object) -> tuple[object, ...]:
    return tuple(members.get(name, NO_TOKENS if name == "tokens" else None) for name in OWN)


def test_the_members_of_a_record() -> None:
    """Each is common to a kind or its own."""
    assert {one.name for one in dataclasses.fields(CallRecord)} == {*COMMON, *OWN, "kind"}
    assert len(COMMON) + len(OWN) == len({*COMMON, *OWN})


def test_rows() -> None:
    """A batch of rows has the columns and the records of a batch of records."""
    kinds = [CallKind(status=200), CallKind(status=503)]
    rows = [own(time=float(number), request_id=str(number), tokens=Tokens(number), attempts=()) for number in range(3)]
    places = [0, 1, 0]
    made = Batch([kinds[place] for place in places], rows=rows)
    assert [(0.0, 1.0, 2.0), ("0", "1", "2"), (0, 1, 2)] == [*map(made.column, ["time", "request_id", "tokens.input"])]
    assert [kinds[place].sample for place in places] == made.samples
    assert [["0", "2"], ["1"]] == [[call.request_id for call in part] for part in made.by_kind()]
    expected = [kinds[place].record(row) for place, row in zip(places, rows, strict=True)]
    assert expected == list(made) == [*made[:2], made[2]]
    assert 3 == len(made)
    records = batch_of(expected)
    assert [made.column(name) for name in OWN[1:]] == [records.column(name) for name in OWN[1:]]
    assert [["0", "2"], ["1"]] == [[call.request_id for call in part] for part in records.by_kind()]
    assert expected == records.samples


def test_records_without_a_kind() -> None:
    """Each is a part of its own."""
    calls = [CallRecord(time=0, request_id="r", trace_id="") for _ in range(2)]
    assert [[calls[0]], [calls[1]]] == [list(part) for part in batch_of(calls).by_kind()]


def test_the_kind_of_a_batch() -> None:
    """It has one if all its records have it."""
    one, other = CallKind(status=200), CallKind(status=503)
    changed = one.record()
    changed.change(status=503)
    assert [one, None, None, None] == [
        batch_of(calls).one_kind for calls in ([one.record()] * 2, [one.record(), other.record()], [changed], list[CallRecord]())
    ]
