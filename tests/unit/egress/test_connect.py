"""Connecting to the addresses of a host, with real sockets on loopback."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.egress import connect
from azure_openai_proxy.egress.connect import Destination, Proxy, connect_any, is_shortage

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = {name for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT") if hasattr(socket, name)}


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A listener at 127.0.0.1; other loopback addresses refuse."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def port(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@pytest.fixture
def silent(port: int) -> Iterator[str]:
    """An address at the same port whose listener takes no more: its backlog is full, so that the kernel drops every SYN."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.2", port))
        full.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.2", port))
        yield "127.0.0.2"


class Tried:
    """Which addresses were tried, in order, and the sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self.sockets: list[socket.socket] = []
        loop = asyncio.get_running_loop()
        real = loop.sock_connect

        async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
            self.addresses.append(address[0])
            self.sockets.append(sock)
            await real(sock, address)

        monkeypatch.setattr(loop, "sock_connect", sock_connect)

    def all_closed(self) -> bool:
        return all(sock.fileno() == -1 for sock in self.sockets)


@pytest.fixture
async def tried(monkeypatch: pytest.MonkeyPatch) -> Tried:
    return Tried(monkeypatch)


async def test_one_address(port: int) -> None:
    """The socket is connected, does not block, and has keep-alive on."""
    with await connect_any(["127.0.0.1"], port) as sock:
        assert ("127.0.0.1", port) == sock.getpeername()
        assert 0 == sock.gettimeout()
        assert 1 == sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name in PORTS:
            assert connect._KEEP_ALIVE[name] == sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system has no name for it")
def test_keep_alive_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has another name for the idle time before the first probe."""
    option = socket.TCP_KEEPIDLE
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", option, raising=False)
    with socket.socket() as sock:
        connect.keep_alive(sock)
        assert 60 == sock.getsockopt(socket.IPPROTO_TCP, option)


async def test_the_first_address_refuses(port: int, tried: Tried) -> None:
    """The next one is tried at once."""
    with await connect_any(["127.0.0.3", "127.0.0.1", "127.0.0.4"], port) as sock:
        assert "127.0.0.1" == sock.getpeername()[0]
    assert ["127.0.0.3", "127.0.0.1"] == tried.addresses


async def test_the_first_address_is_silent(port: int, silent: str, tried: Tried) -> None:
    """After a head start the next one is tried beside it; the socket that got nowhere is closed."""
    with await connect_any([silent, "127.0.0.1"], port) as sock:
        assert "127.0.0.1" == sock.getpeername()[0]
        assert [silent, "127.0.0.1"] == tried.addresses
        await asyncio.sleep(0)
        assert [-1, sock.fileno()] == [each.fileno() for each in tried.sockets]


async def test_a_silent_address_does_not_end_what_is_left(port: int, silent: str, tried: Tried) -> None:
    """Between a silent address and a good one, one that refuses costs no head start."""
    with await connect_any([silent, "127.0.0.3", "127.0.0.1"], port) as sock:
        assert "127.0.0.1" == sock.getpeername()[0]
    assert [silent, "127.0.0.3", "127.0.0.1"] == tried.addresses


async def test_ipv6_is_refused(port: int, tried: Tried) -> None:
    """The other family is tried."""
    with await connect_any(["::1", "127.0.0.1"], port) as sock:
        assert socket.AF_INET == sock.family
    assert ["::1", "127.0.0.1"] == tried.addresses


async def test_all_addresses_refuse(port: int, tried: Tried) -> None:
    """The error says so, and nothing is left open."""
    with pytest.raises(ConnectionRefusedError):
        await connect_any(["127.0.0.3", "127.0.0.4"], port)
    assert tried.all_closed()
    with pytest.raises(ConnectionRefusedError):
        await connect_any(["127.0.0.3"], port)
    assert tried.all_closed()


async def test_an_error_keeps_nothing_alive(port: int) -> None:
    """The caller of a failed connection is freed together with the error, without the garbage collector."""

    class Caller:
        """The caller of `connect`."""

    async def fails(caller: Caller) -> None:
        with pytest.raises(OSError, match="Connect call failed"):
            await connect_any(["127.0.0.3", "127.0.0.4"], port)

    gc.collect()
    gc.disable()
    try:
        caller = Caller()
        freed = weakref.ref(caller)
        await fails(caller)
        del caller
        assert freed() is None
    finally:
        gc.enable()


async def test_no_address() -> None:
    """A host without addresses is not connected to."""
    with pytest.raises(OSError, match="the host has no address"):
        await connect_any([], 443)


