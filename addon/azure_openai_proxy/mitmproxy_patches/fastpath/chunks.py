"""A shorter way for the chunks of a stream; a room of `http_layer`, for it reaches past mitmproxy's layers.

mitmproxy carries each piece of a response through every layer between the connection upstream and the client's. For an HTTP/1 client,
once the head of the response is out, none of them has anything to say: here what was read of whole chunks is given to the response's
`stream`, and written for the client at once. Ends, errors, HTTP/2 and whatever else is unusual go mitmproxy's way.
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
"""Bytes of a write that are copied to save another one."""


_CHUNK_HEAD = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")


def unchunked(data: bytes) -> bytes | None:
    """The body of whole chunks; None for anything else, the last one included."""
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
    """The same commands, but what one event has to say to a peer is one write: a head and its body, for one."""
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
            yield held  # what was said before it failed
        raise
    if held:
        yield held


def straight(stream: Stream, handler: ConnectionHandler, between_chunks: Callable[[], bool]) -> Callable[[bytes], bool] | None:
    """A function that writes what was read of a response's chunks for the client; None while that cannot be done.

    It returns False where the layers must see the bytes. `between_chunks`: whether the next byte begins a chunk.
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
            or stream._paused  # noqa: SLF001 - the layers have no other name for it
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
        except Exception:  # noqa: BLE001 - somebody's `stream` function: as mitmproxy has it, the connection goes on
            handler.log("mitmproxy has crashed!", logging.ERROR, exc_info=True)
            return True
        if out and not writer.is_closing():
            writer.write(seal(out) if seal else out)
        return True

    return take
