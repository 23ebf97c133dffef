"""Data for a client is encrypted by the connection of the layer that does its TLS."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
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


def carry(one: SSL.Connection, other: SSL.Connection) -> bytes:
    """What the one has to say is said to the other."""
    try:
        data = one.bio_read(1 << 20)
    except SSL.WantReadError:
        return b""
    other.bio_write(data)
    return data


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
        for _ in range(4):
            for one, other in ((self.here, self.far), (self.far, self.here)):
                with suppress(SSL.WantReadError):
                    one.do_handshake()
                carry(one, other)
        with pytest.raises(SSL.WantReadError):
            self.here.recv(1)  # tickets


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["TLS 1.2", "TLS 1.3"])
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    with taddons.context() as context:
        yield Pair(tmp_path, Context(tflow.tclient_conn(), context.options), request.param)


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
