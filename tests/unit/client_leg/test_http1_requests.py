"""Requests of an HTTP/1 connection. tests/unit/mitmproxy_patches/test_http1_server.py sends them through a proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.client_leg.http1 import MAX_HEAD
from azure_openai_proxy.client_leg.http1_requests import Broken, End, Head, Requests
from azure_openai_proxy.errors import Failure

PLAIN = b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"POST /b HTTP/1.1\nTransfer-Encoding: chunked\n\n1;x=y\r\na\r\n2\r\nbc\r\n0\r\nx-late: 1\r\n\r\n"
EMPTY = b"\r\n\r\nGET /c HTTP/1.1\r\n\r\n"
UNTIL_CLOSED = b"POST /d HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nab"
HUGE = "x" * MAX_HEAD


def read(requests: Requests, *, proceed: bool = True) -> list[object]:
    """All that can be read; a head is its path and whether there is a body. A body that came with it is a part of its own here."""
    found: list[object] = []
    while (item := requests.next()) is not None:
        if not isinstance(item, Head):
            found.append(item)
        else:
            found.append((item.request.path, item.has_body))
            if item.body is not None:
                found += [item.body, End.END] if item.body else [End.END]
        if found[-1] is End.END and proceed:
            requests.proceed()
    return found


def joined(items: list[object]) -> list[object]:
    """Parts of a body that follow one another are one."""
    out: list[object] = []
    for item in items:
        if isinstance(item, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += item
        else:
            out.append(item)
    return out


READ = [("/a", True), b"{}", End.END, ("/b", True), b"abc", End.END, ("/c", False), End.END, ("/a", True), b"{}", End.END]


@given(cuts=st.lists(st.integers(0, 250), max_size=6))
def test_pipelined(cuts: list[int]) -> None:
    """However they are cut, requests are read one after the other; blank lines and trailers are dropped."""
    data = PLAIN + CHUNKED + EMPTY + PLAIN
    requests, found, before = Requests(), [], 0
    for cut in (*sorted(cuts), len(data)):
        if part := data[before:cut]:
            requests.receive(part)
        found += read(requests)
        before = max(before, cut)
    assert READ == joined(found)
    assert (True, False, False) == (requests.between, requests.complete, requests.stopped)
    assert None is requests.end()


@given(parts=st.lists(st.integers(1, 5), max_size=4))
def test_the_next_request_waits(parts: list[int]) -> None:
    """It is kept, in whatever parts it comes, until the previous one is answered."""
    requests = Requests()
    requests.receive(PLAIN)
    assert [("/a", True), b"{}", End.END] == read(requests, proceed=False)
    assert requests.complete
    for _ in parts:
        requests.receive(PLAIN)
    assert [] == read(requests)
    requests.proceed()
    assert [("/a", True), b"{}", End.END] * len(parts) == read(requests)


def test_whole_requests() -> None:
    """A small request that is received at once is one part."""
    requests = Requests()
    requests.receive(PLAIN + b"GET /c HTTP/1.1\r\nHost: localhost\r\n\r\n" + PLAIN[:-1])
    for expected in (b"{}", b""):
        head = requests.next()
        assert isinstance(head, Head)
        assert (bool(expected), expected, True) == (head.has_body, head.body, requests.complete)
        assert None is requests.next()
        requests.proceed()
    head = requests.next()
    assert isinstance(head, Head)
    assert None is head.body
    assert b"{" == requests.next()


@pytest.mark.parametrize(
    "received, message",
    [
        (b"\x16\x03", "not the beginning"),
        (b"GET /a HTTP/1.1\r\nAuthorization Bearer sk-secret\r\n\r\n", "Invalid header line."),
        (f"GET /a HTTP/1.1\r\nx: {HUGE}".encode(), "longer than"),
        (f"GET /a HTTP/1.1\r\nx: {HUGE}\r\n\r\n".encode(), "longer than"),
    ],
)
def test_a_head_that_cannot_be_read(received: bytes, message: str) -> None:
    """Its error does not quote it, and nothing after it is read."""
    requests = Requests()
    requests.receive(received + PLAIN)
    (failure,) = read(requests)
    assert isinstance(failure, Failure)
    assert message in failure.message
    assert "secret" not in failure.message
    assert requests.stopped
    requests.receive(PLAIN)
    assert ([], None) == (read(requests), requests.end())


@pytest.mark.parametrize(
    "received, before, message",
    [
        (b"POST /a HTTP/1.1\r\nContent-Length: -5\r\n\r\n", [], "invalid content-length header"),
        (CHUNKED.replace(b"1;", b"z;"), [], "HTTP/1 protocol error: illegal chunk header"),
        (CHUNKED.replace(b"a\r\n", b"ax"), [b"a"], "HTTP/1 protocol error: malformed chunk footer"),
    ],
)
def test_framing_that_cannot_be_read(received: bytes, before: list[bytes], message: str) -> None:
    """The head comes first, then the readable part of the body, then the error."""
    requests = Requests()
    requests.receive(received)
    *parts, broken = read(requests)
    assert [(received.split()[1].decode(), True), *before] == parts
    assert isinstance(broken, Broken)
    assert broken.message.startswith(message)
    assert requests.stopped


@pytest.mark.parametrize(
    "received, message",
    [
        (b"", None),
        (b"\r\n", None),
        (b"GET /a", "before the request's headers were complete"),
        (PLAIN[:-1], "received 1 bytes, expected 2"),
        (CHUNKED[:-1], "incomplete chunked read"),
        (UNTIL_CLOSED, "END"),
    ],
)
def test_the_end_of_the_connection(received: bytes, message: str | None) -> None:
    """Within a request it is an error, unless it ends the body."""
    requests = Requests()
    if received:
        requests.receive(received)
    read(requests)
    end = requests.end()
    assert (message is None) == (end is None)
    assert (message or "") in str(end)


def test_an_upgraded_connection() -> None:
    """All bytes pass unchanged, but for blank lines at their beginning."""
    requests = Requests()
    requests.receive(PLAIN + b"\r\nahead")
    read(requests, proceed=False)
    requests.pipe()
    assert [b"ahead"] == read(requests)
    requests.receive(b"\r\n")
    assert [b"\r\n"] == read(requests)
    assert End.END is requests.end()
