"""Pools of connections, with real sockets on loopback and a clock of the test's own."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.egress import pool as module
from azure_openai_proxy.egress.connect import Destination, Proxy
from azure_openai_proxy.egress.connection import Connection, ConnectionFailed
from azure_openai_proxy.egress.http1 import END
from azure_openai_proxy.egress.pool import Limits, Pool, Pools
from azure_openai_proxy.egress.resolver import Resolver
from azure_openai_proxy.egress.tls import TlsOptions
from azure_simulator import tls as certificates
from support.upstreams import OK, Peer, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mitmproxy.connection import Server

    from azure_openai_proxy.egress.http1 import Item

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """An unclosed transport is reported when it is collected: in this test, not in another."""
    yield
    gc.collect()


class Asked:
    """A request, and its end."""

    def __init__(self) -> None:
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def received(self, items: list[Item]) -> None:
        if items[-1] is END:
            self.over.set_result("whole")

    def lost(self, why: str) -> None:
        self.over.set_result(why)


async def ask(pools: Pools, destination: Destination, *, give: bool = True) -> Connection:
    """One request, and its connection given back."""
    pool = pools.of(destination)
    connection = pool.take() or await pool.connect()
    asked = Asked()
    connection.begin(asked, b"GET")
    connection.write(GET)
    assert "whole" == await asyncio.wait_for(asked.over, 10)
    if connection.finish(whole=True) and give:
        pools.give(connection)
    return connection


async def until(there: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not there():
            await asyncio.sleep(0.001)


async def test_a_connection_is_used_again() -> None:
    """One request after the other takes one connection."""
    async with Upstream() as upstream:
        pools = Pools()
        used = {id(await ask(pools, upstream.destination())) for _ in range(5)}
        assert (1, 1, 1) == (len(used), len(upstream.peers), pools.of(upstream.destination()).opened)
        pools.close()


async def test_the_one_used_last_is_used_next() -> None:
    """So that those too many grow old."""
    async with Upstream() as upstream:
        pools = Pools()
        three = await asyncio.gather(*(ask(pools, upstream.destination(), give=False) for _ in range(3)))
        for connection in three:
            pools.give(connection)
        pool = pools.of(upstream.destination())
        assert list(reversed(three)) == [pool.take() for _ in range(3)]
        assert pool.take() is None
        for connection in three:
            connection.drop("done")


async def test_how_many_may_be_idle() -> None:
    """One connection over the limit is closed; the number of busy connections has no limit, and 0 turns reuse off."""
    async with Upstream() as upstream:
        for size in (2, 0):
            pools = Pools(limits=Limits(size=size))
            busy = [await ask(pools, upstream.destination(), give=False) for _ in range(4)]
            for connection in busy:
                pools.give(connection)
            assert [None] * size + ["too many idle connections"] * (4 - size) == [connection.why for connection in busy]
            pools.close()
        pools = Pools(limits=Limits(size=0))
        first = await ask(pools, upstream.destination())
        assert first is not await ask(pools, upstream.destination())


async def test_idle_connections_grow_old() -> None:
    """Each is closed when its own time is over, and the timer ends with the last one."""
    time = 1000.0
    async with Upstream() as upstream:
        pools = Pools(limits=Limits(idle=55), now=lambda: time)
        pool = pools.of(upstream.destination())
        old, young = [await ask(pools, upstream.destination(), give=False) for _ in range(2)]
        pools.give(old)
        assert pool._sweeper
        assert 40 < pool._sweeper.when() - asyncio.get_running_loop().time() <= 55
        time += 40
        pools.give(young)
        time += 15
        pool._sweeper.cancel()
        pool._sweep()
        assert ("idle for too long", None) == (old.why, young.why)
        assert 25 < pool._sweeper.when() - asyncio.get_running_loop().time() <= 40
        time += 40
        pool._sweeper.cancel()
        pool._sweep()
        assert "idle for too long" == young.why
        assert not pool.idle


async def test_the_timer_does_it_by_itself() -> None:
    """Nothing else has to happen for an idle connection to be closed."""
    async with Upstream() as upstream:
        pools = Pools(limits=Limits(idle=0.01))
        connection = await ask(pools, upstream.destination())
        await asyncio.wait_for(upstream.peers[0].served.wait(), 10)
        assert "idle for too long" == connection.why
        assert not pools.of(upstream.destination()).idle


async def test_a_connection_that_was_closed_while_idle() -> None:
    """It leaves the pool as soon as its end is read."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await end.wait()
        peer.close()

    end = asyncio.Event()
    async with Upstream(serve) as upstream:
        pools = Pools()
        first = await ask(pools, upstream.destination())
        end.set()
        await until(lambda: first.why)
        assert not pools.of(upstream.destination()).idle
        assert first is not await ask(pools, upstream.destination(), give=False)


