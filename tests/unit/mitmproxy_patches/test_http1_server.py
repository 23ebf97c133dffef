"""An HTTP/1 client connection: malformed requests, pipelining, and how the connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg import http1, probes
from azure_openai_proxy.client_leg.http1_connection import AHEAD
from azure_openai_proxy.mitmproxy_patches import connections
from azure_openai_proxy.mitmproxy_patches.http1_server import PatchedHttp1Server, WholeRequest
from support.http1_heads import LINES, NAMES, VALUES
from support.patched_proxy import LIMIT, MB, SSE_HEAD, HttpPolicy, Proxy, Upstream, head, still_works
from support.processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


# Heads that are none

BAD_HEADS = {
    "no request line": b"hello\r\n\r\n",
    "version": b"GET /echo HTTP/x\r\n\r\n",
    "no colon": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer sk-secret\r\n\r\n",
    "leftovers": b'"}]}',
    "not text": b"\x16\x03",
    "NUL in a value": head("POST /echo HTTP/1.1", "X: a\0b"),
    "control character in a value": head("POST /echo HTTP/1.1", "X: a\x1bb"),
    "control character in the path": head("POST /ec\x01ho HTTP/1.1"),
    "control character in a name": head("POST /echo HTTP/1.1", "X\x01: b"),
    "framing behind a control character": head("POST /echo HTTP/1.1", "Transfer-Encoding:\x0bchunked"),
    "bare CR": head("POST /echo HTTP/1.1", "X: a\rEvil: b"),
    "folded header": head("POST /echo HTTP/1.1", "X: a\r\n b"),
    "folded first header": b"POST /echo HTTP/1.1\r\n X: a\r\n\r\n",
    "HTTP/0.9": head("POST /echo HTTP/0.9"),
    "HTTP/2.0": head("POST /echo HTTP/2.0"),
    "bare CR, no body": head("GET /echo HTTP/1.1", "X: a\rEvil: b"),
    "space in a name": head("POST /echo HTTP/1.1", "X y: b"),
    "content-length is no number": head("POST /echo HTTP/1.1", "Content-Length: abc"),
    "negative content-length": head("POST /echo HTTP/1.1", "Content-Length: -5"),
    "two content-lengths": head("POST /echo HTTP/1.1", "Content-Length: 5", "Content-Length: 6") + b"12345",
    "content-length and transfer-encoding": head("POST /echo HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "unknown transfer-encoding": head("POST /echo HTTP/1.1", "Transfer-Encoding: magic"),
}


@pytest.mark.parametrize("what", BAD_HEADS)
@pytest.mark.parametrize("tls", [False, True])
def test_bad_head(proxy: Proxy, what: str, tls: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A head that cannot be trusted is answered with 400 in our shape, then the connection is closed; the proxy goes on."""
    with proxy.dial(tls=tls and what != "not text") as client:
        answer = client.ask(BAD_HEADS[what])
        assert (400, "invalid_request", "close") == (answer.status, answer.code, answer.headers["connection"])
        assert b"secret" not in answer.body
        assert client.closed()
    assert "request" not in proxy.policy.hooks
    assert still_works(proxy)
    assert "crashed" not in caplog.text


