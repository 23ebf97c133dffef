"""Chunks that take the shorter way arrive as by mitmproxy's own; everything else goes that one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from h11._readers import ChunkedReader, ContentLengthReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import ResponseData, ResponseEndOfMessage, ResponseProtocolError
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.mitmproxy_patches.fastpath import chunks as fast_chunks
from azure_openai_proxy.mitmproxy_patches.fastpath import reads as fast_reads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Between:
    """A client, a stream that has begun, and the connection upstream, as mitmproxy would have put them together."""

    def __init__(self, options: Any) -> None:
        context = Context(tflow.tclient_conn(), options)
        context.server = tflow.tserver_conn()
        self.layer = HttpLayer(context, HTTPMode.regular)
        self.server, self.upstream, self.stream = (
            Http1Server(context.fork()),
            Http1Client(context.fork()),
            fast_chunks.Streaming(context.fork(), 1),
        )
        self.layer.connections = {context.client: self.server, context.server: self.upstream}
        self.stream.flow = flow = tflow.tflow(client_conn=context.client, server_conn=context.server, resp=True)
        assert flow.response
        self.response = flow.response
        self.response.headers["transfer-encoding"] = "chunked"
        self.response.stream = True
        self.stream.server_state = self.stream.state_stream_response_body
        self.upstream.stream_id, self.upstream.request, self.upstream.response = 1, flow.request, flow.response
        self.upstream.body_reader = ChunkedReader()
        self.upstream.state = self.upstream.read_body

    def arm(self) -> Between:
        fast_chunks.arm(self.stream)
        return self

    def receive(self, data: bytes) -> list[object]:
        """What it does about it: bytes for what it writes to the client, the events and commands for the rest."""
        done = self.upstream.handle_event(events.DataReceived(self.upstream.conn, data))
        return [self.plain(command) for command in done]

    def closed(self) -> list[Any]:
        """What it does about the end of the connection."""
        return list(self.upstream.handle_event(events.ConnectionClosed(self.upstream.conn)))

    def plain(self, command: object) -> object:
        if isinstance(command, commands.SendData):
            assert command.connection is self.server.conn
            return command.data
        return type(command.event) if isinstance(command, ReceiveHttp) else type(command)


@pytest.fixture
async def between() -> AsyncIterator[Between]:  # mitmproxy wants a running loop
    with taddons.context(Proxyserver()) as context:
        yield Between(context.options)


async def test_chunks(between: Between) -> None:
    """What one read brought is one write, however the server cut it; half a chunk goes on, and of no byte nothing is written."""
    between.arm()
    assert [b"3\r\nabc\r\n"] == between.receive(b"3\r\nabc\r\n")
    assert [b"4\r\nabcd\r\n"] == between.receive(b"2\r\nab\r\n2\r\ncd\r\n")
    assert [b"1\r\na\r\n"] == between.receive(b"3\r\na")
    assert [b"2\r\nbc\r\n"] == between.receive(b"bc\r\n")
    assert [] == between.receive(b"3")


@pytest.mark.parametrize(
    ("out", "written"), [(b"x", [b"1\r\nx\r\n"]), ([b"x", b"yz"], [b"1\r\nx\r\n2\r\nyz\r\n"]), ([], []), ([b"x"], [b"1\r\nx\r\n"])]
)
async def test_transformed(between: Between, out: Any, written: list[bytes]) -> None:
    """A stream's function is asked as mitmproxy asks it."""
    seen: list[bytes] = []

    def stream(data: bytes) -> Any:
        seen.append(data)
        return out

    between.response.stream = stream
    assert written == between.arm().receive(b"2\r\nab\r\n")
    assert [b"ab"] == seen


async def test_length_known(between: Between) -> None:
    """A body that is not chunked is written as it is."""
    del between.response.headers["transfer-encoding"]
    between.upstream.body_reader = ContentLengthReader(5)
    assert [b"abc"] == between.arm().receive(b"abc")
    assert [b"de", ResponseEndOfMessage] == between.receive(b"de")


