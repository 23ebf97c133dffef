"""The usage record."""

from __future__ import annotations

import pytest

from azure_openai_proxy.accounting.record import Batch, CallKind, CallRecord, Tokens, batch_of, milliseconds


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
    batch = Batch([CallRecord(time=at, request_id="r", trace_id="", tokens=Tokens(1, 2, None, 4), duration=at) for at in (0.0, 1.0)])
    assert [(4, 4), ("r", "r"), (1, 1), (0.0, 1.0)] == [*map(batch.column, ["tokens.output", "request_id", "tokens.input", "time"])]
    assert [0.0, 1000.0] == batch.column("duration", milliseconds)
    assert batch.column("duration", milliseconds) is batch.column("duration", milliseconds)
    assert batch is batch_of(batch)


def test_the_kind_of_a_batch() -> None:
    """It has one if all its records have it."""
    one, other = CallKind(status=200), CallKind(status=503)
    changed = one.record()
    changed.change(status=503)
    assert [one, None, None, None] == [
        Batch(calls).one_kind for calls in ([one.record()] * 2, [one.record(), other.record()], [changed], list[CallRecord]())
    ]
