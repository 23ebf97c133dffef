"""An HTTP/1 connection. tests/unit/mitmproxy_patches/test_http1_server.py has it in a proxy, and compares it with mitmproxy's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg.http1_connection import AHEAD, Disconnected, Http1Connection, Unreadable
from azure_openai_proxy.client_leg.http1_requests import End, Head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_openai_proxy.client_leg.http1_connection import Output

CHAT = b"POST /v1/chat HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"POST /v1/chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


def connection(*, half_closed: bool = False, answers: bool = True) -> Http1Connection:
    client = tflow.tclient_conn()
    client.state = ConnectionState.OPEN
    return Http1Connection(
        client,
        error_response=lambda failure: http.Response.make(failure.status) if answers else None,
        page=lambda status, _: b"page %d" % status,
        half_closed=lambda: half_closed,
    )


def written(outputs: Iterator[Output]) -> bytes:
    return b"".join(output.data for output in outputs if isinstance(output, commands.SendData))


def kinds(outputs: Iterator[Output]) -> list[type]:
    return [type(output) for output in outputs]


def answer(of: Http1Connection, response: http.Response, *, last: bool = False) -> list[Output]:
    return [*of.begin(response), *of.body(b"{}"), *of.end(last=last)]


def test_pipelined_requests() -> None:
    """The next one is read when its predecessor is answered, also if that happens while that is read."""
    http1 = connection()
    found = []
    for output in http1.receive(CHAT + CHUNKED + CHAT):
        found.append(type(output))
        if http1.number < 5 and (output is End.END or http1.number == 1):
            answer(http1, http.Response.make(200, b"{}"))
    assert [Head, Head, bytes, End, Head] == found
    assert 5 == http1.number
    http1 = connection()
    assert [Head] == kinds(http1.receive(CHAT + CHUNKED))
    assert [Head, bytes, End] == [
        type(output) for output in answer(http1, http.Response.make(200, b"{}")) if not isinstance(output, commands.SendData)
    ]


def test_later_requests_are_kept_up_to_a_limit() -> None:
    """Nothing more should be received while a request is answered, whatever may be received before its end."""
    http1 = connection()
    list(http1.receive(CHAT[:-1]))
    states = []
    for received in (CHAT[-1:] + b"G" * AHEAD, b"G"):
        list(http1.receive(received))
        states.append(http1.is_full)
    answer(http1, http.Response.make(200, b"{}"))
    assert [False, True, False] == [*states, http1.is_full]


def test_an_answered_request_is_read_no_further() -> None:
    """Once it was answered with its head as the last one, neither body nor end of it is read."""
    http1 = connection()
    doing = http1.receive(CHAT)
    assert isinstance(next(doing), Head)
    assert [commands.CloseTcpConnection, commands.RequestWakeup] == [
        type(output) for output in answer(http1, http.Response.make(403), last=True)
    ][-2:]
    assert [] == list(doing)
    assert [] == list(http1.receive(b"more"))
    assert [commands.CloseConnection] == kinds(http1.close())
    assert [] == list(http1.close())


def test_probes_are_part_of_the_response() -> None:
    """Bytes that were sent as probes are left out of the first write after them."""
    http1 = connection()
    list(http1.receive(CHAT[:-1]))
    assert b"HTT" == written(output for _ in range(3) for output in http1.probe())
    assert b"P/1.1 200 OK\r\n" == written(http1.begin(http.Response.make(200, b"", {"x": "y"})))[:14]
    assert b"body" == written(http1.body(b"body"))
    assert [] == http1.probe()


def test_a_client_that_disconnects() -> None:
    """Its request is cancelled; one that only half-closes its connection gets its response, and then the connection ends."""
    http1 = connection()
    list(http1.receive(CHAT))
    assert [commands.CloseConnection, Disconnected] == kinds(http1.close())
    http1 = connection()
    list(http1.receive(CHAT))
    http1.conn.state = ConnectionState.CLOSED
    assert [Disconnected.DISCONNECTED] == list(http1.close())
    http1 = connection(half_closed=True)
    list(http1.receive(CHAT))
    assert b"HTTP/1.1 100 Continue\r\n\r\n" == written(http1.close())
    *sent, closing = answer(http1, http.Response.make(200, b"{}"))
    assert (b"{}", commands.CloseConnection) == (written(iter(sent))[-2:], type(closing))


def test_a_client_that_half_closes_before_an_upgrade() -> None:
    """The other protocol learns of it when it has begun."""
    http1 = connection(half_closed=True)
    list(http1.receive(CHAT))
    list(http1.close())
    *_, waking = *http1.begin(http.Response.make(101)), *http1.end(last=False)
    assert isinstance(waking, commands.RequestWakeup)
    assert [End.END] == list(http1.close())


@pytest.mark.parametrize(
    "received, instead",
    [(CHAT[:-1], b""), (CHAT.replace(b"2", b"x"), b"page 400")],
    ids=["body", "head"],
)
def test_a_request_that_cannot_be_read(received: bytes, instead: bytes) -> None:
    """The layer above answers it, and the connection ends after that."""
    http1 = connection()
    *_, unreadable = *http1.receive(received), *http1.close()
    assert isinstance(unreadable, Unreadable)
    assert instead == written(iter(unreadable.instead))
    assert isinstance(unreadable.instead[-1], commands.CloseConnection)
    http1.conn.state = ConnectionState.CAN_WRITE
    assert [commands.SendData, commands.SendData, commands.CloseConnection] == [
        type(output) for output in answer(http1, http.Response.make(400))
    ]


def test_an_answered_request_that_cannot_be_read() -> None:
    """There is nothing left to answer."""
    http1 = connection()
    list(http1.receive(CHAT[:-1]))
    answer(http1, http.Response.make(200, b"{}"))
    assert [commands.CloseTcpConnection, commands.RequestWakeup] == kinds(http1.close())


def test_a_malformed_head() -> None:
    """It is answered by the policy, or else by mitmproxy's page."""
    http1 = connection()
    sent = list(http1.receive(b"\x16\x03"))
    assert b"HTTP/1.1 400" == written(iter(sent))[:12]
    assert isinstance(sent[0], commands.Log)
    http1 = connection(answers=False)
    assert b"page 400" == written(http1.receive(b"\x16\x03"))
    assert [] == list(http1.receive(CHAT))


