"""Clients for HTTP/1.1, HTTP/2 and WebSocket without a library, so that they can send invalid messages."""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import NamedTuple, cast

from hpack import Decoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

__all__ = ["Answer", "Http1", "Http2", "Silence"]

PATIENCE = 60.0
SHORT = 5.0
"""Seconds until a client that may have sent less than it announced closes its side."""
_OPENAI = "api.openai.com"


class Silence(Exception):
    """There was neither a response nor an end of the connection."""


class Answer(NamedTuple):
    """A response. Status 0 means that the connection or the stream ended without one. `kept`: the connection can be reused."""

    status: int = 0
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    kept: bool = False
    how: str = ""


def _context(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # certificates are not tested here
    context.set_alpn_protocols([protocol])
    return context


_CONTEXTS = {protocol: _context(protocol) for protocol in ("http/1.1", "h2")}


async def _open(port: int, way: str, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    if way == "connect":
        writer.write(f"CONNECT {_OPENAI}:443 HTTP/1.1\r\nHost: {_OPENAI}:443\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise Silence(f"no tunnel: {head!r}")
    if way != "plain":
        await writer.start_tls(_CONTEXTS[protocol], server_hostname=_OPENAI if way == "connect" else "localhost")
    return reader, writer


class Http1:
    """One connection at a time, opened on demand."""

    def __init__(self, port: int, way: str) -> None:
        self._port, self._way = port, way
        self._opened: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, data: bytes, *, head: bool = False, fresh: bool = False, frames: bytes = b"") -> Answer:
        """Send a request. `head`: its response has no body. `fresh`: use a new connection."""
        if fresh:
            self.close()
        for attempt in range(2):
            reused = self._opened is not None
            if self._opened is None:
                async with asyncio.timeout(PATIENCE):
                    self._opened = await _open(self._port, self._way, "http/1.1")
            reader, writer = self._opened
            answer = await self._asked(reader, writer, data, head=head, frames=frames, fresh=fresh)
            if not answer.kept or fresh:
                self.close()
            if answer.status or not reused or attempt:
                return answer
        raise AssertionError

    async def _asked(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, *, head: bool, frames: bytes, fresh: bool
    ) -> Answer:
        self._ended = False
        try:
            writer.write(data)
            answer = await self._read(reader, writer, head=head, patience=SHORT if fresh and not frames else PATIENCE)
            if answer.status == 101 and not self._ended:
                rest = await self._rest(reader, writer, frames)
                return answer._replace(body=rest)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError) as error:
            return Answer(how=type(error).__name__)
        else:
            return answer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, head: bool, patience: float) -> Answer:
        try:
            async with asyncio.timeout(patience):
                return await _response(reader, head=head)
        except TimeoutError:
            if patience == PATIENCE:
                raise Silence("no answer") from None
        # The proxy may wait for more of the request: close the sending side.
        self._ended = True
        if self._way == "plain":
            writer.write_eof()
        else:
            writer.close()
        try:
            async with asyncio.timeout(PATIENCE):
                return await _response(reader, head=head)
        except TimeoutError:
            raise Silence("no answer and no end after the client's end") from None

    async def _rest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: bytes) -> bytes:
        writer.write(frames or b"\x88\x80abcd")
        try:
            async with asyncio.timeout(PATIENCE):
                rest = await reader.read(1 << 20)
                while more := await reader.read(1 << 20):
                    rest += more
        except TimeoutError:
            raise Silence("no end of a WebSocket") from None
        except ConnectionError:
            return b""
        return rest

    def close(self) -> None:
        if self._opened is not None:
            self._opened[1].transport.abort()
            self._opened = None


async def _response(reader: asyncio.StreamReader, *, head: bool) -> Answer:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw[:-4].split(b"\r\n")
    found = re.fullmatch(rb"HTTP/1\.[01] ([0-9]{3})(?: .*)?", first)
    if not found or any(b":" not in line or b"\n" in line or b"\r" in line for line in lines):
        return Answer(999, body=raw)
    status = int(found[1])
    if status == 100:
        return await _response(reader, head=head)
    fields = tuple((name, value.strip()) for name, _, value in (line.partition(b":") for line in lines))
    known = {name.lower(): value.lower() for name, value in fields}
    body, kept = b"", known.get(b"connection") != b"close" and first.startswith(b"HTTP/1.1")
    if head or status in (101, 204, 304):
        pass
    elif known.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif b"content-length" in known:
        body = await reader.readexactly(int(known[b"content-length"]))
    else:
        body, kept = await reader.read(-1), False
    return Answer(status, fields, body, kept=kept and status != 101)


