"""mitmproxy's HTTP layer, mended: through a real proxy in a thread of its own, with sockets that send what no client library would."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import re
import socket
import ssl
import struct
import threading
import warnings
from http.client import HTTPMessage, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import h2.config
import h2.connection
import h2.events
import pytest
from mitmproxy import http
from mitmproxy.options import Options

from azure_openai_proxy.config.settings import Timeouts
from azure_openai_proxy.egress.connect import Destination
from azure_openai_proxy.egress.pool import Pools
from azure_openai_proxy.egress.request import Body, Hold, UpstreamRequest
from azure_openai_proxy.egress.tls import TlsOptions
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.mitmproxy_patches import compat, connections, http1_server, http_stream, install
from azure_openai_proxy.routing.attempts import GIVE_UP, Decision
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mitmproxy.proxy import layer, server_hooks

    from azure_openai_proxy.api.stream_probe import Peek
    from azure_openai_proxy.egress.request import ClientSide

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pyparsing's, in mitmproxy's filters
    from mitmproxy.tools.dump import DumpMaster

LIMIT = 1 << 20
MB = b"x" * LIMIT


class HttpPolicy:
    """The throw-away addon: `/up/PORT/...` goes to that port of this machine, `/echo` is answered here, `/foreign/...` is not ours."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.requests: list[http.Request] = []
        self.ready = threading.Event()
        self.fast_path = True
        self.timeouts = Timeouts()
        self.hold_stream = 2.0
        self.pools = Pools(tls=TlsOptions(insecure=True))

    def done(self) -> None:
        self.pools.close()

    def running(self) -> None:
        self.ready.set()

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        install.attach(nextlayer, self)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        data.server.error = None

    def on_the_wire(self, flow: http.HTTPFlow) -> http.Request | Failure:
        return Failure(400, "invalid_request", "unsendable") if "x-unsendable" in flow.request.headers else flow.request

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("requestheaders")
        flow.metadata["ours"] = not flow.request.path.startswith("/foreign")
        if to := re.match(r"(?:/foreign)?/(tls)?up/(\d+)", flow.request.path):
            flow.request.scheme = "https" if to[1] else "http"
            flow.request.host, flow.request.port = "127.0.0.1", int(to[2])
        flow.request.stream = flow.request.path.endswith("/streamed")
        if flow.request.path == "/killed":
            flow.kill()

    def request(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("request")
        self.requests.append(flow.request)
        if flow.request.path.startswith("/echo"):
            told = {
                "absolute": install.absolute_form(flow),
                "length": len(flow.request.content or b""),
                "host": flow.request.host_header,
                "asked": install.client_host(flow),
            }
            flow.response = http.Response.make(200, json.dumps(told))

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        assert flow.response
        if flow.request.path == "/early/killed":
            flow.kill()
        flow.response.stream = "event-stream" in flow.response.headers.get("content-type", "")

    def response(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("response")
        if flow.request.path == "/early/killed/late":
            flow.kill()

    def error(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("error")
        if flow.request.path == "/killed/late":
            flow.kill()

    def max_message(self, flow: http.HTTPFlow) -> int | None:
        return self.max_body(flow)

    def early_response(self, flow: http.HTTPFlow) -> http.Response | None:
        return http.Response.make(403, b"{}") if flow.request.path.startswith("/early") else None

    def may_stream_upload(self, flow: http.HTTPFlow) -> bool:
        return "x-goes-on" in flow.request.headers

    def start_streamed_upload(self, flow: http.HTTPFlow, start: bytes) -> None:
        if flow.request.headers["x-goes-on"] == "refuse":
            flow.response = http.Response.make(401, b"{}", {"content-type": "application/json"})
        else:
            flow.request.stream = True

    def takes(self, flow: http.HTTPFlow) -> bool:
        return bool(flow.metadata.get("ours"))

    def send_upstream(self, flow: http.HTTPFlow, client: ClientSide, *, streamed: bool) -> UpstreamRequest:
        return UpstreamRequest(Policy(self, flow), client, self.pools, Body(streamed=streamed))

    def hold(self, flow: http.HTTPFlow, response: http.Response) -> Hold | Peek:
        return Hold.NOTHING

    def next_attempt(self, flow: http.HTTPFlow, failed: Failure | http.Response) -> Decision:
        return GIVE_UP

    def broke_off(self, flow: http.HTTPFlow, failure: Failure) -> None:
        """Nothing is counted here."""

    def max_body(self, flow: http.HTTPFlow) -> int | None:
        return LIMIT if flow.metadata.get("ours") else None

    def last_event(self, failure: Failure, flow: http.HTTPFlow) -> bytes | None:
        answer = self.answer(failure, flow)
        return b"data: %b\n\n" % answer.content if answer and answer.content else None

    def answer(self, failure: Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        self.hooks.append("answer")
        if flow and not flow.metadata.get("ours"):
            return None
        error = {"message": failure.message, "code": failure.code}
        return http.Response.make(failure.status, json.dumps({"error": error}), {"content-type": "application/json"})


class Policy:
    """What the rules say of one request."""

    def __init__(self, rules: HttpPolicy, flow: http.HTTPFlow) -> None:
        self._rules, self._flow = rules, flow
        self.timeouts, self.hold_stream = rules.timeouts, rules.hold_stream

    def upstream_request(self) -> tuple[Destination, http.Request] | Failure:
        request = self._rules.on_the_wire(self._flow)
        if isinstance(request, Failure):
            return request
        request.data.content = self._flow.request.data.content
        return Destination(request.host, request.port, request.scheme == "https"), request

    def hold(self, response: http.Response) -> Hold | Peek:
        return self._rules.hold(self._flow, response)

    def next_attempt(self, failed: Failure | http.Response) -> Decision:
        return self._rules.next_attempt(self._flow, failed)

    def broke_off(self, failure: Failure) -> None:
        self._rules.broke_off(self._flow, failure)


class Proxy:
    """A whole mitmdump in a thread."""

    def __init__(self, confdir: Path, rules: HttpPolicy, **options: object) -> None:
        self.rules = rules
        self.ca = confdir / "mitmproxy-ca-cert.pem"
        self._options = {
            "confdir": str(confdir),
            "mode": ["regular@127.0.0.1:0"],
            "connection_strategy": "lazy",
            "ssl_insecure": True,
            **options,
        }
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))

    async def _run(self) -> None:
        self._master = DumpMaster(Options(), with_termlog=False, with_dumper=False)
        self._master.options.update(**self._options)
        self._master.addons.add(self.rules)
        await self._master.run()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.rules.ready.wait(PATIENCE)
        self.port: int = self._master.addons.get("proxyserver").listen_addrs()[0][1]
        return self

    def __exit__(self, *_: object) -> None:
        closing = self._master.addons.get("proxyserver").servers.update([])
        asyncio.run_coroutine_threadsafe(closing, self._master.event_loop).result(PATIENCE)
        self._master.shutdown()
        self._thread.join()
        gc.collect()

    def dial(self, *, tls: bool = False, alpn: str | None = None) -> Client:
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        return Client(self.secure(sock, alpn) if tls else sock)

    def secure(self, sock: socket.socket, alpn: str | None = None) -> socket.socket:
        context = ssl.create_default_context(cafile=self.ca)
        if alpn:
            context.set_alpn_protocols([alpn])
        return context.wrap_socket(sock, server_hostname="localhost")


class Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class Kept(io.BufferedReader):
    """A file that stays open when an answer has been read from it: the next one may be in its buffer."""

    def close(self) -> None:
        pass

    def makefile(self, _mode: str) -> Self:
        return self


class Client:
    """A connection to the proxy that sends what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self._raw = sock.makefile("rb", 0)
        self.file = Kept(self._raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.sock.sendall(part)

    def ask(self, *parts: bytes, method: str = "POST") -> Answer:
        self.send(*parts)
        return self.answer(method)

    def answer(self, method: str = "POST") -> Answer:
        response = self.begin(method)
        return Answer(response.status, response.headers, response.read())

    def begin(self, method: str = "POST") -> HTTPResponse:
        response = HTTPResponse(self.file, method=method)  # type: ignore[arg-type]
        response.begin()
        return response

    def rest(self) -> bytes:
        """Everything until the proxy closes."""
        received = b""
        with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
            while chunk := self.file.read1():
                received += chunk
        return received

    def closed(self) -> bool:
        return self.rest() == b""


class Upstream:
    """A server that does with every connection what it is told: `serve(connection)` after the request's head, or what it waits for."""

    def __init__(self, serve: Callable[[socket.socket], None], until: bytes = b"\r\n\r\n") -> None:
        self._serve = serve
        self._until = until
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.accepted = 0
        self.heads: list[bytes] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            with connection:
                head = connection.recv(65536)
                while self._until not in head and (more := connection.recv(65536)):
                    head += more
                self.heads.append(head)
                self._serve(connection)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class H2:
    """An HTTP/2 client that checks nothing it sends."""

    def __init__(self, proxy: Proxy) -> None:
        self.client = proxy.dial(tls=True, alpn="h2")
        config = h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False, validate_inbound_headers=False
        )
        self.conn = h2.connection.H2Connection(config)
        self.early: list[h2.events.Event] = []  # that came while a body was sent
        self.conn.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.__exit__()

    def flush(self) -> None:
        self.client.send(self.conn.data_to_send())

    def open(self, path: str, *more: tuple[str, str], scheme: str = "https", authority: str = "localhost", end: bool = True) -> int:
        stream = self.conn.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority)]
        self.conn.send_headers(stream, [*pseudo, *more], end_stream=end)
        self.flush()
        return stream

    def body(self, stream: int, data: bytes, *, end: bool = True) -> None:
        for start in range(0, len(data), 16384):
            piece = data[start : start + 16384]
            while self.conn.local_flow_control_window(stream) < len(piece):
                self.early += self.conn.receive_data(self.client.sock.recv(65536))
            self.conn.send_data(stream, piece)
            self.flush()
        if end:
            self.conn.end_stream(stream)
            self.flush()

    def answer(self, stream: int) -> tuple[int, bytes]:
        """Status and body; -1 if the stream was reset, -2 if the connection was ended."""
        status, body = 0, b""
        while self.early or (data := self.client.sock.recv(65536)):
            came, self.early = self.early or self.conn.receive_data(data), []
            for event in came:
                if isinstance(event, h2.events.ConnectionTerminated):
                    return -2, body
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    self.conn.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamReset):
                    return -1, body
                elif isinstance(event, h2.events.StreamEnded):
                    return status, body
            self.flush()
        return -2, body


