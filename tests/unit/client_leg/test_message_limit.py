"""The limit for WebSocket messages. tests/unit/mitmproxy_patches/test_websocket.py has it with real connections."""

from __future__ import annotations

import zlib

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason

from azure_openai_proxy.client_leg.message_limit import FRAME, PIECE, MessageLimit, for_client, for_server, limit_inflation

TOO_BIG = CloseConnection(CloseReason.MESSAGE_TOO_BIG, "of an extension")
BROKEN = CloseConnection(CloseReason.ABNORMAL_CLOSURE)


@pytest.mark.parametrize(
    "events, limit, passed",
    [
        ([TextMessage("a" * 10), TextMessage("a" * 10)], 10, 2),
        ([TextMessage("a" * 11)], 10, 0),
        ([TextMessage("ä" * 5), TextMessage("ä" * 6)], 10, 1),
        ([BytesMessage(b"a" * 11)], None, 1),
        ([BytesMessage(b"a" * 10, message_finished=False), Ping(b""), BytesMessage(b"a")], 10, 2),
        ([BytesMessage(b"", message_finished=False)] * 3, FRAME, 2),
        ([TOO_BIG], 10, 0),
        ([CloseConnection(CloseReason.NORMAL_CLOSURE)], 10, 1),
    ],
)
def test_messages(events: list[Event], limit: int | None, passed: int) -> None:
    """A message counts with all its frames, in bytes; nothing is read after one that is too large."""
    checked = MessageLimit(limit)
    found = list(checked.checked(events, lambda: True))
    exceeded = passed < len(events)
    assert (passed + exceeded, exceeded) == (len(found), checked.exceeded)
    assert events[:passed] == found[:passed]
    if exceeded:
        assert isinstance(last := found[-1], CloseConnection)
        assert last.code is CloseReason.MESSAGE_TOO_BIG


def test_a_close_of_the_peer() -> None:
    """It is the peer's own, if it has closed."""
    checked = MessageLimit(10)
    assert ([TOO_BIG], False) == (list(checked.checked([TOO_BIG], lambda: False)), checked.exceeded)


def test_codes() -> None:
    """Each side gets a code of its own for the other's error; the side that sent too much gets the reason."""
    limit, other = MessageLimit(1), MessageLimit(1)
    (too_big,) = limit.checked([TextMessage("ab")], lambda: True)
    assert too_big is for_client(too_big, limit)
    codes = [getattr(event, "code", None) for event in (for_client(too_big, other), for_server(too_big, other))]
    assert [CloseReason.INTERNAL_ERROR, CloseReason.GOING_AWAY] == codes
    broken = [for_client(BROKEN, other), for_server(BROKEN, other)]
    assert ["The connection upstream broke off.", "The client is gone."] == [getattr(event, "reason", None) for event in broken]
    ping = Ping(b"")
    assert [ping, ping] == [for_client(ping, other), for_server(ping, other)]


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE + 1])
@pytest.mark.parametrize("plain", [False, True])
def test_inflation(size: int, plain: bool) -> None:
    """Messages within the limit arrive, also around a ping; of a larger one not much more than the limit is decompressed."""
    deflate, sender_deflate = PerMessageDeflate(), PerMessageDeflate()
    for each in (deflate, sender_deflate):
        each.finalize("")
    limit_inflation([deflate], 3 * PIECE + 1)
    receiver, sender = Connection(ConnectionType.SERVER, [deflate]), Connection(ConnectionType.CLIENT, [] if plain else [sender_deflate])
    for _ in range(2):
        receiver.receive_data(sender.send(BytesMessage(b"a" * size, message_finished=False)))
        receiver.receive_data(sender.send(Ping(b"p")))
        receiver.receive_data(sender.send(BytesMessage(b"")))
        events = [(type(event), bytes(event.data)) for event in receiver.events() if isinstance(event, BytesMessage) and event.data]
        assert [(BytesMessage, b"a" * size)][: bool(size)] == events
    receiver.receive_data(sender.send(BytesMessage(zlib.compress(b"a") * PIECE)))
    *_, refused = receiver.events()
    assert isinstance(refused, CloseConnection)
    assert CloseReason.MESSAGE_TOO_BIG == refused.code
    assert vars(deflate)["inflated"] <= 1033 * PIECE


def test_a_compressed_ping() -> None:
    """The standard has none."""
    deflate = PerMessageDeflate()
    deflate.finalize("")
    limit_inflation([deflate], 1)
    receiver = Connection(ConnectionType.SERVER, [deflate])
    receiver.receive_data(b"\xc9\x80" + bytes(4))
    (refused,) = receiver.events()
    assert isinstance(refused, CloseConnection)
    assert CloseReason.PROTOCOL_ERROR == refused.code
