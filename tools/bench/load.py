"""The load generator: asyncio protocols with just enough HTTP to find the end of a response.

It reads one job per line of JSON and writes one result per line. A job of kind `hold` opens its streams, writes a line, keeps the
streams open until it reads another line, and then writes its result.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import resource
import ssl
import sys
import time
from typing import TYPE_CHECKING, cast

from .http2 import Streams
from .jobs import KEY, Events, Job, Seen, client_keys, content, headers
from .realtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run"]


def _request(job: Job, key: str) -> bytes:
    path, kind, body = content(job)
    head = f"POST {path} HTTP/1.1\r\nHost: {job.host}:{job.port}\r\nConnection: keep-alive\r\nContent-Type: {kind}\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers(job, key))
    return f"{head}{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Client(asyncio.Protocol):
    """One connection, which sends requests sequentially until the time is up or there are no more."""

    transport: asyncio.Transport

    def __init__(self, job: Job, requests: Iterator[bytes], seen: Seen, until: float, done: asyncio.Event) -> None:
        self.job, self.requests, self.seen, self.until, self.done = job, requests, seen, until, done
        self.received = b""
        self.begun = 0.0
        self.events = Events(seen)
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask()

    def ask(self) -> None:
        request = next(self.requests, None)
        if request is None:
            self.end()
            return
        self.begun, self.received, self.waiting = time.monotonic(), b"", True
        self.events = Events(self.seen)
        self.transport.write(request)

    def end(self) -> None:
        self.transport.close()
        self.done.set()

    def data_received(self, data: bytes) -> None:
        if self.job.kind in ("stream", "hold"):
            self.streamed(data)
        else:
            self.received += data
            head, end, body = self.received.partition(b"\r\n\r\n")
            if end and _whole(head, body):
                self.seen.took.append(time.monotonic() - self.begun)
                self.answered(fine=head[9:12] == b"200")

    def streamed(self, data: bytes) -> None:
        text = self.events.read(data)
        if text.endswith(b"\r\n0\r\n\r\n"):
            self.events.ended(self.job.chunks)
            self.answered(fine=self.events.chunks > 0)
        elif not self.events.chunks and b"content-length" in text:
            self.answered(fine=False)

    def answered(self, *, fine: bool) -> None:
        self.waiting = False
        self.seen.requests += 1
        self.seen.failed += not fine
        if time.monotonic() >= self.until or not fine or self.job.kind == "fresh":
            self.end()
        else:
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.seen.failed += self.waiting
        self.seen.news.set()
        self.done.set()


def _whole(head: bytes, body: bytes) -> bool:
    """Whether a response is complete, by its length or its last chunk."""
    _, named, length = head.lower().partition(b"content-length:")
    return len(body) >= int(length.partition(b"\r\n")[0]) if named else body.endswith(b"0\r\n\r\n")


def _protocol(job: Job, requests: Iterator[bytes], seen: Seen, until: float, done: asyncio.Event) -> asyncio.Protocol:
    if job.streams:
        return Streams(job, seen, until, done)
    return Session(job, seen, until, done) if job.kind == "realtime" else Client(job, requests, seen, until, done)


async def _client(job: Job, requests: Iterator[bytes], seen: Seen, until: float, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    while True:
        done = asyncio.Event()
        try:
            transport, _ = await loop.create_connection(
                lambda: _protocol(job, requests, seen, until, done),  # noqa: B023 - called at once
                job.host,
                job.port,
                ssl=context,
            )
        except OSError:
            seen.failed += 1
            seen.news.set()
            return
        try:
            await done.wait()
        finally:
            transport.close()
        if job.kind != "fresh" or time.monotonic() >= until:
            return


async def run(job: Job) -> dict[str, float]:
    """Run a job against one target. All times in the result are in seconds."""
    context = None
    if job.tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if job.streams:
            context.set_alpn_protocols(["h2"])
    seen = Seen()
    requests: Iterator[bytes] = itertools.cycle([_request(job, key) for key in client_keys(job.keys) or [KEY]])  # of all connections
    begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    until = begun + job.seconds
    if job.requests:
        requests, until = itertools.islice(requests, job.requests), math.inf
    clients = []
    for _ in range(job.clients // (job.streams or 1)):
        clients.append(asyncio.create_task(_client(job, requests, seen, until, context)))
        if job.spread:
            await asyncio.sleep(job.spread)
    if job.kind == "hold":
        while len(seen.took) + seen.failed < job.clients:
            seen.news.clear()
            await seen.news.wait()
        print(len(seen.took), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        lost = seen.failed
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        return {"lost": lost}
    await asyncio.gather(*clients)
    took = time.monotonic() - begun
    now = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "requests": seen.requests,
        "failed": seen.failed,
        "chunks": seen.chunks,
        "frames": seen.frames,
        "lost": seen.lost,
        "seconds": took,
        "busy": (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) / took,
        **{f"first_{name}": value for name, value in _percentiles(seen.took).items()},
        **{f"delay_{name}": value for name, value in _percentiles(seen.delays).items()},
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    values.sort()
    return {"p50": values[len(values) // 2], "p99": values[len(values) * 99 // 100], "max": values[-1]} if values else {}


if __name__ == "__main__":
    while line := sys.stdin.readline():
        print(json.dumps(asyncio.run(run(Job(**json.loads(line))))), flush=True)
