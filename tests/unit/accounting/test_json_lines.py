"""Lines of JSON."""

from __future__ import annotations

import datetime as dt
import json
import math
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.accounting.access_log import FIELDS, write
from azure_openai_proxy.accounting.json_lines import MOST, Field, Lines, time_texts
from azure_openai_proxy.accounting.record import COMMON, CallRecord, Tokens
from support.metering import of_kind

_TEXT = st.none() | st.text(max_size=12)
_COUNT = st.none() | st.integers(0, 10**12)
_SECONDS = st.none() | st.floats(0, 1e6)
_RECORDS = st.builds(
    CallRecord,
    time=st.floats(0, 4e9),
    request_id=st.text(),
    trace_id=st.text(),
    client=st.text(),
    session=_TEXT,
    path=st.text(),
    model=_TEXT,
    spillover=st.none() | st.booleans(),
    status=st.none() | st.integers(100, 599),
    stream=st.booleans(),
    repairs=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    tokens=st.builds(Tokens, _COUNT, _COUNT, _COUNT, _COUNT),
    cost_usd=st.none() | st.floats(0, 1e9),
    duration=_SECONDS,
    first_byte=_SECONDS,
    overhead=_SECONDS,
    user_agent=_TEXT,
)


def expected_line(call: CallRecord) -> str:
    converted: dict[str, Any] = {
        "time": dt.datetime.fromtimestamp(call.time, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "attempts": 0,
        "repairs": list(call.repairs),
    } | {
        f"{name}_ms": None if value is None else round(value * 1e6) / 1000
        for name, value in (("duration", call.duration), ("first_byte", call.first_byte), ("overhead", call.overhead))
    }
    expected = {field.name: converted.get(field.name, attrgetter(field.attribute)(call)) for field in FIELDS}
    return json.dumps(expected, separators=(",", ":")).replace("\x7f", "\\u007f") + "\n"


@given(st.lists(_RECORDS, max_size=3))
def test_lines_are_what_json_dumps_writes(calls: list[CallRecord]) -> None:
    """The templates change nothing, also when later records use them."""
    expected = "".join(map(expected_line, calls))
    kinds = list(map(of_kind, calls))
    assert [expected, expected, expected] == [write(calls), write(kinds), write(kinds)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1.9995, "1970-01-01T00:00:01.999Z"),
        (1.9999999, "1970-01-01T00:00:02.000Z"),
        (1e9 + 0.25, "2001-09-09T01:46:40.250Z"),
    ],
)
def test_a_time(seconds: float, text: str) -> None:
    """A time has milliseconds, and does not round up to the next one, except at a whole second."""
    assert [text] == time_texts((seconds,))


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks(value: float | None) -> None:
    """It is null, and all other values are as usual."""
    calls = [CallRecord(time=0.0, request_id="a\n", trace_id="t", cost_usd=each) for each in (value, 0.5)]
    found = [json.loads(line) for line in write(calls).splitlines()]
    assert [("a\n", None), ("a\n", 0.5)] == [(each["request_id"], each["cost_usd"]) for each in found]


def test_numbers_are_no_booleans() -> None:
    """A column of numbers is written as it is, and Python would write a boolean in it as True."""
    types = [CallRecord.__annotations__.get(field.attribute, "") for field in FIELDS if field.attribute not in COMMON]
    assert "float | None" in types
    assert not [each for each in types if "bool" in each]


def test_nested_values() -> None:
    """An object of several members is a member of its own line alone."""
    details = {"a": [1, 2], "b": {"c": None, "d": "\x7f"}}
    calls = [CallRecord(time=0.0, request_id="r", trace_id="t", model_selection_details=each) for each in (None, details, None)]
    assert [None, details, None] == [json.loads(line)["model_selection_details"] for line in write(calls).splitlines()]


def test_templates_are_bounded() -> None:
    """Many values that are in common to few calls do not fill the memory. A percent sign in them is none of a format."""
    lines = Lines([Field("id", "", "request_id"), Field("model", "", "model")])
    for count in range(2 * MOST):
        model = f"{count}%s"
        call = of_kind(CallRecord(time=0.0, request_id="r", trace_id="t", model=model))
        assert {"id": "r", "model": model} == json.loads(lines([call]))
    assert 0 < len(lines.templates) <= MOST
