"""Received bytes are delivered at once, in order, and no peer is written to faster than it reads."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock

import pytest
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.test import tflow

from azure_openai_proxy.mitmproxy_patches import connections
from azure_openai_proxy.mitmproxy_patches.fastpath import reads as fast_reads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Handler(ConnectionHandler):
    """mitmproxy's, with layers that only note what they get."""

    async def handle_hook(self, hook: Any) -> None:
        """There are no addons."""


class Between:
    """A client and a connection upstream: two sockets in mitmproxy's hands, and the far ends of both."""

    async def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        self.client, self.upstream = tflow.tclient_conn(), tflow.tserver_conn()
        options = SimpleNamespace(tcp_timeout=600)
        self.handler = Handler(cast("Any", SimpleNamespace(client=self.client, options=options, layers=[], fork=lambda: None)))
        self.seen: list[object] = []
        self.handler.layer = cast("Any", SimpleNamespace(handle_event=self.handle))
        monkeypatch.setattr(connections, "handler", lambda client: self.handler if client is self.client else None)
        self.tasks = []
        for connection in (self.client, self.upstream):
            io = await self.connect(connection)
            fast_reads.enable_direct_reads(self.client, cast("Any", connection))  # in a hook, before the connection is read
            io.handler = asyncio.create_task(self.handler.handle_connection(connection))
            self.tasks.append(io.handler)

    async def connect(self, connection: Any) -> Any:
        there: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.server = await asyncio.start_server(lambda *streams: there.set_result(streams), "127.0.0.1", 0)
        address, port = self.server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(address, port)
        self.server.close()
        connection.far = await there
        self.handler.transports[connection] = io = cast("Any", SimpleNamespace(reader=reader, writer=writer, handler=None))
        return io

    def handle(self, event: Any) -> Any:
        self.seen.append(getattr(event, "data", type(event).__name__))
        return ()

    async def until(self, *seen: object) -> None:
        async with asyncio.timeout(10):
            while self.seen != list(seen):
                await asyncio.sleep(0)

    def reader(self, connection: Any) -> fast_reads.Reader:
        return cast("fast_reads.Reader", self.handler.transports[connection].reader)

    async def end(self) -> None:
        for connection in (self.client, self.upstream):
            cast("Any", connection).far[1].close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def between(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Between]:
    between = Between()
    await between.begin(monkeypatch)
    yield between
    await between.end()


async def test_at_once(between: Between) -> None:
    """The layers get the bytes in the turn of the event loop that read them; the task that waits for them is not resumed."""
    between.reader(between.upstream).feed_data(b"a")
    between.reader(between.upstream).feed_data(b"b")
    assert [b"a", b"b"] == between.seen


async def test_a_read_allocates_little(between: Between) -> None:
    """The buffer fits a request; after the first read that fills it, it fits a part of an upload."""
    reader = between.reader(between.client)
    assert fast_reads.SIZE == reader.transport.max_size
    reader.feed_data(bytes(fast_reads.SIZE - 1))
    assert fast_reads.SIZE == reader.transport.max_size
    reader.feed_data(bytes(fast_reads.SIZE))
    assert fast_reads.LARGE == reader.transport.max_size


async def test_over_sockets(between: Between) -> None:
    """What peers write comes as it was written, their end behind it."""
    cast("Any", between.client).far[1].write(b"asked")
    await between.until(b"asked")
    cast("Any", between.upstream).far[1].write(b"answer")
    await between.until(b"asked", b"answer")
    cast("Any", between.upstream).far[1].close()
    await between.until(b"asked", b"answer", "ConnectionClosed")


async def test_nothing(between: Between) -> None:
    """Without bytes no layer is called."""
    between.reader(between.upstream).feed_data(b"")
    assert [] == between.seen


async def test_in_order(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an event waits for the task, later events wait too."""
    reader = between.reader(between.upstream)
    writer = cast("Any", between.handler.transports[between.client].writer)
    monkeypatch.setattr(fast_reads, "is_full", lambda one: one._protocol._paused)
    writer._protocol.pause_writing()
    reader.feed_data(b"a")
    assert [] == between.seen
    writer._protocol.resume_writing()
    reader.feed_data(b"b")
    await between.until(b"ab")
    async with asyncio.timeout(10):
        while not reader.waiting:  # the task is about to wait again
            await asyncio.sleep(0)
    reader.feed_data(b"c")
    assert [b"ab", b"c"] == between.seen


async def test_in_the_middle(between: Between) -> None:
    """While an event is being handled the next one waits for its turn, and none is lost."""
    async with between.handler._server_event_lock:
        between.reader(between.upstream).feed_data(b"a")
        between.reader(between.client).feed_data(b"b")
        assert [] == between.seen
    await between.until(b"a", b"b")


async def test_no_connection(between: Between) -> None:
    """A client of a replay has none; one inside another connection has no socket of its own."""
    inner = tflow.tserver_conn()
    fast_reads.enable_direct_reads(tflow.tclient_conn(), between.upstream)
    fast_reads.enable_direct_reads(between.client, inner)
    assert inner not in between.handler.transports


async def test_virtual_network(between: Between) -> None:
    """Streams of WireGuard and of captured processes are not asyncio's: only waiting shows whether their buffers are full."""
    other = tflow.tserver_conn()
    drain = AsyncMock()
    stream: Any = SimpleNamespace(drain=drain)
    between.handler.transports[other] = cast("Any", SimpleNamespace(reader=stream, writer=stream, handler=None))
    fast_reads.enable_direct_reads(between.client, other)
    assert stream is between.handler.transports[other].reader
    between.reader(between.client).feed_data(b"a")
    assert [] == between.seen
    await between.until(b"a")
    drain.assert_awaited()


async def test_not_yet_connected(between: Between) -> None:
    """A connection that is being established cannot be slow."""
    between.handler.transports[tflow.tserver_conn()] = cast("Any", SimpleNamespace(reader=None, writer=None, handler=None))
    between.reader(between.upstream).feed_data(b"a")
    assert [b"a"] == between.seen
