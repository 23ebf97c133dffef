"""Chunks that take the shorter way arrive as by mitmproxy's own; everything else goes that one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import create_autospec

import pytest
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.mitmproxy_patches.fastpath import chunks as fast_chunks
from azure_openai_proxy.mitmproxy_patches.fastpath import tls as fast_tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Between:
    """A client and a stream that has begun, as mitmproxy would have put them together; `written` is what the client gets."""

    def __init__(self, options: Any) -> None:
        context = Context(tflow.tclient_conn(), options)
        context.server = tflow.tserver_conn()
        self.layer = HttpLayer(context, HTTPMode.regular)
        self.server, self.stream = Http1Server(context.fork()), HttpStream(context.fork(), 1)
        self.layer.connections = {context.client: self.server}
        self.stream.flow = flow = tflow.tflow(client_conn=context.client, server_conn=context.server, resp=True)
        assert flow.response
        self.response = flow.response
        self.response.headers["transfer-encoding"] = "chunked"
        self.response.stream = True
        self.stream.server_state = self.stream.state_stream_response_body
        self.written: list[bytes] = []
        self.between_chunks = True
        self.logged: list[str] = []
        self.active = 0
        self.writer = create_autospec(asyncio.StreamWriter, instance=True)
        self.writer.write, self.writer.is_closing.return_value = self.written.append, False
        self.transports = {context.client: SimpleNamespace(writer=self.writer)}

    def register_activity(self) -> None:
        self.active += 1

    def log(self, message: str, *_: object, **__: object) -> None:
        self.logged.append(message)

    def take(self) -> Callable[[bytes], bool] | None:
        watchdog = SimpleNamespace(register_activity=self.register_activity)
        handler = SimpleNamespace(transports=self.transports, timeout_watchdog=watchdog, log=self.log)
        return fast_chunks.straight(cast("Any", self.stream), cast("Any", handler), lambda: self.between_chunks)

    def receive(self, data: bytes) -> bool:
        take = self.take()
        assert take
        return take(data)


@pytest.fixture
async def between() -> AsyncIterator[Between]:  # mitmproxy wants a running loop
    with taddons.context(Proxyserver()) as context:
        yield Between(context.options)


async def test_straight(between: Between) -> None:
    """Whole chunks need no layer: what nobody changes is written as it came."""
    assert between.receive(b"2\r\nab\r\n")
    assert between.receive(b"2\r\nab\r\n002\r\ncd\r\n")
    assert [b"2\r\nab\r\n", b"2\r\nab\r\n002\r\ncd\r\n"] == between.written
    assert 2 == between.active  # or mitmproxy closes the client's connection as idle


@pytest.mark.parametrize(
    ("out", "written"),
    [(b"x", [b"1\r\nx\r\n"]), ([b"x", b"yz"], [b"1\r\nx\r\n2\r\nyz\r\n"]), ([], []), ([b"x"], [b"1\r\nx\r\n"])],
)
async def test_transformed(between: Between, out: Any, written: list[bytes]) -> None:
    """A stream's function is asked as mitmproxy asks it, and what it returns is written in chunks."""
    seen: list[bytes] = []

    def stream(data: bytes) -> Any:
        seen.append(data)
        return out

    between.response.stream = stream
    assert between.receive(b"2\r\nab\r\n")
    assert ([b"ab"], written) == (seen, between.written)


async def test_straight_without_chunks(between: Between) -> None:
    """A client that gets no chunks gets none."""
    del between.response.headers["transfer-encoding"]
    assert between.receive(b"2\r\nab\r\n")
    assert [b"ab"] == between.written


async def test_stored(between: Between) -> None:
    """With store_streamed_bodies the flow keeps what the client got."""
    between.stream.context.options.update(store_streamed_bodies=True)
    assert between.receive(b"3\r\nabc\r\n")
    assert ([b"3\r\nabc\r\n"], b"abc") == (between.written, bytes(between.stream.response_body_buf))


async def test_a_function_that_fails(between: Between) -> None:
    """Somebody's function that raises is logged as mitmproxy logs it, and what comes next goes on."""

    def stream(data: bytes) -> bytes:
        if data == b"a":
            raise ValueError("no a, please")
        return data

    between.response.stream = stream
    assert between.receive(b"1\r\na\r\n")
    assert between.receive(b"1\r\nb\r\n")
    assert (["mitmproxy has crashed!"], [b"1\r\nb\r\n"]) == (between.logged, between.written)


async def test_a_client_that_is_gone(between: Between) -> None:
    """It is not written to; it is mitmproxy's to end what comes for it."""
    between.writer.is_closing.return_value = True
    assert between.receive(b"1\r\na\r\n")
    assert [] == between.written


