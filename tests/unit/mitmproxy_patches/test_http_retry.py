"""Requests sent again, inside mitmproxy's HTTP layer: through a real proxy in a thread, with servers that do what they are told."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import h2.events
import pytest
from mitmproxy import http
from mitmproxy.proxy import commands, events

from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.mitmproxy_patches import connections, http_retry, install
from azure_openai_proxy.mitmproxy_patches.install import Failure, Timeouts
from support.processes import PATIENCE
from unit.mitmproxy_patches.test_install import H2, Proxy, Rules, Upstream, head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mitmproxy.proxy import server_hooks

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
NOTHING = b'data: {"id":"","object":"","created":0,"model":"","choices":[]}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","code":"503"}}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Again(Rules):
    """`/to/PORT/PORT/...` is asked for at one port after the other; `/instead/...` gets an answer of the rules' own at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Failure | int] = []
        self.patience = Timeouts(PATIENCE, PATIENCE, PATIENCE)
        self.held = ""  # a port that is not connected to before it is let
        self.connecting, self.let = threading.Event(), threading.Event()

    async def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        if data.server.address and str(data.server.address[1]) == self.held:
            self.connecting.set()
            await asyncio.to_thread(self.let.wait, PATIENCE)

    def server_disconnected(self, data: server_hooks.ServerConnectionHookData) -> None:
        connections.close_left(data.client, data.server)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        super().requestheaders(flow)
        flow.metadata["ports"] = re.findall(r"/(\d+)", flow.request.path)
        self.next(flow)

    def next(self, flow: http.HTTPFlow) -> bool:
        if not (ports := flow.metadata["ports"]):
            return False
        flow.request.scheme = "https" if "/tls" in flow.request.path else "http"
        flow.request.host, flow.request.port = "127.0.0.1", int(ports.pop(0))
        return True

    def timeouts(self, flow: http.HTTPFlow) -> Timeouts | None:
        return self.patience if flow.metadata["ours"] else None

    def holds(self, flow: http.HTTPFlow, response: http.Response) -> Literal["pass", "whole"] | Peek:
        if response.status_code >= 500:
            return "whole"
        return Peek(None) if "event-stream" in response.headers.get("content-type", "") else "pass"

    def last_event(self, failure: Failure, flow: http.HTTPFlow) -> bytes | None:
        return b"data: %b\n\n" % failure.code.encode()

    def again(self, flow: http.HTTPFlow, what: Failure | http.Response) -> bool | http.Response:
        self.failures.append(what if isinstance(what, Failure) else what.status_code)
        if self.next(flow):
            return True
        return "/instead" in flow.request.path and http.Response.make(429, b"instead", {"x-from": "rules"})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("mitmproxy"), Again()) as proxy:
        yield proxy


@pytest.fixture
def rules(shared: Proxy) -> Again:
    assert isinstance(shared.rules, Again)
    shared.rules.failures.clear()
    shared.rules.hooks.clear()
    shared.rules.held = ""
    shared.rules.connecting.clear()
    shared.rules.let.clear()
    shared.rules.patience = Timeouts(PATIENCE, PATIENCE, PATIENCE)
    return shared.rules


@pytest.fixture
def proxy(shared: Proxy, rules: Again) -> Proxy:
    return shared


class Servers(ExitStack):
    """Upstreams, each of which answers every connection with the same bytes, or does what it is told."""

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
def test_the_next_one_answers(first: bytes, body: bytes, proxy: Proxy, servers: Servers) -> None:
    """Whatever was wrong with the first, the client sees the second's answer, and the first has no say in it."""
    assert (200, b"ok") == ask(proxy, servers.path(first, first, OK), body)