async def test_stored(between: Between) -> None:
    """With store_streamed_bodies the flow keeps what the client got."""
    between.stream.context.options.update(store_streamed_bodies=True)
    between.arm().receive(b"3\r\nabc\r\n")
    assert b"abc" == bytes(between.stream.response_body_buf)


async def test_the_end(between: Between) -> None:
    """The end goes mitmproxy's way, behind what came with it."""
    assert [b"3\r\nabc\r\n", ResponseEndOfMessage] == between.arm().receive(b"3\r\nabc\r\n0\r\n\r\n")


async def test_broken(between: Between) -> None:
    """So does what is no chunk; that the connection is closed then is no news."""
    assert [b"3\r\nabc\r\n", commands.CloseConnection, ResponseProtocolError] == between.arm().receive(b"3\r\nabc\r\nnonsense\r\n")
    assert ResponseProtocolError in [between.plain(command) for command in between.closed()]


async def test_trailers(between: Between) -> None:
    """They are left out: mitmproxy has no place for them."""
    assert [b"3\r\nabc\r\n", ResponseEndOfMessage] == between.arm().receive(b"3\r\nabc\r\n0\r\nx: y\r\n\r\n")


async def test_the_end_before_the_requests(between: Between) -> None:
    """An answer may be whole before the request is; a connection that is closed then is one that is closed."""
    between.upstream.request_done = False
    assert [b"3\r\nabc\r\n", ResponseEndOfMessage] == between.arm().receive(b"3\r\nabc\r\n0\r\n\r\n")
    assert [commands.CloseConnection, ResponseProtocolError] == [between.plain(command) for command in between.closed()]


async def test_closed(between: Between) -> None:
    """So does a connection that is closed."""
    assert [commands.CloseConnection, ResponseProtocolError] == [between.plain(command) for command in between.arm().closed()]


@pytest.mark.parametrize("who", ["stream", "server", "state", "another"])
async def test_not_now(between: Between, who: str) -> None:
    """While a hook is waited for, before the body may go out, or for another request's answer, chunks go mitmproxy's way."""
    between.arm()
    match who:
        case "stream":
            between.stream._paused = cast("Any", True)
        case "server":
            between.server._paused = cast("Any", True)
        case "state":
            between.stream.server_state = between.stream.state_consume_response_body
        case "another":
            cast("Any", between.upstream).number = 3
    assert [ResponseData] == between.receive(b"3\r\nabc\r\n")


async def test_straight(between: Between) -> None:
    """Whole chunks need no layer: what nobody changes is written as it came, what is changed as if it had come through them."""
    between.arm()
    straight = cast("fast_chunks.Client", between.upstream).straight
    assert b"2\r\nab\r\n" == straight(b"2\r\nab\r\n")
    between.response.stream = lambda data: [] if data == b"no" else [data.upper()]
    assert b"4\r\nABCD\r\n" == straight(b"2\r\nab\r\n002\r\ncd\r\n")
    assert b"" == straight(b"2\r\nno\r\n")


async def test_straight_without_chunks(between: Between) -> None:
    """A client that gets no chunks gets none."""
    del between.response.headers["transfer-encoding"]
    between.arm()
    assert b"ab" == cast("fast_chunks.Client", between.upstream).straight(b"2\r\nab\r\n")


async def test_straight_and_stored(between: Between) -> None:
    """The flow keeps what went straight, too."""
    between.stream.context.options.update(store_streamed_bodies=True)
    assert b"1\r\na\r\n" == cast("fast_chunks.Client", between.arm().upstream).straight(b"1\r\na\r\n")
    assert b"a" == bytes(between.stream.response_body_buf)


@pytest.mark.parametrize("who", ["stream", "server", "itself", "state", "another", "rest", "middle", "foot", "trailer", "length"])
async def test_not_straight(between: Between, who: str) -> None:
    """Whatever is unusual is for the layers to see."""
    client = cast("Any", between.arm().upstream)
    match who:
        case "stream":
            between.stream._paused = cast("Any", True)
        case "server":
            between.server._paused = cast("Any", True)
        case "itself":
            client._paused = True
        case "state":
            between.stream.server_state = between.stream.state_consume_response_body
        case "another":
            client.number = 3
        case "rest":
            client.buf += b"1"
        case "middle":
            client.body_reader._bytes_in_chunk = 1
        case "foot":
            client.body_reader._bytes_to_discard = b"\n"
        case "trailer":
            client.body_reader._reading_trailer = True
        case "length":
            client.body_reader = ContentLengthReader(6)
    assert None is client.straight(b"1\r\na\r\n")


