"""Fast path for the chunks of a streamed response: writes them to the client without mitmproxy's layers.

mitmproxy passes each piece of a response through all layers between the upstream connection and the client's. For HTTP/1 clients they do
not change the body. Here complete chunks are passed to the response's `stream` function and written to the client directly. The end of a
response, errors, HTTP/2 and all unusual cases take mitmproxy's normal path.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, cast

from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http._http1 import Http1Server

from . import tls as fast_tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http
    from mitmproxy.proxy.layer import CommandGenerator
    from mitmproxy.proxy.layers.http import HttpLayer
    from mitmproxy.proxy.server import ConnectionHandler

    from azure_openai_proxy.mitmproxy_patches.http_stream import Stream

__all__ = ["joined", "straight", "unchunked"]

SMALL = 1 << 16
"""Writes below this size in bytes are merged, which copies them but saves a system call."""


_CHUNK_HEAD = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")


def unchunked(data: bytes) -> bytes | None:
    """The body bytes of complete chunks. None for anything else, including the last chunk."""
    pieces = []
    at, end = 0, len(data)
    while at < end:
        head = _CHUNK_HEAD.match(data, at)
        size = int(head[1], 16) if head else 0
        if not head or not size:
            return None
        start = head.end()
        at = start + size + 2
        if data[at - 2 : at] != b"\r\n":
            return None
        pieces.append(data[start : at - 2])
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def joined(doing: CommandGenerator[None]) -> CommandGenerator[None]:
    """The same commands, with consecutive writes to the same peer merged into one, e.g. a head and its body."""
    held: commands.SendData | None = None
    try:
        for command in doing:
            if type(command) is not commands.SendData:
                if held:
                    yield held
                    held = None
                yield command
            elif not held:
                held = command
            elif held.connection is command.connection and len(held.data) < SMALL and len(command.data) < SMALL:
                held.data += command.data
            else:
                yield held
                held = command
    except Exception:
        if held:
            yield held  # the data written before the error
        raise
    if held:
        yield held


def straight(stream: Stream, handler: ConnectionHandler, between_chunks: Callable[[], bool]) -> Callable[[bytes], bool] | None:
    """A function that writes raw response chunks to the client, or None if that is impossible now.

    The function returns False if the layers must process the bytes. `between_chunks` returns whether the next byte starts a chunk.
    """
    client = stream.context.client
    server = cast("HttpLayer", stream.context.layers[stream.context.layers.index(stream) - 1]).connections.get(client)
    io = handler.transports.get(client)
    writer = io and io.writer
    if (
        not isinstance(server, Http1Server)
        or not isinstance(writer, asyncio.StreamWriter)
        or stream.debug is not None
        or stream.server_state != stream.state_stream_response_body
    ):
        return None
    layer = fast_tls.of(client, stream.context.layers)
    if bool(layer) != client.tls:
        return None
    seal = fast_tls.sealed(layer) if layer else None
    response = cast("http.Response", stream.flow.response)
    chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
    stored = stream.context.options.store_streamed_bodies

    def written(body: bytes, framed: bytes) -> bytes:
        transform = response.stream
        chunks = transform(body) if callable(transform) else [body]
        chunks = [chunks] if isinstance(chunks, bytes) else list(chunks)
        if chunked and len(chunks) == 1 and chunks[0] is body and not stored:
            return framed
        pieces = []
        for chunk in chunks:
            if stored:
                stream.response_body_buf += chunk
            pieces.append(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def take(data: bytes) -> bool:
        if (
            not between_chunks()
            or stream._paused  # noqa: SLF001 - there is no public attribute
            or server._paused  # noqa: SLF001
            or stream.server_state != stream.state_stream_response_body
        ):
            return False
        body = unchunked(data)
        if body is None:
            return False
        handler.timeout_watchdog.register_activity()
        try:
            out = written(body, data)
        except Exception:  # noqa: BLE001 - from a `stream` function of another addon: as in mitmproxy, the connection continues
            handler.log("mitmproxy has crashed!", logging.ERROR, exc_info=True)
            return True
        if out and not writer.is_closing():
            writer.write(seal(out) if seal else out)
        return True

    return take
