"""One request between its client and the upstream leg: its body, its response, and flow control in both directions."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from mitmproxy import http

from . import sockets
from .gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

    from mitmproxy.connection import Server

    from azure_openai_proxy.errors import Failure

    from .interface import HttpPolicy

__all__ = ["BACKLOG", "FULL", "FlowControl", "UpstreamRequest", "is_full"]

FULL = 1 << 16
"""Maximum bytes buffered for the client; above that, reading from upstream pauses."""
BACKLOG = 1 << 18
"""Maximum bytes buffered of a request body; above that, reading from the client pauses."""
_PARTS = (bytes, http.Response, http.Headers)
"""The types of the items of a response, but for its end. `isinstance` takes ten times as long for the abstract base class of headers."""
HOOK_LOOK = 0.001
"""Seconds between checks whether the hooks of WebSocket messages have completed."""


def is_full(writer: object) -> bool:
    """Whether `drain` of a client's writer may wait. The writer of a virtual network does not show how much it holds."""
    if isinstance(writer, asyncio.StreamWriter):
        return writer.transport.get_write_buffer_size() > FULL
    return not isinstance(writer, Gate) or writer.is_closed()


class UpstreamRequest(Protocol):
    """One request being sent upstream."""

    @property
    def backlog(self) -> int:
        """Buffered bytes of the request body."""

    def start(self) -> None: ...

    def add(self, data: bytes) -> None:
        """Append bytes to a streamed body."""

    def complete(self) -> None:
        """Mark the streamed body as complete."""

    def send_upgraded(self, data: bytes) -> None:
        """Send bytes of the upgraded protocol (WebSocket)."""

    def cancel(self) -> None:
        """Stop: the client has disconnected or cancelled the request."""


