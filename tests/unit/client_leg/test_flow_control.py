"""Flow control. tests/unit/mitmproxy_patches/test_upstream_leg.py has the same with real clients."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock, call, create_autospec

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg.flow_control import BACKLOG, FULL, FlowControl, is_full
from azure_openai_proxy.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Client(FlowControl):
    """A client whose buffers the test sets."""

    def __init__(self, *, backlog: int = 0, http2: bool = False, streamed: bool = True) -> None:
        super().__init__(tflow.tflow(), {}, streamed=streamed, http2=http2)
        self.request: Any = Mock(backlog=backlog)
        self.upstream = self.request
        self.buffered = 0
        self.acknowledged: list[int] = []
        self.passed: list[object] = []

    def pass_on(self, items: Sequence[Any]) -> None:
        self.passed += items

    def report(self, failure: Failure) -> None:
        self.passed.append(failure)

    def direct_writer(self) -> Callable[[bytes], bool] | None:
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


@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_is_sent_if_it_is_streamed(streamed: bool) -> None:
    """Another one is the flow's; what a hook leaves nothing of is no end of the body."""
    client = Client(streamed=streamed)
    client.start(Mock(send_upstream=Mock(return_value=client.upstream)))
    for data in (b"", b"body"):
        client.add(data)
    client.complete()
    assert [call.start(), *[call.add(b"body"), call.complete()] * streamed] == client.upstream.mock_calls


HEAD, TRAILERS, END = http.Response.make(200), http.Headers(x="y"), object()
UPGRADE = http.Response.make(101)


@pytest.mark.parametrize(
    "http2, items, passed, over",
    [
        (False, [HEAD, b"a", END], [HEAD, b"a", END], True),
        (False, [HEAD, b"a", TRAILERS, END], [HEAD, b"a", END], True),
        (True, [HEAD, b"a", TRAILERS, END], [HEAD, b"a", TRAILERS, END], True),
        (False, [HEAD], [HEAD], False),
        (False, [b"a"], [b"a"], False),
        (False, [TRAILERS], [], False),
        (False, [UPGRADE, b"a"], [UPGRADE, None, b"a"], False),
        (False, [UPGRADE, END], [UPGRADE, None, END], True),
    ],
)
def test_a_response(http2: bool, items: list[object], passed: list[object], over: bool) -> None:
    """An HTTP/1 client gets no trailers; after a 101, HTTP has ended and another protocol follows."""
    client = Client(http2=http2)
    client.deliver(items)
    assert (passed, over) == (client.passed, client.over)


def test_a_failure() -> None:
    """It is reported. An upgraded connection knows no failures, only the end."""
    failed, upgraded, failure = Client(), Client(), Failure(502, "upstream_error", "It failed.")
    upgraded.deliver([UPGRADE])
    for client in (failed, upgraded):
        client.failed(failure)
    assert ([failure], [UPGRADE, None, None]) == (failed.passed, upgraded.passed)


def test_a_flow_that_is_killed() -> None:
    """If a hook of the response kills the flow, its request is cancelled."""
    client = Client()
    client.flow.live = False
    client.deliver([HEAD])
    client.upstream.cancel.assert_called_once_with()


def test_an_upgraded_connection() -> None:
    """The client's bytes go to the upgraded protocol, whose layer sends the end."""
    client = Client(streamed=False)
    client.deliver([UPGRADE])
    client.add(b"a")
    client.complete()
    assert [call.send_upgraded(b"a")] == client.upstream.mock_calls


def test_an_acknowledgement_is_withheld() -> None:
    """While upstream has not taken the upload; a body that is not streamed is acknowledged as it arrives."""
    behind = BACKLOG + 1
    clients = [Client(backlog=behind), Client(), Client(backlog=behind, streamed=False)]
    assert [True, False, False] == [client.withhold(5) for client in clients]
    assert [5, 0, 0] == [client.owed for client in clients]


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
    waiting = asyncio.ensure_future(client.writable())
    await asyncio.sleep(0)
    client.check_window()
    assert not waiting.done()
    client.buffered = 0
    client.check_window()
    client.check_window()
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
