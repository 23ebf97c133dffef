"""One connection to a backend, with real sockets on loopback: TLS, proxies, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import http
from mitmproxy.connection import ConnectionState

from azure_openai_proxy.egress.connect import Destination, Proxy
from azure_openai_proxy.egress.connection import Connection, ConnectionFailed
from azure_openai_proxy.egress.http1 import END
from azure_openai_proxy.egress.pool import Pools
from azure_openai_proxy.egress.tls import TlsOptions
from azure_simulator import tls as certificates
from support.upstreams import OK, Peer, Upstream, alerting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_openai_proxy.egress.http1 import Item

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Receiver:
    """The received items, in order."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.why: str | None = None
        self._news = asyncio.Event()

    def received(self, items: list[Item]) -> None:
        self.items += items
        self._news.set()

    def lost(self, why: str) -> None:
        assert self.why is None
        self.why = why
        self._news.set()

    async def until(self, there: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not there():
                self._news.clear()
                await self._news.wait()

    async def end(self) -> list[Item]:
        """The body, once the response is complete."""
        await self.until(lambda: END in self.items)
        assert isinstance(self.items[0], http.Response)
        return self.items[1:]


class Tls:
    """A certificate authority, and contexts for servers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, _ = certificates.make(folder, ["127.0.0.1", "localhost"])
        self.pem = folder / "server.pem"

    def server(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.pem)
        return made

    def pools(self, **more: Any) -> Pools:
        return Pools(tls=TlsOptions(ca_file=str(self.ca))._replace(**more))


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """An unclosed transport is reported when it is collected: in this test, not in another."""
    yield
    gc.collect()


async def ask(connection: Connection, data: bytes = GET) -> Receiver:
    receiver = Receiver()
    connection.begin(receiver, data.split(b" ")[0])
    connection.write(data)
    return receiver


async def hang(peer: Peer) -> None:
    await peer.gone()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_requests_on_one_connection(tls: Tls, secure: bool) -> None:
    """It carries one after the other; the flow's server shows what mitmproxy's own would."""
    async with Upstream(tls=tls.server() if secure else None) as upstream:
        connection = await tls.pools().of(upstream.destination()).connect()
        server = connection.server
        assert (ConnectionState.OPEN, ("127.0.0.1", upstream.port)) == (server.state, server.peername)
        assert server.timestamp_start
        assert server.timestamp_tcp_setup
        assert server.timestamp_start <= server.timestamp_tcp_setup
        if secure:
            assert ("TLSv1.3", "127.0.0.1", b"http/1.1") == (server.tls_version, server.sni, server.alpn_offers[0])
            assert server.cipher
            assert "127.0.0.1" in str(server.certificate_list[0].altnames[0].value)
            assert server.timestamp_tls_setup
        for number in (1, 2):
            assert [b"ok", END] == await (await ask(connection)).end()
            assert number == connection.requests
            assert connection.finish(whole=True)
        connection.drop("done")
        await upstream.peers[0].served.wait()
        await asyncio.sleep(0)
        assert ConnectionState.CLOSED is server.state
        assert (connection.session is not None) is secure


async def test_alpn_is_shown(tls: Tls) -> None:
    """What the server chose of the protocols that were offered."""
    context = tls.server()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with Upstream(tls=context) as upstream:
        connection = await tls.pools().of(upstream.destination()).connect()
        assert b"http/1.1" == connection.server.alpn
        connection.drop("done")


async def test_the_end_of_a_body_until_close(tls: Tls) -> None:
    """A body that ends with the connection is whole if the end is orderly: in TLS that takes a close_notify."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        peer.close()

    for context in (None, tls.server()):
        async with Upstream(serve, context) as upstream:
            connection = await tls.pools().of(upstream.destination()).connect()
            receiver = await ask(connection)
            assert b"hello" == b"".join(item for item in await receiver.end() if isinstance(item, bytes))
            assert not connection.finish(whole=True)


async def test_a_body_in_tls_is_cut() -> None:
    """Without close_notify an attacker may have cut the connection: the response is incomplete."""
    gone: list[Connection] = []
    connection = Connection(Destination("host", 443, True), gone.append)
    connection.tls = _Tls()  # type: ignore[assignment]
    transport = _Transport()
    connection.connection_made(transport)
    receiver = Receiver()
    connection.begin(receiver, b"GET")
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert not connection.eof_received()
    assert END not in receiver.items
    assert "the connection was closed" == receiver.why
    assert [connection] == gone


class _Transport(asyncio.Transport):
    """That of a connection that is never read from."""

    def __init__(self) -> None:
        super().__init__()
        self.buffered = 0
        self.closed: list[str] = []

    def write(self, data: object) -> None:
        if data:
            raise OSError("broken pipe")

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed.append("closed")

    def abort(self) -> None:
        self.closed.append("aborted")


class _Tls:
    """TLS that changes nothing."""

    closed = False
    error: ssl.SSLError | None = None

    def receive(self, data: bytes) -> bytes:
        return data

    def take(self) -> bytes:
        return b""

    def close(self) -> bytes:
        return b"bye"


def test_what_is_unsent_does_not_hold_up_the_end() -> None:
    """A connection with bytes that the peer does not read is aborted without waiting for them."""
    connection = Connection(Destination("host", 80, False), lambda _: None)
    transport = _Transport()
    transport.buffered = 5
    connection.connection_made(transport)
    connection.drop("enough")
    connection.drop("again")
    assert (["aborted"], "enough") == (transport.closed, connection.why)


def test_an_upload_that_the_system_holds_is_not_sent() -> None:
    """A connection with a large request body is reset, even if all of it was written; a later request with a small one is not."""
    for uploads, end in ((True, "aborted"), (False, "closed")):
        connection = Connection(Destination("host", 80, False), lambda _: None)
        transport = _Transport()
        connection.connection_made(transport)
        connection.begin(Receiver(), b"POST")
        connection.uploads = True
        if not uploads:
            connection.begin(Receiver(), b"POST")
        connection.drop("cancelled")
        assert [end] == transport.closed


async def test_unsent_bytes_end_in_a_reset() -> None:
    """The peer notices the end at once, not after it has read the bytes sent before."""
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda reader, writer: accepted.set_result((reader, writer)), "127.0.0.1", 0, limit=1024)
    port = server.sockets[0].getsockname()[1]
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(Destination("127.0.0.1", port, False), lambda _: None), "127.0.0.1", port
    )
    reader, writer = await accepted
    writer.transport.pause_reading()
    while not connection.full:
        connection.write(bytes(1 << 20))
        await asyncio.sleep(0)
    connection.drop("enough")
    writer.transport.resume_reading()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.transport.abort()
    server.close()