async def test_cancelling_closes_the_sockets(silent: str, port: int, tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves while its connection is made leaves no socket: one address, many, or one that has refused."""
    monkeypatch.setattr(connect, "HEAD_START", 0.001)
    for addresses in ([silent], [silent, silent, silent], [silent, "127.0.0.3"]):
        tried.sockets.clear()
        task = asyncio.create_task(connect_any(addresses, port))
        while len(tried.sockets) < len(addresses):
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert tried.all_closed()


async def test_two_connect_at_once(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is used; the other is closed, also when it connects in the moment in which it is cancelled."""
    made: list[socket.socket] = []
    together = asyncio.Barrier(2)

    async def _connect(address: str, port: int, local: str | None) -> socket.socket:
        sock = socket.socket()
        made.append(sock)
        try:
            await together.wait()
        except asyncio.CancelledError:
            return sock  # connected nevertheless
        return sock

    monkeypatch.setattr(connect, "_connect", _connect)
    monkeypatch.setattr(connect, "HEAD_START", 0.001)
    used = await connect_any(["127.0.0.1", "127.0.0.2"], port)
    await asyncio.sleep(0)
    assert [used] == [sock for sock in made if sock.fileno() != -1]
    used.close()

    made.clear()
    task = asyncio.create_task(connect_any(["127.0.0.1", "127.0.0.2"], port))
    while not made:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [] == [sock for sock in made if sock.fileno() != -1]


async def test_the_last_address_refuses_before_another_accepts(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempts that still run are waited for."""
    refused = asyncio.Event()

    async def _connect(address: str, port: int, local: str | None) -> socket.socket:
        if address == "127.0.0.1":
            await refused.wait()
            for _ in range(10):  # turns of the event loop, so that the refusal is seen first
                await asyncio.sleep(0)
            return socket.socket()
        refused.set()
        raise ConnectionRefusedError(address)

    monkeypatch.setattr(connect, "_connect", _connect)
    monkeypatch.setattr(connect, "HEAD_START", 0.001)
    (await connect_any(["127.0.0.1", "127.0.0.2"], port)).close()
    assert refused.is_set()


async def test_another_failure_than_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is not an OSError is raised as one, so that the request fails like any other."""

    async def _connect(address: str, port: int, local: str | None) -> socket.socket:
        raise OverflowError("port must be 0-65535")

    monkeypatch.setattr(connect, "_connect", _connect)
    with pytest.raises(OSError, match="port must be"):
        await connect_any(["127.0.0.1", "127.0.0.2"], 70000)


async def test_from_a_local_address(port: int, server: socket.socket, tried: Tried) -> None:
    """`connect_addr` is bound to, and addresses of the other family are left out."""
    with await connect_any(["::1", "127.0.0.1"], port, "127.0.0.5") as sock:
        assert "127.0.0.5" == sock.getsockname()[0]
    assert ["127.0.0.1"] == tried.addresses
    with pytest.raises(OSError, match=r"no address that can be reached from 127\.0\.0\.5"):
        await connect_any(["::1"], port, "127.0.0.5")


async def test_a_shortage_is_what_is_reported(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that is missing for one address says more than the refusal of another one."""
    real = socket.socket
    left = 1

    def one_fails(*args: int) -> socket.socket:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*args)

    monkeypatch.setattr(socket, "socket", one_fails)
    with pytest.raises(OSError, match="Too many open files") as failed:
        await connect_any(["127.0.0.3", "127.0.0.4"], port)
    assert is_shortage(failed.value)


def test_what_is_a_shortage() -> None:
    """Only what this machine lacks."""
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL):
        assert is_shortage(OSError(number, "short"))
    for number in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT):
        assert not is_shortage(OSError(number, "no"))
    assert not is_shortage(OSError("the host has no address"))


def test_a_proxy_does_not_show_its_password() -> None:
    """Nor does a destination behind it."""
    proxy = Proxy("proxy", 3128, authorization=b"Basic secret")
    assert "Proxy(proxy:3128)" == repr(proxy)
    assert "secret" not in repr(Destination("azure", 443, True, proxy))


def test_the_name_of_a_destination() -> None:
    """An IPv6 address is written in brackets."""
    assert "azure:443" == Destination("azure", 443, True).netloc
    assert "[::1]:443" == Destination("::1", 443, True).netloc


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """An unclosed socket is reported when it is collected: in this test, not in another."""
    yield
    gc.collect()
