"""One connection to a backend for one request at a time: socket, TLS, optional HTTP proxy, and the response reader.

Bytes are delivered in the same iteration of the event loop in which they are read. The `Receiver` is the request in progress.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from cryptography import x509
from mitmproxy import certs
from mitmproxy.connection import ConnectionState, Server

from .http1 import BadResponse, H11Reader, Http11Reader
from .tls import Tls, reason, refuses_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

    from .connect import Destination
    from .http1 import Item

__all__ = ["Connection", "ConnectionFailed", "Receiver"]


def _settle(future: asyncio.Future[None], error: Exception | None = None) -> None:
    """Set the result or the exception, unless the future is already done or cancelled."""
    if future.done():
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(None)


class ConnectionFailed(OSError):
    """No connection could be established. `local`: the cause is a resource shortage on this machine, not the remote host."""

    def __init__(self, message: str, *, local: bool = False) -> None:
        super().__init__(message)
        self.local = local


class Receiver(Protocol):
    """The callbacks of a connection to the request that uses it."""

    def received(self, items: list[Item]) -> None: ...

    def lost(self, why: str) -> None:
        """The connection was closed; nothing more will be received. `why` is the reason, for error messages."""


_RECEIVED = memoryview(bytearray(1 << 17))
"""The buffer of all connections. `asyncio.Protocol` allocates 256 kB for each read, which takes five times as long as reading a chunk."""


_LINGER = "hh" if os.name == "nt" else "ii"


class Connection(asyncio.BufferedProtocol):
    transport: asyncio.Transport

    def __init__(self, destination: Destination, gone: Callable[[Connection], None]) -> None:
        self.destination = destination
        self.server = Server(address=(destination.host, destination.port), tls=destination.tls)
        if proxy := destination.proxy:
            self.server.via = ("https" if proxy.tls else "http", (proxy.host, proxy.port))
        self.server.timestamp_start = time.time()
        self.reader = Http11Reader()
        self.receiver: Receiver | None = None
        self.idle_since = 0.0
        self.poll: Any = None
        """The `select.poll` with the socket, for the pool."""
        self.requests = 0
        """Requests sent on this connection, including the one in progress."""
        self.response_started = False
        """Response bytes were received for the request in progress."""
        self.why: str | None = None
        """The reason why the connection was closed."""
        self.refused = False
        """The peer rejected the client certificate and processed no request. With TLS 1.3 the alert arrives after the handshake."""
        self.uploads = False
        """The request in progress has a large body, of which the system may hold a part that it has not sent."""
        self.generation = 0
        """`Pools.generation` when the connection was opened."""
        self.tls: Tls | None = None
        self._outer: Tls | None = None  # TLS to an HTTPS proxy
        self._stage: Callable[[bytes], None] | None = None  # receives all bytes until the connection is established
        self._established: asyncio.Future[None] | None = None
        self._gone = gone
        self._drained: asyncio.Future[None] | None = None
        self._paused = False

    # Establishing the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.timestamp_tcp_setup = time.time()
        self.server.peername, self.server.sockname = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.server.state = ConnectionState.OPEN

    async def establish(self, *, tls: Callable[[], Tls] | None, proxy_tls: Callable[[], Tls] | None = None) -> None:
        """Perform the steps after TCP: TLS to the proxy, CONNECT, and TLS to the destination, as far as needed.

        Raises:
            ConnectionFailed: one of the steps failed.
        """
        try:
            proxy = self.destination.proxy
            if proxy_tls:
                self._outer = await self._shake_hands(proxy_tls(), self.transport.write)
            if proxy and tls:
                await self._ask_proxy()
            if tls:
                made = await self._shake_hands(tls(), self._write_out)
                self.tls = made
                self._describe_tls(made.object)
            self._stage = None
            self.data_received(b"")  # process bytes received after the handshake
        except (OSError, ValueError) as error:
            self.drop(reason(error))
            raise ConnectionFailed(self.why or reason(error), local=isinstance(error, ConnectionFailed) and error.local) from error
        except BaseException:
            self.drop("given up")
            raise
        if self.why is not None:
            raise ConnectionFailed(self.why)

    async def _shake_hands(self, tls: Tls, write: Callable[[bytes], None]) -> Tls:
        done = self._established = asyncio.get_running_loop().create_future()

        def go_on(data: bytes = b"") -> None:
            try:
                if tls.handshake(data):
                    _settle(done)
            except ssl.SSLError as error:
                _settle(done, error)
            if out := tls.take():
                write(out)

        self._stage = go_on
        go_on()
        await done
        return tls

    async def _ask_proxy(self) -> None:
        """Open a tunnel through the HTTP proxy with CONNECT."""
        proxy = self.destination.proxy
        assert proxy
        done = self._established = asyncio.get_running_loop().create_future()
        reader = H11Reader()
        reader.begin(b"CONNECT")

        def receive_response(data: bytes) -> None:
            try:
                items = reader.feed(data)
            except BadResponse as error:
                _settle(done, ConnectionFailed(f"the proxy's response cannot be read: {error}"))
                return
            if items:
                status = cast("http.Response", items[0]).status_code
                _settle(done, None if 200 <= status < 300 else ConnectionFailed(f"the proxy refused the connection with {status}"))

        self._stage = receive_response
        target = self.destination.netloc.encode()
        authorization = b"Proxy-Authorization: %b\r\n" % proxy.authorization if proxy.authorization else b""
        self._write_out(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target, target, authorization))
        await done

    def _describe_tls(self, tls: ssl.SSLObject) -> None:
        server = self.server
        server.timestamp_tls_setup = time.time()
        server.sni = self.destination.host
        server.tls_version = cast("Any", tls.version())
        server.cipher = (tls.cipher() or (None,))[0]
        server.alpn = (tls.selected_alpn_protocol() or "").encode() or None
        server.alpn_offers = (b"http/1.1",)
        with suppress(ValueError):
            server.certificate_list = (certs.Cert(x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")),)

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_RECEIVED[:nbytes])
        if self.tls is None and self._stage is None and self._outer is None:
            self._deliver(data)
        else:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        ended: str | None = None
        closed = False
        if outer := self._outer:
            data = outer.receive(data)
            self.transport.write(outer.take())
            closed = outer.closed
            if outer.error:
                ended = f"TLS to the proxy failed: {reason(outer.error)}"
        if self._stage:
            if data:
                self._stage(data)
        else:
            if tls := self.tls:
                data = tls.receive(data)
                if out := tls.take():
                    self._write_out(out)
                closed = closed or tls.closed
                if tls.error:
                    self.refused = not self.response_started and self.requests <= 1 and refuses_client(tls.error)
                    ended = f"TLS failed: {reason(tls.error)}"
            if data:
                self._deliver(data)
        if ended:
            self.drop(ended)
        elif closed:
            self._end()

    def _deliver(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:
            self.drop("upstream sent something without a request")
            return
        self.response_started = True
        try:
            items = self.reader.feed(data)
        except BadResponse as error:
            self.drop(f"the response cannot be read: {error}")
            return
        if items:
            receiver.received(items)
        if failed := self.reader.failed:
            self.drop(f"the response cannot be read: {failed}")

    def eof_received(self) -> bool:
        if self._outer or self.tls:  # without close_notify, the response may have been truncated by an attacker
            self.drop("the connection was closed")
        else:
            self._end()
        return False

    def _end(self) -> None:
        """The peer closed the connection properly."""
        receiver = self.receiver
        if receiver and self.response_started and self.why is None:
            try:
                items = self.reader.eof()
            except BadResponse as error:
                self.drop(str(error))
                return
            receiver.received(items)
        self.drop("the connection was closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.state, self.server.timestamp_end = ConnectionState.CLOSED, time.time()
        self.drop(str(exc) if exc else "the connection was closed")

    def drop(self, why: str) -> None:
        """Close the connection immediately and notify the receiver."""
        if self.why is not None:
            return
        self.why = why
        self._gone(self)
        if self.tls and not self.transport.is_closing():
            with suppress(OSError, ValueError):
                self._write_out(self.tls.close())
        if self.uploads or self.transport.get_write_buffer_size():
            self._reset_on_close()
            self.transport.abort()
        else:
            self.transport.close()
        if self._established:
            _settle(self._established, ConnectionFailed(why))
        self._stage = self._established = None
        self.resume_writing()
        receiver, self.receiver = self.receiver, None
        if receiver:
            receiver.lost(why)

    def _reset_on_close(self) -> None:
        """Close with a RST. The peer would not notice the end of a cancelled upload until it has read the bytes sent before."""
        sock = self.transport.get_extra_info("socket")
        with suppress(AttributeError, OSError):  # (closed, or a transport without a socket)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))

    # Sending

    def begin(self, receiver: Receiver, method: bytes, *, upgrade: bool = False) -> None:
        """Prepare for the next request, whose response `receiver` will get."""
        self.receiver, self.response_started, self.uploads = receiver, False, False
        self.requests += 1
        self.reader.begin(method, upgrade=upgrade)

    def write(self, data: bytes) -> None:
        self._write_out(self.tls.send(data) if self.tls else data)

    def _write_out(self, data: bytes) -> None:
        if data:
            self.transport.write(self._outer.send(data) if self._outer else data)

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained and not drained.done():
            drained.set_result(None)

    @property
    def full(self) -> bool:
        """Whether the write buffer is above its limit because the peer does not read."""
        return self._drained is not None

    async def drain(self) -> None:
        """Wait until the write buffer has drained or the connection is closed."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def pause_reading(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # Between requests

    def finish(self, *, whole: bool) -> bool:
        """End the request. Return True if the connection can be reused; otherwise it is closed.

        `whole`: the request was sent and its response received completely.
        """
        self.receiver = None
        if whole and self.reader.reusable and self.why is None and not self.transport.is_closing():
            self.resume_reading()
            return True
        self.drop("not used again")
        return False

    @property
    def session(self) -> ssl.SSLSession | None:
        """The TLS session, which the next connection to this destination can resume."""
        return self.tls.object.session if self.tls else None
