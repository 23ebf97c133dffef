"""WebSockets that break off, through a whole mitmdump."""

from __future__ import annotations

import socket
import struct
import threading
import zlib
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from support.patched_proxy import LIMIT, HttpPolicy, Proxy
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("mitmproxy"), HttpPolicy()) as proxy:
        yield proxy


class Upstream:
    """`cut` and `reset` break it off, `large` sends more than the limit, other texts are echoed; `closed` is the last close code."""

    def __init__(self) -> None:
        self.closed: int | None = None
        self.received: list[str | bytes] = []
        self.left = threading.Event()

    def __call__(self, connection: ServerConnection) -> None:
        try:
            for text in connection:
                self.received.append(text)
                if text == "large":
                    connection.send("x" * (2 * LIMIT))
                elif text == "cut":
                    connection.socket.shutdown(socket.SHUT_RDWR)
                elif text == "reset":
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.socket.close()
                else:
                    connection.send(text)
        except ConnectionClosed:
            pass
        self.closed = connection.close_code
        self.left.set()


@pytest.fixture
def upstream() -> Iterator[tuple[Upstream, int]]:
    handler = Upstream()
    with serve(handler, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler, server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_who_waits_is_told_that_upstream_broke_off(how: str, proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """Not 1000: it is no regular end."""
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{upstream[1]}", proxy=None) as client:
        client.send("hello")
        assert "hello" == client.recv(PATIENCE)
        client.send(how)
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


def frame(payload: bytes, *, opcode: int = 2, final: bool = True, compressed: bool = False) -> bytes:
    """A client's frame. Its mask is zero."""
    head = bytes([final << 7 | compressed << 6 | opcode])
    length = len(payload)
    sized = (
        bytes([0x80 | length])
        if length < 126
        else b"\xfe" + struct.pack("!H", length)
        if length < 65536
        else b"\xff" + struct.pack("!Q", length)
    )
    return head + sized + bytes(4) + payload


def bomb(size: int) -> bytes:
    """So many zeros, a multiple of `LIMIT`, as permessage-deflate has them."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = deflate.compress(bytes(LIMIT)) + deflate.flush(zlib.Z_FULL_FLUSH)  # refers to nothing before it
    return (part * (size // LIMIT))[:-4]


def reason(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(PATIENCE)
    assert closed.value.rcvd
    return closed.value.rcvd.code, closed.value.rcvd.reason


TOO_BIG = {
    "one frame": [frame(bytes(LIMIT + 65))],
    "frames without end": [frame(bytes(1 << 14), final=False), *[frame(bytes(1 << 14), opcode=0, final=False)] * 100],
    "empty frames without end": [frame(b"", final=False), *[frame(b"", opcode=0, final=False)] * (LIMIT // 64 + 2)],
    "a frame that is not finished": [frame(bytes(4 * LIMIT))[: 2 * LIMIT]],
    "text": [frame(b"x" * (LIMIT + 65), opcode=1)],
    "text that is not ASCII": [frame("\N{GRINNING FACE}".encode() * (LIMIT // 4 + 17), opcode=1)],
    "compressed": [frame(bomb(300 * LIMIT), compressed=True)],
    "compressed in frames": [
        frame(bomb(300 * LIMIT)[:500], compressed=True, final=False),
        frame(bomb(300 * LIMIT)[500:], opcode=0, final=False),
    ],
}


@pytest.mark.parametrize("sent", TOO_BIG.values(), ids=TOO_BIG.keys())
def test_a_message_over_the_limit_ends_the_connection(proxy: Proxy, upstream: tuple[Upstream, int], sent: list[bytes]) -> None:
    """The client gets 1009 although it still sends; the upstream gets no part of the message, and the close of the client."""
    handler, port = upstream
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{port}", proxy=None, max_size=None) as client:
        client.socket.sendall(b"".join(sent))
        assert (1009, f"The message is larger than {LIMIT} bytes.") == reason(client)
    assert handler.left.wait(PATIENCE)
    assert (1001, []) == (handler.closed, handler.received)


@pytest.mark.parametrize("sent", [frame(bytes(LIMIT)), frame(bomb(LIMIT), compressed=True)], ids=["plain", "compressed"])
def test_a_message_of_the_limit_passes(proxy: Proxy, upstream: tuple[Upstream, int], sent: bytes) -> None:
    """And so do the next ones: each is counted for itself."""
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{upstream[1]}", proxy=None, max_size=None) as client:
        for _ in range(3):
            client.socket.sendall(sent)
            assert bytes(LIMIT) == client.recv(PATIENCE)


def test_a_message_of_upstream_s_over_the_limit(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """Compressed to a few bytes: the upstream gets 1009, the client 1011."""
    handler, port = upstream
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{port}", proxy=None, max_size=None) as client:
        client.send("large")
        assert (1011, "A message from upstream is too large.") == reason(client)
    assert handler.left.wait(PATIENCE)
    assert 1009 == handler.closed


def test_compression_that_cannot_be_read(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """1007, as the standard says."""
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{upstream[1]}", proxy=None) as client:
        client.socket.sendall(frame(b"\xff" * 20, compressed=True))
        assert 1007 == reason(client)[0]


def test_a_peer_s_own_1009_passes(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """With its reason, as any other code."""
    handler, port = upstream
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{port}", proxy=None) as client:
        client.close(1009, "enough")
    assert handler.left.wait(PATIENCE)
    assert 1009 == handler.closed


def test_others_have_no_limit(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """Messages of other flows pass as in mitmproxy."""
    with connect(f"ws://127.0.0.1:{proxy.port}/foreign/up/{upstream[1]}", proxy=None, max_size=None) as client:
        client.send(bytes(2 * LIMIT))
        assert bytes(2 * LIMIT) == client.recv(PATIENCE)


def test_a_ping_passes(proxy: Proxy, upstream: tuple[Upstream, int]) -> None:
    """In the middle of a message too."""
    with connect(f"ws://127.0.0.1:{proxy.port}/up/{upstream[1]}", proxy=None) as client:
        client.socket.sendall(frame(b"a", final=False))
        assert client.ping().wait(PATIENCE)
        client.socket.sendall(frame(b"b", opcode=0))
        assert b"ab" == client.recv(PATIENCE)
