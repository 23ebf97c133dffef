"""Flow control. tests/unit/mitmproxy_patches/test_upstream_leg.py has the same with real clients."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock, create_autospec

import pytest

from azure_openai_proxy.client_leg.flow_control import BACKLOG, FULL, FlowControl, is_full

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mitmproxy.connection import Server

    from azure_openai_proxy.errors import Failure


class Client(FlowControl):
    """A client whose buffers the test sets."""

    def __init__(self, *, backlog: int = 0, http2: bool = False) -> None:
        super().__init__(streamed=True, http2=http2)
        self.request: Any = Mock(backlog=backlog)
        self.upstream = self.request
        self.buffered = 0
        self.acknowledged: list[int] = []

    def connected(self, server: Server) -> None: ...

    def deliver(self, items: Sequence[Any]) -> None: ...

    def failed(self, failure: Failure) -> None: ...

    def straight(self) -> Callable[[bytes], bool] | None:
        return None

    def client_writer(self) -> None: ...

    def unhandled(self) -> bool:
        return False

    def held(self) -> int:
        return self.buffered

    def acknowledge(self, size: int) -> None:
        self.acknowledged.append(size)

    def probe(self) -> bool:
        return False


async def test_an_upload_goes_on_when_upstream_has_taken_enough() -> None:
    """Not before; the bytes that an HTTP/2 client may send more are acknowledged at the same moment."""
    client = Client(backlog=BACKLOG + 1, http2=True)
    client.owed = 10
    waiting = asyncio.ensure_future(client.taken())
    await asyncio.sleep(0)
    client.body_taken()
    assert (False, []) == (waiting.done(), client.acknowledged)
    client.request.backlog = BACKLOG
    client.body_taken()
    await waiting
    assert [10] == client.acknowledged


async def test_a_response_goes_on_when_the_client_has_read_enough() -> None:
    """The window of an HTTP/2 client opens when it reads."""
    client = Client(http2=True)
    client.buffered = FULL + 1
    assert client.full()
    waiting = asyncio.ensure_future(client.room())
    await asyncio.sleep(0)
    client.look_for_room()
    assert not waiting.done()
    client.buffered = 0
    client.look_for_room()
    client.look_for_room()
    await waiting
    assert not client.full()


async def test_a_client_that_leaves() -> None:
    """Its request is cancelled once, and all waiting ends."""
    client = Client(backlog=BACKLOG + 1)
    waiting = asyncio.ensure_future(client.taken())
    await asyncio.sleep(0)
    client.leave()
    client.end()
    await waiting
    client.upstream.cancel.assert_called_once_with()
    assert not hasattr(client, "request")


@pytest.mark.parametrize("size, full", [(FULL, False), (FULL + 1, True)])
def test_the_writer_of_a_client_that_reads_slowly(size: int, full: bool) -> None:
    """Its writer is full when too much waits in the transport."""
    writer = create_autospec(asyncio.StreamWriter, instance=True)
    writer.transport = SimpleNamespace(get_write_buffer_size=lambda: size)
    assert full == is_full(writer)
    assert is_full(object())