def test_a_connection_is_lost_with_a_cause() -> None:
    """The operating system's words are kept; an orderly end has none."""
    for error, why in ((OSError("reset by peer"), "reset by peer"), (None, "the connection was closed")):
        connection = Connection(Destination("host", 80, False), lambda _: None)
        connection.connection_made(_Transport())
        connection.connection_lost(error)
        assert why == connection.why
        connection.pause_reading()
        assert not connection._paused


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    ("response", "why"),
    [
        (b"", "the connection was closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "the connection was closed in the middle of the response"),
        (b"HTTP/1.1 nonsense\r\n\r\n", "the response cannot be read: illegal status line"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nnonsense\r\n",
            "the response cannot be read: illegal chunk header",
        ),
    ],
)
async def test_responses_that_break_off(tls: Tls, response: bytes, why: str, secure: bool) -> None:
    """The receiver gets the items received so far, and then the cause."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)
        peer.close()

    async with Upstream(serve, tls.server() if secure else None) as upstream:
        connection = await tls.pools().of(upstream.destination()).connect()
        receiver = await ask(connection)
        await receiver.until(lambda: receiver.why)
        assert str(receiver.why).startswith(why)
        if b"\r\nok" in response:
            assert b"ok" == receiver.items[1]
        assert not connection.finish(whole=True)


async def test_data_without_a_request() -> None:
    """A connection on which something comes that was not asked for is closed: it would be taken for the next answer."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.reader.readexactly(1)
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await peer.gone()

    async with Upstream(serve) as upstream:
        pools = Pools()
        connection = await pools.of(upstream.destination()).connect()
        await (await ask(connection)).end()
        assert connection.finish(whole=True)
        connection.write(b"x")
        await upstream.peers[0].served.wait()
        assert "upstream sent something without a request" == connection.why


