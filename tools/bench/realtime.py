"""Realtime sessions: WebSockets with frames of the size of 20 ms of audio in each direction, at a constant rate.

The upstream sends each frame back. Clients do not wait for it, so that a slow proxy is seen as delay.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, cast

from .jobs import headers
from .websocket import KEY, framed, frames

if TYPE_CHECKING:
    from .jobs import Job, Seen

__all__ = ["Session"]

_AUDIO = b"A" * 1280  # 20 ms of 16 bit at 24 kHz, in Base64
_FRAME = b'{"type":"input_audio_buffer.append","stamp":%.6f,"audio":"%b"}'
_STAMP = re.compile(rb'"stamp":([0-9.]+)')
_MASK = b"\x11\x22\x33\x44"
_WAIT = 10.0  # seconds for the last frames


class Session(asyncio.Protocol):
    """One session: `job.chunks` frames, `job.gap` seconds apart."""

    transport: asyncio.Transport

    def __init__(self, job: Job, seen: Seen, until: float, done: asyncio.Event) -> None:
        del until
        self.job, self.seen, self.done = job, seen, done
        self.buffer = bytearray()
        self.accepted = False
        self.sent = self.got = 0
        self.begun = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.begun = time.monotonic()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers(self.job))
        self.transport.write(
            f"GET {self.job.prefix}/realtime?model=gpt-4o HTTP/1.1\r\nHost: {self.job.host}:{self.job.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{lines}\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.accepted:
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.transport.close()
                return
            self.accepted, self.buffer = True, rest
            self.seen.took.append(time.monotonic() - self.begun)
            self.send(asyncio.get_running_loop().time())
        now = time.monotonic()
        for payload in frames(self.buffer):
            if stamp := _STAMP.search(payload):
                self.got += 1
                self.seen.delays.append(now - float(stamp[1]))
        if self.got == self.job.chunks:
            self.transport.close()

    def send(self, due: float) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(framed(_FRAME % (time.monotonic(), _AUDIO), _MASK))
        self.sent += 1
        loop = asyncio.get_running_loop()
        if self.sent < self.job.chunks:
            loop.call_at(due + self.job.gap, self.send, due + self.job.gap)
        else:
            loop.call_later(_WAIT, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.seen.requests += 1
        self.seen.failed += not self.accepted
        self.seen.frames += 2 * self.got
        self.seen.lost += self.job.chunks - self.got
        self.done.set()
