"""The upstream of the benchmark: an asyncio protocol with prepared responses. It does not validate requests, unlike the simulator.

A chat message can request a stream: `"bench 200 0.02"` yields 200 chunks, 20 ms apart. Each chunk contains the time at which it was
written (CLOCK_MONOTONIC, which is the same for all processes), so that the reader can compute its delay. The content of `file-1000`
has 1000 bytes.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
import time
from contextlib import suppress
from typing import cast

from .websocket import ACCEPT, echoes

__all__ = ["STAMP", "Upstream", "main"]

_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
_CONTENT = re.compile(rb"GET [^ ]*/file-([0-9]+)/content")
_STREAM = re.compile(rb'"bench ([0-9]+) ([0-9.]+)"')
STAMP = re.compile(rb'"content": ?"t([0-9.]+)"')

SLOW = 20 << 20
"""Bytes per second that a slow upstream reads of a request body."""
FAR = 0.06
"""Seconds of a TLS handshake with a distant upstream."""

_FILTER = b",".join(b'"%b":{"filtered":false,"severity":"safe"}' % kind for kind in (b"hate", b"self_harm", b"sexual", b"violence"))
_AZURES = (
    b"apim-request-id: 0a3f1b8e-6a0c-4b5e-9d6d-6a2f4b1c9e11\r\nstrict-transport-security: max-age=31536000; includeSubDomains; preload\r\n"
    b"x-content-type-options: nosniff\r\nx-ms-region: Sweden Central\r\nx-ratelimit-limit-requests: 250\r\n"
    b"x-ratelimit-limit-tokens: 250000\r\nx-ratelimit-remaining-requests: 249\r\nx-ratelimit-remaining-tokens: 249984\r\n"
    b"x-ratelimit-reset-requests: 1\r\nx-request-id: 7c9b1c52-98c5-4ef4-9a76-0ac0b5f9c3a2\r\nx-ms-rai-invoked: true\r\n"
    b"date: Fri, 01 Aug 2025 12:00:00 GMT\r\n"
)
_CHAT = (
    b'{"choices":[{"content_filter_results":{%b},"finish_reason":"stop","index":0,"logprobs":null,"message":{"annotations":[],'
    b'"content":"Hello! How can I help you today?","refusal":null,"role":"assistant"}}],"created":1754049600,"id":"chatcmpl-Bv2Kx",'
    b'"model":"gpt-4o-2024-11-20","object":"chat.completion","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{%b}}],'
    b'"system_fingerprint":"fp_ee1d74bde0","usage":{"completion_tokens":10,"prompt_tokens":9,"total_tokens":19}}\n'
) % (_FILTER, _FILTER)
_VECTOR = b",".join(b"%.9f" % (i / 1e5 - 0.007) for i in range(2400))  # about 30 KB
_EMBEDDING = (
    b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[%b]}],"model":"text-embedding-3-small",'
    b'"usage":{"prompt_tokens":5,"total_tokens":5}}' % _VECTOR
)
_FILE = b'{"object":"file","id":"file-1","purpose":"batch","filename":"big.jsonl","bytes":20971520,"status":"processed"}'

_PIECE = (
    b'data: {"choices":[%b],"created":1754049600,"id":"chatcmpl-Bv2Kx","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk",'
    b'"system_fingerprint":"fp_ee1d74bde0"}\n\n'
)
_FIRST = (
    b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,'
    b'"content_filter_results":{%b}}]}\n\n' % _FILTER
)
_CHUNK = _PIECE % (b'{"content_filter_results":{%b},"delta":{"content":"t\0"},"finish_reason":null,"index":0,"logprobs":null}' % _FILTER)
_LAST = _PIECE % b'{"content_filter_results":{},"delta":{},"finish_reason":"stop","index":0,"logprobs":null}' + b"data: [DONE]\n\n"
_BEFORE, _AFTER = _CHUNK.split(b"\0")


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (_AZURES, len(body), body)


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n%btransfer-encoding: chunked\r\n\r\n" % _AZURES
_FILE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n%bcontent-length: %%d\r\n\r\n" % _AZURES
_ANSWERS = {b"/embeddings": _whole(_EMBEDDING), b"/files": _whole(_FILE), b"/completions": _whole(_CHAT)}


_SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n" % ACCEPT.encode()
)
_SLOW = b'filename="slow.jsonl"'
_BLOCK = bytes(1 << 18)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """One connection with sequential requests."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = b""
        self.answer = b""
        self.missing = 0  # bytes of a long request body that are not received yet
        self.gone = False
        self.slow = False  # the request body is read slowly
        self.upgraded: bytearray | None = None  # received bytes of a WebSocket
        self.left = 0  # bytes of a file that are not written yet
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.gone = True

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.content()

    def data_received(self, data: bytes) -> None:
        if self.upgraded is not None:
            self.upgraded += data
            self.transport.write(echoes(self.upgraded))
            return
        if self.missing:
            self.missing -= len(data)
            self.slow = self.slow or _SLOW in data[:1024]  # some proxies send the head alone
            if self.slow:
                self.transport.pause_reading()
                asyncio.get_running_loop().call_later(len(data) / SLOW, self.transport.resume_reading)
            if not self.missing:
                self.transport.write(self.answer)
            return
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(found[1]) if (found := _LENGTH.search(head)) else 0
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        self.answer = next((answer for name, answer in _ANSWERS.items() if path.endswith(name)), _ANSWERS[b"/completions"])
        if head.startswith(b"GET ") and b"\r\nupgrade: websocket" in head.lower():
            self.received, self.upgraded = b"", bytearray()
            self.transport.write(_SWITCH)
            return
        if len(body) < length:
            if length > 1 << 20:
                self.received = b""
                self.slow = _SLOW in body
                self.missing = length - len(body)
            return
        self.received = b""
        if stream := _STREAM.search(body):
            self.transport.write(_STREAM_HEAD + _framed(_FIRST))
            self.chunk(int(stream[1]), float(stream[2]))
        elif file := _CONTENT.match(head):
            self.left = int(file[1])
            self.transport.write(_FILE_HEAD % self.left)
            self.content()
        else:
            self.transport.write(self.answer)

    def content(self) -> None:
        while self.left and not self.full and not self.gone:
            block = _BLOCK[: self.left]
            self.left -= len(block)
            self.transport.write(block)

    def chunk(self, left: int, gap: float, due: float = 0.0) -> None:
        if self.gone:
            return
        loop = asyncio.get_running_loop()
        if not left:
            self.transport.write(_framed(_LAST) + b"0\r\n\r\n")
            return
        self.transport.write(_framed(b"%b%.6f%b" % (_BEFORE, time.monotonic(), _AFTER)))
        if gap:
            due = (due or loop.time()) + gap
            loop.call_at(due, self.chunk, left - 1, gap, due)
        else:
            loop.call_soon(self.chunk, left - 1, gap)


