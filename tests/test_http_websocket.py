"""WebSockets that break off, through a whole mitmdump."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from support import PATIENCE
from test_http_layer import Proxy, Rules

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("mitmproxy"), Rules()) as proxy:
        yield proxy


class Upstream:
    """`cut` breaks off, any other text comes back; `closed` is the code that it heard last."""

    def __init__(self) -> None:
        self.closed: int | None = None
        self.left = threading.Event()

    def __call__(self, connection: ServerConnection) -> None:
        try:
            for text in connection:
                if text == "cut":
                    connection.socket.shutdown(socket.SHUT_RDWR)
                else:
                    connection.send(text)
        except ConnectionClosed:
            pass
        self.closed = connection.close_code
        self.left.set()


@pytest.fixture
def upstream() -> Iterator[tuple[Upstream, int]]:
    handler = Upstream()
    with serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler, server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def test_who_waits_is_told_that_upstream_broke_off(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """Not 1000: it is no regular end."""
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{upstream[1]}", proxy=None) as client:
        client.send("hello")
        assert "hello" == client.recv(PATIENCE)
        client.send("cut")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(PATIENCE)

    assert closed.value.rcvd
    assert (1011, "The connection upstream broke off.") == (closed.value.rcvd.code, closed.value.rcvd.reason)


def test_upstream_is_told_that_the_client_is_gone(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """Without a closing frame of its own."""
    handler, port = upstream
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{port}", proxy=None) as client:
        client.send("hello")
        assert "hello" == client.recv(PATIENCE)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.shutdown(socket.SHUT_RDWR)
    assert handler.left.wait(PATIENCE)
    assert 1001 == handler.closed


def test_a_regular_end_stays_one(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """With the code that the client gave."""
    handler, port = upstream
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{port}", proxy=None) as client:
        client.close(4000, "enough")
    assert handler.left.wait(PATIENCE)
    assert 4000 == handler.closed
