"""The quicker headers answer as mitmproxy's do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy import http

from azure_openai_proxy.client_leg.headers import Headers, drop_index, make_index

NAMES = st.sampled_from(["a", "A", "b", "B-c", "b-C", "\u00e4", "\u00c4", "x\udcff", ""])
STEPS = st.lists(
    st.tuples(st.sampled_from(["get", "in", "item", "set", "del", "pop", "add", "get_all", "set_all", "setdefault"]), NAMES, NAMES),
    max_size=20,
)


def step(headers: http.Headers, what: str, name: str, value: str) -> Any:
    match what:
        case "get":
            return headers.get(name), headers.get(name.encode("utf-8", "surrogateescape"), value)
        case "in":
            return name in headers
        case "item":
            return headers[name]
        case "set":
            headers[name] = value
        case "del":
            del headers[name]
        case "pop":
            return headers.pop(name, None)
        case "add":
            headers.add(name, value)
        case "get_all":
            return headers.get_all(name)
        case "set_all":
            headers.set_all(name, [value, value])
        case "setdefault":
            return headers.setdefault(name, value)
    return None


@example(fields=[("a", "b"), ("A", "a")], steps=[("set", "a", "B-c")])  # of fields with equal names the first is replaced
@given(fields=st.lists(st.tuples(NAMES, NAMES)), steps=STEPS)
def test_as_mitmproxys(fields: list[tuple[str, str]], steps: list[tuple[str, str, str]]) -> None:
    """Every read and change, in any order, has the same result as with mitmproxy's own headers, errors included."""
    raw = [(name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape")) for name, value in fields]
    expected, actual = http.Headers(raw), Headers(raw)
    for what, name, value in steps:
        answers = []
        for headers in (expected, actual):
            try:
                answers.append(step(headers, what, name, value))
            except KeyError as error:
                answers.append(error.args)
        assert answers[0] == answers[1]
        assert expected.fields == actual.fields
    assert expected == actual
    assert expected.fields == actual.copy().fields


def test_new() -> None:
    """Fields of other headers are taken over as they are; anything else is converted and checked as in mitmproxy."""
    fields = ((b"a", b"1"),)
    assert Headers(fields).fields is fields
    assert Headers([(b"a", b"1")]).fields == fields
    assert Headers(fields, some_name="2").fields == (*fields, (b"some-name", b"2"))
    with pytest.raises(TypeError):
        Headers([("a", "1")])  # type: ignore[list-item]


@pytest.mark.parametrize(("name", "value"), [(1, "a"), ("a", 1)])
def test_values_of_another_kind(name: Any, value: Any) -> None:
    """Headers are text or bytes, as in mitmproxy."""
    headers = Headers()
    with pytest.raises(TypeError):
        headers[name] = value
    assert () == headers.fields


def test_keys_of_another_kind() -> None:
    """A key that is not a name is not a header."""
    assert 1 not in Headers()


def test_make_index() -> None:
    """The headers of a message get the quicker class; those that have it stay."""
    request = http.Request.make("GET", "http://localhost/", headers=http.Headers(a="b"))
    for _ in range(2):
        make_index(request)
        assert (Headers, "b") == (type(request.headers), request.headers["A"])


def test_a_dropped_index_is_made_again() -> None:
    """Looking up and setting work as before; other headers have no index."""
    headers, other = Headers(((b"A", b"1"),)), http.Headers(a="1")
    assert "1" == headers["a"]
    for each in (headers, other):
        drop_index(each)
        assert "1" == each["a"]
    drop_index(headers)
    assert {} == headers._index
    headers["a"] = "2"
    assert ((b"A", b"2"),) == headers.fields
