"""A run of the load generator as values: its job, the requests of the job, and the results."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any, NamedTuple

from .upstream import STAMP

__all__ = ["KEY", "Events", "Job", "Seen", "client_keys", "content", "headers"]

KEY = "bench-key"
_FRAME = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")


class Job(NamedTuple):
    """One run of the load generator."""

    port: int
    kind: str  # chat, fresh, stream, hold, embeddings, upload, slow upload, realtime
    clients: int
    seconds: float = 2.0  # for which new requests are started; 0: one request per client
    requests: int = 0  # of all clients together, in place of a time
    chunks: int = 0
    gap: float = 0.0  # seconds between two chunks
    spread: float = 0.0  # seconds between the starts of two clients
    tls: bool = False
    streams: int = 0  # of each HTTP/2 connection; 0: HTTP/1.1
    host: str = "127.0.0.1"
    prefix: str = "/v1"
    headers: tuple[str, ...] = ()
    keys: int = 0  # keys of as many clients of the proxy, which the requests use in turn; 0: one key that is no client's


def client_keys(count: int) -> list[str]:
    return [f"{KEY}-{number}" for number in range(count)]


def headers(job: Job, key: str = KEY) -> list[tuple[str, str]]:
    """The headers of OpenAI's SDK, and those of the job."""
    return [
        ("Accept-Encoding", "gzip, deflate"),
        ("Accept", "application/json"),
        ("User-Agent", "OpenAI/Python 1.99.1"),
        ("X-Stainless-Lang", "python"),
        ("X-Stainless-Package-Version", "1.99.1"),
        ("X-Stainless-OS", "Linux"),
        ("X-Stainless-Arch", "x64"),
        ("X-Stainless-Runtime", "CPython"),
        ("X-Stainless-Runtime-Version", "3.13.0"),
        ("Authorization", f"Bearer {key}"),
        ("X-Stainless-Async", "false"),
        ("x-stainless-retry-count", "0"),
        ("x-stainless-read-timeout", "600"),
        *((name, value) for name, _, value in (header.partition(": ") for header in job.headers)),
    ]


def content(job: Job) -> tuple[str, str, bytes]:
    """The path of the request, its type and its body."""
    streams = job.kind in ("stream", "hold")
    said = f"bench {job.chunks} {job.gap}" if streams else "Hello!"  # in the conversation, since some proxies drop unknown parameters
    asked: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]}
    path, kind = "/chat/completions", "application/json"
    if streams:
        asked |= {"stream": True, "user": ""}
    body = json.dumps(asked).encode()
    if job.kind == "embeddings":
        path, body = "/embeddings", json.dumps({"model": "text-embedding-3-small", "input": "The food was delicious."}).encode()
    elif job.kind in ("upload", "slow upload"):
        path, kind = "/files", "multipart/form-data; boundary=bench"
        form = b'--bench\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        named = b'; filename="%b.jsonl"' % (b"big" if job.kind == "upload" else b"slow")
        body = form % (b"purpose", b"", b"batch") + form % (b"file", named, b"x" * (20 << 20)) + b"--bench--\r\n"
    return job.prefix + path, kind, body


class Seen:
    """The results of all clients of a run."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.chunks = 0
        self.frames = 0
        self.lost = 0
        self.took: list[float] = []  # seconds to a complete response, or to the first chunk
        self.delays: list[float] = []  # seconds that chunks were in transit
        self.news = asyncio.Event()


class Events:
    """Reads the events of one stream, and measures their delays."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.begun, self.chunks, self.tail = seen, time.monotonic(), 0, b""

    def read(self, data: bytes) -> bytes:
        """Count the complete events. Return `data` after the bytes of an incomplete event."""
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
        return text

    def ended(self, expected: int) -> None:
        self.seen.chunks += self.chunks
        self.seen.lost += expected - self.chunks
