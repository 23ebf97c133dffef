"""Bodies that are sent on as they come, through a whole mitmdump."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pytest

from azure_openai_proxy.client_leg.request_body import HELD
from azure_openai_proxy.config.settings import Timeouts
from azure_openai_proxy.egress.deadlines import Deadlines
from azure_simulator.tls import make
from support.patched_proxy import H2, HttpPolicy, Proxy, head
from support.processes import PATIENCE

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    from mitmproxy import http

BODY = b"0123456789abcdef" * (HELD // 16)
ON = "X-Goes-On: yes"


class OnTheWay(HttpPolicy):
    def start_streamed_upload(self, flow: http.HTTPFlow, start: bytes) -> None:
        super().start_streamed_upload(flow, start)
        if flow.response and "x-silent" in flow.request.headers:
            flow.response.content = b""

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        super().responseheaders(flow)
        if "x-killed" in flow.request.headers:
            flow.kill()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("mitmproxy"), OnTheWay()) as proxy:
        yield proxy


class Server:
    """Accepts one connection after the other, and responds with 200 when `received` ends as given."""

    def __init__(self, end: bytes = b"!") -> None:
        self.end = end
        self.received = b""
        self.began = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._connections:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # the proxy keeps it for another request
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._connections.append(connection)
            with suppress(OSError), connection:  # a reset, when the test ends
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            self.received += data
            self.began.set()
            if self.received.endswith(self.end):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


class TLSServer(Server):
    """With TLS; `spoken` is the negotiated protocol."""

    def __init__(self, context: ssl.SSLContext, protocols: list[str]) -> None:
        super().__init__()
        context.set_alpn_protocols(protocols)
        self.context = context
        self.spoken: list[str | None] = []

    def serve(self, connection: socket.socket) -> None:
        with self.context.wrap_socket(connection, server_side=True) as secure:
            self._connections.append(secure)
            self.spoken.append(secure.selected_alpn_protocol())
            self.talk(secure)

    def talk(self, connection: ssl.SSLSocket) -> None:
        super().serve(connection)


def test_a_body_goes_on_while_it_comes(proxy: Proxy) -> None:
    """The held bytes are sent first; the rest follows before the end has arrived, and the connection serves the next request."""
    with Server() as server, proxy.dial() as client:
        client.send(head(f"POST /up/{server.port} HTTP/1.1", ON, f"Content-Length: {2 * len(BODY) + 1}"), BODY, BODY)
        assert server.began.wait(PATIENCE)
        assert 200 == client.ask(b"!").status
        assert 200 == client.ask(head()).status
    assert server.received.endswith(b"\r\n\r\n" + BODY + BODY + b"!")


def test_a_body_that_is_not_larger_is_held(proxy: Proxy) -> None:
    """It can be sent again."""
    body = BODY[1:] + b"!"
    with Server() as server, proxy.dial() as client:
        assert 200 == client.ask(head(f"POST /up/{server.port} HTTP/1.1", ON, f"Content-Length: {len(body)}"), body).status
    assert body == proxy.policy.requests[-1].content


def test_a_large_body_that_is_held(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the policy whole."""
    monkeypatch.setattr(proxy.policy, "max_body", lambda _: 4 * HELD)
    body = b"".join(b"%07d\n" % number for number in range(HELD // 4))
    with Server(b"262143\n") as server, proxy.dial() as client:
        assert 200 == client.ask(head(f"POST /up/{server.port} HTTP/1.1", f"Content-Length: {len(body)}"), body).status
    assert body == proxy.policy.requests[-1].content


def test_chunks_stay_chunks(proxy: Proxy) -> None:
    """A body without a length has none upstream."""
    with Server(b"\r\n0\r\n\r\n") as server, proxy.dial() as client:
        request = head(f"POST /up/{server.port} HTTP/1.1", ON, "Transfer-Encoding: chunked")
        assert 200 == client.ask(request, b"%x\r\n%s\r\n" % (len(BODY), BODY), b"1\r\n!\r\n0\r\n\r\n").status
    assert b"content-length" not in server.received[: server.received.index(b"\r\n\r\n")].lower()


def test_frames_become_chunks(proxy: Proxy) -> None:
    """An empty frame is no end."""
    with Server(b"1\r\n!\r\n0\r\n\r\n") as server, H2(proxy) as client:
        stream = client.open(f"/up/{server.port}", ("x-goes-on", "yes"), end=False)
        client.body(stream, BODY + b"x", end=False)
        assert server.began.wait(PATIENCE)
        client.conn.send_data(stream, b"")
        client.flush()
        client.body(stream, b"!")
        assert 200 == client.answer(stream)[0]
    assert b"transfer-encoding: chunked" in server.received[: server.received.index(b"\r\n\r\n")].lower()


def test_a_body_that_mitmproxy_sends_becomes_chunks_too(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that is sent may be a copy of the flow's."""
    monkeypatch.setattr(proxy.policy, "request_with_keys", lambda flow: flow.request.copy())
    with Server(b"1\r\n!\r\n0\r\n\r\n") as server, H2(proxy) as client:
        stream = client.open(f"/foreign/up/{server.port}/streamed", end=False)
        client.body(stream, b"!")
        assert 200 == client.answer(stream)[0]
    assert b"transfer-encoding: chunked" in server.received[: server.received.index(b"\r\n\r\n")].lower()


def test_a_large_body_goes_over_http1(proxy: Proxy, tmp_path: Path) -> None:
    """Though both sides support HTTP/2, where the client could not be paused; with the original length."""
    context = make(tmp_path, ["127.0.0.1"])[1]
    with TLSServer(context, ["h2", "http/1.1"]) as server, H2(proxy) as client:
        stream = client.open(f"/tlsup/{server.port}", ("x-goes-on", "yes"), ("content-length", str(len(BODY) + 1)), end=False)
        client.body(stream, BODY + b"!")
        assert 200 == client.answer(stream)[0]
    assert ["http/1.1"] == server.spoken
    assert server.received.endswith(b"\r\n\r\n" + BODY + b"!")


def test_a_small_one_goes_on_too(proxy: Proxy, tmp_path: Path) -> None:
    """A body that a hook lets pass from its beginning."""
    context = make(tmp_path, ["127.0.0.1"])[1]
    with TLSServer(context, ["h2", "http/1.1"]) as server, H2(proxy) as client:
        stream = client.open(f"/tlsup/{server.port}/streamed", ("content-length", "5"), end=False)
        client.body(stream, b"four!")
        assert 200 == client.answer(stream)[0]
    assert (["http/1.1"], True) == (server.spoken, server.received.endswith(b"\r\n\r\nfour!"))


@pytest.mark.parametrize("more", [(), ("X-Silent: yes",)])
def test_a_refusal_does_not_wait_for_the_end(proxy: Proxy, more: tuple[str, ...]) -> None:
    """It has a response's hooks, the rest is thrown away, and the same connection serves the next request."""
    proxy.policy.hooks.clear()
    with proxy.dial() as client:
        request = head("POST /x HTTP/1.1", "X-Goes-On: refuse", *more, f"Content-Length: {2 * len(BODY)}")
        assert 401 == client.ask(request, BODY + b"x").status
        client.send(BODY[1:])
        assert 200 == client.ask(head()).status
    assert ["requestheaders", "response", "requestheaders", "request", "response"] == proxy.policy.hooks


def test_a_refusal_that_is_killed(proxy: Proxy) -> None:
    """The addon that kills the flow decides."""
    with proxy.dial() as client:
        client.send(head("POST /x HTTP/1.1", "X-Goes-On: refuse", "X-Killed: yes", f"Content-Length: {2 * len(BODY)}"), BODY + b"x")
        assert client.closed()


def test_nowhere_to_go_on(proxy: Proxy) -> None:
    """If the upstream refuses the connection, the client gets the error at once."""
    with proxy.dial() as client:
        answer = client.ask(head("POST /up/9 HTTP/1.1", ON, f"Content-Length: {2 * len(BODY)}"), BODY + b"x")
        assert (502, "upstream_unreachable") == (answer.status, answer.code)


def test_the_limit_is_not_for_what_goes_on(proxy: Proxy) -> None:
    """But it holds for every other body."""
    with proxy.dial() as client:
        assert 413 == client.ask(head("POST /up/9 HTTP/1.1", f"Content-Length: {2 * len(BODY)}")).status


def test_a_slow_upload_is_not_late(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the client sends, the time-out for Azure's response does not run."""
    monkeypatch.setattr(proxy.policy, "timeouts", Timeouts(PATIENCE, 0.1, PATIENCE))
    looked = threading.Event()
    look = Deadlines._look

    def looking(deadlines: Deadlines) -> None:
        look(deadlines)
        looked.set()

    monkeypatch.setattr(Deadlines, "_look", looking)
    with Server() as server, proxy.dial() as client:
        client.send(head(f"POST /up/{server.port} HTTP/1.1", ON, f"Content-Length: {len(BODY) + 4}"), BODY, b"x")
        for _ in range(2):
            assert server.began.wait(PATIENCE)
            for _ in range(4):  # looks come every half of the time-out
                looked.clear()
                assert looked.wait(PATIENCE)
            server.began.clear()
            client.send(b"x")
        assert server.began.wait(PATIENCE)
        assert 200 == client.ask(b"!").status


def test_mitmproxy_s_own_streaming_waits_for_the_hook(tmp_path: Path) -> None:
    """With stream_large_bodies a request of ours would leave before it is translated."""
    with Proxy(tmp_path, OnTheWay(), stream_large_bodies="1k") as proxy, proxy.dial() as client:
        answer = client.ask(head("POST /echo HTTP/1.1", "Content-Length: 2048"), b"x" * 2048)
    assert (200, 2048) == (answer.status, json.loads(answer.body)["length"])
