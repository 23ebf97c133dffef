"""Reads the requests of an HTTP/1 client connection, without I/O.

Ordinary heads are read by two expressions (`http1.ordinary`), all others by mitmproxy's public functions, and chunks by h11's public API.
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, NamedTuple

import h11
from mitmproxy.net.http import http1 as mitmproxy_http1

from azure_openai_proxy.errors import Failure

from . import http1

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

__all__ = ["Broken", "End", "Head", "Item", "Requests"]

_CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
_CUT = "HTTP/1 protocol error: peer closed connection without sending complete message body"


class Head(NamedTuple):
    request: http.Request
    has_body: bool
    body: bytes | None = None
    """The whole body of a request with valid names and framing, if it was received with the head. Then no other part follows."""


class Broken(NamedTuple):
    """The rest of the current request cannot be read."""

    message: str
    in_head: bool = False


class End(enum.Enum):
    """The end of a request."""

    END = "end"


type Item = Head | bytes | End | Broken | Failure
"""A part of a request. A `Failure` is a head that cannot be read. After it, and after `Broken`, all bytes are discarded."""


class Requests:
    """The requests of a connection, each of which is read when the previous one is answered (`proceed`)."""

    def __init__(self) -> None:
        self._received: bytes | bytearray = b""
        self._size = self._left = 0  # of a body that is not chunked; one without an end has the largest size
        self._chunks: h11.Connection | None = None
        self._broken = ""  # the error in the framing of a head that was returned
        self._read: Callable[[], Item | None] = self._head

    # The use of received bytes

    @property
    def complete(self) -> bool:
        """Whether the current request was read, and is not answered yet. The bytes of the next one are kept."""
        return self._read == self._none

    @property
    def kept(self) -> int:
        """Bytes that were received and not read yet."""
        return len(self._received)

    @property
    def between(self) -> bool:
        """Whether the next bytes begin a request."""
        return self._read == self._head

    @property
    def stopped(self) -> bool:
        """Whether all bytes are discarded."""
        return self._read == self._discard

    def proceed(self) -> None:
        """Read the next request."""
        self._read = self._head

    def pipe(self) -> None:
        """The connection is upgraded: return all bytes unchanged."""
        self._read = self._piped
        self._received = bytes(self._received).lstrip(b"\r\n")

    def stop(self) -> None:
        """Discard all bytes."""
        self._read = self._discard
        self._discard()

    # Reading

    def receive(self, data: bytes) -> None:
        if not self._received:
            self._received = data
        else:
            if isinstance(self._received, bytes):
                self._received = bytearray(self._received)
            self._received += data

    def next(self) -> Item | None:
        """The next part. None until more is received, or for ever."""
        item = self._read()
        if isinstance(item, (Broken, Failure)):
            self.stop()
        return item

    def end(self) -> End | Broken | Failure | None:
        """The last part, after the end of the connection. None if nothing is missing."""
        read, self._read = self._read, self._discard
        if read == self._piped or (read == self._body and self._size == sys.maxsize):
            return End.END
        if read == self._head and self._take().strip(b"\r\n"):
            return Failure(400, "invalid_request", "The connection was closed before the request's headers were complete.")
        if read == self._body:
            return Broken(f"{_CUT} (received {self._size - self._left} bytes, expected {self._size})")
        return Broken(f"{_CUT} (incomplete chunked read)") if read == self._chunk else None

    def _take(self, size: int | None = None) -> bytes:
        taken = bytes(self._received[:size])
        if len(taken) == len(self._received):
            self._received = b""
        elif isinstance(self._received, bytes):
            self._received = self._received[size:]
        else:
            del self._received[:size]
        return taken

    def _none(self) -> None:
        return None

    def _discard(self) -> None:
        self._received = b""

    def _piped(self) -> bytes | None:
        return self._take() or None

    def _head(self) -> Item | None:
        received = bytes(self._received[: http1.MAX_HEAD + 1])
        while received[:1] in (b"\r", b"\n"):  # some clients send an extra CRLF after a body
            self._take(len(received) - len(received.lstrip(b"\r\n")))
            received = bytes(self._received[: http1.MAX_HEAD + 1])
        if not received:
            return None
        if read := http1.ordinary(received):
            self._take(read.head)
            if len(self._received) < read.body:
                return self._begin(read.request, read.body)
            self._read = self._none
            return Head(read.request, read.body != 0, self._take(read.body))
        if wrong := http1.flaw(received):
            return wrong
        head = http1.split(received)
        if head is None:
            return None
        self._take(head.size)
        request: http.Request | None = None
        try:
            request = mitmproxy_http1.read_request_head(head.lines)
            return self._begin(request, mitmproxy_http1.expected_http_body_size(request))
        except ValueError as error:
            self._broken = http1.unquoted(str(error))
            if request is None:
                return Failure(400, "invalid_request", f"{self._broken}.")
            self._read = self._no_body
            return Head(request, has_body=True)

    def _begin(self, request: http.Request, size: int | None) -> Head:
        if size is None:
            self._chunks = h11.Connection(h11.SERVER)
            self._chunks.receive_data(_CHUNKED)
            self._chunks.next_event()
            self._read = self._chunk
        else:
            self._size = self._left = size if size >= 0 else sys.maxsize
            self._read = self._body
        return Head(request, has_body=size != 0)

    def _end(self) -> End:
        self._chunks, self._read = None, self._none
        return End.END

    def _no_body(self) -> Broken:
        return Broken(self._broken, in_head=True)

    def _body(self) -> Item | None:
        if not self._left:
            return self._end()
        data = self._take(self._left)
        self._left -= len(data)
        return data or None

    def _chunk(self) -> Item | None:
        assert self._chunks
        if self._received:
            self._chunks.receive_data(self._take())
        try:
            event = self._chunks.next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = None  # a cycle of references in h11, which would keep the request in memory
            return Broken(f"HTTP/1 protocol error: {http1.unquoted(str(error))}")
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):  # the trailers are dropped
            self._received = self._chunks.trailing_data[0]
            return self._end()
        return None