async def test_an_end_that_was_not_read_yet() -> None:
    """Before a connection is used the kernel is asked whether something has come; the loop may not have had its turn."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await end.wait()
        peer.reset()

    end = asyncio.Event()
    async with Upstream(serve) as upstream:
        pools = Pools()
        first = await ask(pools, upstream.destination())
        first.pause_reading()  # the loop does not see it
        end.set()
        await upstream.peers[0].served.wait()
        await asyncio.sleep(0.01)
        assert pools.of(upstream.destination()).take() is None
        assert "closed while idle" == first.why


async def test_a_connection_that_is_closing() -> None:
    """One that failed in this very turn of the loop is not used."""
    async with Upstream() as upstream:
        pools = Pools()
        first = await ask(pools, upstream.destination())
        first.transport.abort()
        assert pools.of(upstream.destination()).take() is None


async def test_a_response_that_ends_the_connection() -> None:
    """`Connection: close` is kept to."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await peer.gone()

    async with Upstream(serve) as upstream:
        pools = Pools()
        assert "not used again" == (await ask(pools, upstream.destination())).why
        await ask(pools, upstream.destination())
        assert 2 == len(upstream.peers)


# Options


async def test_options_that_change() -> None:
    """They hold for new connections: idle ones are closed, busy ones are when they are given back. The same values change nothing."""
    async with Upstream() as upstream:
        pools = Pools()
        idle, busy = [await ask(pools, upstream.destination(), give=False) for _ in range(2)]
        pools.give(idle)
        pools.configure(pools.tls, pools.limits, pools.local_address)
        assert idle in pools.of(upstream.destination()).idle
        pools.configure(pools.tls, pools.limits, "127.0.0.1")
        assert "the pool was closed" == idle.why
        pools.give(busy)
        assert "made for other settings" == busy.why
        assert (await ask(pools, upstream.destination())).why is None
        pools.close()
        pools.close()


async def test_destinations_that_are_gone() -> None:
    """Their connections are closed, those in use when they are given back; others stay."""
    async with Upstream() as upstream, Upstream() as other:
        pools = Pools()
        idle, busy = [await ask(pools, upstream.destination(), give=False) for _ in range(2)]
        pools.give(idle)
        kept = await ask(pools, other.destination())
        pools.keep(lambda destination: destination == other.destination())
        pools.give(busy)
        assert ("the pool was closed", "made for other settings", None) == (idle.why, busy.why, kept.why)
        pools.close()


async def test_connections_come_from_the_local_address() -> None:
    """`connect_addr` of mitmproxy."""
    async with Upstream() as upstream:
        pools = Pools(local_address="127.0.0.7")
        connection = await ask(pools, upstream.destination())
        assert "127.0.0.7" == connection.server.sockname[0]  # type: ignore[index]
        pools.close()


# TLS


@pytest.fixture
def trusted(tmp_path: Path) -> tuple[TlsOptions, ssl.SSLContext]:
    ca, server = certificates.make(tmp_path, ["127.0.0.1", "localhost"])
    return TlsOptions(ca_file=str(ca)), server


def resumed(connection: Connection) -> bool | None:
    assert connection.tls
    return connection.tls.object.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("closes", [False, True], ids=["kept", "closed each time"])
async def test_sessions_are_resumed(trusted: tuple[TlsOptions, ssl.SSLContext], version: ssl.TLSVersion, closes: bool) -> None:
    """Every connection but the first has a short handshake, also to a server that closes each."""

    async def serve(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if closes else OK)

    options, server = trusted
    server.maximum_version = version
    async with Upstream(serve, server) as upstream:
        pools = Pools(tls=options)
        connections = [await ask(pools, upstream.destination(), give=False) for _ in range(1)]
        pools.give(connections[0])
        pool = pools.of(upstream.destination())
        pool.take()
        connections += [await ask(pools, upstream.destination(), give=False) for _ in range(2)]
        assert [False, True, True] == [resumed(connection) for connection in connections]
        for connection in connections:
            connection.drop("done")


