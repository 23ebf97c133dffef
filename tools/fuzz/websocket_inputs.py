"""Upgrades to WebSocket and the frames after them."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from fuzz.http1_inputs import head_of, joined

if TYPE_CHECKING:
    import random

    from fuzz.hostile_input import Input

__all__ = ["upgrade"]


def _frame(opcode: int, payload: bytes, *, fin: int = 0x80, rsv: int = 0, masked: bool = True, mask: bytes = b"\x11\x22\x33\x44") -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size) if size < 65536 else b"\x7f" + struct.pack("!Q", size)
    head = bytes([fin | rsv | opcode]) + bytes([length[0] | (0x80 if masked else 0)]) + length[1:]
    if not masked:
        return head + payload
    whole = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")


def upgrade(made: Input, chosen: random.Random) -> None:
    hot = made.hot
    made.place, made.places = "frames", frozenset({"frames", "header sec-websocket-protocol"})
    path = chosen.choice(
        (
            b"/v1/realtime?model=gpt-4o&",
            b"/v1/responses?",
            b"/openai/v1/realtime?model=gpt-4o&",
            b"/openai/realtime?api-version=2025-04-01-preview&deployment=d&",
        )
    )
    head = head_of(made, b"GET", path.partition(b"?")[0])
    head[0] = b"GET " + path + b"mark=" + made.mark + b" HTTP/1.1"
    head.pop()
    head += [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    head.append(
        chosen.choice(
            (
                b"Sec-WebSocket-Protocol: realtime",
                b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + made.key,
                b"Sec-WebSocket-Protocol: realtime,, %b" % hot,
                b"Sec-WebSocket-Extensions: permessage-deflate",
                b"X-Mine: a",
            )
        )
    )
    made.data = joined(head)
    event = json.dumps({"type": "session.update", "session": {"model": hot.decode(), "instructions": "\r\n\0"}}).encode()
    created = json.dumps({"type": "response.create", "model": hot.decode(), "input": "x"}).encode()
    frames = [
        chosen.choice(
            (
                _frame(1, event),
                _frame(1, created),
                _frame(1, hot),
                _frame(1, b"\xff\xfe" + hot),
                _frame(1, b"\xed\xa0\x80" + hot),
                _frame(2, b"\0\r\n" + hot),
                _frame(1, event[:9], fin=0) + _frame(0, event[9:]),
                _frame(1, event[:9], fin=0) + _frame(9, hot) + _frame(0, event[9:]),
                _frame(0, hot),
                _frame(1, hot, rsv=0x40),
                _frame(1, hot, rsv=0x30),
                _frame(3, hot),
                _frame(11, hot),
                _frame(1, hot, masked=False),
                _frame(9, hot * 20),
                _frame(9, hot),
                _frame(10, hot),
                _frame(9, hot, fin=0),
                _frame(1, hot * 7000),
                _frame(1, b""),
                _frame(2, b""),
                _frame(8, b"\x03\xe8" + hot),
                _frame(8, b"\x00"),
                _frame(8, b"\x03\xed" + hot),
                _frame(8, b"\x03\xe8\xff" + hot),
                _frame(8, b"\x27\x10"),
                b"\x81\xff" + b"\x7f" + b"\xff" * 7 + b"abcd" + hot,
                b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % hot,
                _frame(1, b"[" * 5000 + hot),
                _frame(1, b'{"type":"response.create","model":"../../%b"}' % hot),
                _frame(1, b'{"model":1,"model":"%b"' % hot),
            )
        )
        for _ in range(chosen.randint(1, 4))
    ]
    frames.append(_frame(8, b"\x03\xe8"))
    made.frames = b"".join(frames)