class Far(Upstream):
    """A connection with TLS to a distant upstream: its handshake takes `FAR` seconds. The requests after it do not."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.context = context
        self.early: list[bytes] | None = []  # received before asyncio returns from the handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast("asyncio.Transport", transport)
        made.pause_reading()
        asyncio.get_running_loop().call_later(FAR, self.begin, made)

    def begin(self, transport: asyncio.Transport) -> None:
        _handshakes.add(task := asyncio.ensure_future(self.shake_hands(transport)))
        task.add_done_callback(_handshakes.discard)

    async def shake_hands(self, transport: asyncio.Transport) -> None:
        with suppress(OSError):  # the proxy has closed the connection
            if made := await asyncio.get_running_loop().start_tls(transport, self, self.context, server_side=True):
                self.transport = made
                early, self.early = self.early or [], None
                for data in early:
                    self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self.early is not None:
            self.early.append(data)
        else:
            super().data_received(data)


_handshakes: set[asyncio.Future[None]] = set()


async def main(certificate: str | None) -> None:
    """Serve on a free port, and with TLS on two others if there is a certificate. Print the ports."""
    loop = asyncio.get_running_loop()
    plain = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    ports = [plain.sockets[0].getsockname()[1]]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        secure = await loop.create_server(Upstream, "127.0.0.1", 0, ssl=context, backlog=4096)
        far = await loop.create_server(lambda: Far(context), "127.0.0.1", 0, backlog=4096)
        ports += [server.sockets[0].getsockname()[1] for server in (secure, far)]
    print(*ports, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if sys.argv[1:] else None))
