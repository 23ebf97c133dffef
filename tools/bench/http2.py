"""HTTP/2 clients of the load generator: several streams on each connection."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes

from .jobs import Events, content, headers

if TYPE_CHECKING:
    from .jobs import Job, Seen

__all__ = ["Streams"]

WINDOW = 1 << 24
"""Bytes that the proxy may send before the client acknowledges them, per stream and per connection."""


class Streams(asyncio.Protocol):
    """One connection with `job.streams` streams at a time, each of which is followed by another until the time is up."""

    transport: asyncio.Transport

    def __init__(self, job: Job, seen: Seen, until: float, done: asyncio.Event) -> None:
        self.job, self.seen, self.until, self.done = job, seen, until, done
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.open: dict[int, Events] = {}
        path, kind, self.body = content(job)
        self.head = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", f"{job.host}:{job.port}"),
            (":path", path),
            ("content-type", kind),
            ("content-length", str(len(self.body))),
            *((name.lower(), value) for name, value in headers(job)),
        ]
        self.failed: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.http2.initiate_connection()
        self.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: WINDOW, SettingCodes.ENABLE_PUSH: 0})
        self.http2.increment_flow_control_window(WINDOW)
        for _ in range(self.job.streams):
            self.ask()
        self.transport.write(self.http2.data_to_send())

    def ask(self) -> None:
        stream = self.http2.get_next_available_stream_id()
        self.open[stream] = Events(self.seen)
        self.http2.send_headers(stream, self.head)
        self.http2.send_data(stream, self.body, end_stream=True)

    def data_received(self, data: bytes) -> None:
        for event in self.http2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if self.job.kind == "stream":
                    self.open[event.stream_id].read(event.data)
            elif isinstance(event, h2.events.ResponseReceived):
                if dict(event.headers)[b":status"] != b"200":
                    self.failed.add(event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.answered(event.stream_id, fine=event.stream_id not in self.failed)
            elif isinstance(event, h2.events.StreamReset):
                self.answered(event.stream_id, fine=False)
        if out := self.http2.data_to_send():
            self.transport.write(out)

    def answered(self, stream: int, *, fine: bool) -> None:
        events = self.open.pop(stream)
        self.seen.requests += 1
        self.seen.failed += not fine
        if self.job.kind == "stream":
            events.ended(self.job.chunks)
        else:
            self.seen.took.append(time.monotonic() - events.begun)
        if fine and time.monotonic() < self.until:
            self.ask()
        elif not self.open:
            self.transport.close()
            self.done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.seen.failed += len(self.open)
        self.done.set()