class Http2:
    """A connection on which several requests run at once."""

    def __init__(self, port: int, way: str) -> None:
        self._port, self._way = port, way
        self._opened: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, requests: list[bytes]) -> list[Answer]:
        """Send requests concurrently. Each consists of frames for stream 1, which are renumbered."""
        for attempt in range(2):
            reused = self._opened is not None
            if self._opened is None:
                async with asyncio.timeout(PATIENCE):
                    self._opened = await _open(self._port, self._way, "h2")
                self._opened[1].write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0, settings={3: 100}).serialize())
                self._next, self._decoder, self._block, self._last = 1, Decoder(), b"", False
            answers, alive = await self._asked(requests)
            if not alive:
                self.close()
            if not reused or attempt or any(answer.status or answer.how == "reset" for answer in answers):
                return answers
        return answers

    async def _asked(self, requests: list[bytes]) -> tuple[list[Answer], bool]:
        assert self._opened
        reader, writer = self._opened
        streams: dict[int, Answer] = {}
        reset = set()
        for request in requests:
            streams[self._next] = Answer()
            if _restreamed(request, self._next, writer):
                reset.add(self._next)
            self._next += 2
        waiting = set(streams) - reset
        alive = True
        try:
            async with asyncio.timeout(PATIENCE):
                while waiting and alive:
                    alive = await self._frame(reader, writer, streams, waiting)
        except TimeoutError:
            raise Silence("no answer on HTTP/2") from None
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            alive = False
        return list(streams.values()), alive and self._next < 400

    async def _frame(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, streams: dict[int, Answer], waiting: set[int]
    ) -> bool:
        """Read one frame. Return False if the connection has ended."""
        frame, length = Frame.parse_frame_header(memoryview(await reader.readexactly(9)))
        frame.parse_body(memoryview(await reader.readexactly(length)))
        stream = frame.stream_id
        match frame:
            case SettingsFrame() if "ACK" not in frame.flags:
                writer.write(SettingsFrame(0, flags=["ACK"]).serialize())
            case PingFrame() if "ACK" not in frame.flags:
                writer.write(PingFrame(0, frame.opaque_data, flags=["ACK"]).serialize())
            case GoAwayFrame():
                for other in waiting:
                    streams[other] = streams[other]._replace(how="connection ended")
                return False
            case HeadersFrame() | ContinuationFrame():
                self._block += frame.data
                if "END_STREAM" in frame.flags:
                    self._last = True
                if "END_HEADERS" not in frame.flags:
                    return True
                block, self._block, last, self._last = self._block, b"", self._last, False
                fields = tuple(cast("list[tuple[bytes, bytes]]", self._decoder.decode(block, raw=True)))
                if stream in streams and not streams[stream].status:
                    streams[stream] = Answer(int(dict(fields).get(b":status", b"999")), fields)
                if last:
                    waiting.discard(stream)
                return True
            case DataFrame():
                if frame.flow_controlled_length:
                    writer.write(WindowUpdateFrame(0, window_increment=frame.flow_controlled_length).serialize())
                if stream in streams:
                    streams[stream] = streams[stream]._replace(body=streams[stream].body + frame.data)
            case RstStreamFrame():
                if stream in streams:
                    streams[stream] = streams[stream]._replace(how="reset")
                waiting.discard(stream)
        if "END_STREAM" in frame.flags:
            waiting.discard(stream)
        return True

    def close(self) -> None:
        if self._opened is not None:
            self._opened[1].transport.abort()
            self._opened = None


def _restreamed(frames: bytes, stream: int, writer: asyncio.StreamWriter) -> bool:
    """Send `frames` on a stream. Return whether the client itself resets it."""
    at, reset, out = 0, False, []
    while at < len(frames):
        size = int.from_bytes(frames[at : at + 3], "big") + 9
        out.append(frames[at : at + 5] + stream.to_bytes(4, "big") + frames[at + 9 : at + size])
        reset |= frames[at + 3] == 3
        at += size
    writer.write(b"".join(out))
    return reset
