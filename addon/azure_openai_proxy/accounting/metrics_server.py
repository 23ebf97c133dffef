"""A small HTTP server for `GET /metrics`: short requests, one for each connection, with bounds on time, size and connections."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from azure_openai_proxy.config.parsers import Address

__all__ = ["PATH", "MetricsServer", "Page"]

logger = logging.getLogger(__name__)

PATH = "/metrics"
LARGEST_HEAD = 8 << 10
MOST_CONNECTIONS = 32
HEAD_WITHIN = 5.0  # seconds
BODY_WITHIN = 30.0  # seconds, for a client that reads slowly
LINGER = 1.0  # seconds in which a client may send the rest of a rejected request
_REQUEST = re.compile(rb"([A-Z]{1,20}) (\S{1,4000}) HTTP/1\.[01]\r\n")
_HOST = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_LOCAL_HOST = re.compile(rb"(?:localhost|[0-9.]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?", re.IGNORECASE)
_LOOPBACK = ("127.", "::1")
_ACCEPT = re.compile(rb"\r\naccept:[ \t]*([\x20-\x7e]{0,1000})\r\n", re.IGNORECASE)


class Page(NamedTuple):
    """The body of a response, with its content type."""

    body: bytes
    content_type: str


class MetricsServer:
    """Serves the page that `render` makes for the value of a request's `Accept` header."""

    def __init__(self, address: Address, render: Callable[[str], Awaitable[Page]]) -> None:
        self._address = address
        self._render = render
        self._server: asyncio.Server | None = None
        self._on_loopback = False  # only clients of this machine can connect
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL of the page, with the port in use."""
        port = self._server.sockets[0].getsockname()[1] if self._server else self._address.port
        return f"http://{self._address._replace(host=self._address.host or 'localhost', port=port)}{PATH}"

    async def start(self) -> None:
        """Listen.

        Raises:
            SettingsError: the address is in use or not one of this machine.
        """
        try:
            self._server = await asyncio.start_server(
                self._connected, self._address.host or None, self._address.port, limit=LARGEST_HEAD, backlog=MOST_CONNECTIONS
            )
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or "not an address of this machine"
            raise SettingsError(
                f"azure_openai_metrics: cannot listen on {self._address} ({reason}): write an address that is free"
            ) from None
        self._on_loopback = all(listening.getsockname()[0].startswith(_LOOPBACK) for listening in self._server.sockets)

    async def close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client left or was too slow
        except Exception:
            logger.exception("The metrics could not be served")
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_WITHIN):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            status, page = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, None
        else:
            status, page = await self._page(head)
        writer.transport.set_write_buffer_limits(0)  # `drain` waits until everything is sent
        writer.write(_response(status, page))
        async with asyncio.timeout(BODY_WITHIN):
            await writer.drain()
        # An unread rest of the request would reset the connection, and the client might lose the response.
        writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while await reader.read(LARGEST_HEAD):
                    pass

    async def _page(self, head: bytes) -> tuple[HTTPStatus, Page | None]:
        request = _REQUEST.match(head)
        if request is None:
            return HTTPStatus.BAD_REQUEST, None
        if request[2].partition(b"?")[0] != PATH.encode():
            return HTTPStatus.NOT_FOUND, None
        if request[1] != b"GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, None
        if self._on_loopback and not all(map(self._is_own_name, _HOST.findall(head))):
            return HTTPStatus.FORBIDDEN, None  # a web page whose name resolves to this machine (DNS rebinding)
        accept = _ACCEPT.search(head)
        return HTTPStatus.OK, await self._render(accept[1].decode() if accept else "")

    def _is_own_name(self, host: bytes) -> bool:
        return bool(_LOCAL_HOST.fullmatch(host)) or host.lower().partition(b":")[0] == self._address.host.encode()


def _response(status: HTTPStatus, page: Page | None) -> bytes:
    body, kind = page or Page(f"{status.phrase}\n".encode(), "text/plain; charset=utf-8")
    allow = "Allow: GET\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + body
