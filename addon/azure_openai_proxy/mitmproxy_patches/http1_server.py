"""An HTTP/1 client connection: malformed heads, truncated bodies, pipelining, and a lingering close.

If a socket is closed while the peer is still sending, TCP resets the connection, and the reset can overtake the response. So a connection
is closed in three steps: send the response, half-close the connection, and discard incoming data for a limited time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestEndOfMessage, RequestProtocolError, ResponseEndOfMessage, ResponseHeaders
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.utils import human

from azure_openai_proxy.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http
    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.layer import CommandGenerator

    from .interface import HttpPolicy

__all__ = ["LINGER", "MAX_HEAD", "LastOfConnection", "Leave", "Server", "Unreadable", "complete", "flaw"]

MAX_HEAD = 64 * 1024
"""Maximum bytes of the request line and headers. mitmproxy has no limit."""

LINGER = 2.0
"""Seconds for which a client may read the last response before the socket is closed."""

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An informational response, allowed at any time before the response. Sent to detect whether the client has disconnected."""

_HEAD_END = re.compile(rb"\n\r?\n")
_HIDDEN_FRAMING = re.compile(rb"(?i)\n(?:transfer-encoding|content-length)[^\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")
_METHOD_START = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")


class Unreadable(HttpEvent):
    """The rest of a request cannot be parsed. `instead`: the commands that mitmproxy would send."""

    def __init__(self, stream_id: int, message: str, *instead: commands.Command) -> None:
        super().__init__(stream_id)
        self.message = message
        self.instead = instead


class LastOfConnection(ResponseEndOfMessage):
    """The end of a response after which an HTTP/1 connection must be closed, since the start of the next request is unknown."""


class Leave(HttpEvent):
    """Closes an upgraded connection that the client has not closed."""


def flaw(received: bytes) -> Failure | None:
    """The error in the bytes of a head received so far, where mitmproxy would wait for more; None if there is none."""
    if not _METHOD_START.match(received):
        return Failure(400, "invalid_request", "This is not the beginning of an HTTP request. Was the last one's content-length too small?")
    line = received[: received.find(b"\n") + 1].rstrip()
    if line[-8:-3] == b"HTTP/" and line[-8:] not in _VERSIONS:  # mitmproxy would send it upstream and in the response
        return Failure(400, "invalid_request", "The request's HTTP version is neither 1.0 nor 1.1.")
    end = _HEAD_END.search(received, 0, MAX_HEAD)
    if end and _HIDDEN_FRAMING.search(received, 0, end.end()):  # mitmproxy treats them as whitespace, other servers may not
        return Failure(400, "invalid_request", "Content-Length or Transfer-Encoding contains control characters.")
    if not end and len(received) >= MAX_HEAD:
        return Failure(431, "request_head_too_large", f"The request line and headers are longer than {MAX_HEAD} bytes.")
    return None


def complete(response: http.Response, request: http.Request | None, *, last: bool) -> http.Response:
    """Prepare a response for sending: set content-length, drop the body for HEAD, and set `connection: close` if it is the last."""
    content = response.raw_content or b""
    response.headers.pop("transfer-encoding", None)
    response.headers["content-length"] = str(len(content))
    if last:
        response.headers["connection"] = "close"
    response.data.content = b"" if request and request.method.upper() == "HEAD" else content
    return response


def _complaint(head: bytes) -> str:
    """mitmproxy's error message for a head that it rejected."""
    try:
        http1.read_request_head([line.removesuffix(b"\r") for line in _HEAD_END.split(head)[0].split(b"\n")])
    except ValueError as error:
        return str(error)
    raise AssertionError(head)  # pragma: no cover - only called for heads that mitmproxy rejected


def _unquoted(message: str) -> str:
    """An error message of mitmproxy without the bytes that it quotes, which may be a key."""
    return re.split(r": (?:bytearray\()?b?['\"]", message, maxsplit=1)[0]