async def test_a_session_is_copied_once(trusted: tuple[TlsOptions, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first request of a connection, and not after others, each of which it would make dearer."""
    session: Any = vars(Connection)["session"].fget
    copied: list[Connection] = []

    def copying(self: Connection) -> Any:
        copied.append(self)
        return session(self)

    monkeypatch.setattr(Connection, "session", property(copying))
    options, server = trusted
    async with Upstream(tls=server) as upstream:
        pools = Pools(tls=options)
        first = await ask(pools, upstream.destination())
        for _ in range(3):
            assert first is await ask(pools, upstream.destination())
        pools.close()
        assert [first] == copied
        second = await ask(pools, upstream.destination())
        assert resumed(second)
        pools.close()


async def test_a_session_is_copied_once_a_minute(trusted: tuple[TlsOptions, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections are made: in some versions of Python each copy leaks memory."""
    session: Any = vars(Connection)["session"].fget
    copied: list[Connection] = []

    def copying(self: Connection) -> Any:
        copied.append(self)
        return session(self)

    monkeypatch.setattr(Connection, "session", property(copying))
    options, server = trusted
    now = 0.0
    async with Upstream(tls=server) as upstream:
        pools = Pools(tls=options)
        monkeypatch.setattr(pools, "now", lambda: now)
        connections = []
        for now in (0.0, 1.0, 2.0, module.SESSION_FOR + 1, module.SESSION_FOR + 2):  # noqa: B007 - read by the clock
            connections.append(await ask(pools, upstream.destination()))
            pools.close()
        assert [False, True, True, True, True] == [resumed(connection) for connection in connections]
        assert [connections[0], connections[3]] == copied


async def test_a_session_belongs_to_its_options(trusted: tuple[TlsOptions, ssl.SSLContext]) -> None:
    """After a change of options a new session is made; one of the options before is not taken for it, whenever it comes back."""
    options, server = trusted
    async with Upstream(tls=server) as upstream:
        pools = Pools(tls=options)
        before = await ask(pools, upstream.destination(), give=False)
        pools.give(before)
        pools.configure(options._replace(insecure=True), pools.limits, None)
        after = await ask(pools, upstream.destination(), give=False)
        assert not resumed(after)
        pools.of(upstream.destination()).keep_session(before)
        pools.give(after)
        pools.of(upstream.destination()).take()
        another = await ask(pools, upstream.destination(), give=False)
        assert resumed(another)
        for connection in (after, another):
            connection.drop("done")


async def test_a_failed_handshake_forgets_the_session(trusted: tuple[TlsOptions, ssl.SSLContext]) -> None:
    """It may be what the server does not want."""
    options, server = trusted
    async with Upstream(tls=server) as upstream:
        pools = Pools(tls=options)
        pool = pools.of(upstream.destination())
        (await ask(pools, upstream.destination())).drop("done")
        assert [None] != [pool._session]

        async def fails(self: Connection, **_: object) -> None:
            self.drop("refused")
            raise ConnectionFailed("refused")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Connection, "establish", fails)
            with pytest.raises(ConnectionFailed):
                await pool.connect()
        assert pool._session is None
        again = await ask(pools, upstream.destination())
        assert not resumed(again)
        pools.close()


async def test_tls_that_cannot_be_set_up(tmp_path: Path) -> None:
    """It is this machine's fault, and no backend's."""
    async with Upstream() as upstream:
        pools = Pools(tls=TlsOptions(ca_file=str(tmp_path / "nowhere.pem")))
        with pytest.raises(ConnectionFailed, match=r"TLS cannot be set up: .*No such file") as failed:
            await pools.of(upstream.destination()._replace(tls=True)).connect()
        assert failed.value.local


# Failures


class Names:
    """A resolver's look-up that counts."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.asked = list(addresses), 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses


async def test_names_are_resolved_once() -> None:
    """The connections of a host share its addresses; with an upstream proxy, the proxy's name is looked up."""
    names = Names("127.0.0.1")
    async with Upstream() as upstream:
        pools = Pools(resolver=Resolver(names))
        seen: list[Server] = []
        pool = pools.of(upstream.destination("azure.example"))
        for _ in range(2):
            connection = await pool.connect(seen.append)
            connection.drop("done")
        assert 1 == names.asked
        assert ("azure.example", upstream.port) == seen[0].address
        through = await pools.of(Destination("elsewhere", 80, False, Proxy("azure.example", upstream.port))).connect()
        assert 1 == names.asked
        through.drop("done")


async def test_a_name_that_does_not_resolve() -> None:
    """It says so."""
    with pytest.raises(ConnectionFailed, match="Name or service not known") as failed:
        await Pools(resolver=Resolver(Names())).of(Destination("nowhere", 80, False)).connect()
    assert not failed.value.local


async def test_addresses_that_all_fail_are_forgotten() -> None:
    """The next request looks them up again, whether they refused or said nothing until its time was over."""
    names = Names("127.0.0.3", "127.0.0.4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        pools = Pools(resolver=Resolver(names))
        pool = pools.of(Destination("azure.example", port, False))
        with pytest.raises(ConnectionFailed, match="Connect call failed"):
            await pool.connect()
        names.addresses = ["127.0.0.1"]
        (await pool.connect()).drop("done")
        assert 2 == names.asked

        async def silent(*_: object) -> socket.socket:
            await asyncio.Event().wait()
            raise AssertionError

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "connect_any", silent)
            task = asyncio.create_task(pool.connect())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        (await pool.connect()).drop("done")
        assert 3 == names.asked


async def test_a_shortage_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing descriptor says nothing about the other side."""

    async def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "connect_any", none_left)
    with pytest.raises(ConnectionFailed, match="Too many open files") as failed:
        await Pools().of(Destination("127.0.0.1", 80, False)).connect()
    assert failed.value.local


async def test_an_error_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class name is the message."""

    async def fails(*_: object) -> socket.socket:
        raise ConnectionAbortedError

    monkeypatch.setattr(module, "connect_any", fails)
    with pytest.raises(ConnectionFailed, match="ConnectionAbortedError"):
        await Pools().of(Destination("127.0.0.1", 80, False)).connect()


async def test_no_transport_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is closed if the loop cannot take it."""

    async def fails(*_: object, sock: socket.socket) -> None:
        sockets.append(sock)
        raise MemoryError

    sockets: list[socket.socket] = []
    async with Upstream() as upstream:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fails)
        with pytest.raises(MemoryError):
            await Pools().of(upstream.destination()).connect()
        assert [-1] == [sock.fileno() for sock in sockets]
        await until(lambda: upstream.peers)


# Ahead of the first request


async def test_a_connection_is_opened_ahead(trusted: tuple[TlsOptions, ssl.SSLContext]) -> None:
    """The first request finds it, its TLS included; while it waits no other is opened."""
    options, server = trusted
    async with Upstream(tls=server) as upstream:
        pools = Pools(tls=options)
        await pools.warm(upstream.destination(), 10)
        (waiting,) = pools.of(upstream.destination()).idle
        await pools.warm(upstream.destination(), 10)
        assert waiting is await ask(pools, upstream.destination())
        assert 1 == len(upstream.peers)
        pools.close()


async def test_one_request_waits_for_what_is_opened_ahead() -> None:
    """It gets that connection; a second request does not wait."""
    async with Upstream() as upstream:
        pools = Pools()
        pool = pools.of(upstream.destination())
        warming = asyncio.create_task(pools.warm(upstream.destination(), 10))
        while not pool.opening:
            await asyncio.sleep(0)
        found = await pool.wait_for_opening()
        assert found
        assert 1 == len(upstream.peers)
        assert await pool.wait_for_opening() is None
        await warming
        found.drop("done")


async def test_what_fails_ahead_is_no_matter(trusted: tuple[TlsOptions, ssl.SSLContext], caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is raised or logged: not for an address that refuses, TLS that fails, nor when time is over."""

    async def hang(peer: Peer) -> None:
        await peer.gone()

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        pools = Pools()
        await pools.warm(Destination("127.0.0.1", closed.getsockname()[1], False), 10)
    async with Upstream(tls=trusted[1]) as upstream:
        await pools.warm(upstream.destination(), 10)
    async with Upstream(hang) as upstream:
        await pools.warm(upstream.destination()._replace(tls=True), 0.01)
        await asyncio.wait_for(upstream.peers[0].served.wait(), 10)
    assert not [record for record in caplog.records if record.name != "asyncio"]
    assert not any(pool.idle for pool in pools._pools.values())


async def test_nothing_is_opened_ahead_where_nothing_is_kept() -> None:
    """With a pool size of 0 a connection opened in advance could not be used."""
    async with Upstream() as upstream:
        await Pools(limits=Limits(size=0)).warm(upstream.destination(), 10)
        assert [] == upstream.peers


def test_defaults() -> None:
    """100 idle connections, for 55 seconds."""
    assert (100, 55.0) == Limits()
    assert isinstance(Pools().of(Destination("azure", 443, True)), Pool)
