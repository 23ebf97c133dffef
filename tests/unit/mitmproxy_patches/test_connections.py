"""mitmproxy's open sockets."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock, Mock

import pytest
from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.test import taddons

from azure_openai_proxy.client_leg import sockets
from azure_openai_proxy.mitmproxy_patches import compat, connections


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """That of a client named "id", as mitmproxy keeps it."""
    handler = SimpleNamespace(transports={})
    addons = {"proxyserver": SimpleNamespace(connections={"id": handler})}
    monkeypatch.setattr(ctx, "master", SimpleNamespace(addons=addons), raising=False)
    return handler


def test_handler(handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client has one, but for those that mitmproxy did not accept."""
    assert handler is connections.handler(cast("Client", SimpleNamespace(id="id")))
    assert None is connections.handler(cast("Client", SimpleNamespace(id="another")))
    monkeypatch.setattr(ctx, "master", SimpleNamespace(addons={}))
    assert None is connections.handler(cast("Client", SimpleNamespace(id="id")))


def test_cut(handler: Any) -> None:
    """The one connection is closed."""
    server, other = Server(address=("a", 1)), Server(address=("b", 1))
    handler.transports = {server: SimpleNamespace(writer=Mock()), other: SimpleNamespace(writer=Mock())}

    connections.cut(cast("Client", SimpleNamespace(id="id")), server)

    handler.transports[server].writer.close.assert_called_once_with()
    handler.transports[other].writer.close.assert_not_called()


def test_close_left(handler: Any) -> None:
    """A socket that mitmproxy still has is closed and forgotten; one that it closed, or of another client, is no matter."""
    client, server, opening = cast("Client", SimpleNamespace(id="id")), Server(address=("a", 1)), Server(address=("b", 1))
    writer = Mock()
    handler.transports = {server: SimpleNamespace(writer=writer), opening: SimpleNamespace(writer=None)}

    for connection in (server, server, opening):
        connections.close_left(client, connection)
    connections.close_left(cast("Client", SimpleNamespace(id="another")), server)

    writer.close.assert_called_once_with()
    assert {} == handler.transports


@pytest.mark.parametrize("sizes, unsent", [([], False), ([0], False), ([0, 5], True), ([None], False)])
def test_unsent(handler: Any, sizes: list[int | None], unsent: bool) -> None:
    """Bytes in any buffer count; a connection without a buffer does not."""

    def writer(size: int | None) -> Any:
        transport = SimpleNamespace(get_write_buffer_size=lambda: size)
        return SimpleNamespace() if size is None else SimpleNamespace(transport=transport)

    handler.transports = {index: SimpleNamespace(writer=writer(size)) for index, size in enumerate(sizes)}
    assert unsent == connections.unsent()


async def test_closing() -> None:
    """From the moment that mitmproxy changes its servers until it has."""
    with taddons.context(Proxyserver()) as context:
        assert not connections.closing()
        async with context.master.addons.get("proxyserver").servers._lock:
            assert connections.closing()


def test_client_socket(handler: Any) -> None:
    """A client of a virtual network has none."""
    client = cast("Client", Mock(id="id"))
    assert None is connections.client_socket(client)
    handler.transports = {client: SimpleNamespace(writer=Mock(spec=asyncio.StreamWriter))}
    assert None is not connections.client_socket(client)
    handler.transports = {client: SimpleNamespace(writer=object(), handler=Mock())}
    assert None is connections.client_socket(client)
    assert not connections.watch(client, lambda: None)


def test_watch(handler: Any) -> None:
    """A client that is gone is noticed once; one whose connection is closed by the proxy is forgotten."""

    async def run() -> None:
        client = cast("Client", Mock(id="id"))
        near, far = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=near)
        left, task = asyncio.Event(), Mock()
        handler.transports = {client: SimpleNamespace(writer=writer, handler=task)}
        assert connections.watch(client, left.set)
        await asyncio.sleep(0)
        assert not left.is_set()  # it is there
        far.close()
        await left.wait()
        task.cancel.assert_called_once()
        assert not connections.watch(client, left.set)  # it is gone
        writer.close()
        assert not connections.watch(client, left.set)
        await asyncio.gather(*sockets._watching)

    asyncio.run(run())


def test_a_connection_that_the_proxy_closes_is_not_half_closed(handler: Any) -> None:
    """When the proxy stops, the client sends as before, and gets no probe into its response."""

    async def run() -> None:
        client = cast("Client", Mock(id="id", state=ConnectionState.CLOSED))
        near, far = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=near)
        handler.transports = {client: SimpleNamespace(writer=writer, handler=Mock())}
        assert not connections.watch(client, lambda: None)
        writer.close()
        far.close()

    asyncio.run(run())


def test_watch_ends(handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose connection mitmproxy has closed is not watched any longer."""
    monkeypatch.setattr(sockets, "LOOK", 0)

    async def run() -> None:
        client = cast("Client", Mock(id="id"))
        near, far = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=near)
        left = Mock()
        handler.transports = {client: SimpleNamespace(writer=writer, handler=Mock())}
        assert connections.watch(client, left)
        await asyncio.sleep(0)
        del handler.transports[client]
        await asyncio.gather(*sockets._watching)
        left.assert_not_called()
        writer.close()
        far.close()

    asyncio.run(run())


def test_lengthen_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports that are open, and those that are opened later, take as many connections as the system allows."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listening:
        changed = Mock()
        servers = MagicMock(changed=changed)
        servers.__iter__.side_effect = lambda: iter([SimpleNamespace(_servers=[SimpleNamespace(sockets=[listening])]), object()])
        monkeypatch.setattr(ctx, "master", SimpleNamespace(addons={"proxyserver": SimpleNamespace(servers=servers)}), raising=False)
        connections.lengthen_backlog()
        clients = [socket.create_connection(listening.getsockname(), 5) for _ in range(20)]
        for client in clients:
            client.close()
        assert 20 == len(clients)
        changed.connect.assert_called_once()


@pytest.mark.usefixtures("handler")
def test_what_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a mitmproxy that differs there is no handler and no port, and nothing fails."""
    for feature in (compat.CONNECTIONS, compat.PORTS):
        monkeypatch.setitem(vars(feature), "usable", False)
    connections.lengthen_backlog()
    connections.close_left(cast("Client", SimpleNamespace(id="id")), Server(address=("a", 1)))
    assert None is connections.handler(cast("Client", SimpleNamespace(id="id")))
