"""An HTTP/1 client connection, without I/O: pipelining, truncated requests, disconnected clients, and a lingering close.

If a socket is closed while the peer is still sending, TCP resets the connection, and the reset can overtake the response. So a connection
is closed in three steps: send the response, half-close the connection, and discard incoming data for a limited time.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1 as mitmproxy_http1
from mitmproxy.net.http import status_codes
from mitmproxy.proxy import commands
from mitmproxy.utils import human

from azure_openai_proxy.errors import Failure

from . import http1
from .http1_requests import Broken, End, Head, Requests
from .probes import Probes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mitmproxy import http
    from mitmproxy.connection import Connection

__all__ = ["AHEAD", "LINGER", "Disconnected", "Http1Connection", "Output", "Unreadable"]

LINGER = 2.0
"""Seconds for which a client may read the last response before the socket is closed."""
AHEAD = 1 << 18
"""Bytes of later requests that are kept while a request is answered. Then no more are read."""


class Unreadable(NamedTuple):
    """The rest of a request cannot be parsed. `instead`: the commands to send if the request gets no other error response."""

    message: str
    instead: list[commands.Command]


class Disconnected(enum.Enum):
    """The client has disconnected while its request is answered."""

    DISCONNECTED = "disconnected"


type Output = Head | bytes | End | Unreadable | Disconnected | commands.Command
"""A part of a request, or a command for the connection. Responses may be sent while it is processed."""


class Http1Connection:
    request: http.Request | None = None
    response: http.Response | None = None  # once its head is sent; it may be a 100
    number = 1
    """Of the current request, as mitmproxy counts."""

    def __init__(
        self,
        conn: Connection,
        *,
        error_response: Callable[[Failure], http.Response | None],
        page: Callable[[int, str], bytes],
        half_closed: Callable[[], bool],
    ) -> None:
        """`error_response`: for a malformed head; without one, `page` is sent, mitmproxy's error response.

        `half_closed`: returns whether a client that has half-closed its connection still gets the response.
        """
        self.conn = conn
        self._error_response, self._page, self._half_closed = error_response, page, half_closed
        self._requests = Requests()
        self._probes = Probes()
        self._request_done = self._response_done = self._chunked = False
        self._sending_ended = self._lingering = self._reading = False

    # Requests

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be received until the current request is answered."""
        return self._requests.kept > AHEAD and self._requests.complete

    def receive(self, data: bytes) -> Iterator[Output]:
        self._requests.receive(data)
        return self._read()

    def _read(self) -> Iterator[Output]:
        """The requests of which the previous one is answered. Responses sent meanwhile do not call this recursively."""
        if self._reading:
            return
        self._reading = True
        try:
            while (item := self._requests.next()) is not None:
                if isinstance(item, Head):
                    self.request = item.request
                    yield item
                    if item.body is not None:
                        self._request_done = True
                        yield from self._finish()
                elif isinstance(item, bytes):
                    yield item
                else:
                    yield from self._pass_on(item)
            if self._sending_ended and self._requests.between:
                yield from self.close()
        finally:
            self._reading = False

    def _pass_on(self, item: End | Broken | Failure) -> Iterator[Output]:
        if isinstance(item, Failure):
            yield from self._refuse(item)
        elif isinstance(item, Broken):
            if self._response_done:
                yield from self.leave()
            else:
                instead = self.fail(400, item.message) if item.in_head else [commands.CloseConnection(self.conn)]
                yield Unreadable(item.message, list(instead))
        else:
            if not self.request or self.request.method.upper() != "CONNECT":
                yield item
            self._request_done = True
            yield from self._finish()

    def _refuse(self, failure: Failure) -> Iterator[Output]:
        """Answer a malformed request and close."""
        yield commands.Log(f"{human.format_address(self.conn.peername)}: {failure.message}")
        if response := self._error_response(failure):
            yield self._write(mitmproxy_http1.assemble_response(http1.complete(response, None, last=True)))
            yield from self.leave()
        else:
            yield from self.fail(400, failure.message)

    def _finish(self) -> Iterator[Output]:
        """After a request and its response: upgrade the connection, close it, or read the next request."""
        request, response = self.request, self.response
        if not (self._request_done and self._response_done and request and response):
            return
        self.request = None  # the body would stay in memory until a garbage collection
        if response.status_code == 101 or (response.status_code == 200 and request.method.upper() == "CONNECT"):
            self._requests.pipe()
            if self._sending_ended:  # it cannot use the other protocol: close once that has begun
                yield commands.RequestWakeup(0)
        elif http1.stays_open(request, response):
            self._requests.proceed()
            self._request_done = self._response_done = False
            self.response = None
            self.number += 2
        else:
            yield from self._close()

    # Responses

    def begin(self, response: http.Response) -> Iterator[Output]:
        """Send the head of a response, or a 100."""
        if self.request and response.status_code >= 200:
            http1.set_connection(response, self.request)
        self.response = response
        self._chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
        if response.is_http2 or response.is_http3:
            response = response.copy()
            response.http_version, response.reason = "HTTP/1.1", status_codes.RESPONSES.get(response.status_code, "")
        yield self._write(mitmproxy_http1.assemble_response_head(response))

    def body(self, data: bytes) -> Iterator[Output]:
        if data:
            yield self._write(self.framed(data))

    def framed(self, data: bytes) -> bytes:
        """A part of the current response's body as it is sent. No bytes are no chunk, which would be the last one."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def end(self, *, last: bool) -> Iterator[Output]:
        """`last`: close the connection, since the start of the next request is unknown."""
        if self._chunked and not (self.request and self.request.method.upper() == "HEAD"):
            yield self._write(b"0\r\n\r\n")
        self._response_done = True
        if last or self._requests.stopped:
            yield from self.leave()
        else:
            yield from self._finish()
            yield from self._read()

    def fail(self, status: int | None, message: str) -> Iterator[commands.Command]:
        """Send mitmproxy's page, unless a response has begun, and close."""
        if self.conn.state & ConnectionState.CAN_WRITE:
            if status is not None and not self.response:
                yield self._write(self._page(status, message))
            yield commands.CloseConnection(self.conn)

    def _write(self, data: bytes) -> commands.SendData:
        return commands.SendData(self.conn, self._probes.rest_of(data) if self._probes.sent else data)

    def probe(self) -> list[commands.Command]:
        """Send a byte of the response's beginning. Without one that may be sent, no command."""
        probe = self._probes.in_upload(self.request, self.response)
        return [commands.SendData(self.conn, probe)] if probe else []

    # Closing

    def close(self) -> Iterator[Output]:
        """The client has closed the connection or its half, or has had its time to read the last response."""
        if self._requests.complete:
            if self._half_closed():
                yield from self._probe_half_closed()
                return
            if self.conn.state is not ConnectionState.CLOSED:
                yield commands.CloseConnection(self.conn)
            yield Disconnected.DISCONNECTED
            return
        idle = self._lingering or self._requests.between
        if item := self._requests.end():
            yield from self._pass_on(item)
        elif idle:
            yield from self._close()

    def _probe_half_closed(self) -> Iterator[Output]:
        """The client gets its response, unless a probe finds that it has disconnected completely."""
        self._sending_ended = True
        if probe := self._probes.after_half_close(self.request, self.response):
            yield commands.SendData(self.conn, probe)

    def leave(self) -> Iterator[Output]:
        self._requests.stop()
        self.request = None
        if self.conn.state & ConnectionState.CAN_READ:
            self._lingering = True
            yield commands.CloseTcpConnection(self.conn, half_close=True)
            yield commands.RequestWakeup(LINGER)
        else:
            yield from self._close()

    def _close(self) -> Iterator[Output]:
        self._requests.stop()
        self._lingering = False
        yield commands.CloseConnection(self.conn)
