"""The load generator: asyncio protocols with just enough HTTP to find the end of a response.

It reads one job per line of JSON and writes one result per line. A job of kind `hold` opens its streams, writes a line, keeps the
streams open until it reads another line, and then writes its result.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import ssl
import sys
import time
from typing import Any, NamedTuple, cast

from .upstream import STAMP

__all__ = ["KEY", "Job", "run"]

KEY = "bench-key"
_FRAME = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")


class Job(NamedTuple):
    """One run of the load generator."""

    port: int
    kind: str  # chat, fresh, stream, hold, embeddings, upload
    clients: int
    seconds: float = 2.0  # for which new requests are started; 0: one request per client
    chunks: int = 0
    gap: float = 0.0  # seconds between two chunks
    spread: float = 0.0  # seconds between the starts of two clients
    tls: bool = False
    host: str = "127.0.0.1"
    prefix: str = "/v1"
    headers: tuple[str, ...] = ()


def _request(job: Job) -> bytes:
    streams = job.kind in ("stream", "hold")
    said = f"bench {job.chunks} {job.gap}" if streams else "Hello!"  # in the conversation, since some proxies drop unknown parameters
    asked: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]}
    path, kind = "/chat/completions", "application/json"
    if streams:
        asked |= {"stream": True, "user": ""}
    body = json.dumps(asked).encode()
    if job.kind == "embeddings":
        path, body = "/embeddings", json.dumps({"model": "text-embedding-3-small", "input": "The food was delicious."}).encode()
    elif job.kind == "upload":
        path, kind = "/files", "multipart/form-data; boundary=bench"
        form = b'--bench\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        file = b"x" * (20 << 20)
        body = form % (b"purpose", b"", b"batch") + form % (b"file", b'; filename="big.jsonl"', file) + b"--bench--\r\n"
    head = (
        f"POST {job.prefix}{path} HTTP/1.1\r\nHost: {job.host}:{job.port}\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        f"Accept: application/json\r\nContent-Type: {kind}\r\nUser-Agent: OpenAI/Python 1.99.1\r\nX-Stainless-Lang: python\r\n"
        f"X-Stainless-Package-Version: 1.99.1\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
        f"X-Stainless-Runtime-Version: 3.13.0\r\nAuthorization: Bearer {KEY}\r\nX-Stainless-Async: false\r\nx-stainless-retry-count: 0\r\n"
        f"x-stainless-read-timeout: 600\r\n{''.join(f'{header}\r\n' for header in job.headers)}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Seen:
    """The results of all clients of a run."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.chunks = 0
        self.lost = 0
        self.took: list[float] = []  # seconds to a complete response, or to the first chunk
        self.delays: list[float] = []  # seconds that chunks were in transit
        self.news = asyncio.Event()


class Client(asyncio.Protocol):
    """One connection, which sends requests sequentially until the time is up."""

    transport: asyncio.Transport

    def __init__(self, job: Job, request: bytes, seen: Seen, until: float, done: asyncio.Event) -> None:
        self.job, self.request, self.seen, self.until, self.done = job, request, seen, until, done
        self.received = b""
        self.begun = 0.0
        self.chunks = 0
        self.tail = b""
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask()

    def ask(self) -> None:
        self.begun, self.received, self.chunks, self.tail, self.waiting = time.monotonic(), b"", 0, b"", True
        self.transport.write(self.request)

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
        now = time.monotonic()
        text = self.tail + data
        whole = text.rfind(b"\n\n") + 2
        for stamp in STAMP.findall(_FRAME.sub(b"", text[:whole])):  # an event may continue in the next HTTP chunk
            if not self.chunks:
                self.seen.took.append(now - self.begun)
                self.seen.news.set()
            self.chunks += 1
            self.seen.delays.append(now - float(stamp))
        self.tail = text[whole:] if whole > 1 else text
        if text.endswith(b"\r\n0\r\n\r\n"):
            self.seen.chunks += self.chunks
            self.seen.lost += self.job.chunks - self.chunks
            self.answered(fine=self.chunks > 0)
        elif not self.chunks and b"content-length" in text:
            self.answered(fine=False)

    def answered(self, *, fine: bool) -> None:
        self.waiting = False
        self.seen.requests += 1
        self.seen.failed += not fine
        if time.monotonic() >= self.until or not fine or self.job.kind == "fresh":
            self.transport.close()
            self.done.set()
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


async def _client(job: Job, request: bytes, seen: Seen, until: float, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    while True:
        done = asyncio.Event()
        try:
            transport, _ = await loop.create_connection(
                lambda: Client(job, request, seen, until, done),  # noqa: B023 - called at once
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
    seen, request = Seen(), _request(job)
    begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    until = begun + job.seconds
    clients = []
    for _ in range(job.clients):
        clients.append(asyncio.create_task(_client(job, request, seen, until, context)))
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
