"""Heads of HTTP/1.1. tests/unit/mitmproxy_patches/test_http1_server.py sends them through a proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.net.http import validate

from azure_openai_proxy.client_leg import http1
from azure_openai_proxy.client_leg.headers import is_checked
from azure_openai_proxy.client_leg.http1 import MAX_HEAD
from support.http1_heads import LINES, NAMES, VALUES

LINE = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "received, message",
    [
        (LINE, None),
        (LINE + b"a: b\r\n\r\n", None),
        (b"G", None),
        (b"\x16\x03", "This is not the beginning"),
        (b"GET / HTTP/2.0\r\n", "neither 1.0 nor 1.1"),
        (LINE + b"Content-Length:\x0b5\r\n\r\n", "contains control characters"),
        (LINE + b"a: " + b"b" * MAX_HEAD, "are longer than"),
        (LINE + b"a: " + b"b" * MAX_HEAD + b"\r\n\r\n", "are longer than"),
    ],
)
def test_flaw(received: bytes, message: str | None) -> None:
    """A head is refused as soon as it is known to be wrong."""
    found = http1.flaw(received)
    assert (message is None) == (found is None)
    assert found is None or (message or "") in found.message


@pytest.mark.parametrize(
    "request_, wrong",
    [
        (http.Request.make("GET", "http://a/b", headers=http.Headers(x="a\tb")), None),
        (http.Request.make("G T", "http://a/b"), "has a space or a tab"),
        (http.Request.make("GET", "http://a/b", headers=http.Headers(x="a\x00b")), "contain control characters"),
    ],
)
def test_forbidden_bytes(request_: http.Request, wrong: str | None) -> None:
    """HTTP/2 can carry what HTTP/1.1 cannot."""
    found = http1.forbidden_bytes(request_)
    assert (wrong is None) == (found is None)
    assert (wrong or "") in (found or "")


@pytest.mark.parametrize("method, last, sent", [("POST", False, b"{}"), ("HEAD", True, b"")])
def test_complete(method: str, last: bool, sent: bytes) -> None:
    """A response of known length; one to HEAD has no body, and the last one of a connection says so."""
    response = http.Response.make(200, b"{}", {"transfer-encoding": "chunked"})
    found = http1.complete(response, http.Request.make(method, "http://a/"), last=last)
    assert ("2", "transfer-encoding" in found.headers, sent) == (found.headers["content-length"], False, found.raw_content)
    assert last == ("connection" in found.headers)


@pytest.mark.parametrize(
    "version, asked, sent, connection",
    [
        ("HTTP/1.1", None, {}, None),
        ("HTTP/1.1", "close", {}, "close"),
        ("HTTP/1.1", "x-other", {}, None),
        ("HTTP/1.1", "close", {"connection": "upgrade"}, "upgrade"),
        ("HTTP/1.0", None, {}, "close"),
        ("HTTP/1.0", "keep-alive", {}, "keep-alive"),
        ("HTTP/1.0", "keep-alive", {"transfer-encoding": "chunked"}, "close"),
    ],
)
def test_set_connection(version: str, asked: str | None, sent: dict[str, str], connection: str | None) -> None:
    """HTTP/1.0 needs it, and has no chunks."""
    request = http.Request.make("GET", "http://a/", headers=http.Headers(connection=asked) if asked else http.Headers())
    request.http_version = version
    response = http.Response.make(200, b"", sent)
    http1.set_connection(response, request)
    assert (connection, False) == (response.headers.get("connection"), "transfer-encoding" in response.headers)


@given(fields=st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=4), line=LINES)
def test_valid(fields: list[tuple[str, str]], line: str) -> None:
    """What the quick reader takes passes mitmproxy's validation and ours, so it is marked as checked until it is changed."""
    head = "\r\n".join([line, *(f"{name}:{value}" for name, value in fields), "", ""]).encode()
    if found := http1.ordinary(head):
        validate.validate_headers(found[0])
        assert None is http1.forbidden_bytes(found[0])
        assert "CONNECT" != found[0].method
        assert is_checked(found[0])
        found[0].headers["x-added"] = "line\nbreak"
        assert not is_checked(found[0])


def test_long_heads() -> None:
    """A head over the limit is not ordinary."""
    assert http1.ordinary(LINE + b"a:" + b"b" * (MAX_HEAD - len(LINE) - 6) + b"\r\n\r\n")
    assert not http1.ordinary(LINE + b"a:" + b"b" * MAX_HEAD + b"\r\n\r\n")


@pytest.mark.parametrize(
    "fields, stays",
    [
        ({"content-length": "2"}, True),
        ({"content-length": "2", "connection": "close"}, False),
        ({"content-length": "two"}, True),
        ({"transfer-encoding": "chunked"}, True),
        ({}, False),
    ],
)
def test_stays_open(fields: dict[str, str], stays: bool) -> None:
    """Unless one side closes the connection, or its end is that of the body."""
    request, response = http.Request.make("GET", "http://a/"), http.Response.make(200, b"", http.Headers())
    response.headers.clear()
    response.headers.update(fields)
    assert stays == http1.stays_open(request, response)
    request.headers["connection"] = "close"
    assert not http1.stays_open(request, response)


@pytest.mark.parametrize("end", [b" ", b"\t"])
def test_whitespace_after_a_value(end: bytes) -> None:
    """It belongs to no header, so the quick reader leaves the head to mitmproxy's."""
    assert not http1.ordinary(LINE + b"a: b" + end + b"\r\n\r\n")
