"""A shorter way for the chunks of a stream; a room of `http_layer`, for it reaches from one of mitmproxy's layers into another.

mitmproxy carries each chunk from the connection upstream to the request's stream and on to the client's connection, as an event
that every layer between hands to the next. Between two HTTP/1 connections, once the head of the answer is out, none of them
has anything to say: here the reader of the upstream connection asks the answer's `stream` and writes for the client. What one
read brought is written at once. Ends, errors, HTTP/2 and whatever else is unusual go mitmproxy's way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import h11
from h11._readers import ChunkedReader
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import HttpStream
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server

from . import reads as fast_reads
from . import tls as fast_tls

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.proxy.layer import CommandGenerator, Layer
    from mitmproxy.proxy.layers.http import HttpLayer

__all__ = ["KNOWN", "Streaming", "arm", "joined"]

SMALL = 1 << 16
"""Bytes of a write that are copied to save another one."""

KNOWN: dict[type, dict[str, str | None]] = {
    Http1Connection: {"read_body": "self event"},
    HttpStream: {"start_response_stream": "self"},
}


class Streaming(HttpStream):
    def passes(self) -> None:
        """A piece of the answer goes by."""


class Client(Http1Client):
    """A connection upstream that writes what it reads of an answer's body to the client."""

    stream: Streaming
    server: Http1Server
    chunked: bool  # so the client gets it
    number: int  # of the stream, as this connection has it
    stored: bool  # the flow keeps it

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        stream = self.stream
        if (
            isinstance(event, events.DataReceived)
            and self.number == self.stream_id
            and stream.server_state == stream.state_stream_response_body
            and not stream._paused  # noqa: SLF001 - the layers have no other name for it
            and not self.server._paused  # noqa: SLF001
        ):
            return self.pass_on(event)
        return super().read_body(event)

    def pass_on(self, event: events.DataReceived) -> CommandGenerator[None]:
        pieces: list[bytes] = []
        reader = self.body_reader
        error: h11.ProtocolError | None = None
        found: Any = None
        try:
            while isinstance(found := reader(self.buf), h11.Data):
                pieces.append(bytes(found.data))
        except h11.ProtocolError as e:
            error = e
        if data := b"".join(pieces):
            yield from self.write(data)
        if found is not None or error:

            def again(_: object) -> Any:
                """What the reader said, for mitmproxy to hear; trailers it would not survive."""
                self.body_reader = reader
                if error:
                    raise error
                return h11.EndOfMessage() if isinstance(found, h11.EndOfMessage) else found

            self.body_reader = cast("Any", again)
            yield from super().read_body(event)

    def write(self, data: bytes) -> CommandGenerator[None]:
        if out := self.written(data):
            yield commands.SendData(self.server.conn, out)

    def written(self, data: bytes, framed: bytes = b"") -> bytes:
        """What goes to the client for a piece of the body; `framed` is that piece as Azure's chunks have it, if it came in whole ones."""
        stream = self.stream
        stream.passes()
        transform = cast("http.Response", stream.flow.response).stream
        chunks = transform(data) if callable(transform) else [data]
        chunks = [chunks] if isinstance(chunks, bytes) else list(chunks)
        if framed and self.chunked and len(chunks) == 1 and chunks[0] is data and not self.stored:
            return framed
        written = []
        for chunk in chunks:
            if self.stored:
                stream.response_body_buf += chunk
            written.append(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self.chunked else chunk)
        return written[0] if len(written) == 1 else b"".join(written)

    def straight(self, data: bytes) -> bytes | None:
        """What goes to the client for what was read, past all layers; None when they must see it."""
        stream, reader = self.stream, self.body_reader
        if (
            self.number != self.stream_id
            or type(reader) is not ChunkedReader
            or reader._bytes_in_chunk  # noqa: SLF001 - in the middle of one
            or reader._bytes_to_discard  # noqa: SLF001
            or reader._reading_trailer  # noqa: SLF001
            or self.buf
            or stream.server_state != stream.state_stream_response_body
            or stream._paused  # noqa: SLF001
            or self.server._paused  # noqa: SLF001
            or self._paused
        ):
            return None
        body = unchunked(data)
        return None if body is None else self.written(body, data)


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


def arm(stream: Streaming) -> None:
    """From here on the chunks of this stream take the shorter way, if they can."""
    layers = stream.context.layers
    connections = cast("HttpLayer", layers[layers.index(stream) - 1]).connections
    server = connections.get(stream.context.client)
    upstream: Layer | None = connections.get(stream.flow.server_conn)
    between = list(layers)
    while upstream is not None and not isinstance(upstream, Http1Client):
        between.append(upstream)
        upstream = getattr(upstream, "child_layer", None)
    if upstream is None or not isinstance(server, Http1Server) or stream.debug is not None:
        return
    waited = upstream.state == upstream.read_body  # for a hook: the head is done with
    client = cast("Client", upstream)
    client.__class__ = Client
    client.stream, client.server, client.number = stream, server, upstream.stream_id or 0
    client.chunked = "chunked" in cast("http.Response", stream.flow.response).headers.get("transfer-encoding", "").lower()
    client.stored = stream.context.options.store_streamed_bodies
    if waited:
        client.state = client.read_body
    reads, writes = (fast_tls.of(conn, between) for conn in (client.conn, server.conn))
    if bool(reads) == client.conn.tls and bool(writes) == server.conn.tls:
        tls = fast_tls.upstream(reads) if reads else None
        seal = fast_tls.sealed(writes) if writes else None
        fast_reads.straight(stream.context.client, client.conn, client.straight, tls, seal)
