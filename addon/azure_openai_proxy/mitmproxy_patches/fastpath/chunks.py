"""Fast path for the chunks of a streamed response: writes them to the client without mitmproxy's layers.

mitmproxy passes each part of a response through all layers to the client, which only frame it. Here it is passed to the response's `stream`
function, framed for HTTP/1 or HTTP/2, and written directly. The end of a response, errors and all unusual cases take mitmproxy's path.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from mitmproxy.proxy.layers.http._http2 import Http2Server
from mitmproxy.proxy.layers.tls import TLSLayer
from mitmproxy.proxy.tunnel import TunnelState

from azure_openai_proxy.client_leg.tls import encrypted
from azure_openai_proxy.mitmproxy_patches.http1_server import PatchedHttp1Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http
    from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
    from mitmproxy.proxy.server import ConnectionHandler

__all__ = ["direct_writer"]


def direct_writer(stream: HttpStream, handler: ConnectionHandler) -> Callable[[bytes], bool] | None:
    """A function that writes parts of the response body to the client, or None if that is impossible now.

    The function returns False if the layers must process the bytes.
    """
    client = stream.context.client
    server = cast("HttpLayer", stream.context.layers[stream.context.layers.index(stream) - 1]).connections.get(client)
    io = handler.transports.get(client)
    writer = io and io.writer
    if (
        not isinstance(server, PatchedHttp1Server | Http2Server)
        or not isinstance(writer, asyncio.StreamWriter)
        or stream.debug is not None
        or stream.server_state != stream.state_stream_response_body
    ):
        return None
    tls = [layer for layer in stream.context.layers if isinstance(layer, TLSLayer) and layer.conn == client]
    if len(tls) != client.tls or any(layer.tunnel_state is not TunnelState.OPEN for layer in tls):
        return None  # it has not begun, or is TLS within TLS
    response = cast("http.Response", stream.flow.response)
    framed = _http2_frames(server, stream.stream_id) if isinstance(server, Http2Server) else server.http1.framed
    stored = stream.context.options.store_streamed_bodies
    write, is_closing, streaming = writer.transport.write, writer.transport.is_closing, stream.state_stream_response_body
    register_activity: Callable[[], None] = handler.timeout_watchdog.register_activity

    def take(body: bytes) -> bool:
        if stream._paused or stream.server_state != streaming:  # noqa: SLF001 - there is no public attribute
            return False
        register_activity()
        try:
            transform = response.stream
            chunks = transform(body) if callable(transform) else [body]
            for chunk in [chunks] if isinstance(chunks, bytes) else chunks:
                if stored:
                    stream.response_body_buf += chunk
                out = framed(chunk)
                if out and tls:
                    out = encrypted(tls[0].tls, out)
                if out and not is_closing():
                    write(out)
        except Exception:  # noqa: BLE001 - from a `stream` function of another addon: as in mitmproxy, the connection continues
            handler.log("mitmproxy has crashed!", logging.ERROR, exc_info=True)
        return True

    return take


def _http2_frames(server: Http2Server, stream_id: int) -> Callable[[bytes], bytes]:
    """A function that frames data for an HTTP/2 stream and returns the bytes to send.

    h2 takes 25 µs for a frame. One that needs no decision of h2 (the stream is open, nothing is buffered, and both windows and the maximum
    frame size allow it) is framed here; all others by mitmproxy's connection, which splits and buffers them.
    """
    http2 = server.h2_conn

    def framed(data: bytes) -> bytes:
        size = len(data)
        if not server.is_open_for_us(stream_id):
            return b""
        if http2.stream_buffers.get(stream_id) or size > min(http2.local_flow_control_window(stream_id), http2.max_outbound_frame_size):
            http2.send_data(stream_id, data)
            return http2.data_to_send()
        http2.outbound_flow_control_window -= size
        http2.streams[stream_id].outbound_flow_control_window -= size
        return b"%b%b\0\0%b%b" % (http2.data_to_send(), size.to_bytes(3), stream_id.to_bytes(4), data)

    return framed