def test_a_connection_is_used_again(proxy: Proxy, servers: Servers) -> None:
    """After a whole failed answer the same server is asked on the same connection; a 503 that lasts reaches the client."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(BUSY)
        connection.recv(65536)
        connection.sendall(OK)

    path = servers.path(serve)
    with proxy.dial() as client:
        assert (200, b"ok") == client.ask(head(f"GET {path}{path.removeprefix('/to')} HTTP/1.1"), method="GET")[::2]
    assert (503, b"busy") == ask(proxy, servers.path(BUSY, BUSY))


@pytest.mark.parametrize("last", [BUSY, b"", SSE + chunk(ERROR)])
def test_another_answer_instead(last: bytes, proxy: Proxy, servers: Servers, rules: Again) -> None:
    """When nobody is left the rules may have a better answer than the last failure; it takes the way of every answer."""
    assert (429, b"instead") == ask(proxy, servers.path(last, before="/instead"))
    assert 2 == rules.hooks.count("response")


def test_nobody_answers(proxy: Proxy, servers: Servers) -> None:
    """The failure as the rules shape it; an error event as the answer it should have been."""
    status, body = ask(proxy, servers.path(b""))
    assert (502, "upstream_error") == (status, json.loads(body)["error"]["code"])
    status, body = ask(proxy, servers.path(SSE + chunk(ERROR)))
    assert (503, "503") == (status, json.loads(body)["error"]["code"])
    assert 502 == ask(proxy, "/to/1/1")[0]


def test_a_stream_passes(proxy: Proxy, servers: Servers) -> None:
    """From its first event on; one that ends before there is any passes too."""
    done = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    assert (200, EVENT + b"data: [DONE]\n\n") == ask(proxy, servers.path(SSE + chunk(EVENT) + done))
    assert (200, b"") == ask(proxy, servers.path(SSE + b"0\r\n\r\n"))
    assert (200, b": nothing\n\n") == ask(proxy, servers.path(SSE + chunk(b": nothing\n\n") + b"0\r\n\r\n"))
    assert (200, b"") == ask(proxy, servers.path(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n"))
    nothing = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    assert (503, b"") == ask(proxy, servers.path(nothing))


def test_a_long_failure_passes(proxy: Proxy, servers: Servers, monkeypatch: pytest.MonkeyPatch, rules: Again) -> None:
    """It is not held in memory."""
    monkeypatch.setattr(http_retry, "HOLD_AT_MOST", 3)
    assert (503, b"busy") == ask(proxy, servers.path(BUSY))
    assert [] == rules.failures


def test_after_the_first_byte(proxy: Proxy, servers: Servers, rules: Again) -> None:
    """Nothing is sent again; the rules hear of it."""
    path = servers.path(SSE + chunk(EVENT), OK)
    with H2(proxy) as client:
        status, body = client.answer(client.open(path))
    assert -1 == status
    assert b"upstream_error" in body
    assert ["upstream_error"] == [failure.code for failure in rules.failures if isinstance(failure, Failure)]


def test_not_ours(proxy: Proxy, servers: Servers) -> None:
    """Mitmproxy's own way: its error page."""
    with proxy.dial() as client:
        assert 200 == client.ask(head(f"GET {servers.path(OK, before='/foreign')} HTTP/1.1"), method="GET").status
        assert b"<html>" in client.ask(head("GET /foreign/1 HTTP/1.1"), method="GET").body


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
def test_a_comment_lets_the_head_go(first: bytes, proxy: Proxy, servers: Servers, rules: Again) -> None:
    """The client has both while the server still holds back its first event; what fails after that is told in the stream."""
    serve, let = gated(SSE + chunk(first), chunk(ERROR) + b"0\r\n\r\n")
    path = servers.path(serve, OK)
    with proxy.dial() as client:
        client.send(head(f"GET {path} HTTP/1.1"))
        response = client.begin("GET")
        assert first == response.read(len(first))
        let.set()
        assert ERROR == response.read()
    assert [] == rules.failures