@pytest.fixture(scope="module")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mitmproxy")


@pytest.fixture(scope="module")
def shared(confdir: Path) -> Iterator[Proxy]:
    with Proxy(confdir, HttpPolicy()) as proxy:
        yield proxy


@pytest.fixture(params=[True, False], ids=["shortcuts", "no shortcuts"])
def proxy(shared: Proxy, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    shared.rules.hooks.clear()
    shared.rules.requests.clear()
    shared.rules.fast_path = request.param
    install.set_fast_path(shared._master, on=request.param)
    yield shared
    install.set_fast_path(shared._master, on=False)


def head(line: str = "POST /echo HTTP/1.1", *headers: str, host: str | None = "localhost") -> bytes:
    return "\r\n".join([line, *([f"Host: {host}"] if host else []), *headers, "", ""]).encode("latin-1")


def still_works(proxy: Proxy) -> bool:
    with proxy.dial() as client:
        return client.ask(head("GET /echo HTTP/1.1")).status == 200


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
    assert "request" not in proxy.rules.hooks
    assert still_works(proxy)
    assert "crashed" not in caplog.text


def test_connection_closed_in_head(proxy: Proxy) -> None:
    """A client that closes its half within the head is told."""
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
        client.send(head()[:-2] + b"X: " + MB[: http1_server.MAX_HEAD] + end)
        with contextlib.suppress(OSError):
            client.send(MB)
        answer = client.answer()
        assert (431, "request_head_too_large") == (answer.status, answer.code)
    assert still_works(proxy)


def test_head_of_almost_the_limit(proxy: Proxy) -> None:
    """What is within the limit passes, however many bytes of body are behind it."""
    value = "x" * (http1_server.MAX_HEAD - 200)
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
    assert ["requestheaders", "error", "answer"] == proxy.rules.hooks


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
    assert ["requestheaders", "error", "answer", "requestheaders", "request", "response"] == proxy.rules.hooks


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
    assert "requestheaders error answer" in " ".join(proxy.rules.hooks)


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
    """The request is served as it was declared; what is left over is no request."""
    with proxy.dial() as client:
        client.send(head("POST /echo HTTP/1.1", "Content-Length: 5") + b'{"a":"b"}')
        assert 5 == json.loads(client.answer().body)["length"]
        assert 400 == client.answer().status
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
    assert ["requestheaders", "response", "requestheaders", "request", "response"] == proxy.rules.hooks


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
    assert "answer" not in proxy.rules.hooks


# Upstream

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
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
        assert ["requestheaders", "request", "error", "answer"] == [h for h in proxy.rules.hooks if h != "response"][:4]
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
    """mitmproxy, which sends it, tells the client in its own shape, and closes the connection upstream without a byte."""
    with Upstream(lambda _: None) as upstream:
        with proxy.dial() as client:
            answer = client.ask(head(f"POST /foreign/up/{upstream.port} HTTP/1.1", "Content-Length: 2", "X-Unsendable: 1"), b"{}")
            assert (400, "text/html") == (answer.status, answer.headers["content-type"])
        assert still_works(proxy)
    assert [b""] == upstream.heads


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
    """A stream of events that dies ends with an error event, and the connection does not look as if all had come."""
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


@pytest.mark.parametrize("also", [b"Content-Encoding: gzip\r\n", b"Content-Length: 50\r\n"])
def test_stream_that_takes_no_event(proxy: Proxy, also: bytes) -> None:
    """Where another event would only break what came, nothing is added."""
    answer = SSE_HEAD.replace(b"Transfer-Encoding: chunked\r\n", also + b"Transfer-Encoding: chunked\r\n" * (b"Length" not in also))
    with Upstream(lambda connection: connection.sendall(answer + b"2\r\nab\r\n")) as upstream, proxy.dial() as client:
        client.send(head(f"POST /up/{upstream.port} HTTP/1.1"))
        assert b"error" not in client.rest()


@pytest.mark.parametrize("answer", [SSE_HEAD + b"2\r\nab\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"])
@pytest.mark.parametrize("leaves", [False, True])
def test_answer_before_the_end_of_the_request(proxy: Proxy, answer: bytes, leaves: bool) -> None:
    """A request that is passed on while it comes may be answered before its end; whoever breaks off then, no second answer is made up."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer)
        if leaves:
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
        ("1.1", (b"", WHOLE + b"abcd"), http1_server.PROBE),
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


# What is not ours stays as it was


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


# HTTP/2


def test_bad_http2(proxy: Proxy) -> None:
    """HTTP/2 has its own way to refuse a malformed head: the connection ends with GOAWAY. What gets through to us is answered."""
    for more in ([("Upper", "x")], [("transfer-encoding", "chunked")], [("connection", "close")], [("content-length", "abc")]):
        with H2(proxy) as client:
            assert -2 == client.answer(client.open("/echo", *more, end=False))[0]
    with H2(proxy) as client:
        stream = client.open("/echo", ("content-length", "5"), end=False)
        client.body(stream, b"ab")
        assert -2 == client.answer(stream)[0]
    with H2(proxy) as client:
        assert 400 == client.answer(client.open("/echo", ("x", "a\x1bb")))[0]
        assert 400 == client.answer(client.open("/ec\x01ho"))[0]
        assert 400 == client.answer(client.open("/echo a"))[0]
        assert 400 == client.answer(client.open("/echo\ta"))[0]
        assert 200 == client.answer(client.open("/echo"))[0]
    assert still_works(proxy)


def test_an_error_of_http2_repeats_no_header(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a key, and longer than a frame: mitmproxy would log it, or fail and leave the client without an answer."""
    caplog.set_level("INFO")
    for value in ("Bearer secret ", "Bearer secret\n", "secret" * 5000 + "\n"):
        with H2(proxy) as client:
            assert -2 == client.answer(client.open("/echo", ("authorization", value)))[0]
    assert still_works(proxy)
    assert "HTTP/2 protocol error: " in caplog.text
    assert "secret" not in caplog.text
    assert "crashed" not in caplog.text


def test_a_request_that_is_reset_in_the_write_that_brings_it(proxy: Proxy) -> None:
    """It passes no hook, what came of its body is acknowledged, and the connection serves the next request."""
    with H2(proxy) as client:
        stream = client.conn.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "https"), (":path", "/echo"), (":authority", "localhost")]
        client.conn.send_headers(stream, fields)
        client.conn.send_data(stream, b"body")
        client.conn.reset_stream(stream)
        client.flush()
        assert 200 == client.answer(client.open("/echo"))[0]
    assert 1 == proxy.rules.hooks.count("requestheaders")


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
    rules = Slow()
    with Upstream(lambda _: None) as upstream, Proxy(confdir, rules) as proxy:
        with proxy.dial() as client:
            path = f"/up/{upstream.port}"
            if idle:
                path += "/streamed" * idle.startswith("/")
                client.send(head(f"POST {path} HTTP/1.1", "X-Idle: 1", *[idle] * idle.startswith("X"), "Content-Length: 10") + b"ab")
                assert client.closed()
            else:
                client.send(head(f"GET {path} HTTP/1.1"))
                client.sock.shutdown(socket.SHUT_WR)
                assert http1_server.PROBE == client.file.read(len(http1_server.PROBE))
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        assert rules.failed.wait(PATIENCE)
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


