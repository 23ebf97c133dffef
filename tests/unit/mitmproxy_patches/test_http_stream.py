"""The patched HTTP stream: limits, early and error responses, uploads, and failures of the upstream."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
from contextlib import closing, suppress
from http.client import IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError
from mitmproxy.proxy.layers.http._http2 import Http2Server

from azure_openai_proxy.client_leg import probes
from azure_openai_proxy.mitmproxy_patches import connections, http_layer, http_stream, install
from azure_openai_proxy.mitmproxy_patches.http_stream import PatchedStream
from support.patched_proxy import H2, LIMIT, MB, SSE_HEAD, Client, HttpPolicy, Proxy, Upstream, head, still_works
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.proxy.context import Context


# Origin form and absolute form


@pytest.mark.parametrize(
    "line, absolute",
    [
        ("GET /echo HTTP/1.1", False),
        ("GET http://localhost/echo HTTP/1.1", True),
        ("GET http://other.example:8080/echo HTTP/1.1", True),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_forms(proxy: Proxy, line: str, absolute: bool, tls: bool) -> None:
    """The form of an HTTP/1.1 request is known when its first hook runs, on either kind of connection."""
    with proxy.dial(tls=tls) as client:
        assert absolute is json.loads(client.ask(head(line)).body)["absolute"]


@pytest.mark.parametrize("scheme, absolute", [("https", False), ("http", True)])
def test_forms_http2(proxy: Proxy, scheme: str, absolute: bool) -> None:
    """HTTP/2 has one form; its scheme tells a forward proxy's request."""
    with H2(proxy) as client:
        status, body = client.answer(client.open("/echo", scheme=scheme))
    assert 200 == status
    assert absolute is json.loads(body)["absolute"]


@pytest.mark.parametrize("tls", [False, True])
def test_tunnel(proxy: Proxy, tls: bool) -> None:
    """Inside CONNECT every request is in origin form, and bad input is answered there as well."""
    with proxy.dial() as client:
        client.send(head("CONNECT localhost:443 HTTP/1.1"))
        assert 200 == client.begin("CONNECT").status
        with Client(proxy.secure(client.sock)) if tls else client as inner:
            assert json.loads(inner.ask(head()).body)["absolute"] is False
            assert 400 == inner.ask(head("POST /echo HTTP/1.1", "Content-Length: -1")).status


def test_no_host(proxy: Proxy) -> None:
    """HTTP/1.0 needs no Host, HTTP/1.1 does."""
    with proxy.dial() as client:
        assert f"127.0.0.1:{proxy.port}" == json.loads(client.ask(head("GET /echo HTTP/1.0", host=None)).body)["host"]
    with proxy.dial() as client:
        assert (400, "invalid_request") == (client.ask(head(host=None))[0], "invalid_request")


# Bodies over the limit


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_large_body(proxy: Proxy, chunked: bool, tls: bool) -> None:
    """413 comes before the body's end, the rest is thrown away, and the same connection serves the next request."""
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {4 * LIMIT}"
    with proxy.dial(tls=tls) as client:
        client.send(head("POST /echo HTTP/1.1", length))
        pieces = [b"%x\r\n%s\r\n" % (LIMIT, MB) if chunked else MB] * 4
        client.send(*pieces[:2])
        answer = client.answer()
        assert (413, "request_too_large", None) == (answer.status, answer.code, answer.headers["connection"])
        client.send(*pieces[2:], b"0\r\n\r\n" if chunked else b"")
        assert 200 == client.ask(head()).status
    assert ["requestheaders", "error", "answer", "requestheaders", "request", "response"] == proxy.policy.hooks


@pytest.mark.parametrize("declared", [False, True])
def test_large_body_http2(proxy: Proxy, declared: bool) -> None:
    """The same on HTTP/2: the stream is answered early, the connection and its other streams go on."""
    with H2(proxy) as client:
        stream = client.open("/echo", *([("content-length", str(3 * LIMIT))] if declared else []), end=False)
        client.body(stream, MB * 3)
        status, body = client.answer(stream)
        assert (413, "request_too_large") == (status, json.loads(body)["error"]["code"])
        assert 200 == client.answer(client.open("/echo"))[0]


