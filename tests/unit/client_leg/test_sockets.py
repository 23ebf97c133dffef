"""Clients that disconnect while nothing is read from them, and other facts about sockets."""

from __future__ import annotations

import asyncio
import select
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.client_leg import sockets
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not hasattr(select, "poll"), reason="the socket is polled")


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    """A transport, and the socket of its peer."""
    near, far = socket.socketpair()
    with near, far:
        yield SimpleNamespace(get_extra_info=lambda _: near, is_closing=lambda: False), far


def test_is_gone(pair: tuple[Any, socket.socket]) -> None:
    """A peer that has closed its socket, or a connection that is closed or never was one."""
    transport, far = pair
    assert not sockets.is_gone(transport)
    far.close()
    assert sockets.is_gone(transport)
    for without in ({"is_closing": lambda: True}, {"get_extra_info": lambda _: None}, {"get_extra_info": lambda _: far}):
        assert sockets.is_gone(SimpleNamespace(**{**vars(transport), **without}))  # type: ignore[arg-type]


@pytest.mark.parametrize("probes", [0, 1])
async def test_a_client_that_half_closes_within_its_upload(
    probes: int, pair: tuple[Any, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is probed once, and leaves with the reset that answers the probe; one that cannot be probed leaves with its FIN."""
    monkeypatch.setattr(sockets, "PROBE_AFTER", PATIENCE)
    monkeypatch.setattr(sockets, "_RDHUP", select.POLLIN)  # a FIN, on every system
    transport, far = pair
    left = ["probe"] * probes
    hangup = sockets.Hangup()

    def has_left() -> bool:
        return hangup.has_left(transport, 100, lambda: bool(left) and bool(left.pop()))

    assert [False, False] == [has_left(), has_left()]
    far.shutdown(socket.SHUT_WR)
    assert [not probes, False] == [has_left(), has_left()]
    assert [] == left
    far.close()
    assert has_left()


def test_a_client_without_a_socket() -> None:
    """It is not watched."""
    hangup = sockets.Hangup()
    for transport in (None, SimpleNamespace(get_extra_info=lambda _: None)):
        assert not hangup.has_left(transport, 100, lambda: False)  # type: ignore[arg-type]


def test_a_socket_that_was_closed_meanwhile() -> None:
    """The client has left: asyncio closes the socket when it has sent to one that was reset."""
    closed = socket.socket()
    closed.close()
    transport = SimpleNamespace(get_extra_info=lambda _: closed)
    assert sockets.Hangup().has_left(transport, 100, lambda: True)  # type: ignore[arg-type]


async def test_a_client_that_is_watched(pair: tuple[Any, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """When it disconnects, the callback is called, and the task that reads from it is cancelled; without a connection, nothing is."""
    monkeypatch.setattr(sockets, "LOOK", 0)
    transport, far = pair
    called: list[str] = []
    reading = asyncio.get_running_loop().create_future()
    sockets.watch(transport, lambda: True, lambda: called.append("left"), reading)
    await asyncio.sleep(0)
    assert not called
    far.close()
    sockets.watch(transport, lambda: False, lambda: called.append("forgotten"), reading)
    await asyncio.gather(*sockets._watching)
    assert (["left"], True) == (called, reading.cancelled())


@pytest.mark.parametrize("size, unsent", [(0, False), (5, True), (None, False)])
def test_has_unsent(size: int | None, unsent: bool) -> None:
    """Bytes in the buffer; a writer of UDP has no transport."""
    transport = SimpleNamespace(get_write_buffer_size=lambda: size)
    assert unsent is sockets.has_unsent(SimpleNamespace() if size is None else SimpleNamespace(transport=transport))


def test_lengthen_backlog() -> None:
    """More connections wait than the port was opened for."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listening:
        sockets.lengthen_backlog(listening)
        for client in [socket.create_connection(listening.getsockname(), PATIENCE) for _ in range(20)]:
            client.close()