def test_rules_that_say_nothing(confdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer for a head that nobody can read, mitmproxy does what it always does."""
    monkeypatch.setattr(HttpPolicy, "answer", lambda *_: None)
    with Proxy(confdir, HttpPolicy()) as proxy:
        for bad in ("no colon", "version"):
            with proxy.dial() as client:
                assert b"<html>" in client.ask(BAD_HEADS[bad]).body
                assert client.closed()
        with proxy.dial() as client:
            answer = client.ask(head("POST /echo HTTP/1.1", f"Content-Length: {LIMIT + 1}"))
            assert (413, "text/html") == (answer.status, answer.headers["content-type"])


def test_another_mitmproxy(confdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a mitmproxy whose internals differ nothing is patched."""
    monkeypatch.setitem(vars(compat.HTTP), "usable", False)
    with Proxy(confdir, HttpPolicy()) as proxy, proxy.dial() as client:
        assert b"<html>" in client.ask(BAD_HEADS["version"]).body


# Memory

SCRIPT = """
import sys
sys.path[:0] = {path!r}
from unit.mitmproxy_patches.test_install import HttpPolicy
addons = [HttpPolicy()]
"""


def test_memory(confdir: Path, tmp_path: Path) -> None:
    """64 MB sent against a limit of 1 MB cost no more than a few MB."""

    def peak() -> int:
        status = Path(f"/proc/{mitmdump._process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]

    script = tmp_path / "rules.py"
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
