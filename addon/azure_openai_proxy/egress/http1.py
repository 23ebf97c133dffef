"""Readers of HTTP/1.1 responses, without I/O.

`Http11Reader` reads common responses: a complete head with one framing header, and a body with Content-Length or in plain chunks. For
anything else (1xx, folded lines, unusual framing, chunk extensions, trailers, a body that ends with the connection) it switches to
`H11Reader`, which uses h11's public API and decides on framing.

Both have the same interface: `begin(method)` before each request, `feed(data)` and `eof()`, which return a list of items in order: an
`http.Response` (the head; informational responses are dropped), `bytes` (body), `http.Headers` (trailers), `END`. Data before an error
is returned first; after that, `BadResponse` is raised. After `END`, `reusable` is true if the connection can carry another request.

The head does not depend on the connection to the upstream: it has no hop-by-hop headers, except in a 101 response, and a body that ends
with the connection is declared as chunked. Otherwise mitmproxy would close the client's connection as well. Control characters in the
reason and in headers, which a client might print to a terminal, become spaces (RFC 9110, section 5.5).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

import h11
from mitmproxy import http

from azure_openai_proxy.client_leg.headers import Headers
from azure_openai_proxy.client_leg.http1 import FIELD, LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["END", "MAX_HEAD", "BadResponse", "H11Reader", "Http11Reader", "Item"]

MAX_HEAD = 256 * 1024
"""Maximum bytes of the status line and headers."""
CLOSED = "the connection was closed"
AFTER_THE_END = "bytes came after the end of the response"
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection"})
_PRINTABLE = bytes(0x20 if (byte < 0x20 and byte != 0x09) or byte == 0x7F else byte for byte in range(256))
_NEVER_HOP_BY_HOP = frozenset({b"content-length", b"content-type", b"transfer-encoding"})
"""Headers that must stay even if the Connection header lists them: without them the body would be read differently."""


class _End:
    def __repr__(self) -> str:
        return "END"


END: Final = _End()
"""The response is complete."""

type Item = http.Response | bytes | http.Headers | _End


class BadResponse(ValueError):
    """The bytes from upstream are not a valid HTTP response, or the response is incomplete."""


_TEMPLATE = http.Response(b"HTTP/1.1", 200, b"", http.Headers(), None, None, 0.0, None)


def _response(status: int, reason: bytes, fields: tuple[tuple[bytes, bytes], ...], *, checked: bool = False) -> http.Response:
    """Build a response from a template, without constructors, whose type checks take 9 µs.

    Those of `http.Response` also create a reference cycle that keeps the calling frames and their buffers alive.
    """
    made, data, headers = object.__new__(http.Response), object.__new__(http.ResponseData), object.__new__(Headers)
    headers.fields = fields
    if checked:
        headers.checked = fields
    vars(data).update(vars(_TEMPLATE.data), status_code=status, reason=reason, headers=headers, timestamp_start=time.time())
    vars(made).update(vars(_TEMPLATE), data=data)
    return made


def _end_to_end(fields: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """The fields without those that concern only the connection to the upstream."""
    options = b",".join([value.lower() for name, value in fields if name.lower() == b"connection"]).split(b",")
    dropped = _HOP_BY_HOP.union([option.strip() for option in options]) - _NEVER_HOP_BY_HOP
    return tuple([field for field in fields if field[0].lower() not in dropped])


def _fields(event: h11.Response | h11.InformationalResponse | h11.EndOfMessage) -> tuple[tuple[bytes, bytes], ...]:
    return tuple([(name, _printable(value)) for name, value in event.headers.raw_items()])


def _printable(text: bytes | bytearray) -> bytes:
    return bytes(text).translate(_PRINTABLE)


class H11Reader:
    """h11 in the client role. It gets only those parts of the request on which the framing of the response depends."""

    def __init__(self) -> None:
        self.reusable = False
        self.failed: BadResponse | None = None
        """The error that occurred after the items returned last."""
        self._connection: h11.Connection | None = None
        self._method = b""
        self._upgraded = False

    def begin(self, method: bytes, *, upgrade: bool = False) -> None:
        self._method = method
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self.reusable = self._upgraded = False
        self.failed = None
        headers = [(b"host", b"upstream")]
        if upgrade:
            headers += [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
        self._connection.send(h11.Request(method=method, target=b"/", headers=headers))
        self._connection.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> list[Item]:
        assert self._connection
        if self.failed:
            raise self.failed
        if self._upgraded:
            return [data] if data else [END]
        out: list[Item] = []
        body = bytearray()
        nothing = self._connection.their_state is h11.SEND_RESPONSE and not self._connection.trailing_data[0]
        try:
            self._connection.receive_data(data)
            while (event := self._connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.Response):
                    out.append(_response(event.status_code, _printable(event.reason), self._framed(event)))
                elif isinstance(event, h11.EndOfMessage):
                    if body:
                        out.append(bytes(body))
                        body.clear()
                    if event.headers:
                        out.append(http.Headers(_fields(event)))
                    out.append(END)
                    states = self._connection.states
                    done = states[h11.CLIENT] is h11.DONE and states[h11.SERVER] is h11.DONE
                    self.reusable = done and self._connection.trailing_data == (b"", False)
                    break
                elif isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        return self._upgrade(event)
                else:
                    self.failed = BadResponse(AFTER_THE_END)
                    break
        except h11.RemoteProtocolError as error:
            self.failed = BadResponse(str(error) if data else CLOSED if nothing else f"{CLOSED} in the middle of the response")
        if body:
            out.append(bytes(body))
        if self.failed and not out:
            raise self.failed
        return out

    def _framed(self, event: h11.Response) -> tuple[tuple[bytes, bytes], ...]:
        """The fields for the client."""
        fields = _end_to_end(_fields(event))
        no_body = event.status_code in (204, 304) or self._method in (b"HEAD", b"CONNECT")
        if no_body or any(name in (b"content-length", b"transfer-encoding") for name, _ in event.headers):
            return fields
        return (*fields, (b"transfer-encoding", b"chunked"))

    def eof(self) -> list[Item]:
        """Process the end of the connection."""
        return self.feed(b"")

    def _upgrade(self, event: h11.InformationalResponse) -> list[Item]:
        assert self._connection
        self._upgraded = True
        ahead = self._connection.trailing_data[0]
        head = _response(101, _printable(event.reason), _fields(event))
        return [head, ahead] if ahead else [head]


_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
# Possessive quantifiers prevent backtracking: matching is linear in the length of the head.
_FIELDS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+")
_CHUNK_HEAD = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_LONGEST_CHUNK_HEAD = 10
_FRAMING = frozenset(map(len, (*_HOP_BY_HOP, b"content-length", b"transfer-encoding")))
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nconnection: %b\r\ntransfer-encoding: chunked\r\n\r\n"


class Http11Reader:
    """Reads common responses in a few microseconds and delegates all others to `H11Reader`."""

    def __init__(self) -> None:
        self.reusable = False
        self.failed: BadResponse | None = None
        """The error that occurred after the items returned last."""
        self._h11: H11Reader | None = None
        self._method = b""
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer already searched for the end of the head
        self._left = 0  # remaining bytes of a body with Content-Length, or of a chunk including its CRLF
        self._will_reuse = False
        self._read: Callable[[bytes], list[Item]] = self._head

    def begin(self, method: bytes, *, upgrade: bool = False) -> None:
        self._method, self._h11, self._read = method, None, self._head
        self._buffer.clear()
        self._searched = self._left = 0
        self.reusable = False
        self.failed = None
        if upgrade:
            self._h11 = H11Reader()
            self._h11.begin(method, upgrade=True)

    def feed(self, data: bytes) -> list[Item]:
        if self.failed:
            raise self.failed
        if self._h11:
            return self._by_h11(self._h11.feed, data)
        if self._buffer and self._read != self._head:
            data = bytes(self._buffer) + data
            self._buffer.clear()
        return self._read(data)

    def eof(self) -> list[Item]:
        """Process the end of the connection."""
        if self.failed:
            raise self.failed
        if self._h11:
            return self._by_h11(self._h11.feed, b"")
        whole = self._read == self._head and not self._buffer
        raise BadResponse(CLOSED if whole else f"{CLOSED} in the middle of the response")

    def _by_h11(self, feed: Callable[[bytes], list[Item]], data: bytes, before: list[Item] | None = None) -> list[Item]:
        """`before` plus h11's items for `data`. An error is raised only if there are no items, and stored in `failed` otherwise."""
        assert self._h11
        items = before or []
        try:
            items += feed(data)
        except BadResponse as error:
            if not items:
                raise
            self.failed = error
        else:
            self.failed = self._h11.failed
        self.reusable = self._h11.reusable
        return items

    def _switch_to_h11(self, data: bytes, before: list[Item] | None = None, ahead: bytes = b"") -> list[Item]:
        """Switch to h11, which first reads `ahead` to reach the current state, and then `data`."""
        self._h11 = H11Reader()
        self._h11.begin(self._method)
        if ahead:
            self._h11.feed(ahead)
        self._buffer.clear()
        return self._by_h11(self._h11.feed, data, before)

    def _head(self, data: bytes) -> list[Item]:
        if self._buffer:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
            if end >= 0:
                data = bytes(self._buffer)
                self._buffer.clear()
        else:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer += data
        if end < 0:
            return self._incomplete_head()
        return self._complete_head(data, end)

    def _incomplete_head(self) -> list[Item]:
        buffer, start = self._buffer, max(0, self._searched - 2)
        # h11 handles line ends without CR.
        if buffer[0] <= 0x20 or len(buffer) > MAX_HEAD or buffer.find(b"\n\n", start) >= 0 or buffer.find(b"\n\r\n", start) >= 0:
            return self._switch_to_h11(bytes(buffer))
        self._searched = len(buffer)
        return []

    def _complete_head(self, data: bytes, end: int) -> list[Item]:
        status_line = _STATUS_LINE.match(data)
        if not status_line or end > MAX_HEAD:
            return self._switch_to_h11(data)
        lines = data[status_line.end() : end + 2]
        if not _FIELDS.fullmatch(lines):
            return self._switch_to_h11(data)
        fields = tuple(FIELD.findall(lines))
        if b" \r" in lines or b"\t\r" in lines:
            fields = tuple((name, value.rstrip(b" \t")) for name, value in fields)
        length: int | None = None
        chunked, reuse, hop_by_hop = False, True, False
        for name, value in fields:
            if len(name) in _FRAMING:
                folded = name.lower()
                if folded == b"content-length":
                    if length is not None or not LENGTH.fullmatch(value):
                        return self._switch_to_h11(data)
                    length = int(value)
                elif folded == b"transfer-encoding":
                    if chunked or value.lower() != b"chunked":
                        return self._switch_to_h11(data)
                    chunked = True
                elif folded == b"connection":
                    reuse = reuse and b"close" not in [option.strip() for option in value.lower().split(b",")]
                hop_by_hop = hop_by_hop or folded in _HOP_BY_HOP
        status = int(status_line[1])
        if chunked is (length is not None) or status in (204, 304) or self._method in (b"HEAD", b"CONNECT"):
            return self._switch_to_h11(data)
        self._will_reuse = reuse
        fields = _end_to_end(fields) if hop_by_hop else fields
        out: list[Item] = [_response(status, status_line[2] or b"", fields, checked=True)]
        rest = data[end + 4 :]
        if chunked:
            self._read = self._chunks
        else:
            self._left, self._read = length or 0, self._sized
        if not rest and (chunked or length):
            return out
        try:
            return out + self._read(rest)
        except BadResponse as error:
            self.failed = error
            return out

    def _sized(self, data: bytes) -> list[Item]:
        left = self._left = self._left - len(data)
        if left > 0:
            return [data]
        self.reusable = self._will_reuse and not left
        self._read = self._nothing
        if left:
            data = data[:left]
        return [data, END] if data else [END]

    def _nothing(self, _: bytes) -> list[Item]:
        raise BadResponse(AFTER_THE_END)

    def _chunks(self, data: bytes) -> list[Item]:
        at, size = 0, len(data)
        if not self._left and (chunk := _CHUNK_HEAD.match(data)):
            start, length = chunk.end(), int(chunk[1], 16)
            if length and size == start + length + 2 and data.endswith(b"\r\n"):
                return [data[start:-2]]  # one whole chunk, as of a stream of text
        pieces: list[bytes] = []
        while at < size:
            left = self._left
            if left > 2:
                taken = min(left - 2, size - at)
                pieces.append(data[at : at + taken])
                at, self._left = at + taken, left - taken
            elif left:
                taken = min(left, size - at)
                if data[at : at + taken] != b"\r\n"[2 - left : 2 - left + taken]:
                    return self._odd_chunk(pieces, data, at)
                at, self._left = at + taken, left - taken
            elif chunk := _CHUNK_HEAD.match(data, at):
                if length := int(chunk[1], 16):
                    self._left, at = length + 2, chunk.end()
                    continue
                if data.startswith(b"\r\n", chunk.end()):
                    self.reusable = self._will_reuse and chunk.end() + 2 == size
                    self._read = self._nothing
                    return [*_joined(pieces), END]
                if data[chunk.end() :] in (b"", b"\r"):
                    break
                return self._odd_chunk(pieces, data, at)
            elif size - at < _LONGEST_CHUNK_HEAD and b"\n" not in data[at:]:
                break
            else:
                return self._odd_chunk(pieces, data, at)
        if at < size:
            self._buffer += data[at:]
        return _joined(pieces)

    def _odd_chunk(self, pieces: list[bytes], data: bytes, at: int) -> list[Item]:
        """Let h11 read an unusual chunk (extensions, trailers, syntax errors) after the complete chunks."""
        head = _CHUNKED_HEAD % (b"keep-alive" if self._will_reuse else b"close")
        # Within the CRLF after a chunk, h11 must have read a chunk first.
        ahead = b"1\r\nx" + b"\r\n"[: 2 - self._left] if self._left else b""
        return self._switch_to_h11(data[at:], _joined(pieces), head + ahead)


def _joined(pieces: list[bytes]) -> list[Any]:
    if not pieces:
        return []
    return [pieces[0] if len(pieces) == 1 else b"".join(pieces)]