def test_connection_closed_in_head(proxy: Proxy) -> None:
    """A client that half-closes its connection within the head gets an error."""
    with proxy.dial() as client:
        client.send(head()[:-2])
        client.sock.shutdown(socket.SHUT_WR)
        assert 400 == client.answer().status
        assert client.closed()
    with proxy.dial() as client:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    with proxy.dial() as client:
        client.send(b"\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    with proxy.dial() as client:
        client.ask(head())
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_long_head(proxy: Proxy, end: bytes) -> None:
    """A head over 64 KiB is answered with 431 as soon as that is known, and the answer arrives though the client still sends."""
    with proxy.dial() as client:
        client.send(head()[:-2] + b"X: " + MB[: http1.MAX_HEAD] + end)
        with contextlib.suppress(OSError):
            client.send(MB)
        answer = client.answer()
        assert (431, "request_head_too_large") == (answer.status, answer.code)
    assert still_works(proxy)


def test_head_of_almost_the_limit(proxy: Proxy) -> None:
    """A head within the limit passes, however many bytes of the body follow."""
    value = "x" * (http1.MAX_HEAD - 200)
    with proxy.dial() as client:
        assert LIMIT == json.loads(client.ask(head("POST /echo HTTP/1.1", f"X: {value}", f"Content-Length: {LIMIT}") + MB).body)["length"]


def test_blank_lines_and_pipelining(proxy: Proxy) -> None:
    """Line ends before a request are skipped, and requests in one packet are answered in turn."""
    with proxy.dial() as client:
        client.send(b"\r\n" + head("POST /echo HTTP/1.1", "Content-Length: 2") + b"{}\r\n" + head())
        assert [2, 0] == [json.loads(client.answer().body)["length"] for _ in range(2)]


def test_hooks_of_a_bad_request(proxy: Proxy) -> None:
    """A request that can be read but for its framing passes the hooks that it would pass in mitmproxy, before it is answered."""
    with proxy.dial() as client:
        client.ask(BAD_HEADS["negative content-length"])
        client.rest()
    assert ["requestheaders", "error", "answer"] == proxy.policy.hooks


def test_trailers_of_chunks_are_dropped(proxy: Proxy) -> None:
    """The request is served without them, and the connection serves the next one."""
    with proxy.dial() as client:
        body = b"2\r\n{}\r\n0\r\nX-Late: 1\r\n\r\n"
        assert 2 == json.loads(client.ask(head("POST /echo HTTP/1.1", "Transfer-Encoding: chunked"), body).body)["length"]
        assert 200 == client.ask(head()).status


@pytest.mark.parametrize(
    "version, header, answered",
    [("1.1", "close", "close"), ("1.1", "keep-alive", None), ("1.0", None, "close"), ("1.0", "keep-alive", "keep-alive")],
)
def test_the_response_says_whether_the_connection_stays(proxy: Proxy, version: str, header: str | None, answered: str | None) -> None:
    """Where the client's HTTP version does not imply it."""
    with proxy.dial() as client:
        request = head(f"GET /echo HTTP/{version}", *([f"Connection: {header}"] if header else []))
        assert answered == client.ask(request).headers["connection"]
        if "close" == answered:
            assert client.closed()
        else:
            assert 200 == client.ask(request).status


# Bodies over the limit


def test_large_body_cut_short(proxy: Proxy) -> None:
    """A client that breaks off after its 413 is let go, and chunks that make no sense end the connection."""
    with proxy.dial() as client:
        assert 413 == client.ask(head("POST /echo HTTP/1.1", f"Content-Length: {LIMIT + 1}")).status
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    with proxy.dial() as client:
        assert 413 == client.ask(head("POST /echo HTTP/1.1", "Transfer-Encoding: chunked"), b"%x\r\n%sx\r\n" % (LIMIT + 1, MB)).status
        client.send(b"nonsense\r\n")
        assert client.closed()
    assert still_works(proxy)


# Bodies that break off


def test_body_cut_short(proxy: Proxy) -> None:
    """A client that closes its half within the body gets 400; nothing is sent upstream."""
    with Upstream(lambda _: None) as upstream:
        for framing in (["Content-Length: 10"], ["Transfer-Encoding: chunked"]):
            with proxy.dial() as client:
                client.send(head(f"POST /up/{upstream.port} HTTP/1.1", *framing), b"4\r\nab")
                client.sock.shutdown(socket.SHUT_WR)
                answer = client.answer()
                assert (400, "invalid_request", "close") == (answer.status, answer.code, answer.headers["connection"])
                assert client.closed()
        with proxy.dial() as client:
            client.send(head(f"POST /up/{upstream.port} HTTP/1.1", "Content-Length: 10"), b"ab")
        assert still_works(proxy)
        assert 0 == upstream.accepted
    assert "requestheaders error answer" in " ".join(proxy.policy.hooks)


@pytest.mark.parametrize("body", [b"zz\r\nab\r\n", b"2\r\nabcd\r\n", b"2\r\nab\r\n0\r\nbad trailer\r\n\r\n"])
def test_bad_chunks(proxy: Proxy, body: bytes) -> None:
    """Chunks that make no sense get 400, in one packet with the head or after it."""
    lines = head("POST /echo HTTP/1.1", "Transfer-Encoding: chunked")
    for parts in ([lines + body], [lines, body]):
        with proxy.dial() as client:
            answer = client.ask(*parts)
            assert (400, "invalid_request") == (answer.status, answer.code)
            assert b"ab" not in answer.body.replace(b"readable", b"")
            assert client.closed()
    assert still_works(proxy)


def test_content_length_too_small(proxy: Proxy) -> None:
    """The request is served with its declared length; the remaining bytes are not a request."""
    with proxy.dial() as client:
        client.send(head("POST /echo HTTP/1.1", "Content-Length: 5") + b'{"a":"b"}')
        assert 5 == json.loads(client.answer().body)["length"]
        assert 400 == client.answer().status
        assert client.closed()


# Upstream


def test_a_client_of_http_1_0_gets_no_chunks(proxy: Proxy) -> None:
    """It gets their contents, and the end of the connection for their end."""
    with (
        Upstream(lambda connection: connection.sendall(SSE_HEAD + b"2\r\nab\r\n0\r\n\r\n")) as upstream,
        proxy.dial() as client,
    ):
        answer = client.ask(head(f"GET /up/{upstream.port} HTTP/1.0"))
        assert (b"ab", "close", None) == (answer.body, answer.headers["connection"], answer.headers["transfer-encoding"])


WHOLE = SSE_HEAD.replace(b"Transfer-Encoding: chunked", b"Content-Length: 4")


@pytest.mark.parametrize(
    "version, served, probe",
    [
        ("1.0", (b"", WHOLE + b"abcd"), b""),
        ("1.1", (b"", WHOLE + b"abcd"), probes.CONTINUE),
        ("1.1", (WHOLE + b"ab", b"cd"), b""),
        ("1.1", (SSE_HEAD + b"2\r\nab\r\n", b"2\r\ncd\r\n0\r\n\r\n"), b"0"),
    ],
    ids=["HTTP/1.0", "HTTP/1.1", "within a body", "within chunks"],
)
def test_a_client_that_ends_its_sending_is_answered(
    proxy: Proxy, version: str, served: tuple[bytes, bytes], probe: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If something can be sent that any client ignores, it is sent, for a reset to tell of a client that is gone altogether."""
    watch, watched = connections.watch, threading.Event()

    def watching(*of: Any) -> bool:
        watched.set()
        return watch(*of)

    monkeypatch.setattr(connections, "watch", watching)

    def serve(connection: socket.socket) -> None:
        connection.sendall(served[0])
        assert watched.wait(PATIENCE)
        connection.sendall(served[1])

    with Upstream(serve) as upstream, proxy.dial() as client:
        client.send(head(f"GET /up/{upstream.port} HTTP/{version}"))
        if served[0]:
            response = client.begin()
            assert b"ab" == response.read(2)
            client.sock.shutdown(socket.SHUT_WR)
            assert b"cd" == response.read()
        else:
            client.sock.shutdown(socket.SHUT_WR)
            assert probe == client.file.read(len(probe))
            assert b"abcd" == client.answer().body
        assert client.closed()


# mitmproxy's own options, and a mitmproxy that differs


def test_a_policy_without_an_error_response(confdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an error response for a malformed head, mitmproxy sends its own."""
    monkeypatch.setattr(HttpPolicy, "error_response", lambda *_: None)
    with Proxy(confdir, HttpPolicy()) as proxy:
        for bad in ("no colon", "version"):
            with proxy.dial() as client:
                assert b"<html>" in client.ask(BAD_HEADS[bad]).body
                assert client.closed()
        with proxy.dial() as client:
            answer = client.ask(head("POST /echo HTTP/1.1", f"Content-Length: {LIMIT + 1}"))
            assert (413, "text/html") == (answer.status, answer.headers["content-type"])


# As mitmproxy's own

BODIES = st.sampled_from(
    [b"", b"{}", b"{}GET / HTTP/1.1\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n", b"1;x=y\r\na\r\n1\r\nb\r\n0\r\n\r\nGET", b"zz\r\n"]
)


def started(kind: type[Http1Server]) -> Any:
    policy = cast("Any", SimpleNamespace(error_response=lambda *_: None))
    context = Context(tflow.tclient_conn(), Options())
    server = kind(context) if kind is Http1Server else cast("Any", kind)(context, policy, bool)
    assert [] == list(server.handle_event(events.Start()))
    return server


def test_a_client_that_is_ahead_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays among its transports: mitmproxy fails to wait for those that have no task."""
    transports: dict[Any, Any] = {}
    monkeypatch.setattr(connections, "handler", lambda _: SimpleNamespace(transports=transports))
    policy = cast("Any", SimpleNamespace(error_response=lambda *_: None))
    server = PatchedHttp1Server(Context(tflow.tclient_conn(), Options()), policy, lambda: server.conn.state is ConnectionState.OPEN)
    list(server.handle_event(events.Start()))
    for data in (head("GET /v1/models HTTP/1.1"), b"GET /" + b"a" * AHEAD):
        list(server.handle_event(events.DataReceived(server.conn, data)))
    assert 1 == len(transports)
    server.conn.state = ConnectionState.CLOSED
    list(server.handle_event(events.ConnectionClosed(server.conn)))
    assert {} == transports


@pytest.mark.parametrize("ours", [True, False])
def test_a_client_that_is_ahead_waits(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """mitmproxy waits for a writer until the response has ended, unless it reads the response itself."""
    transports: dict[Any, Any] = {}
    monkeypatch.setattr(connections, "handler", lambda _: SimpleNamespace(transports=transports))
    policy = cast("Any", SimpleNamespace(error_response=lambda *_: None))
    server = PatchedHttp1Server(Context(tflow.tclient_conn(), Options()), policy, lambda: ours)
    list(server.handle_event(events.Start()))
    for data in (head("GET /v1/models HTTP/1.1"), b"GET /" + b"a" * AHEAD):
        list(server.handle_event(events.DataReceived(server.conn, data)))
    kept = list(transports.values())
    response = http.Response.make(200, b"", {"content-length": "0"})
    for event in (ResponseHeaders(1, response, end_stream=True), ResponseEndOfMessage(1)):
        list(server.handle_event(event))
    assert (int(ours), {}) == (len(kept), transports)
    for io in kept:
        asyncio.run(io.writer.drain())


def read(server: Http1Server, reads: list[bytes]) -> tuple[dict[str, Any], bytes, str]:
    """The head and the body that the layer above gets, and how the request ends."""
    head: dict[str, Any] = {}
    body, end = b"", "waits"
    for data in [piece for piece in reads if piece]:
        for command in server.handle_event(events.DataReceived(server.conn, data)):
            event = getattr(command, "event", None)
            if isinstance(event, WholeRequest):
                body, end = event.content, "complete"
            if isinstance(event, RequestHeaders):
                head = vars(event.request.data) | {"ends": event.end_stream, "headers": event.request.headers.fields, "timestamp_start": 0}
            elif isinstance(event, RequestData):
                body += event.data
            elif isinstance(event, RequestEndOfMessage):
                end = "complete"
            elif event or (isinstance(command, commands.SendData) and b"<html>" in command.data):
                return head, body, "refused"
    return head, body, end


@given(
    line=LINES,
    fields=st.lists(st.tuples(NAMES, VALUES), max_size=4),
    end=st.sampled_from(["\r\n", "\n"]),
    body=BODIES,
    cut=st.integers(0, 120),
)
def test_as_mitmproxys(line: str, fields: list[tuple[str, str]], end: str, body: bytes, cut: int) -> None:
    """Every request, in one read or in two, is read as by mitmproxy, or refused."""
    head = end.join([line, *(f"{name}:{value}" for name, value in fields), "", ""]).encode() + body
    theirs, ours = (read(started(kind), [head[:cut], head[cut:]]) for kind in (Http1Server, PatchedHttp1Server))
    assert theirs == ours or (ours[2] == "refused" and theirs[2] != "complete")


RESPONSES = [
    [(b"content-length", b"2")],
    [(b"content-length", b"2"), (b"connection", b"close")],
    [(b"content-length", b"two")],
    [(b"transfer-encoding", b"chunked")],
    [],
]


@pytest.mark.parametrize("old", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
@pytest.mark.parametrize("status", [101, 200, 204, 304, 404])
@pytest.mark.parametrize("fields", RESPONSES)
def test_the_next_request(old: bytes, method: bytes, status: int, fields: list[tuple[bytes, bytes]]) -> None:
    """After each kind of response the connection is closed, upgraded, or open for the next request, as with mitmproxy."""
    found = []
    for kind in (Http1Server, PatchedHttp1Server):
        server = started(kind)
        read(server, [method + b" / HTTP/1.1\r\n" + old + b"Content-Length: 2\r\n\r\n{}", b"GET /next HTTP/1.1\r\n\r\n"])
        response = http.Response(b"HTTP/1.1", status, b"", http.Headers(fields), None, None, 0.0, None)
        sent: list[Any] = []
        for event in (ResponseHeaders(1, response), ResponseData(1, b"{}"), ResponseEndOfMessage(1)):
            sent += [command for command in server.handle_event(event) if not isinstance(command, commands.SendData)]
        kinds = [type(getattr(command, "event", command)) for command in sent]
        ahead = b"".join(command.event.data for command in sent if isinstance(getattr(command, "event", None), RequestData))
        found.append((kinds, ahead, server.stream_id))
    assert found[0] == found[1]
