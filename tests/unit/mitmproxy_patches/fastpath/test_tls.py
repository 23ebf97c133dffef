"""Data goes through TLS as its layers would have it, and they miss nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy.proxy import events
from mitmproxy.proxy.commands import Log
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from mitmproxy.test import taddons, tflow
from OpenSSL import SSL

from azure_openai_proxy.mitmproxy_patches.fastpath import tls as fast_tls
from azure_simulator import tls as certificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Seeing:
    """A layer that notes what it gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def handle_event(self, event: Any) -> Any:
        self.seen.append(getattr(event, "data", type(event)))
        return ()


def carry(one: SSL.Connection, other: SSL.Connection) -> bytes:
    """What the one has to say is said to the other."""
    try:
        data = one.bio_read(1 << 20)
    except SSL.WantReadError:
        return b""
    other.bio_write(data)
    return data


def said(by: SSL.Connection, data: bytes) -> bytes:
    by.sendall(data)
    return by.bio_read(1 << 20)


class Pair:
    """Our end of a connection, with a layer around it, and the far end."""

    def __init__(self, folder: Path, context: Context, version: int) -> None:
        certificates.make(folder, ["127.0.0.1"])
        here, there = SSL.Context(SSL.TLS_CLIENT_METHOD), SSL.Context(SSL.TLS_SERVER_METHOD)
        there.use_certificate_chain_file(str(folder / "server.pem"))
        there.use_privatekey_file(str(folder / "server.pem"))
        there.set_max_proto_version(version)
        self.here, self.far = SSL.Connection(here), SSL.Connection(there)
        self.here.set_connect_state()
        self.far.set_accept_state()
        self.layer = ServerTLSLayer(context)
        self.layer.tls, self.layer.tunnel_state = self.here, TunnelState.OPEN
        self.layer.child_layer = self.child = Seeing()  # type: ignore[assignment]
        for _ in range(4):
            for one, other in ((self.here, self.far), (self.far, self.here)):
                with suppress(SSL.WantReadError):
                    one.do_handshake()
                carry(one, other)
        with pytest.raises(SSL.WantReadError):
            self.here.recv(1)  # tickets
        self.replies: list[bytes] = []

    def read(self, data: bytes) -> bytes | None:
        return fast_tls.upstream(self.layer).read(data, self.replies.append)

    def layers(self, data: bytes) -> list[Any]:
        list(self.layer.handle_event(events.DataReceived(self.layer.conn, data)))
        return self.child.seen


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["TLS 1.2", "TLS 1.3"])
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    with taddons.context() as context:
        yield Pair(tmp_path, Context(tflow.tclient_conn(), context.options), request.param)


async def test_read(pair: Pair) -> None:
    """One record, several, half a one."""
    large = b"x" * 100_000
    assert b"abc" == pair.read(said(pair.far, b"abc"))
    assert large == pair.read(said(pair.far, large))
    data = said(pair.far, b"abc")
    assert b"" == pair.read(data[:9])
    assert b"abc" == pair.read(data[9:])
    assert [] == pair.replies


WHO = st.sampled_from(["straight", "layers after all", "layers"])


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=6), st.lists(st.tuples(st.integers(1, 80), WHO), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_read_by_turns(pair: Pair, pieces: list[bytes], reads: list[tuple[int, str]]) -> None:
    """However reads cut the records, and whoever reads, nothing is lost and nothing comes twice."""
    came = b"".join(said(pair.far, piece) for piece in pieces)
    read = b""
    for size, who in [*reads, (len(came), "straight")]:
        data, came = came[:size], came[size:]
        if not data:
            break
        pair.child.seen.clear()
        if who == "layers":
            read += b"".join(pair.layers(data))
        elif who == "straight":
            read += pair.read(data) or b""
        else:
            fast_tls.upstream(pair.layer).ahead = pair.read(data) or b""
            read += b"".join(pair.layers(b""))
    assert b"".join(pieces) == read


async def test_layers_go_on(pair: Pair) -> None:
    """They see what was left for them, first, and once; what comes next is theirs as ever."""
    upstream = fast_tls.upstream(pair.layer)
    upstream.ahead = pair.read(said(pair.far, b"abc")) or b""
    assert [b"abc"] == pair.layers(b"")
    assert [b"abc", b"def"] == pair.layers(said(pair.far, b"def"))


async def test_the_end(pair: Pair) -> None:
    """The layers are told of it, behind what came before it."""
    data = said(pair.far, b"abc")
    pair.far.shutdown()
    assert None is pair.read(data + pair.far.bio_read(1 << 20))
    assert [b"abc", events.ConnectionClosed] == pair.layers(b"")


async def test_not_tls(pair: Pair) -> None:
    """What is no TLS is no data, and mitmproxy says why, once; what came before it is."""
    assert None is pair.read(said(pair.far, b"abc") + b"HTTP/1.1 400 Bad Request\r\n\r\n")
    for told in (True, False):
        commands = pair.layer.handle_event(events.DataReceived(pair.layer.conn, b""))
        assert told == any("SSL routines" in command.message for command in commands if isinstance(command, Log))
    assert [b"abc"] == pair.child.seen


async def test_asked_to_begin_anew(pair: Pair) -> None:
    """A server of TLS 1.2 that wants another handshake in between gets its answer."""
    if pair.far.get_protocol_version_name() == "TLSv1.3":
        pytest.skip("TLS 1.3 has none")
    assert pair.far.renegotiate()
    pair.far.do_handshake()
    assert b"" == pair.read(pair.far.bio_read(1 << 20))
    assert 1 == len(pair.replies)


@pytest.mark.parametrize("size", [1, fast_tls.MOST - 100, fast_tls.MOST, 10 * fast_tls.MOST])
async def test_sealed(pair: Pair, size: int) -> None:
    """The peer reads what was written, all of it."""
    data = b"x" * size
    pair.far.bio_write(fast_tls.sealed(pair.layer)(data))
    read = b""
    while len(read) < size:
        read += pair.far.recv(size)
    assert data == read


async def test_sealed_for_nobody(pair: Pair) -> None:
    """After our own end nothing is sent."""
    pair.here.shutdown()
    pair.here.bio_read(1 << 20)
    assert b"" == fast_tls.sealed(pair.layer)(b"abc")


async def test_whose_layer(pair: Pair) -> None:
    """A connection's own, if there is exactly one and it has begun."""
    context, layer = pair.layer.context, pair.layer
    client = ClientTLSLayer(context.fork())
    assert layer is fast_tls.of(context.server, [client, layer])
    assert None is fast_tls.of(context.client, [client, layer])
    client.tunnel_state = TunnelState.OPEN
    assert client is fast_tls.of(context.client, [client, layer])
    assert None is fast_tls.of(context.client, [client, ClientTLSLayer(context.fork())])
