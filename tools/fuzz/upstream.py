"""The upstream: a strict HTTP/1.1 server that passes each request to a callback and responds."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from typing import TYPE_CHECKING, cast

from fuzz.hostile_input import NUMBER
from support.hostile_requests import PREFIX, Received, read_fields

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Upstream"]

_MOST_HEAD = 1 << 20


class Upstream:
    """`on_request` is called with each complete request, `on_frames` with the received bytes of each closed WebSocket."""

    def __init__(self, on_request: Callable[[Received], None], on_frames: Callable[[Received, bytes], None]) -> None:
        self.on_request = on_request
        self.on_frames = on_frames
        self.port = 0

    @property
    def host(self) -> bytes:
        return b"127.0.0.1:%d" % self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    async def start(self) -> asyncio.Server:
        server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._data = bytearray()
        self._socket: Received | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while self._data and self._socket is None:
            taken = self._take()
            if taken is None:
                return
            request, used = taken
            del self._data[:used]
            self._upstream.on_request(request)
            if request.broken:
                self._transport.close()
                return
            self._answer(request)
        if self._socket is not None and self._data[-8:-6] == b"\x88\x82":
            self._transport.write(b"\x88\x02\x03\xe8")
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if self._socket is not None:
            self._upstream.on_frames(self._socket, bytes(self._data))

    def _take(self) -> tuple[Received, int] | None:
        """A request and its size; None if it is incomplete."""
        end = self._data.find(b"\r\n\r\n") + 4
        if end < 4:
            broken = "a head that is no head" if len(self._data) > _MOST_HEAD else ""
            return (Received(bytes(self._data[:200]), broken=broken), len(self._data)) if broken else None
        stream = io.BytesIO(bytes(self._data[:end]))
        line = stream.readline()
        request = Received(line.removesuffix(b"\r\n"))
        request.broken = read_fields(stream, request) or ("" if line.endswith(b"\r\n") and b"\r" not in request.line else f"line {line!r}")
        lengths, codings = request.values(b"content-length"), request.values(b"transfer-encoding")
        if not request.broken and (
            len(lengths) + len(codings) > 1 or any(not length.isdigit() for length in lengths) or codings not in ([], [b"chunked"])
        ):
            request.broken = f"framing {lengths} {codings}"
        if request.broken:
            return request, len(self._data)
        if lengths:
            size = int(lengths[0])
            request.body = bytes(self._data[end : end + size])
            return (request, end + size) if len(request.body) == size else None
        return self._chunks(request, end) if codings else (request, end)

    def _chunks(self, request: Received, at: int) -> tuple[Received, int] | None:
        pieces = []
        while (stop := self._data.find(b"\r\n", at)) >= 0:
            line = bytes(self._data[at:stop])
            if not line or line.strip(b"0123456789abcdefABCDEF"):
                request.broken = f"chunk {line[:100]!r}"
                return request, len(self._data)
            size, at = int(line, 16), stop + 2
            if len(self._data) < at + size + 2:
                return None
            if self._data[at + size : at + size + 2] != b"\r\n":
                request.broken = "end of chunk"
                return request, len(self._data)
            pieces.append(bytes(self._data[at : at + size]))
            at += size + 2
            if not size:
                request.body = b"".join(pieces)
                return request, at
        return None

    def _answer(self, request: Received) -> None:
        echo = b", ".join(sorted(set(request.values(NUMBER))))
        if request.values(b"upgrade") == [b"websocket"] and request.line.startswith(b"GET "):
            given = (request.values(b"sec-websocket-key") or [b""])[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(given).digest())  # noqa: S324 - as RFC 6455 has it
            self._transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: %b\r\nX-Echo: %b\r\n\r\n"
                b'\x81\x1a{"type":"session.created"}' % (accept, echo)
            )
            self._socket = request
            return
        if b"true" in request.body[-40:]:
            body, kind = b'data: {"id":"%b","choices":[]}\n\ndata: [DONE]\n\n' % echo, b"text/event-stream"
        else:
            body, kind = b'{"id":"%b","object":"x"}' % echo, b"application/json"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nX-Echo: %b\r\nContent-Length: %d\r\n\r\n" % (kind, echo, len(body))
        self._transport.write(head + (b"" if request.line.startswith(b"HEAD ") else body))