def test_body_of_the_limit(proxy: Proxy) -> None:
    """Exactly the limit passes, one byte more does not."""
    with proxy.dial() as client:
        assert 200 == client.ask(head("POST /echo HTTP/1.1", f"Content-Length: {LIMIT}"), MB).status
        assert 413 == client.ask(head("POST /echo HTTP/1.1", f"Content-Length: {LIMIT + 1}"), MB, b"x").status


def test_expect_continue(proxy: Proxy) -> None:
    """With `Expect: 100-continue` a body that is too large is refused before it is sent, and the connection ends as it may never come."""
    with proxy.dial() as client:
        answer = client.ask(head("POST /echo HTTP/1.1", "Expect: 100-continue", f"Content-Length: {LIMIT + 1}"))
        assert (413, "close") == (answer.status, answer.headers["connection"])
        assert client.closed()
    with proxy.dial() as client:
        client.send(head("POST /echo HTTP/1.1", "Expect: 100-continue", "Content-Length: 2"))
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == client.file.read(25)
        assert 2 == json.loads(client.ask(b"{}").body)["length"]


def test_large_body_of_a_last_request(proxy: Proxy) -> None:
    """A client that wants the connection closed after its request has that, when the body has been thrown away."""
    with proxy.dial() as client:
        assert 413 == client.ask(head("POST /echo HTTP/1.1", "Connection: close", f"Content-Length: {LIMIT + 1}"), MB).status
        client.send(b"x")
        assert client.closed()


# Responses that do not wait for a body


@pytest.mark.parametrize("line", ["GET /early HTTP/1.1", "POST /early HTTP/1.1", "HEAD /early HTTP/1.1"])
def test_a_response_to_the_head(proxy: Proxy, line: str) -> None:
    """It comes before the body, which is discarded, and it has a response's hooks; the connection serves the next request."""
    body = b"" if "POST" not in line else b"body"
    with proxy.dial() as client:
        answer = client.ask(head(line, f"Content-Length: {len(body)}"), method=line.partition(" ")[0])
        assert (403, None) == (answer.status, answer.headers["connection"])
        assert 200 == client.ask(body + head()).status
    assert ["requestheaders", "response", "requestheaders", "request", "response"] == proxy.policy.hooks


def test_a_response_to_the_head_http2(proxy: Proxy) -> None:
    """The stream gets its response before its body, and other streams go on."""
    with H2(proxy) as client:
        stream = client.open("/early", end=False)
        assert (403, b"{}") == client.answer(stream)
        client.body(stream, b"body")
        assert 200 == client.answer(client.open("/echo"))[0]


def test_a_response_to_the_head_in_place_of_a_continue(proxy: Proxy) -> None:
    """On HTTP/1.1 it ends the connection: the body may come or not."""
    with proxy.dial() as client:
        answer = client.ask(head("POST /early HTTP/1.1", "Expect: 100-continue", "Content-Length: 5"))
        assert (403, "close") == (answer.status, answer.headers["connection"])
        assert client.closed()


@pytest.mark.parametrize("path", ["/early/killed", "/early/killed/late"])
def test_a_response_to_the_head_is_killed(proxy: Proxy, path: str) -> None:
    """An addon may kill the flow in either hook of the response."""
    with proxy.dial() as client:
        client.send(head(f"POST {path} HTTP/1.1", "Content-Length: 5"))
        assert client.closed()


@pytest.mark.parametrize("path", ["/killed", "/killed/late"])
def test_killed(proxy: Proxy, path: str) -> None:
    """A request that an addon kills, be it in the error hook, is not answered."""
    with proxy.dial() as client:
        client.send(head(f"POST {path} HTTP/1.1", f"Content-Length: {LIMIT + 1}"))
        assert client.closed()
    assert "answer" not in proxy.policy.hooks


