"""The interface to the upstream leg: through a real proxy in a thread, with servers that a test controls."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import select
import socket
import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock

import h2.events
import pytest
from mitmproxy import http
from mitmproxy.proxy.layers.http._events import ResponseEndOfMessage, ResponseHeaders
from mitmproxy.test import tflow

from azure_openai_proxy.api import stream_probe
from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.client_leg import flow_control, sockets
from azure_openai_proxy.config.settings import Timeouts
from azure_openai_proxy.egress import request as upstream_request
from azure_openai_proxy.egress.interface import Hold
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.mitmproxy_patches import upstream_leg
from azure_openai_proxy.routing.decisions import GIVE_UP, Respond, Retry
from support.patched_proxy import H2, HttpPolicy, Proxy, Upstream, head
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from azure_openai_proxy.routing.decisions import Decision, Plan

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
NOTHING = b'data: {"id":"","object":"","created":0,"model":"","choices":[]}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","code":"503"}}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Again(HttpPolicy):
    """`/to/PORT/PORT/...` is sent to one port after the other; `/instead/...` gets another response at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Failure | int] = []
        self.failed = threading.Event()
        self.killed = ""

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        super().requestheaders(flow)
        flow.metadata["ports"] = re.findall(r"/(\d+)", flow.request.path)
        self.next(flow)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        super().responseheaders(flow)
        if flow.request.path.startswith("/killed-late"):
            flow.kill()

    def next(self, flow: http.HTTPFlow) -> bool:
        if not (ports := flow.metadata["ports"]):
            return False
        flow.request.scheme = "https" if "/tls" in flow.request.path else "http"
        flow.request.host, flow.request.port = "127.0.0.1", int(ports.pop(0))
        return True

    def hold(self, flow: http.HTTPFlow, response: http.Response) -> Hold | Peek:
        if response.status_code >= 500:
            return Hold.FAILURE
        return Peek(None) if "event-stream" in response.headers.get("content-type", "") else Hold.WHOLE

    def last_event(self, failure: Failure, flow: http.HTTPFlow) -> bytes | None:
        return b"data: %b\n\n" % failure.code.encode()

    def next_attempt(self, flow: http.HTTPFlow, failed: Failure | http.Response) -> Decision:
        self.failures.append(failed if isinstance(failed, Failure) else failed.status_code)
        self.failed.set()
        if self.next(flow):
            return Retry(cast("Plan", None))
        return Respond(http.Response.make(429, b"instead", {"x-from": "policy"})) if "/instead" in flow.request.path else GIVE_UP

    def broke_off(self, flow: http.HTTPFlow, failure: Failure) -> None:
        self.failures.append(failure)
        self.failed.set()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("mitmproxy"), Again()) as proxy:
        yield proxy


@pytest.fixture
def policy(shared: Proxy) -> Again:
    assert isinstance(shared.policy, Again)
    shared.policy.failures.clear()
    shared.policy.failed.clear()
    shared.policy.hooks.clear()
    shared.policy.timeouts = Timeouts(PATIENCE, PATIENCE, PATIENCE)
    return shared.policy


@pytest.fixture
def proxy(shared: Proxy, policy: Again) -> Proxy:
    return shared


class Servers(ExitStack):
    """Upstreams, each of which sends the same bytes on every connection, or calls the given function."""

    def path(self, *serves: bytes | Callable[[socket.socket], None], before: str = "/to") -> str:
        upstreams = (self.enter_context(Upstream(serve if callable(serve) else _sending(serve))) for serve in serves)
        return before + "".join(f"/{upstream.port}" for upstream in upstreams)


