"""Chunks that take the shorter way arrive as by mitmproxy's own; everything else goes that one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock, create_autospec

import h2.config
import h2.connection
import h2.events
import pytest
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import DataReceived, Event, Start
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream
from mitmproxy.proxy.layers.http._events import ResponseHeaders
from mitmproxy.proxy.layers.http._http2 import Http2Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.mitmproxy_patches.fastpath import chunks as fast_chunks
from azure_openai_proxy.mitmproxy_patches.http1_server import PatchedHttp1Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Between:
    """A client and a stream that has begun, as mitmproxy would have put them together; `written` is what the client gets."""

    def __init__(self, options: Any) -> None:
        context = Context(tflow.tclient_conn(), options)
        context.server = tflow.tserver_conn()
        self.layer = HttpLayer(context, HTTPMode.regular)
        self.server, self.stream = PatchedHttp1Server(context.fork(), Mock(), lambda: False), HttpStream(context.fork(), 1)
        self.layer.connections = {context.client: self.server}
        self.stream.flow = flow = tflow.tflow(client_conn=context.client, server_conn=context.server, resp=True)
        assert flow.response
        self.response = flow.response
        self.response.headers["transfer-encoding"] = "chunked"
        self.response.stream = True
        self.stream.server_state = self.stream.state_stream_response_body
        self.written: list[bytes] = []
        self.logged: list[str] = []
        self.active = 0
        self.closing = False
        self.writer = create_autospec(asyncio.StreamWriter, instance=True)
        self.writer.transport = SimpleNamespace(write=self.written.append, is_closing=lambda: self.closing)
        self.transports = {context.client: SimpleNamespace(writer=self.writer)}

    def register_activity(self) -> None:
        self.active += 1

    def log(self, message: str, *_: object, **__: object) -> None:
        self.logged.append(message)

    def take(self) -> Callable[[bytes], bool] | None:
        list(self.server.http1.begin(self.response))
        watchdog = SimpleNamespace(register_activity=self.register_activity)
        handler = SimpleNamespace(transports=self.transports, timeout_watchdog=watchdog, log=self.log)
        return fast_chunks.direct_writer(cast("Any", self.stream), cast("Any", handler))

    def receive(self, data: bytes) -> bool:
        take = self.take()
        assert take
        return take(data)


@pytest.fixture
async def between() -> AsyncIterator[Between]:  # mitmproxy wants a running loop
    with taddons.context(Proxyserver()) as context:
        yield Between(context.options)


async def test_straight(between: Between) -> None:
    """A part of a body needs no layer, only its chunk."""
    assert between.receive(b"ab")
    assert between.receive(b"c" * 17)
    assert [b"2\r\nab\r\n", b"11\r\n%b\r\n" % (b"c" * 17)] == between.written
    assert 2 == between.active  # or mitmproxy closes the client's connection as idle


@pytest.mark.parametrize(
    ("out", "written"),
    [
        (b"x", [b"1\r\nx\r\n"]),
        ([b"x", b"yz"], [b"1\r\nx\r\n", b"2\r\nyz\r\n"]),
        ([], []),
        ([b"x"], [b"1\r\nx\r\n"]),
        (b"", []),
        ([b"", b"x"], [b"1\r\nx\r\n"]),
    ],
)
async def test_transformed(between: Between, out: Any, written: list[bytes]) -> None:
    """A stream's function is asked as mitmproxy asks it, and what it returns is written in chunks. No bytes are not the last chunk."""
    seen: list[bytes] = []

    def stream(data: bytes) -> Any:
        seen.append(data)
        return out

    between.response.stream = stream
    assert between.receive(b"ab")
    assert ([b"ab"], written) == (seen, between.written)


async def test_straight_without_chunks(between: Between) -> None:
    """A client that gets no chunks gets none."""
    del between.response.headers["transfer-encoding"]
    assert between.receive(b"ab")
    assert [b"ab"] == between.written


async def test_stored(between: Between) -> None:
    """With store_streamed_bodies the flow keeps what the client got."""
    between.stream.context.options.update(store_streamed_bodies=True)
    assert between.receive(b"abc")
    assert ([b"3\r\nabc\r\n"], b"abc") == (between.written, bytes(between.stream.response_body_buf))


async def test_a_function_that_fails(between: Between) -> None:
    """A stream function of another addon that raises is logged as mitmproxy logs it, and later chunks are passed on."""

    def stream(data: bytes) -> bytes:
        if data == b"a":
            raise ValueError("no a, please")
        return data

    between.response.stream = stream
    assert between.receive(b"a")
    assert between.receive(b"b")
    assert (["mitmproxy has crashed!"], [b"1\r\nb\r\n"]) == (between.logged, between.written)