async def test_a_head_in_pieces() -> None:
    """The receiver is called only when the head is complete."""
    go_on = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK[:20])
        await go_on.wait()
        await peer.send(OK[20:])
        await peer.gone()

    async with Upstream(serve) as upstream:
        connection = await Pools().of(upstream.destination()).connect()
        receiver = await ask(connection)
        while not connection.response_started:
            await asyncio.sleep(0.001)
        assert [] == receiver.items
        go_on.set()
        assert [b"ok", END] == await receiver.end()
        connection.finish(whole=False)


async def test_back_pressure_of_a_large_write() -> None:
    """Bytes beyond the peer's buffer wait; the writer continues when the peer reads or disconnects."""
    read = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await read.wait()
        await peer.gone()

    async with Upstream(serve) as upstream:
        for leaves in (False, True):
            read.clear()
            connection = await Pools().of(upstream.destination()).connect()
            await connection.drain()
            connection.begin(Receiver(), b"POST")
            while not connection.full:
                connection.write(b"x" * (1 << 20))
            connection.pause_writing()
            waiting = asyncio.create_task(connection.drain())
            await asyncio.sleep(0)
            assert not waiting.done()
            if leaves:
                connection.drop("enough")
            read.set()
            await asyncio.wait_for(waiting, 10)
            assert connection._drained is None
            connection.finish(whole=False)