# Upstream

FAULTS: dict[str, bytes] = {
    "early close": b"",
    "not HTTP": b"hello\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nX:",
    "wrong framing": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "cut body": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_upstream_fails(proxy: Proxy, fault: str) -> None:
    """A failure before the client has any of the answer is a 502 in our shape, after the error hook; the connection goes on."""
    with Upstream(lambda connection: connection.sendall(FAULTS[fault])) as upstream:
        with proxy.dial() as client:
            for _ in range(2):
                answer = client.ask(head(f"POST /up/{upstream.port} HTTP/1.1", "Content-Length: 2"), b"{}")
                assert (502, "upstream_error") == (answer.status, answer.code)
            assert 200 == client.ask(head()).status
        assert ["requestheaders", "request", "error", "answer"] == [h for h in proxy.policy.hooks if h != "response"][:4]
        with H2(proxy) as h2_client:
            assert 502 == h2_client.answer(h2_client.open(f"/up/{upstream.port}"))[0]
            assert 200 == h2_client.answer(h2_client.open("/echo"))[0]


@pytest.mark.parametrize("path", ["/up/{port}", "/up/{port}/streamed", "/tlsup/{tls}"])
def test_no_way_upstream(proxy: Proxy, path: str) -> None:
    """Refused or without TLS: 502, again and again on the same connection, and a server that comes up later is found."""
    with socket.create_server(("127.0.0.1", 0)) as reserved, Upstream(lambda connection: connection.sendall(b"no TLS"), b"") as upstream:
        port: int = reserved.getsockname()[1]
        reserved.close()
        target = path.format(port=port, tls=upstream.port)
        with proxy.dial() as client:
            for _ in range(2):
                answer = client.ask(head(f"POST {target} HTTP/1.1", "Content-Length: 2"), b"{}")
                assert (502, "upstream_unreachable") == (answer.status, answer.code)
            assert 502 == client.ask(head(f"HEAD {target} HTTP/1.1"), method="HEAD").status
            assert 200 == client.ask(head()).status
        with H2(proxy) as h2_client:
            assert 502 == h2_client.answer(h2_client.open(target))[0]


def test_a_request_that_must_not_be_sent(proxy: Proxy) -> None:
    """The client gets its answer in our shape, and upstream nothing of the request."""
    with Upstream(lambda connection: connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")) as upstream:
        target = f"/up/{upstream.port}"
        with proxy.dial() as client:
            answer = client.ask(head(f"POST {target} HTTP/1.1", "Content-Length: 2", "X-Unsendable: 1"), b"{}")
            assert (400, "invalid_request") == (answer.status, answer.code)
        with H2(proxy) as h2_client:
            assert 400 == h2_client.answer(h2_client.open(target, ("x-unsendable", "1")))[0]
            assert 204 == h2_client.answer(h2_client.open(target))[0]


def test_a_foreign_request_that_must_not_be_sent(proxy: Proxy) -> None:
    """mitmproxy, which would send it, tells the client in its own shape, and opens no connection upstream."""
    with Upstream(lambda _: None) as upstream:
        with proxy.dial() as client:
            answer = client.ask(head(f"POST /foreign/up/{upstream.port} HTTP/1.1", "Content-Length: 2", "X-Unsendable: 1"), b"{}")
            assert (400, "text/html") == (answer.status, answer.headers["content-type"])
        assert still_works(proxy)
    assert 0 == upstream.accepted


def test_a_foreign_upload_without_a_way_upstream(proxy: Proxy) -> None:
    """mitmproxy's page, though the body is streamed."""
    with proxy.dial() as client:
        answer = client.ask(head("POST /foreign/up/9/streamed HTTP/1.1", "Content-Length: 10"), b"ab")
        assert (502, "text/html") == (answer.status, answer.headers["content-type"])


def test_trailers_of_a_request_are_left_out(proxy: Proxy) -> None:
    """They are headers that come too late to be checked; mitmproxy would fail to write them to HTTP/1.1."""
    with Upstream(lambda connection: connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")) as upstream, H2(proxy) as client:
        for path in (f"/up/{upstream.port}", f"/foreign/up/{upstream.port}"):
            stream = client.open(path, end=False)
            client.body(stream, b"{}", end=False)
            client.conn.send_headers(stream, [("x-late", "1")], end_stream=True)
            client.flush()
            assert 204 == client.answer(stream)[0]


def test_error_does_not_stick(proxy: Proxy) -> None:
    """After a refused connection the next request of the same client asks again."""
    sock = socket.create_server(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    sock.close()
    with proxy.dial() as client:
        assert 502 == client.ask(head(f"POST /up/{port} HTTP/1.1")).status
        with socket.create_server(("127.0.0.1", port)) as upstream:
            client.send(head(f"POST /up/{port} HTTP/1.1"))
            connection, _ = upstream.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert 204 == client.answer().status


def test_stream_breaks_off(proxy: Proxy) -> None:
    """A truncated stream of events ends with an error event, and the connection does not look complete."""
    passed = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(SSE_HEAD + b"d\r\ndata: {}\n\ndat\r\n")
        passed.wait(PATIENCE)

    with Upstream(serve) as upstream:
        with proxy.dial() as client:
            client.send(head(f"POST /up/{upstream.port} HTTP/1.1"))
            response = client.begin()
            assert b"data: {}\n\ndat" == response.read1()  # it is here while upstream still waits
            passed.set()
            event = response.read1()
            assert event.startswith(b'\n\ndata: {"error": ')
            assert event.endswith(b"}\n\n")
            with pytest.raises(IncompleteRead):
                response.read()
        with H2(proxy) as h2_client:
            status, body = h2_client.answer(h2_client.open(f"/up/{upstream.port}"))
            assert -1 == status
            assert b"upstream_error" in body


@pytest.mark.parametrize("end, expected", [(b"0\r\n\r\n", b"edited: data: {}\n\n"), (b"dat\r\n", b"data: {}\n\n\n\ndata: ")])
def test_stream_that_is_withheld(proxy: Proxy, end: bytes, expected: bytes) -> None:
    """It is sent after its last hook, which may edit it. If it breaks off, its beginning is sent before the error event."""
    with Upstream(lambda connection: connection.sendall(SSE_HEAD + b"a\r\ndata: {}\n\n\r\n" + end)) as upstream:
        with proxy.dial() as client:
            client.send(head(f"POST /up/{upstream.port}/withheld HTTP/1.1"))
            with closing(client.begin()) as response:
                try:
                    body = response.read()
                except IncompleteRead as error:
                    body = error.partial
            assert body.startswith(expected)
        with H2(proxy) as h2_client:
            _, body = h2_client.answer(h2_client.open(f"/up/{upstream.port}/withheld"))
            assert body.startswith(expected)


@pytest.mark.parametrize("also", [b"Content-Encoding: gzip\r\n", b"Content-Length: 50\r\n"])
def test_stream_that_takes_no_event(proxy: Proxy, also: bytes) -> None:
    """No event is added to a body in which it would be invalid."""
    answer = SSE_HEAD.replace(b"Transfer-Encoding: chunked\r\n", also + b"Transfer-Encoding: chunked\r\n" * (b"Length" not in also))
    with Upstream(lambda connection: connection.sendall(answer + b"2\r\nab\r\n")) as upstream, proxy.dial() as client:
        client.send(head(f"POST /up/{upstream.port} HTTP/1.1"))
        assert b"error" not in client.rest()


@pytest.mark.parametrize("answer", [SSE_HEAD + b"2\r\nab\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"])
@pytest.mark.parametrize("leaves", [False, True])
def test_answer_before_the_end_of_the_request(proxy: Proxy, answer: bytes, leaves: bool) -> None:
    """A streamed request may be answered before its end; if one side then breaks off, there is no second response."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer)
        if leaves:
            with suppress(ConnectionError):  # the upload is cancelled
                connection.recv(65536)  # the body so far, or the end
                connection.recv(65536)

    with Upstream(serve) as upstream, proxy.dial() as client:
        client.send(head(f"POST /up/{upstream.port}/streamed HTTP/1.1", "Content-Length: 10"), b"ab")
        assert 200 == client.begin().status
        if leaves:
            client.sock.shutdown(socket.SHUT_WR)
        elif b"Content-Length" in answer:
            assert b"ab" == client.file.read(2)
            assert 200 == client.ask(b"01234567", head()).status  # the rest of the body goes nowhere
            return
        assert b"HTTP/1.1" not in client.rest()


# Requests that are not translated are unchanged


def test_foreign(proxy: Proxy) -> None:
    """Requests that are not ours have mitmproxy's own pages, no limit, and the ends that they had."""
    with proxy.dial() as client:
        answer = client.ask(head("POST /foreign/up/9 HTTP/1.1"))
        assert (502, "text/html") == (answer.status, answer.headers["content-type"])
        assert client.closed()
    with proxy.dial() as client:
        answer = client.ask(head("POST /foreign HTTP/1.1", "Content-Length: -1"))
        assert (400, "text/html") == (answer.status, answer.headers["content-type"])
    with proxy.dial() as client:
        client.send(head("POST /foreign HTTP/1.1", "Content-Length: 10"), b"ab")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    with Upstream(lambda connection: connection.sendall(SSE_HEAD + b"2\r\nab\r\n")) as upstream, proxy.dial() as client:
        client.send(head(f"POST /foreign/up/{upstream.port} HTTP/1.1", "X: a\x1bb"))
        assert b"error" not in client.rest()


def test_websocket_upgrade(proxy: Proxy) -> None:
    """An upgrade passes, and bytes flow both ways."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x02hi")
        connection.recv(100)

    upgrade = ("Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    with Upstream(serve) as upstream, proxy.dial() as client:
        client.send(head(f"GET /up/{upstream.port} HTTP/1.1", *upgrade))
        received = b""
        while not received.endswith(b"\x81\x02hi"):
            received += client.file.read1()
        assert received.startswith(b"HTTP/1.1 101")
        client.send(b"\x88\x80\0\0\0\0")


# Clients that leave while a hook runs


class Slow(HttpPolicy):
    """Its hooks return when the client's connection is closed, which mitmproxy does itself to an idle one."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = threading.Event()

    async def requestheaders(self, flow: http.HTTPFlow) -> None:  # type: ignore[override] # mitmproxy awaits it
        super().requestheaders(flow)
        if "x-idle" in flow.request.headers and (handler := connections.handler(flow.client_conn)):
            await handler.on_timeout()
            await self.closed(flow)

    async def request(self, flow: http.HTTPFlow) -> None:  # type: ignore[override] # as above
        super().request(flow)
        await self.closed(flow)

    async def closed(self, flow: http.HTTPFlow) -> None:
        while connections.handler(flow.client_conn):
            await asyncio.sleep(0)

    def error(self, flow: http.HTTPFlow) -> None:
        super().error(flow)
        self.failed.set()


@pytest.mark.parametrize("idle", ["/streamed", "X-Goes-On: yes", None])
def test_a_request_of_a_client_that_left_is_not_sent(confdir: Path, idle: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails, with the hook for that, whether its body is complete or would be streamed."""
    monkeypatch.setattr(http_stream, "HELD", 1)
    policy = Slow()
    with Upstream(lambda _: None) as upstream, Proxy(confdir, policy) as proxy:
        with proxy.dial() as client:
            path = f"/up/{upstream.port}"
            if idle:
                path += "/streamed" * idle.startswith("/")
                client.send(head(f"POST {path} HTTP/1.1", "X-Idle: 1", *[idle] * idle.startswith("X"), "Content-Length: 10") + b"ab")
                assert client.closed()
            else:
                client.send(head(f"GET {path} HTTP/1.1"))
                client.sock.shutdown(socket.SHUT_WR)
                assert probes.CONTINUE == client.file.read(len(probes.CONTINUE))
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        assert policy.failed.wait(PATIENCE)
        assert 0 == upstream.accepted


# mitmproxy's own options, and a mitmproxy that differs


@pytest.mark.parametrize("mode", ["regular@127.0.0.1:0", "reverse:http://127.0.0.1:9@127.0.0.1:0"])
def test_the_host_that_the_client_sent(confdir: Path, mode: str) -> None:
    """In reverse mode mitmproxy writes another over it, before any hook."""
    with Proxy(confdir, HttpPolicy(), mode=[mode]) as proxy:
        with proxy.dial() as client:
            assert "page.example:1" == json.loads(client.ask(head(host="page.example:1")).body)["asked"]
        with H2(proxy) as h2:
            _, body = h2.answer(h2.open("/echo", authority="page.example:1"))
            assert "page.example:1" == json.loads(body)["asked"]


def test_other_options(confdir: Path) -> None:
    """body_size_limit holds as before, in our shape; without mitmproxy's checks, framing that makes no sense is refused all the same."""
    with Proxy(confdir, HttpPolicy(), body_size_limit="1k", validate_inbound_headers=False) as proxy:
        with proxy.dial() as client:
            assert 413 == client.ask(head("POST /echo HTTP/1.1", "Content-Length: 1025"), MB[:1025]).status
            assert 200 == client.ask(head()).status
        with proxy.dial() as client:
            assert 400 == client.ask(head("POST /echo HTTP/1.1", "Content-Length: abc")).status
            assert client.closed()
        with proxy.dial() as client:
            answer = client.ask(head("POST /foreign HTTP/1.1", "Content-Length: abc"))
            assert (400, "text/html") == (answer.status, answer.headers["content-type"])


# Memory

SCRIPT = """
import sys
sys.path[:0] = {path!r}
from support.patched_proxy import HttpPolicy
addons = [HttpPolicy()]
"""


@pytest.mark.slow
def test_memory(confdir: Path, tmp_path: Path) -> None:
    """64 MB sent against a limit of 1 MB cost no more than a few MB."""

    def peak() -> int:
        status = Path(f"/proc/{mitmdump._process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]

    script = tmp_path / "policy.py"
    script.write_text(SCRIPT.format(path=[str(Path(__file__).parents[2]), str(Path(install.__file__).parents[2])]))
    with Mitmdump(tmp_path / "home", confdir, scripts=[script], options={"connection_strategy": "lazy"}) as mitmdump:
        sock = socket.create_connection(("127.0.0.1", mitmdump.port), PATIENCE)
        with Client(sock) as client:
            client.ask(head())
            before = peak()
            for framing, piece, end in (
                (f"Content-Length: {64 * LIMIT}", MB, b""),
                ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n" % (LIMIT, MB), b"0\r\n\r\n"),
            ):
                client.send(head("POST /echo HTTP/1.1", framing), *[piece] * 64, end)
                assert 413 == client.answer().status
            assert 200 == client.ask(head()).status
            assert peak() - before < 16


# Layers without a connection


def test_a_failure_after_the_whole_response(context: Context) -> None:
    """Nothing is added to the response; an HTTP/2 upstream may reset a stream that it has answered before the end of the request."""
    layer: Any = HttpLayer(context, HTTPMode.regular)
    http_layer.patch([layer], HttpPolicy(), None)
    layer.connections[context.client] = Http2Server(context)
    stream = PatchedStream(context, 1, layer)
    stream.server_state = stream.state_done
    assert [] == list(stream.report(ResponseProtocolError(1, "The stream was reset.", ErrorCode.GENERIC_SERVER_ERROR)))