def test_failures() -> None:
    """mitmproxy's page is no part of a started response, and nothing is sent to a client that has disconnected."""
    http1 = connection()
    list(http1.receive(CHAT))
    assert [commands.CloseConnection] == kinds(http1.fail(None, "killed"))
    assert [commands.SendData, commands.CloseConnection] == kinds(http1.fail(502, "unreachable"))
    list(http1.begin(http.Response.make(200)))
    assert [commands.CloseConnection] == kinds(http1.fail(502, "unreachable"))
    http1.conn.state = ConnectionState.CLOSED
    assert [] == list(http1.fail(502, "unreachable"))


def test_a_response_of_http2() -> None:
    """It is written as one of HTTP/1.1, with a reason."""
    http1, response = connection(), http.Response.make(200)
    list(http1.receive(CHAT))
    response.http_version, response.reason = "HTTP/2.0", ""
    assert b"HTTP/1.1 200 OK\r\n" == written(http1.begin(response))[:17]
    assert "HTTP/2.0" == response.http_version


def test_chunks() -> None:
    """Of a response without length; an empty part of a body is not its end, and HEAD has none."""
    response = http.Response.make(200, b"", {"transfer-encoding": "chunked"})
    for method, end in ((b"POST", b"0\r\n\r\n"), (b"HEAD", b"")):
        http1 = connection()
        list(http1.receive(CHAT.replace(b"POST", method)))
        list(http1.begin(response))
        assert b"2\r\nab\r\n" == written(http1.body(b"ab"))
        assert b"" == written(http1.body(b""))
        assert end == written(http1.end(last=False))


def test_an_upgraded_connection() -> None:
    """After CONNECT, which has no end of a request, all bytes pass, and so does their end."""
    http1 = connection()
    assert [Head] == kinds(http1.receive(b"CONNECT localhost:443 HTTP/1.1\r\n\r\n"))
    answer(http1, http.Response.make(200))
    assert [b"\x16\x03"] == list(http1.receive(b"\x16\x03"))
    assert [End.END] == list(http1.close())
    assert [commands.CloseConnection] == kinds(http1.fail(None, "EOF"))