def wait_for(client: H2, kind: type, stream: int) -> None:
    """Until the stream has had an event of that kind."""
    found: set[int] = set()
    while stream not in found:
        told = client.conn.receive_data(client.client.sock.recv(65536))
        found |= {event.stream_id for event in told if isinstance(event, kind)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("before", [b"", chunk(NOTHING), chunk(b"data: {")])
def test_the_head_of_a_silent_stream_goes(before: bytes, proxy: Proxy, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time the client has it while the server still holds back its first event; the next stream of the connection too."""
    monkeypatch.setattr(http_retry, "HOLD_STREAM", 0.01)
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


def test_upstream_hears_that_a_client_with_several_streams_left(proxy: Proxy, servers: Servers) -> None:
    """Each connection is closed, not left to the garbage collector."""
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


def returned(doing: Iterator[object]) -> object:
    """What a generator that asks for nothing returns."""
    with pytest.raises(StopIteration) as stopped:
        next(doing)
    return stopped.value.value


def test_a_head_is_held_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer serves all streams of a connection, and no stream is let go by the timer of another."""
    stream = http_retry.Stream.__new__(http_retry.Stream)
    home = http_retry.Connection.__new__(http_retry.Connection)
    home.streams, home.command_sources = {1: stream}, {}
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream.server_state, stream.held_until = stream.state_peek, 3.0
    monkeypatch.setattr(http_retry.Connection, "event_to_child", lambda *_: iter(()))
    home.hold_timer = commands.RequestWakeup(2.0)
    now = 2.0
    (timer,) = home._handle_event(events.Wakeup(home.hold_timer))
    assert isinstance(timer, commands.RequestWakeup)
    assert 1.0 == timer.delay
    assert timer is home.hold_timer
    assert [] == list(home.hold())
    assert None is returned(stream.look(events.Wakeup(timer)))
    now = 3.0
    wakeup = events.Wakeup(timer)
    assert wakeup is returned(stream.look(wakeup))
    stream.server_state = stream.state_done
    assert [] == list(home._handle_event(wakeup))
    assert home.hold_timer is None


def mute(connection: socket.socket) -> None:
    """Until the proxy gives up."""
    connection.settimeout(PATIENCE)
    connection.recv(1)


@pytest.mark.parametrize("served", [b"", SSE, b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\n"], ids=["no head", "no event", "no end"])
def test_an_answer_that_does_not_come(served: bytes, proxy: Proxy, servers: Servers, rules: Again) -> None:
    """Another is asked when its time is over; with nobody left it is a 504. Of what is given up nothing more is heard."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(served)
        mute(connection)

    rules.patience = Timeouts(PATIENCE, 0.1, 0.1)
    assert (200, b"ok") == ask(proxy, servers.path(serve, serve, OK))
    status, body = ask(proxy, servers.path(serve))
    assert (504, "upstream_timeout") == (status, json.loads(body)["error"]["code"])


def test_a_tls_handshake_that_does_not_come(proxy: Proxy, servers: Servers, rules: Again) -> None:
    """A connection has its time, TLS included."""
    rules.patience = Timeouts(0.1, PATIENCE, PATIENCE)
    path = servers.path(mute, before="/tls")
    status, body = ask(proxy, path)
    assert (504, "upstream_connect_timeout") == (status, json.loads(body)["error"]["code"])


def test_a_connection_that_does_not_come(proxy: Proxy, rules: Again) -> None:
    """A server whose queue is full lets nobody in."""
    rules.patience = Timeouts(0.1, PATIENCE, PATIENCE)
    with socket.socket() as full, ExitStack() as fillers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        with proxy.dial() as client:
            answer = client.ask(head(f"GET /to/{full.getsockname()[1]} HTTP/1.1"), method="GET")
    assert (504, "upstream_connect_timeout") == (answer.status, answer.code)


@pytest.mark.parametrize("there", [True, False], ids=["connected", "refused"])
def test_a_client_that_leaves(there: bool, proxy: Proxy, servers: Servers, rules: Again) -> None:
    """While another backend is being connected to: nothing is sent to it, and nobody else is asked."""
    path = servers.path(BUSY) + (servers.path(OK, before="") if there else "/1") + "/2"
    rules.held = path.split("/")[3]
    with H2(proxy) as client:
        stream = client.open(path)
        assert rules.connecting.wait(PATIENCE)
        client.conn.reset_stream(stream)
        client.flush()
        assert 200 == client.answer(client.open("/echo"))[0]
        rules.let.set()
        assert 200 == client.answer(client.open("/echo"))[0]
    assert [503] == rules.failures


def test_time_goes_on_after_an_answer(proxy: Proxy, servers: Servers, rules: Again) -> None:
    """Of a request that is answered no timer is left to do harm to the next one of its connection."""
    rules.patience = Timeouts(0.1, 0.1, 0.1)
    with proxy.dial() as client:
        assert 200 == client.ask(head(f"GET {servers.path(OK)} HTTP/1.1"), method="GET").status
        assert 504 == client.ask(head(f"GET {servers.path(mute)} HTTP/1.1"), method="GET").status


def test_a_streamed_request(proxy: Proxy, rules: Again) -> None:
    """Cannot be sent again: nobody has it."""
    with proxy.dial() as client:
        assert 502 == client.ask(head("POST /to/1/1/streamed HTTP/1.1", "Content-Length: 4") + b"body").status
    assert [] == rules.failures


def test_a_mitmproxy_that_differs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Requests are not sent again, and that is said once."""
    monkeypatch.setattr(http_retry, "compatible", lambda: "HttpStream has changed")
    install._resends.cache_clear()
    assert (False, False) == (install._resends(), install._resends())
    assert [
        "This mitmproxy is not one of those known (HttpStream has changed): requests are not sent again after a failure."
    ] == caplog.messages
    install._resends.cache_clear()
    monkeypatch.delattr(http_retry, "compatible")
    assert not install._resends()
    install._resends.cache_clear()
    monkeypatch.undo()
    assert install._resends()


def test_time_goes_on_in_the_shorter_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that passes by the events puts off the deadline too, where there is one."""
    stream = http_retry.Stream.__new__(http_retry.Stream)
    stream.deadline = None
    stream.passes()
    assert stream.deadline is None
    monkeypatch.setattr("time.monotonic", lambda: 5.0)
    stream.timeouts = install.Timeouts(1.0, 1.0, 100.0)
    stream.passes()
    assert 105.0 == stream.deadline


def test_nobody_looks_at_the_clock_for_requests_that_are_over() -> None:
    """One timer for a connection: it looks at every request, and without one that waits it is the last."""
    over = http_retry.Stream.__new__(http_retry.Stream)
    over.server_state = over.state_done
    home = http_retry.Connection.__new__(http_retry.Connection)
    home.streams, home.command_sources, home.timer = {1: over}, {}, commands.RequestWakeup(1)
    assert [] == list(home._handle_event(events.Wakeup(home.timer)))
    assert home.timer is None


def test_an_answer_grows(tmp_path: Path, servers: Servers) -> None:
    """What there was when stream_large_bodies let it go by is there, whoever gives it. Last here: there is one mitmproxy at a time."""
    large = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + 8 * chunk(b"x" * 500) + b"0\r\n\r\n"
    with Proxy(tmp_path, Again(), stream_large_bodies="1000") as proxy:
        for before in ((), (BUSY,)):
            assert (200, b"x" * 4000) == ask(proxy, servers.path(*before, *before, large))