async def test_back_pressure_of_reading() -> None:
    """While reading is paused nothing arrives; a connection that is given back reads again."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        sent.set()
        await peer.gone()

    sent = asyncio.Event()
    async with Upstream(serve) as upstream:
        connection = await Pools().of(upstream.destination()).connect()
        connection.resume_reading()
        connection.pause_reading()
        connection.pause_reading()
        receiver = await ask(connection)
        await sent.wait()
        for _ in range(10):  # turns of the event loop, in each of which it could be read
            await asyncio.sleep(0)
        assert [] == receiver.items
        connection.resume_reading()
        await receiver.end()
        connection.pause_reading()
        assert connection.finish(whole=True)
        assert not connection._paused
        connection.pause_reading()
        connection.drop("done")
        connection.resume_reading()
        assert not connection._paused


# TLS that fails


@pytest.mark.parametrize(
    ("server", "options", "says"),
    [
        (lambda tls: tls.server(), {"ca_file": None}, "certificate verify failed: unable to get local issuer certificate"),
        (lambda _: None, {}, "wrong version number|record layer failure"),
    ],
    ids=["not trusted", "no TLS"],
)
async def test_the_handshake_fails(tls: Tls, server: Callable[[Tls], ssl.SSLContext | None], options: dict[str, Any], says: str) -> None:
    """There is no connection, and the cause is said without OpenSSL's file and line."""

    async def serve(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 This is not TLS\r\n\r\n")
        await peer.gone()

    async with Upstream(serve, server(tls)) as upstream:
        pool = tls.pools(**options).of(upstream.destination()._replace(tls=True))
        with pytest.raises(ConnectionFailed, match=f"^({says})$") as failed:
            await pool.connect()
        assert not failed.value.local


async def test_the_peer_leaves_in_the_handshake(tls: Tls) -> None:
    """It is closed, or reset, before there is TLS."""

    async def serve(peer: Peer) -> None:
        await peer.reader.read(1)
        peer.reset() if len(upstream.peers) == 1 else peer.close()

    async with Upstream(serve) as upstream:
        for _ in range(2):
            with pytest.raises(ConnectionFailed, match=r"closed|reset"):
                await tls.pools().of(upstream.destination()._replace(tls=True)).connect()


async def test_cancelling_in_the_handshake(tls: Tls) -> None:
    """A client that leaves meanwhile leaves no connection."""
    async with Upstream(hang) as upstream:
        task = asyncio.create_task(tls.pools().of(upstream.destination()._replace(tls=True)).connect())
        while not upstream.peers:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(upstream.peers[0].served.wait(), 10)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_is_wanted(tls: Tls, version: ssl.TLSVersion) -> None:
    """The failure comes at once and has the alert's name; TLS 1.3 sends it after our handshake, and it is known that nothing was read."""
    context = tls.server()
    context.load_verify_locations(tls.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = version
    async with alerting(context) as port:
        destination = Destination("127.0.0.1", port, True)
        if version is ssl.TLSVersion.TLSv1_2:
            with pytest.raises(ConnectionFailed, match="alert handshake failure"):
                await tls.pools().of(destination).connect()
        else:
            connection = await tls.pools().of(destination).connect()
            receiver = await ask(connection)
            await receiver.until(lambda: receiver.why)
            assert "TLS failed: tlsv13 alert certificate required" == receiver.why
            assert connection.refused
            assert [] == receiver.items
        sent = await tls.pools(client_certs=str(tls.pem)).of(destination).connect()
        assert [b"ok", END] == await (await ask(sent)).end()
        sent.drop("done")


async def test_the_alert_comes_with_the_end_of_the_handshake(tls: Tls) -> None:
    """Bytes received before the connection was handed out are not lost: connecting fails."""
    async with Upstream(tls=tls.server()) as upstream:
        pool = tls.pools().of(upstream.destination())
        real = Connection._describe_tls

        def describe(self: Connection, made: ssl.SSLObject) -> None:
            real(self, made)
            assert self.tls
            self.tls.error = ssl.SSLError(1, "alert")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Connection, "_describe_tls", describe)
            with pytest.raises(ConnectionFailed, match=r"TLS failed: .*alert"):
                await pool.connect()


async def test_a_fatal_alert_in_mid_connection(tls: Tls) -> None:
    """It ends the response with its name, and says nothing of certificates."""
    async with alerting(tls.server(), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel") as port:
        connection = await tls.pools().of(Destination("127.0.0.1", port, True)).connect()
        receiver = await ask(connection)
        await receiver.until(lambda: b"hel" in receiver.items)
        connection.transport.write(b"\x17\x03\x03\x00\x20" + b"x" * 32)  # no record of ours: the server answers with an alert
        await receiver.until(lambda: receiver.why)
        assert "alert" in str(receiver.why)
        assert not connection.refused


async def test_a_record_that_cannot_be_decrypted(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer gets an alert, and the request fails."""
    sent: list[bytes] = []
    async with Upstream(tls=tls.server()) as upstream:
        connection = await tls.pools().of(upstream.destination()).connect()
        connection.begin(receiver := Receiver(), b"GET")
        monkeypatch.setattr(connection, "_write_out", sent.append)
        connection.data_received(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        assert sent[0].startswith(b"\x17\x03\x03")  # encrypted, as all of TLS 1.3
        assert "TLS failed: " in str(receiver.why)


async def test_a_certificate_that_cannot_be_read(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL may take what the cryptography library refuses: then the flow shows none."""
    from cryptography import x509

    def refuse(_: bytes) -> None:
        raise ValueError("a negative serial number")

    monkeypatch.setattr(x509, "load_der_x509_certificate", refuse)
    async with Upstream(tls=tls.server()) as upstream:
        connection = await tls.pools().of(upstream.destination()).connect()
        assert () == connection.server.certificate_list
        connection.drop("done")


# Proxies on the way


class Tunnel:
    """A proxy that supports CONNECT, and records the requests."""

    def __init__(self, response: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", tls: ssl.SSLContext | None = None) -> None:
        self.response = response
        self.upstream = Upstream(self._serve, tls)
        self.asked: list[tuple[bytes, bytes | None]] = []

    async def _serve(self, peer: Peer) -> None:
        received = await peer.head()
        self.asked.append((received.line, received.headers.get(b"proxy-authorization")))
        await peer.send(self.response)
        if b" 200 " not in self.response:
            peer.close()
            return
        host, _, port = received.line.split(b" ")[1].decode().rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                target.write(data)
            target.close()

        try:
            await asyncio.gather(copy(peer.reader, writer), copy(reader, peer.writer), return_exceptions=True)
        finally:
            writer.transport.abort()
            writer.close()

    def through(self, upstream: Upstream, authorization: bytes | None = None) -> Destination:
        proxy = Proxy("127.0.0.1", self.upstream.port, self.upstream.tls is not None, authorization)
        return upstream.destination()._replace(proxy=proxy)


@pytest.mark.parametrize("secure", [False, True], ids=["http proxy", "https proxy"])
async def test_through_a_proxy(tls: Tls, secure: bool) -> None:
    """TLS goes through CONNECT, with the proxy's password, and with TLS to the proxy around it."""
    tunnel = Tunnel(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" if secure else b"HTTP/1.0 200 Fine\r\nX-Proxy: y\r\n\r\n",
        tls.server() if secure else None,
    )
    async with Upstream(tls=tls.server()) as upstream, tunnel.upstream:
        destination = tunnel.through(upstream, b"Basic secret")
        connection = await tls.pools().of(destination).connect()
        assert destination.proxy
        assert ("https" if secure else "http", (destination.proxy.host, destination.proxy.port)) == connection.server.via
        for _ in range(2):
            assert [b"ok", END] == await (await ask(connection)).end()
            assert connection.finish(whole=True)
        connection.drop("done")
    assert [(b"CONNECT 127.0.0.1:%d HTTP/1.1" % upstream.port, b"Basic secret")] == tunnel.asked


async def test_a_plain_destination_is_not_tunnelled(tls: Tls) -> None:
    """A proxy for plain HTTP is sent the request itself."""
    async with Upstream() as proxy:
        connection = await Pools().of(Destination("azure", 80, False, Proxy("127.0.0.1", proxy.port))).connect()
        assert [b"ok", END] == await (await ask(connection, b"GET http://azure/ HTTP/1.1\r\nHost: azure\r\n\r\n")).end()
        connection.drop("done")


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno", "the proxy refused the connection with 407"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "the proxy refused the connection with 502"),
        (b"nonsense\r\n\r\n", "the proxy's response cannot be read: illegal status line"),
        (b"HTTP/1.1 2", "the connection was closed"),
    ],
)
async def test_the_proxy_refuses(tls: Tls, response: bytes, says: str) -> None:
    """Its status is said, or that it speaks no HTTP."""
    tunnel = Tunnel(response)
    async with Upstream() as upstream, tunnel.upstream:
        destination = tunnel.through(upstream)._replace(tls=True)
        with pytest.raises(ConnectionFailed, match=says):
            await tls.pools().of(destination).connect()
    assert [] == upstream.peers


async def test_tls_to_the_proxy_ends(tls: Tls) -> None:
    """Its orderly end, and an alert, are the connection's end too."""
    for error in (None, ssl.SSLError(1, "alert")):
        connection = Connection(Destination("host", 443, True, Proxy("proxy", 443, True)), lambda _: None)
        connection.connection_made(_Transport())
        outer = _Tls()
        outer.closed, outer.error = error is None, error
        connection._outer = outer  # type: ignore[assignment]
        receiver = Receiver()
        connection.begin(receiver, b"GET")
        connection.data_received(OK[:-1])
        assert b"o" == receiver.items[1]
        assert receiver.why
        assert receiver.why.startswith("the connection was closed in the middle" if error is None else "TLS to the proxy failed")


async def test_the_proxys_certificate_is_verified(tls: Tls) -> None:
    """A password is not sent to a proxy that is another one."""
    tunnel = Tunnel(tls=tls.server())
    async with Upstream() as upstream, tunnel.upstream:
        with pytest.raises(ConnectionFailed, match="certificate verify failed"):
            await Pools().of(tunnel.through(upstream, b"Basic secret")._replace(tls=True)).connect()
    assert [] == tunnel.asked