class FlowControl(ABC):
    """Implements `egress.interface.ClientSide` for one request. Its subclass knows the client's connection."""

    request: UpstreamRequest
    over = False
    upgraded = False
    owed = 0
    """Unacknowledged bytes of an HTTP/2 upload."""

    def __init__(self, flow: http.HTTPFlow, transports: MutableMapping[Any, Any], *, streamed: bool, http2: bool) -> None:
        """`transports`: of the client's connections, as mitmproxy has them."""
        self.flow, self.streamed, self.http2 = flow, streamed, http2
        self._transports = transports
        self._window_opened: asyncio.Future[None] | None = None  # set when more can be delivered to an HTTP/2 client
        self._taken: asyncio.Future[None] | None = None  # set when the client may send more
        self._transport: asyncio.Transport | None = None  # of the client, which takes 1 µs to look up
        self._hangup: sockets.Hangup | None = None  # made when it is needed
        self._gate: Gate | None = None  # made for uploads only, it costs 30 µs

    @abstractmethod
    def pass_on(self, items: Sequence[Any]) -> None:
        """Pass items of the response to the client's side, as those of `deliver`."""

    @abstractmethod
    def report(self, failure: Failure) -> None:
        """Pass a failure to the client's side."""

    @abstractmethod
    def direct_writer(self) -> Callable[[bytes], bool] | None: ...

    @abstractmethod
    def client_writer(self) -> Any | None:
        """The writer of the client's connection, asyncio's or mitmproxy's for a virtual network; None if the connection is closed."""

    @abstractmethod
    def unhandled(self) -> bool:
        """Whether WebSocket messages wait until the hook of the previous message completes."""

    @abstractmethod
    def held(self) -> int:
        """Bytes of this response buffered until the client's HTTP/2 window allows them."""

    @abstractmethod
    def acknowledge(self, size: int) -> None:
        """Let an HTTP/2 client send so many more bytes of this request."""

    @abstractmethod
    def probe(self) -> bool:
        """Send a byte to which a disconnected client responds with a reset. Return False if there is none that may be sent."""

    def client_transport(self) -> asyncio.Transport | None:
        """The transport of the client's TCP connection; None if there is none, or the connection is closed."""
        return getattr(self.client_writer(), "transport", None)

    # The request

    def start(self, policy: HttpPolicy) -> None:
        """Send the request."""
        self.request = policy.send_upstream(self.flow, self, streamed=self.streamed)
        if self.streamed and not self.http2:
            self._place_gate()
        self.request.start()

    def add(self, data: bytes) -> None:
        """Send bytes of the request body, which is on the flow unless it is streamed, or of the upgraded protocol."""
        if self.upgraded:
            self.request.send_upgraded(data)
        elif self.streamed and data:
            self.request.add(data)

    def complete(self) -> None:
        """The request body is complete."""
        if self.streamed:
            self.request.complete()

    @property
    def behind(self) -> bool:
        """Whether the buffered part of the request body exceeds the limit."""
        return not self.over and (self.request.backlog > BACKLOG or self.unhandled())

    def withhold(self, size: int) -> bool:
        """Whether to postpone the acknowledgement of upload bytes (HTTP/2) until the upstream has accepted more."""
        if not self.streamed or not self.behind:
            return False
        self.owed += size
        return True

    def _place_gate(self) -> None:
        """Let mitmproxy wait for `taken` when it has read from the client."""
        self._gate = self._gate or Gate(self._transports, self.taken, lambda: self.behind)

    def body_taken(self) -> None:
        if self._taken and not self._taken.done() and self.request.backlog <= BACKLOG:
            self._taken.set_result(None)
        if self.owed and not self.behind:
            owed, self.owed = self.owed, 0
            self.acknowledge(owed)

    async def taken(self) -> None:
        """Wait until more of the upload can be buffered. Meanwhile nothing is read from the client, so poll for its disconnection."""
        hangup = self._hangup = self._hangup or sockets.Hangup()
        while self.behind:
            if self.unhandled():
                await asyncio.sleep(HOOK_LOOK)
                continue
            self._taken = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._taken], timeout=sockets.LOOK)
            if not self.over and hangup.has_left(self.client_transport(), self.request.backlog, self.probe):
                self.leave()

    # The response

    def connected(self, server: Server) -> None:
        self.flow.server_conn = server

    def deliver(self, items: Sequence[Any]) -> None:
        ended = type(items[-1]) not in _PARTS
        if not self.http2:  # mitmproxy does not support trailers in HTTP/1
            items = [item for item in items if type(item) is not http.Headers]
        if items and isinstance(items[0], http.Response) and items[0].status_code == 101:
            self.upgraded = True
            self._place_gate()
            items = [items[0], None, *items[1:]]  # the end of HTTP; another protocol follows
        if ended:
            self.end()
        self.pass_on(items)
        if not self.over and not self.flow.live:  # rejected by a hook, or killed
            self.leave()

    def failed(self, failure: Failure) -> None:
        self.end()
        if self.upgraded:
            self.pass_on([None])  # the layer of an upgraded connection knows no failures, only the end
        else:
            self.report(failure)

    def full(self) -> bool:
        transport = self._transport = self._transport or self.client_transport()
        if transport is not None and transport.get_write_buffer_size() > FULL:
            return True
        return (self.upgraded and self.unhandled()) or (self.http2 and self.held() > FULL)

    async def writable(self) -> None:
        while self.unhandled():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(HOOK_LOOK)
        if writer := self.client_writer():
            await writer.drain()
        while self.http2 and self.held() > FULL:
            self._window_opened = asyncio.get_running_loop().create_future()
            await self._window_opened

    def check_window(self) -> None:
        """Resume a response for which the client has increased its HTTP/2 window."""
        if self._window_opened and not self._window_opened.done() and self.held() <= FULL:
            self._window_opened.set_result(None)

    # The end

    def leave(self) -> None:
        """Cancel the request: the client has disconnected or cancelled it."""
        request = self.request
        self.end()
        request.cancel()

    def end(self) -> None:
        """Release everything at the end of the request."""
        if self.over:
            return
        self.over = True
        if self._gate:
            self._gate.remove()
            self._gate = None
        if self._taken and not self._taken.done():
            self._taken.set_result(None)
        self.body_taken()
        self.check_window()
        del self.request, self.flow  # break reference cycles, which would keep bodies in memory
