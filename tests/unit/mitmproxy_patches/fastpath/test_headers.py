"""The quicker headers answer as mitmproxy's do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.proxy.layers.http._events import RequestEndOfMessage, RequestHeaders, ResponseHeaders
from mitmproxy.test import tutils

from azure_openai_proxy.mitmproxy_patches.fastpath import headers as fast_headers

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


@given(fields=st.lists(st.tuples(NAMES, NAMES)), steps=STEPS)
def test_as_mitmproxys(fields: list[tuple[str, str]], steps: list[tuple[str, str, str]]) -> None:
    """Whatever is asked and changed, in any order, is answered as mitmproxy's own headers answer it, errors included."""
    raw = [(name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape")) for name, value in fields]
    expected, actual = http.Headers(raw), fast_headers.Headers(raw)
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


def test_keys_of_another_kind() -> None:
    """What is no name is no header."""
    assert 1 not in fast_headers.Headers()


def test_quicken() -> None:
    """The headers of requests and answers are the quicker ones; what has them already, or has no headers, stays."""
    request, response = tutils.treq(), tutils.tresp()
    fast_headers.quicken(RequestHeaders(1, request, end_stream=True))
    fast_headers.quicken(ResponseHeaders(1, response))
    fast_headers.quicken(ResponseHeaders(1, response))
    fast_headers.quicken(RequestEndOfMessage(1))
    assert fast_headers.Headers is type(request.headers)
    assert fast_headers.Headers is type(response.headers)


def test_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are not checked while trusted, and checked again afterwards; under -O there is nothing to leave out."""
    fast_headers.trust(on=True)
    tutils.treq(port="a port")
    fast_headers.trust(on=False)
    with pytest.raises(TypeError):
        tutils.treq(port="a port")
    monkeypatch.setattr(fast_headers, "_check", None)
    fast_headers.trust(on=True)
    with pytest.raises(TypeError):
        tutils.treq(port="a port")
