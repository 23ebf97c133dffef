"""Chunks through TLS without its layers; a room of `http_layer`, for it uses their OpenSSL connections.

What goes to the client is encrypted by the connection of the layer that does it otherwise.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mitmproxy.proxy.layers.tls import TLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from OpenSSL import SSL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mitmproxy.connection import Connection
    from mitmproxy.proxy.layer import Layer

__all__ = ["of", "sealed"]

MOST = 1 << 16
"""Bytes that are asked of OpenSSL at once; a record has a quarter of that."""


def of(connection: Connection, layers: Iterable[Layer]) -> TLSLayer | None:
    """The one of these layers that does a connection's TLS; None when it has none, or TLS within TLS."""
    found = [layer for layer in layers if isinstance(layer, TLSLayer) and layer.conn == connection]
    return found[0] if len(found) == 1 and found[0].tunnel_state is TunnelState.OPEN else None


def sealed(layer: TLSLayer) -> Callable[[bytes], bytes]:
    """What encrypts for that layer's connection."""
    tls = layer.tls

    def seal(data: bytes) -> bytes:
        with suppress(SSL.Error):  # the peer has gone; the layers will be told
            tls.sendall(data)
        pieces = []
        with suppress(SSL.WantReadError):
            while True:
                pieces.append(tls.bio_read(MOST))
                if len(pieces[-1]) < MOST:
                    break
        return b"".join(pieces)

    return seal