async def test_a_client_that_is_gone(between: Between) -> None:
    """The fast path does not write to it; mitmproxy ends its response."""
    between.closing = True
    assert between.receive(b"a")
    assert [] == between.written


@pytest.mark.parametrize("who", ["stream", "state"])
async def test_not_now(between: Between, who: str) -> None:
    """While a hook is waited for, the layers must see the bytes."""
    take = between.take()
    assert take
    match who:
        case "stream":
            between.stream._paused = cast("Any", True)
        case "state":
            between.stream.server_state = between.stream.state_consume_response_body
    assert not take(b"a")
    assert [] == between.written


@pytest.mark.parametrize("what", ["HTTP/3", "gone", "virtual network", "debugging", "no body yet", "TLS unknown", "TLS in TLS"])
async def test_not_at_all(between: Between, what: str) -> None:
    """Other connections, and those whose events are logged in detail, are processed by mitmproxy."""
    client = between.stream.context.client
    match what:
        case "HTTP/3":
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
    """Chunks for a client with TLS are encrypted by its TLS layer, once it is open."""
    layer = ClientTLSLayer(between.stream.context)
    between.stream.context.client.tls = True
    monkeypatch.setattr(fast_chunks, "encrypted", lambda tls, data: b"sealed " + data if tls is layer.tls else b"")
    assert None is between.take()
    layer.tunnel_state = TunnelState.OPEN
    assert between.receive(b"a")
    assert [b"sealed 1\r\na\r\n"] == between.written


# HTTP/2


class Http2Between(Between):
    """The same with an HTTP/2 client, whose request has arrived; `read` passes the written bytes to the client."""

    def __init__(self, options: Any, window: int = 1 << 16) -> None:
        super().__init__(options)
        del self.response.headers["content-length"]
        self.http2 = Http2Server(self.stream.context.fork())
        self.layer.connections[self.stream.context.client] = self.http2
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.client.initiate_connection()
        self.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.client.send_headers(1, [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")], end_stream=True)
        self.to_layer(Start())
        self.client_sends()
        self.to_layer(ResponseHeaders(1, self.response))
        self.read()
        self.client_sends()

    def to_layer(self, event: Event) -> None:
        for command in self.http2.handle_event(event):
            if isinstance(command, commands.SendData):
                self.written.append(command.data)

    def client_sends(self) -> None:
        self.to_layer(DataReceived(self.stream.context.client, self.client.data_to_send()))

    def read(self) -> bytes:
        data = b""
        for written in self.written:
            for event in self.client.receive_data(written):
                if isinstance(event, h2.events.DataReceived):
                    data += event.data or b""
                    self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.written.clear()
        return data


PIECES = st.lists(st.integers(0, 40000) | st.sampled_from([1, 16384, 16385, 65535]), max_size=8)


@given(sizes=PIECES, window=st.sampled_from([100, 20000, 65535]), blocked=st.integers(0, 1))
async def test_http2(sizes: list[int], window: int, blocked: int) -> None:
    """However large the parts are and however small the window is, the client gets all of them in order, and h2 keeps count."""
    with taddons.context(Proxyserver()) as context:
        between = Http2Between(context.options, window)
    take = between.take()
    assert take
    got, sent = b"", b""
    for number, size in enumerate(sizes):
        part = bytes([number]) * size
        sent += part
        assert take(part)
        if number % 2 == blocked:
            got += between.read()
            between.client_sends()
    while got != sent:
        before = len(got)
        got += between.read()
        between.client_sends()
        assert between.written or len(got) > before
    ours, theirs = between.http2.h2_conn, between.client
    assert ours.local_flow_control_window(1) == theirs.remote_flow_control_window(1)
    assert ours.outbound_flow_control_window == theirs.inbound_flow_control_window


async def test_http2_frames_are_made_without_h2(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fits into the windows and a frame is not given to h2; what h2 has not sent yet goes before it."""
    http2 = Http2Between(between.stream.context.options)
    http2.http2.h2_conn.ping(b"12345678")
    monkeypatch.setattr(http2.http2.h2_conn, "send_data", None)
    assert http2.receive(b"abc")
    (written,) = http2.written
    assert b"12345678" in written
    assert b"abc" == http2.read()


async def test_an_http2_stream_that_is_closed(between: Between) -> None:
    """Nothing is sent on it."""
    http2 = Http2Between(between.stream.context.options)
    http2.client.reset_stream(1)
    http2.client_sends()
    http2.written.clear()
    assert http2.receive(b"abc")
    assert [] == http2.written