@pytest.mark.parametrize("who", ["stream", "server", "state", "middle", "half", "last"])
async def test_not_now(between: Between, who: str) -> None:
    """While a hook is waited for, in the middle of a chunk, or for what is not whole chunks, the layers must see the bytes."""
    take, data = between.take(), b"1\r\na\r\n"
    assert take
    match who:
        case "stream":
            between.stream._paused = cast("Any", True)
        case "server":
            between.server._paused = cast("Any", True)
        case "state":
            between.stream.server_state = between.stream.state_consume_response_body
        case "middle":
            between.between_chunks = False
        case "half":
            data = b"2\r\na"
        case "last":
            data = b"0\r\n\r\n"
    assert not take(data)
    assert [] == between.written


@pytest.mark.parametrize("what", ["HTTP/2", "gone", "virtual network", "debugging", "no body yet", "TLS unknown", "TLS in TLS"])
async def test_not_at_all(between: Between, what: str) -> None:
    """Other connections, and those that somebody wants to see every step of, keep mitmproxy's way."""
    client = between.stream.context.client
    match what:
        case "HTTP/2":
            between.layer.connections[client] = cast("Any", object())
        case "gone":
            between.transports.clear()
        case "virtual network":
            between.transports[client] = SimpleNamespace(writer=object())
        case "debugging":
            between.stream.debug = " "
        case "no body yet":
            between.stream.server_state = between.stream.state_wait_for_response_headers
        case "TLS unknown":
            client.tls = True
        case "TLS in TLS":
            client.tls = True
            for _ in range(2):
                cast("Any", ClientTLSLayer(between.stream.context)).tunnel_state = TunnelState.OPEN
    assert None is between.take()


async def test_straight_through_tls(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to a client with TLS is encrypted by the layer that does it."""
    layer = ClientTLSLayer(between.stream.context)
    layer.tunnel_state = TunnelState.OPEN
    between.stream.context.client.tls = True
    monkeypatch.setattr(fast_tls, "sealed", lambda found: (lambda data: b"sealed " + data) if found is layer else None)
    assert between.receive(b"1\r\na\r\n")
    assert [b"sealed 1\r\na\r\n"] == between.written


@given(
    st.lists(st.sampled_from([b"1\r\na\r\n", b"a\r\n0123456789\r\n", b"0\r\n\r\n", b"\r\n", b"1;x=y\r\na\r\n", b"0x1\r\na\r\n", b"2\r\na"]))
)
def test_unchunked(pieces: list[bytes]) -> None:
    """It reads chunks as h11 does, or leaves them to it."""
    data = b"".join(pieces)
    body = fast_chunks.unchunked(data)
    if body is not None:
        reader, buffer = ChunkedReader(), ReceiveBuffer()
        buffer += data
        assert body == b"".join(bytes(found.data) for found in iter(lambda: cast("Any", reader(buffer)), None))
        assert not buffer
        assert not reader._bytes_in_chunk


@pytest.mark.parametrize("data", [b"1\r\nabc", b"2\r\na", b"0\r\n\r\n", b"x", b"1\r\na\r\n1"])
def test_not_whole(data: bytes) -> None:
    """Half a chunk, the last one and what is none are h11's."""
    assert None is fast_chunks.unchunked(data)


async def test_joined(between: Between) -> None:
    """Writes to one peer are one; another peer, another command, or more than is worth copying comes between."""
    client, server = between.stream.context.client, between.stream.context.server
    big = b"x" * fast_chunks.SMALL
    log = commands.Log("")
    sent = [(client, b"a"), (client, b"b"), (server, b"c"), None, (server, b"d"), (server, big), (server, b"e"), None, None, (client, b"f")]
    doing = (commands.SendData(*one) if one else log for one in sent)
    joined: Any = fast_chunks.joined(cast("Any", doing))
    found = [command if command is log else (command.connection, command.data) for command in joined]
    assert [(client, b"ab"), (server, b"c"), log, (server, b"d"), (server, big), (server, b"e"), log, log, (client, b"f")] == found
    assert [log] == list(fast_chunks.joined(cast("Any", iter([log]))))


async def test_joined_until_it_fails(between: Between) -> None:
    """What was said before is said."""

    def failing() -> Any:
        if said:
            yield commands.SendData(between.stream.context.client, b"a")
        raise ValueError

    for said in (True, False):
        found: list[bytes] = []
        with pytest.raises(ValueError, match=r"^$"):
            found.extend(cast("commands.SendData", command).data for command in fast_chunks.joined(failing()))
        assert ([b"a"] if said else []) == found
