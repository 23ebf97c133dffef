"""An answer onto a socket."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

if TYPE_CHECKING:
    import asyncio

    from .answers import Answer

__all__ = ["deliver", "drop_unset_content_type"]

_HAS_TYPE = web.ResponseKey("has_type", bool)


class _Connection:
    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.aborted = False

    def abort(self, *, reset: bool) -> None:
        if reset:  # linger for zero seconds: close() sends RST
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.aborted = True
        self.transport.abort()


async def drop_unset_content_type(request: web.Request, response: web.StreamResponse) -> None:
    """Take away the content type that aiohttp gives to an answer without one. A hook of `on_response_prepare`."""
    if not response.get(_HAS_TYPE, True):
        response.headers.popall(hdrs.CONTENT_TYPE, None)


async def deliver(request: web.Request, answer: Answer) -> tuple[web.StreamResponse, bool]:
    """The response, and whether it got to its end."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left")
    connection = _Connection(transport)
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=answer.headers)
    response[_HAS_TYPE] = "content-type" in answer.headers
    if not answer.stream:
        response.content_length = len(answer.body)
    for step in answer.first:
        await step.run(connection)
        if connection.aborted:
            return response, False
    await response.prepare(request)
    for part in answer.parts:
        if isinstance(part, bytes):
            await response.write(part)
        else:
            await part.run(connection)
            if connection.aborted:
                return response, False
    await response.write_eof()
    return response, True