def _sending(answer: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(answer)


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


def ask(proxy: Proxy, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """On HTTP/1.1 and HTTP/2 alike: both get the same."""
    with proxy.dial() as client:
        one = client.ask(head(f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}") + body)
    with H2(proxy) as client:
        two = client.answer(client.open(path, end=True) if not body else posted(client, path, body))
    assert (one.status, one.body) == two
    return two


def posted(client: H2, path: str, body: bytes) -> int:
    stream = client.open(path, end=False)
    client.body(stream, body)
    return stream


@pytest.mark.parametrize(
    "first",
    [
        BUSY,
        b"",
        b"HTTP/1.1 nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nhalf",
        SSE + chunk(ERROR),
        SSE + chunk(NOTHING),
    ],
    ids=["503", "closed", "malformed", "cut", "503 cut", "error event", "stream cut"],
)
@pytest.mark.parametrize("body", [b"", b"body"])
def test_the_next_attempt_is_answered(first: bytes, body: bytes, proxy: Proxy, servers: Servers) -> None:
    """Whatever the fault of the first response, the client gets the last one only."""
    assert (200, b"ok") == ask(proxy, servers.path(first, first, OK), body)


@pytest.mark.parametrize("last", [BUSY, b"", SSE + chunk(ERROR)])
def test_another_response_instead(last: bytes, proxy: Proxy, servers: Servers, policy: Again) -> None:
    """After the last attempt the policy may have a better response than its failure; it passes the hooks of every response."""
    assert (429, b"instead") == ask(proxy, servers.path(last, before="/instead"))
    assert 2 == policy.hooks.count("response")


def test_no_attempt_succeeds(proxy: Proxy, servers: Servers) -> None:
    """The failure as the policy shapes it; an error event as the response it should have been; a held response as it is."""
    status, body = ask(proxy, servers.path(b""))
    assert (502, "upstream_error") == (status, json.loads(body)["error"]["code"])
    status, body = ask(proxy, servers.path(SSE + chunk(ERROR)))
    assert (503, "503") == (status, json.loads(body)["error"]["code"])
    assert (503, b"busy") == ask(proxy, servers.path(BUSY, BUSY))
    assert (503, b"") == ask(proxy, servers.path(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))
    assert 502 == ask(proxy, "/to/1/1")[0]


def test_a_stream_passes(proxy: Proxy, servers: Servers) -> None:
    """From its first event on; one that ends before there is any passes too."""
    done = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    assert (200, EVENT + b"data: [DONE]\n\n") == ask(proxy, servers.path(SSE + chunk(EVENT) + done))
    assert (200, b"") == ask(proxy, servers.path(SSE + b"0\r\n\r\n"))
    assert (200, b": nothing\n\n") == ask(proxy, servers.path(SSE + chunk(b": nothing\n\n") + b"0\r\n\r\n"))
    assert (200, b"") == ask(proxy, servers.path(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n"))


def test_a_long_failure_passes(proxy: Proxy, servers: Servers, monkeypatch: pytest.MonkeyPatch, policy: Again) -> None:
    """It is not held in memory."""
    monkeypatch.setattr(upstream_request, "HOLD_AT_MOST", 3)
    serve, let = gated(b"HTTP/1.1 503 Busy\r\nContent-Type: text/event-stream\r\nContent-Length: 8\r\n\r\nbusy", b"more")
    with proxy.dial() as client:
        client.send(head(f"GET {servers.path(serve)} HTTP/1.1"))
        response = client.begin("GET")
        let.set()
        assert (503, b"busymore") == (response.status, response.read())
    assert [] == policy.failures


def test_after_the_first_byte(proxy: Proxy, servers: Servers, policy: Again) -> None:
    """Nothing is sent again; the client's stream ends with an event, then with a reset."""
    path = servers.path(SSE + chunk(EVENT), OK)
    with H2(proxy) as client:
        status, body = client.answer(client.open(path))
    assert -1 == status
    assert b"upstream_error" in body
    assert ["upstream_error"] == [failure.code for failure in policy.failures if isinstance(failure, Failure)]


def test_trailers_of_a_response(proxy: Proxy, servers: Servers) -> None:
    """An HTTP/2 client gets them; for HTTP/1.1 mitmproxy cannot write any, and they are left out."""
    path = servers.path(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n")
    with proxy.dial() as client:
        assert (200, b"ok") == client.ask(head(f"GET {path} HTTP/1.1"), method="GET")[::2]
        assert 200 == client.ask(head()).status
    with H2(proxy) as client2:
        stream = client2.open(path)
        wait_for(client2, h2.events.TrailersReceived, stream)


def test_a_body_after_the_end_goes_nowhere(proxy: Proxy, servers: Servers) -> None:
    """A streamed request that was answered before its end: what the client still sends is read and discarded."""
    with H2(proxy) as client:
        stream = client.open(servers.path(OK) + "/streamed", ("content-length", "8"), end=False)
        client.body(stream, b"body", end=False)
        wait_for(client, h2.events.DataReceived, stream)
        client.body(stream, b"more")
        assert 200 == client.answer(client.open("/echo"))[0]


def wait_for(client: H2, kind: type, stream: int) -> None:
    """Until the stream has had an event of that kind."""
    found: set[int] = set()
    while stream not in found:
        received = client.conn.receive_data(client.client.sock.recv(65536))
        found |= {event.stream_id for event in received if isinstance(event, kind)}  # type: ignore[attr-defined]


def gated(*pieces: bytes) -> tuple[Callable[[socket.socket], None], threading.Event]:
    """A server that sends a piece, and the next one when the event is set."""
    let = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(pieces[0])
        for piece in pieces[1:]:
            assert let.wait(PATIENCE)
            let.clear()
            connection.sendall(piece)

    return serve, let


@pytest.mark.parametrize("first", [b": keepalive\n\n", b": keepalive\n", NOTHING + b": keepalive\n\n"])
def test_a_comment_lets_the_head_go(first: bytes, proxy: Proxy, servers: Servers, policy: Again) -> None:
    """The client has both while the server still holds back its first event; what fails after that is an event of the stream."""
    serve, let = gated(SSE + chunk(first), chunk(ERROR) + b"0\r\n\r\n")
    path = servers.path(serve, OK)
    with proxy.dial() as client:
        client.send(head(f"GET {path} HTTP/1.1"))
        response = client.begin("GET")
        assert first == response.read(len(first))
        let.set()
        assert ERROR == response.read()
    assert [] == policy.failures


@pytest.mark.parametrize("before", [b"", chunk(NOTHING), chunk(b"data: {")])
def test_the_head_of_a_silent_stream_goes(before: bytes, proxy: Proxy, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time the client has it while the server still holds back its first event; the next stream of the connection too."""
    monkeypatch.setattr(stream_probe, "HOLD_STREAM", 0.01)
    for _ in range(2):
        with proxy.dial() as client:
            serve, let = gated(SSE + before, chunk(EVENT) + b"0\r\n\r\n")
            client.send(head(f"GET {servers.path(serve)} HTTP/1.1"))
            response = client.begin("GET")
            let.set()
            assert response.read().endswith(EVENT)
        with H2(proxy) as multiplexed:
            serve, let = gated(SSE + before, chunk(EVENT) + b"0\r\n\r\n")
            stream = multiplexed.open(servers.path(serve))
            wait_for(multiplexed, h2.events.ResponseReceived, stream)
            let.set()
            wait_for(multiplexed, h2.events.StreamEnded, stream)


def test_streams_of_a_client_that_left_are_closed(proxy: Proxy, servers: Servers) -> None:
    """Each connection upstream is closed, not left to the garbage collector."""
    ended = threading.Semaphore(0)

    def serve(connection: socket.socket) -> None:
        connection.sendall(SSE + chunk(EVENT))
        connection.settimeout(PATIENCE)
        assert b"" == connection.recv(1)
        ended.release()

    gc.disable()
    try:
        with H2(proxy) as client:
            for _ in range(3):
                wait_for(client, h2.events.DataReceived, client.open(servers.path(serve)))
        assert all(ended.acquire(timeout=PATIENCE) for _ in range(3))
    finally:
        gc.enable()


def test_a_response_that_is_killed(proxy: Proxy, servers: Servers) -> None:
    """An addon that kills the flow in the hook of the response's head ends the request upstream, too."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(SSE + chunk(EVENT))
        connection.settimeout(PATIENCE)
        assert b"" == connection.recv(1)
        ended.set()

    with proxy.dial() as client:
        client.send(head(f"GET {servers.path(serve, before='/killed-late')} HTTP/1.1"))
        assert b"HTTP/1.1 200" not in client.rest()
        assert ended.wait(PATIENCE)


def mute(connection: socket.socket) -> None:
    """Until the proxy gives up."""
    connection.settimeout(PATIENCE)
    connection.recv(1)


@pytest.mark.parametrize("served", [b"", SSE, b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\n"], ids=["no head", "no event", "no end"])
def test_a_response_that_does_not_come(served: bytes, proxy: Proxy, servers: Servers, policy: Again) -> None:
    """When its time is over the next attempt begins; after the last one it is a 504."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(served)
        mute(connection)

    policy.timeouts = Timeouts(PATIENCE, 0.4, 0.4)
    assert (200, b"ok") == ask(proxy, servers.path(serve, serve, OK))
    status, body = ask(proxy, servers.path(serve))
    assert (504, "upstream_timeout") == (status, json.loads(body)["error"]["code"])


def test_a_tls_handshake_that_does_not_come(proxy: Proxy, servers: Servers, policy: Again) -> None:
    """A connection has its time, TLS included."""
    policy.timeouts = Timeouts(0.1, PATIENCE, PATIENCE)
    status, body = ask(proxy, servers.path(mute, before="/tls"))
    assert (504, "upstream_connect_timeout") == (status, json.loads(body)["error"]["code"])


class Full:
    """A server whose queue is full: no connection comes about."""

    def __enter__(self) -> int:
        self._stack = ExitStack()
        server = self._stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            filler = self._stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        return int(server.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def test_a_connection_that_does_not_come(proxy: Proxy, policy: Again) -> None:
    """It has its time."""
    policy.timeouts = Timeouts(0.1, PATIENCE, PATIENCE)
    with Full() as port, proxy.dial() as client:
        answer = client.ask(head(f"GET /to/{port} HTTP/1.1"), method="GET")
    assert (504, "upstream_connect_timeout") == (answer.status, answer.code)


def test_a_client_that_leaves_between_two_attempts(proxy: Proxy, servers: Servers, policy: Again) -> None:
    """While another backend is being connected to: there is no further attempt, and the client's other streams go on."""
    with Full() as port, H2(proxy) as client:
        stream = client.open(servers.path(BUSY) + f"/{port}/2")
        assert policy.failed.wait(PATIENCE)
        client.conn.reset_stream(stream)
        client.flush()
        for _ in range(2):
            assert 200 == client.answer(client.open("/echo"))[0]
    assert [503] == policy.failures


def test_time_goes_on_after_an_answer(proxy: Proxy, servers: Servers, policy: Again) -> None:
    """No timer of an answered request is left to do harm to the next one of its connection."""
    policy.timeouts = Timeouts(0.1, 0.1, 0.1)
    with proxy.dial() as client:
        assert 200 == client.ask(head(f"GET {servers.path(OK)} HTTP/1.1"), method="GET").status
        assert 504 == client.ask(head(f"GET {servers.path(mute)} HTTP/1.1"), method="GET").status


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_a_client_that_reads_slowly(proxy: Proxy, servers: Servers, policy: Again, http2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response is read from upstream as the client reads it, and arrives whole."""
    policy.timeouts = Timeouts(PATIENCE, PATIENCE, PATIENCE)
    waited = threading.Event()
    writable = upstream_leg.Response.writable

    async def waiting(response: upstream_leg.Response) -> None:
        waited.set()
        await writable(response)

    monkeypatch.setattr(upstream_leg.Response, "writable", waiting)
    size = (4 if http2 else 16) << 20  # more than the window of HTTP/2, or than the buffers of the kernel

    def serve(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(SSE.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % size) + EVENT)
            connection.sendall(b"x" * (size - len(EVENT)))

    path = servers.path(serve)
    if http2:
        with H2(proxy) as client2:
            stream = client2.open(path)
            assert waited.wait(PATIENCE)
            status, body = client2.answer(stream)
            assert (200, size) == (status, len(body))
    else:
        with proxy.dial() as client:
            client.send(head(f"GET {path} HTTP/1.1"))
            assert waited.wait(PATIENCE)
            assert size == len(client.answer("GET").body)


def test_an_upload_waits_for_upstream(proxy: Proxy, servers: Servers, policy: Again) -> None:
    """No more than a few buffers of a body are taken from the client while upstream reads none of it; the client may leave then."""
    ended, let = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        assert let.wait(PATIENCE)
        with suppress(ConnectionError):  # the connection is reset
            while connection.recv(1 << 20):
                pass
        ended.set()

    size = 256 << 20
    piece = b"x" * (1 << 20)
    with proxy.dial() as client:
        client.send(head(f"POST {servers.path(serve)}/streamed HTTP/1.1", "X-Goes-On: yes", f"Content-Length: {size}"))
        client.sock.settimeout(1)
        taken = 0
        with suppress(TimeoutError):
            while taken < size:
                taken += client.sock.send(piece)
        assert taken < 64 << 20
    let.set()
    assert ended.wait(PATIENCE)


def test_a_stream_that_breaks_off_while_its_client_reads_slowly(proxy: Proxy, servers: Servers, policy: Again) -> None:
    """An HTTP/2 client gets everything that had come, the last event too, before its stream is reset."""
    size = 100_000  # more than a client's window
    with H2(proxy) as client:
        stream = client.open(servers.path(SSE + chunk(EVENT + b"x" * (size - len(EVENT)))))
        assert policy.failed.wait(PATIENCE)
        status, body = client.answer(stream)
    assert -1 == status
    assert body.endswith(b"upstream_error\n\n")
    assert size < len(body)


def test_a_request_inside_a_tunnel(proxy: Proxy, servers: Servers) -> None:
    """Its response finds its way through the HTTP layer around it."""
    with proxy.dial() as client:
        client.send(head("CONNECT localhost:80 HTTP/1.1"))
        assert 200 == client.begin("CONNECT").status
        for _ in range(2):
            assert b"ok" == client.ask(head(f"GET {servers.path(OK)} HTTP/1.1"), method="GET").body


class Side:
    """The response side of one request, whose client's sockets the test controls; `request` records its calls."""

    def __init__(self, *, backlog: int = 0, streamed: bool = True) -> None:
        self.request = Mock(backlog=backlog)
        self.handler = SimpleNamespace(transports={})
        self.client = tflow.tclient_conn()
        self.client.alpn = None
        self.events: list[object] = []
        http_layer = SimpleNamespace(policy=SimpleNamespace(send_upstream=lambda *_, **__: self.request), connections={}, requests={})
        context = SimpleNamespace(client=self.client)
        leg = SimpleNamespace(client_connection=object(), http_layer=http_layer, context=context, handler=self.handler, inject=self.inject)
        self.stream = SimpleNamespace(flow=tflow.tflow(), stream_id=1, child_layer=None)
        self.response = upstream_leg.Response(cast("Any", leg), cast("Any", self.stream), streamed=streamed)
        self.response.start(http_layer.policy)

    def inject(self, out: Sequence[object], _: Sequence[object] = ()) -> None:
        for one in out:
            self.events += map(type, one.events if isinstance(one, upstream_leg.Together) else [one])

    def gate(self) -> Any:
        """What mitmproxy waits for with the client's connection, after it has read from it."""
        (io,) = self.handler.transports.values()
        return io.writer


def test_a_body_makes_its_client_wait() -> None:
    """The writer that stands for the upload is full while too much of it waits, for the fast path too."""
    side = Side(backlog=flow_control.BACKLOG + 1)
    before = flow_control.is_full(side.gate())
    side.request.backlog = 0
    assert (True, False) == (before, flow_control.is_full(side.gate()))


async def test_messages_wait_for_the_hooks_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is read from a WebSocket's client, nor from upstream, while mitmproxy has messages whose hook has not run."""
    monkeypatch.setattr(flow_control, "HOOK_LOOK", 0)
    side = Side(streamed=False)
    side.response.deliver([http.Response.make(101), b""])
    waiting = ["message"]
    side.stream.child_layer = SimpleNamespace(_paused_event_queue=waiting)
    tasks = [asyncio.ensure_future(side.gate().drain()), asyncio.ensure_future(side.response.writable())]
    for _ in range(5):
        await asyncio.sleep(0)
    assert [False, False, True] == [*(task.done() for task in tasks), side.response.full()]
    waiting.clear()
    await asyncio.gather(*tasks)
    assert not side.response.full()


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells it without a read")
async def test_a_client_that_leaves_within_its_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request upstream is cancelled, though nothing is read from the client."""
    monkeypatch.setattr(sockets, "LOOK", 0)
    side = Side(backlog=flow_control.BACKLOG + 1)
    gate = side.gate()
    near, far = socket.socketpair()
    with near:
        transport = SimpleNamespace(get_extra_info=lambda _: near)
        side.handler.transports[side.client] = SimpleNamespace(writer=SimpleNamespace(transport=transport))
        drained = asyncio.ensure_future(gate.drain())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not drained.done()
        far.close()
        await drained
    side.request.cancel.assert_called_once()


def test_a_probed_client_gets_a_whole_response(proxy: Proxy, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response's beginning is sent while its upload waits, and not again with the response."""
    monkeypatch.setattr(sockets, "PROBE_AFTER", 0.0)
    let = threading.Event()
    body = b"x" * (32 << 20) + b"end"

    def serve(connection: socket.socket) -> None:
        assert let.wait(PATIENCE)
        tail = b""  # the beginning of the body may have arrived with the head
        while tail != b"end":
            tail = (tail + connection.recv(1 << 20))[-3:]
        connection.sendall(OK)

    with proxy.dial() as client:
        client.send(head(f"POST {servers.path(serve)}/streamed HTTP/1.1", "X-Goes-On: yes", f"Content-Length: {len(body)}"))
        (sending := threading.Thread(target=client.send, args=[body])).start()
        probed = b"".join(client.sock.recv(1) for _ in range(7))
        let.set()
        sending.join(PATIENCE)
        rest = b""
        while not rest.endswith(b"ok"):
            rest += client.sock.recv(1 << 16)
    assert b"HTTP/1." == probed
    assert rest.startswith(b"1 200 OK\r\n")
    assert b"HTTP" not in rest


async def test_room_for_a_client_that_is_gone() -> None:
    """Nothing is waited for."""
    side = Side()
    await side.response.writable()
    assert not side.response.full()


def test_a_failure_after_the_end() -> None:
    """The stream gets it, and nothing is ended twice."""
    side = Side()
    side.response.deliver([http.Response.make(200), object()])
    side.response.failed(Failure(502, "upstream_error", "It failed."))
    assert [ResponseHeaders, ResponseEndOfMessage, upstream_leg.UpstreamFailed] == side.events
    assert {} == side.handler.transports


def test_a_response_grows(tmp_path: Path, servers: Servers) -> None:
    """With stream_large_bodies too it arrives whole, after failures as well. Last here: there is one mitmproxy at a time."""
    large = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + 8 * chunk(b"x" * 500) + b"0\r\n\r\n"
    with Proxy(tmp_path, Again(), stream_large_bodies="1000") as proxy:
        for before in ((), (BUSY,)):
            assert (200, b"x" * 4000) == ask(proxy, servers.path(*before, *before, large))
