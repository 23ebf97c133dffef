"""Encryption of response chunks without mitmproxy's TLS layer, but with the layer's OpenSSL connection."""

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
"""Bytes per read from OpenSSL; a record has at most a quarter of that."""


def of(connection: Connection, layers: Iterable[Layer]) -> TLSLayer | None:
    """The TLS layer of a connection; None if it has none, or TLS within TLS."""
    found = [layer for layer in layers if isinstance(layer, TLSLayer) and layer.conn == connection]
    return found[0] if len(found) == 1 and found[0].tunnel_state is TunnelState.OPEN else None


def sealed(layer: TLSLayer) -> Callable[[bytes], bytes]:
    """A function that encrypts data for the layer's connection."""
    tls = layer.tls

    def seal(data: bytes) -> bytes:
        with suppress(SSL.Error):  # the peer has disconnected; the layers get their own event
            tls.sendall(data)
        pieces = []
        with suppress(SSL.WantReadError):
            while True:
                pieces.append(tls.bio_read(MOST))
                if len(pieces[-1]) < MOST:
                    break
        return b"".join(pieces)

    return seal
