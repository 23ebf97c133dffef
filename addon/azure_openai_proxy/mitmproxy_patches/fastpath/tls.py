"""Chunks through TLS without its layers; a room of `http_layer`, for it uses their OpenSSL connections.

What comes from upstream is decrypted, and what goes to the client encrypted, by the connection of the layer that does it otherwise.
If the layers must see what came after all, the layer upstream has it as the next thing that it receives.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.tls import ServerTLSLayer, TLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from OpenSSL import SSL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mitmproxy.connection import Connection
    from mitmproxy.proxy.layer import CommandGenerator, Layer

__all__ = ["KNOWN", "Upstream", "of", "sealed", "upstream"]

MOST = 1 << 16
"""Bytes that are asked of OpenSSL at once; a record has a quarter of that."""

KNOWN: dict[type, dict[str, str | None]] = {
    TLSLayer: {"receive_data": "self data", "event_to_child": "self event", "tls": None, "tunnel_state": None},
    SSL.Connection: {"bio_read": None, "bio_write": None, "recv": None, "sendall": None},
}


class Upstream(ServerTLSLayer):
    """TLS upstream, of which somebody else reads, too."""

    ahead = b""
    """What was decrypted and is the layers' to see."""
    error: SSL.Error | None = None
    """What OpenSSL said of what came behind it, once."""

    def receive_data(self, data: bytes) -> CommandGenerator[None]:
        if self.ahead:
            ahead, self.ahead = self.ahead, b""
            yield from self.event_to_child(events.DataReceived(self.conn, ahead))
        if self.error:
            error, self.error = self.error, None
            yield commands.Log(f"TLS Error: {error}", logging.WARNING)  # as mitmproxy says it
        yield from super().receive_data(data)

    def read(self, data: bytes, answer: Callable[[bytes], None]) -> bytes | None:
        """What that is when decrypted, and TLS's own reply if it has one; None: the layers must see what is `ahead`, and the end."""
        self.tls.bio_write(data)
        pieces = []
        try:
            while True:
                pieces.append(self.tls.recv(MOST))
        except SSL.WantReadError:
            read = b"".join(pieces)
        except SSL.Error as error:
            self.ahead = b"".join(pieces)
            self.error = None if isinstance(error, SSL.ZeroReturnError) else error
            return None
        with suppress(SSL.WantReadError):
            answer(self.tls.bio_read(MOST))
        return read


def of(connection: Connection, layers: Iterable[Layer]) -> TLSLayer | None:
    """The one of these layers that does a connection's TLS; None when it has none, or TLS within TLS."""
    found = [layer for layer in layers if isinstance(layer, TLSLayer) and layer.conn == connection]
    return found[0] if len(found) == 1 and found[0].tunnel_state is TunnelState.OPEN else None


def upstream(layer: TLSLayer) -> Upstream:
    layer.__class__ = Upstream
    return cast("Upstream", layer)


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
