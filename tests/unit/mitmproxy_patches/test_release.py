"""A flow that is over is freed at once, and so is its stream, without Python's collector of reference cycles."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from azure_openai_proxy.api import redaction
from azure_openai_proxy.client_leg import message_types
from azure_openai_proxy.mitmproxy_patches.http_stream import PatchedStream
from support.patched_proxy import H2, LIMIT, MB, HttpPolicy, Proxy, Upstream, head
from support.processes import PATIENCE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from mitmproxy import http

BODY = b"x" * 1000


class Counting(HttpPolicy):
    """`freed` is released for every flow that is gone, for every request, and for every stream."""

    def __init__(self) -> None:
        super().__init__()
        self.freed = threading.Semaphore(0)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        super().requestheaders(flow)
        weakref.finalize(flow, self.freed.release)
        weakref.finalize(flow.request, self.freed.release)

    def request(self, flow: http.HTTPFlow) -> None:
        super().request(flow)
        self.requests.clear()

    def request_with_keys(self, flow: http.HTTPFlow) -> http.Request:
        return redaction.with_secrets(flow.request, redaction.Hidden())

    def gone(self, flows: int = 1, *, with_stream: bool = True) -> bool:
        return all(self.freed.acquire(timeout=PATIENCE) for _ in range((2 + with_stream) * flows))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    message_types.check(on=False)  # mitmproxy's check of a message's types leaves the whole stack in a reference cycle
    policy = Counting()
    create = PatchedStream.__init__

    def create_and_count(stream: PatchedStream, *arguments: Any) -> None:
        create(stream, *arguments)
        weakref.finalize(stream, policy.freed.release)

    with pytest.MonkeyPatch.context() as patch, Proxy(tmp_path_factory.mktemp("mitmproxy"), policy) as proxy:
        patch.setattr(PatchedStream, "__init__", create_and_count)
        with proxy.dial() as client:  # the first connection upstream of a process leaves the stack in a reference cycle, once
            client.ask(SENT["no way upstream"])
        gc.collect()
        policy.freed = threading.Semaphore(0)
        yield proxy
    message_types.check(on=True)


@pytest.fixture
def policy(shared: Proxy) -> Iterator[Counting]:
    assert isinstance(shared.policy, Counting)
    gc.collect()
    gc.disable()
    shared.policy.freed = threading.Semaphore(0)
    yield shared.policy
    gc.enable()


def answers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


SENT = {
    "answered here": head("POST /echo HTTP/1.1", f"Content-Length: {len(BODY)}") + BODY,
    "answered early": head("POST /early HTTP/1.1", f"Content-Length: {len(BODY)}") + BODY,
    "too large": head("POST /echo HTTP/1.1", f"Content-Length: {LIMIT + 1}") + MB + b"x",
    "no way upstream": head("POST /up/9 HTTP/1.1", f"Content-Length: {len(BODY)}") + BODY,
    "the last one": head("POST /echo HTTP/1.1", "Connection: close", f"Content-Length: {len(BODY)}") + BODY,
    "bad chunks": head("POST /echo HTTP/1.1", "Transfer-Encoding: chunked") + b"zz\r\n",
}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT.keys())
def test_a_flow_that_is_over(shared: Proxy, policy: Counting, sent: bytes) -> None:
    """While its connection is open."""
    with shared.dial() as client:
        client.ask(sent)
        assert policy.gone()


@pytest.mark.parametrize("path", ["/up/{}", "/up/{}/streamed"])
def test_a_flow_that_upstream_answered(shared: Proxy, policy: Counting, path: str) -> None:
    """Its body was held or went on; neither connection keeps it."""
    with Upstream(answers, BODY) as upstream, shared.dial() as client:
        client.ask(head(f"POST {path.format(upstream.port)} HTTP/1.1", f"Content-Length: {len(BODY)}"), BODY)
        assert policy.gone()


def test_a_stream_that_is_over(shared: Proxy, policy: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can still be printed, for example by mitmproxy's option `proxy_debug`."""
    printed: list[str] = []
    free = PatchedStream.free

    def free_and_print(stream: PatchedStream) -> None:
        free(stream)
        printed.append(repr(stream))

    monkeypatch.setattr(PatchedStream, "free", free_and_print)
    with shared.dial() as client:
        client.ask(SENT["answered here"])
        assert policy.gone()
    (text,) = printed
    assert 2 == text.count("=state_errored")


def test_flows_of_one_http2_connection(shared: Proxy, policy: Counting) -> None:
    """Each has a connection of its own upstream."""
    with Upstream(answers) as upstream, H2(shared) as client:
        for _ in range(3):
            stream = client.open(f"/up/{upstream.port}", end=False)
            client.body(stream, BODY)
            assert 200 == client.answer(stream)[0]
        assert policy.gone(3)


@pytest.mark.parametrize("path", ["/echo", "/early"])
def test_a_client_that_leaves(shared: Proxy, policy: Counting, path: str) -> None:
    """In the middle of its body."""
    with shared.dial() as client:
        client.send(head(f"POST {path} HTTP/1.1", f"Content-Length: {len(BODY)}"), BODY[1:])
    assert policy.gone()


def test_a_websocket(shared: Proxy, policy: Counting) -> None:
    """With its messages, when it is closed. mitmproxy keeps its stream until the connection ends."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever).start()
        with connect(f"ws://127.0.0.1:{shared.port}/up/{server.socket.getsockname()[1]}", proxy=None) as client:
            client.send("hello")
            assert "hello" == client.recv(PATIENCE)
        with pytest.raises(ConnectionClosed):
            client.recv(PATIENCE)
        assert policy.gone(with_stream=False)
        server.shutdown()