@pytest.mark.parametrize("upstream", ["plain", "TLS", "unknown"])
@pytest.mark.parametrize("client", ["plain", "TLS", "unknown"])
async def test_straight_through_tls(between: Between, upstream: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is encrypted on either side goes by way of the connection of the layer that does it, if it is known."""
    told: list[Any] = []
    monkeypatch.setattr(fast_reads, "straight", lambda *arguments: told.append(arguments))
    context, layers = between.stream.context.fork(), between.stream.context.layers
    layers += [ServerTLSLayer(context)] if upstream == "TLS" else []
    layers += [ClientTLSLayer(context)] if client == "TLS" else []
    for layer in layers[-2:]:
        cast("Any", layer).tunnel_state = TunnelState.OPEN
    between.upstream.conn.tls, between.server.conn.tls = upstream != "plain", client != "plain"
    armed = cast("fast_chunks.Client", between.arm().upstream)
    if "unknown" in (upstream, client):
        assert [] == told
    else:
        (found,) = told
        assert (between.server.conn, armed.conn, armed.straight) == found[:3]
        assert [upstream == "TLS", client == "TLS"] == [bool(one) for one in found[3:]]


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


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6), st.lists(st.integers(1, 30), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_straight_or_not(between: Between, pieces: list[bytes], reads: list[int]) -> None:
    """However reads cut the chunks, and whichever of them go straight, the client gets the same body."""
    came = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    upstream = cast("fast_chunks.Client", between.arm().upstream)
    written = b""
    for size in [*reads, len(came)]:
        data, came = came[:size], came[size:]
        out = upstream.straight(data) if data else b""
        written += b"".join(cast("list[bytes]", between.receive(data))) if out is None else out
    assert b"".join(pieces) == fast_chunks.unchunked(written)


async def test_armed_late(between: Between) -> None:
    """It makes no difference whether the head was done with before; a connection is armed again for its next answer."""
    between.upstream.state = between.upstream.read_headers
    assert between.upstream.read_headers == between.arm().upstream.state
    between.upstream.state = between.upstream.read_body
    assert [b"1\r\na\r\n"] == between.arm().receive(b"1\r\na\r\n")


async def test_below_tls(between: Between) -> None:
    """The HTTP/1 connection is found below the layers of TLS."""
    between.layer.connections[between.stream.flow.server_conn] = cast("Any", SimpleNamespace(child_layer=between.upstream))
    assert [b"1\r\na\r\n"] == between.arm().receive(b"1\r\na\r\n")


@pytest.mark.parametrize("what", ["client of HTTP/2", "server of HTTP/2", "debugging"])
async def test_not_at_all(between: Between, what: str) -> None:
    """Other connections, and those that somebody wants to see every step of, keep mitmproxy's way."""
    connections = between.layer.connections
    match what:
        case "client of HTTP/2":
            connections[between.stream.context.client] = cast("Any", object())
        case "server of HTTP/2":
            connections[between.stream.flow.server_conn] = cast("Any", object())
        case "debugging":
            between.stream.debug = " "
    between.arm()
    assert Http1Client is type(between.upstream)


async def test_joined(between: Between) -> None:
    """Writes to one peer are one; another peer, another command, or more than is worth copying comes between."""
    client, server = between.server.conn, between.upstream.conn
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
            yield commands.SendData(between.server.conn, b"a")
        raise ValueError

    for said in (True, False):
        found: list[bytes] = []
        with pytest.raises(ValueError, match=r"^$"):
            found.extend(cast("commands.SendData", command).data for command in fast_chunks.joined(failing()))
        assert ([b"a"] if said else []) == found
