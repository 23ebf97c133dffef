"""Servers on loopback that do exactly what a test says, in its own event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from azure_openai_proxy.egress.connect import Destination

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["OK", "Peer", "Received", "Upstream", "alerting"]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Received(NamedTuple):
    line: bytes
    headers: dict[bytes, bytes]
    body: bytes


class Peer:
    """One connection, as the server has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.served = asyncio.Event()
        """The server is done with it: for one that reads to the end, because the other side has closed it."""

    async def head(self) -> Received:
        """The next request, without its body."""
        line, *fields = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        headers = dict(field.split(b": ", 1) for field in fields)
        return Received(line, {name.lower(): value for name, value in headers.items()}, b"")

    async def request(self) -> Received:
        """The next request, whole."""
        received = await self.head()
        body = b""
        if received.headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif length := int(received.headers.get(b"content-length", b"0")):
            body = await self.reader.readexactly(length)
        return received._replace(body=body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Without an orderly end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Until the other side has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass


class Upstream:
    """A context manager. `serve` is called with each connection; without it every request is answered with `OK`."""

    def __init__(
        self, serve: Callable[[Peer], Awaitable[None]] | None = None, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.serve = serve or self._answer
        self.tls, self.host = tls, host
        self.peers: list[Peer] = []
        """All connections that were made, closed ones included."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def _answer(self, peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, self.host, 0, ssl=self.tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for peer in self.peers:
            peer.writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def destination(self, host: str | None = None) -> Destination:
        return Destination(host or self.host, self.port, self.tls is not None)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await self.serve(peer)
        peer.served.set()


@asynccontextmanager
async def alerting(tls: ssl.SSLContext, answer: bytes = OK) -> AsyncIterator[int]:
    """A server in a thread, which answers each connection's first request and gives fatal alerts their time to arrive; its port.

    asyncio's servers close a connection without them.
    """
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure, suppress(OSError):
                try:
                    secure.do_handshake()
                    secure.recv(65536)
                    secure.sendall(answer)
                    secure.recv(65536)
                finally:
                    socket.socket.shutdown(secure, socket.SHUT_WR)
                    while socket.socket.recv(secure, 65536):
                        pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        await asyncio.to_thread(thread.join, 10)