class Server(Http1Server):
    rules: HttpPolicy

    def __init__(self, context: Context, rules: HttpPolicy, half_closed: Callable[[], bool] | None = None) -> None:
        """`half_closed`: returns whether a client that has half-closed its connection still gets the response."""
        super().__init__(context)
        self.rules = rules
        self.half_closed = half_closed
        self.sending_ended = False
        self._handling = self._next_waits = False

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        """As mitmproxy, but read a pipelined request after the events of the previous one are processed, not recursively."""
        if self._handling:
            yield from super()._handle_event(event)
            return
        self._handling = True
        try:
            yield from super()._handle_event(event)
            while self._next_waits:
                self._next_waits = False
                yield from self.read_head(events.DataReceived(self.conn, b""))
            if self.sending_ended and self.state == self.read_headers:
                yield from self.read_headers(events.ConnectionClosed(self.conn))
        finally:
            self._handling = False

    # Heads

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        if isinstance(event, events.DataReceived) and not event.data:  # called recursively at the end of the previous request
            self._next_waits = True
            return
        yield from self.read_head(event)

    def read_head(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        received = bytes(self.buf)
        if blank := len(received) - len(received.lstrip(b"\r\n")):
            # Some clients send an extra CRLF after a body. mitmproxy would not process the bytes after it until more arrive.
            self.buf.maybe_extract_at_most(blank)
            received = received[blank:]
        wrong = None
        if isinstance(event, events.ConnectionClosed):
            if received:
                wrong = Failure(400, "invalid_request", "The connection was closed before the request's headers were complete.")
        elif received:
            wrong = flaw(received)
        if wrong and (yield from self.refuse(wrong)):
            return

        doing = super().read_headers(event)
        command = next(doing, None)
        if isinstance(command, commands.SendData):  # mitmproxy's HTML page with status 400
            yield from self.replace(command, list(doing), received)
        elif command:
            yield command
            if isinstance(command, ReceiveHttp) and self.request is None:
                doing.close()  # already answered and closing: mitmproxy would read the body
            else:
                yield from doing

    def replace(self, page: commands.SendData, rest: list[commands.Command], received: bytes) -> CommandGenerator[None]:
        """Replace mitmproxy's error page.

        `rest`: the command that closes the connection, then a log command, or the events of a request of which only the framing is invalid.
        """
        match rest:
            case [closing, ReceiveHttp() as headers, ReceiveHttp(event=RequestProtocolError() as error)]:
                self.state = self.discard
                yield headers
                yield ReceiveHttp(Unreadable(self.stream_id, _unquoted(error.message), page, closing))
            case _:
                if not (yield from self.refuse(Failure(400, "invalid_request", f"{_unquoted(_complaint(received))}."))):
                    yield page
                    yield from rest

    def refuse(self, failure: Failure) -> CommandGenerator[bool]:
        """Answer a malformed request and close. Return False to let mitmproxy handle it."""
        response = self.rules.answer(failure, None)
        if response is None:
            return False
        yield commands.Log(f"{human.format_address(self.conn.peername)}: {failure.message}")
        yield commands.SendData(self.conn, http1.assemble_response(complete(response, None, last=True)))
        yield from self.leave()
        return True

    # Bodies

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        closing: commands.CloseConnection | None = None
        try:
            for command in super().read_body(event):
                if isinstance(command, commands.CloseConnection):
                    closing = command
                elif closing and isinstance(command, ReceiveHttp) and isinstance(command.event, RequestProtocolError):
                    yield from self.give_up(_unquoted(command.event.message))
                    return
                else:
                    yield command
        except NotImplementedError:  # raised by mitmproxy for trailers once they are read: drop them
            yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
            yield from self.mark_done(request=True)
        if closing:
            yield closing

    def give_up(self, message: str) -> CommandGenerator[None]:
        """Let the stream send the error response, since it has the request."""
        if self.response_done:
            yield from self.leave()
        else:
            self.state = self.discard
            yield ReceiveHttp(Unreadable(self.stream_id, message, commands.CloseConnection(self.conn)))

    def discard(self, _: events.Event) -> CommandGenerator[None]:
        self.buf.maybe_extract_at_most(len(self.buf))
        yield from ()

    # Closing

    def wait(self, event: events.Event) -> CommandGenerator[None]:
        """Send the response even if the client has half-closed its connection, unless it has disconnected completely."""
        if isinstance(event, events.ConnectionClosed) and self.half_closed and self.half_closed():
            self.sending_ended = True
            if not self.response and self.request and self.request.http_version == "HTTP/1.1":
                # A completely closed connection answers with a reset; a half-closed client ignores the probe.
                yield commands.SendData(self.conn, PROBE)
            elif self.response and "chunked" in self.response.headers.get("transfer-encoding", "").lower():
                yield commands.SendData(self.conn, b"0")  # the same: a chunk size may have leading zeros
            return
        yield from super().wait(event)

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        if isinstance(event, ResponseHeaders) and self.request and event.response.status_code >= 200:
            self.frame(event.response, self.request)
        if isinstance(event, Leave):
            return self.leave()
        if isinstance(event, ResponseEndOfMessage) and (isinstance(event, LastOfConnection) or self.state == self.discard):
            return self.send_last(event)
        return super().send(event)

    @staticmethod
    def frame(response: http.Response, request: http.Request) -> None:
        """Set `connection` for HTTP/1.0 and closing connections. For HTTP/1.0, end a chunked response by closing the connection."""
        old = request.http_version == "HTTP/1.0"
        if old and "chunked" in response.headers.get("transfer-encoding", "").lower():
            del response.headers["transfer-encoding"]
            response.headers["connection"] = "close"
        elif (old or "connection" in request.headers) and "connection" not in response.headers:
            closes = http1.connection_close(request.http_version, request.headers)
            if closes or old:
                response.headers["connection"] = "close" if closes else "keep-alive"

    def send_last(self, event: ResponseEndOfMessage) -> CommandGenerator[None]:
        self.request_done = False  # otherwise mitmproxy would close or reuse the connection
        yield from super().send(event)
        yield from self.leave()

    def mark_done(self, *, request: bool = False, response: bool = False) -> CommandGenerator[None]:
        yield from super().mark_done(request=request, response=response)
        if self.request_done and self.response_done:  # no pipelined request follows
            self.request = None  # the body would stay in memory until a garbage collection

    def leave(self) -> CommandGenerator[None]:
        yield from self.discard(events.Start())
        self.request = None
        if self.conn.state & ConnectionState.CAN_READ:
            self.state = self.linger
            yield commands.CloseTcpConnection(self.conn, half_close=True)
            yield commands.RequestWakeup(LINGER)
        else:
            self.state = self.done
            yield commands.CloseConnection(self.conn)

    def linger(self, event: events.Event) -> CommandGenerator[None]:
        yield from self.discard(event)
        if not isinstance(event, events.DataReceived):  # the client has disconnected, or the time is over
            self.state = self.done
            yield commands.CloseConnection(self.conn)
