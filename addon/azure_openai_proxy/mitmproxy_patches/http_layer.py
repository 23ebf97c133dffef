"""The HTTP layer of a client connection with the patched streams and connections, and TLS that sends close_notify."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, cast

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, is_h3_alpn
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestProtocolError
from mitmproxy.proxy.layers.tls import ClientTLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from OpenSSL import SSL

from azure_openai_proxy.client_leg.option_values import values_of
from azure_openai_proxy.client_leg.tls import encrypted
from azure_openai_proxy.client_leg.writes import joined

from . import connections
from .http1_server import PatchedHttp1Server
from .http2_server import PatchedHttp2Server
from .http_stream import PatchedStream
from .upstream_leg import FromUpstream, Leg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mitmproxy.proxy.layer import CommandGenerator, Layer

    from azure_openai_proxy.client_leg.interface import HttpPolicy

    from .upstream_leg import DirectWriter, Response

__all__ = ["PatchedHttpLayer", "patch"]


class PatchedHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer with patched streams and patched connections of the client, and with the upstream leg."""

    policy: HttpPolicy
    direct_writer: DirectWriter | None
    requests: dict[int, Response]  # those that the upstream leg sends, by their streams
    leg: Leg | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        return joined(self.dispatch(event))

    def dispatch(self, event: events.Event) -> CommandGenerator[None]:
        client = self.context.client
        if isinstance(event, events.Start) and not is_h3_alpn(client.alpn):
            http2 = client.alpn == b"h2"
            context = self.context.fork()
            self.connections[client] = (
                PatchedHttp2Server(context, self.requests) if http2 else PatchedHttp1Server(context, self.policy, self.half_closed)
            )
        if isinstance(event, FromUpstream) and self.leg and event.connection is self.leg.conn:
            return self.from_upstream(event)
        return cast("CommandGenerator[None]", super()._handle_event(event))

    # The upstream leg

    def make_leg(self) -> Leg | None:
        """Create the leg if there is none. None if mitmproxy has closed the client's connection."""
        if self.leg is None and (handler := connections.handler(self.context.client)):
            self.leg = leg = Leg(self, handler)
            self.connections[leg.conn] = leg
            layers = self.context.layers
            for at, outer in enumerate(layers[: layers.index(self)]):
                if isinstance(outer, HttpLayer):
                    outer.connections[leg.conn] = layers[at + 1]
        return self.leg

    def from_upstream(self, event: FromUpstream) -> CommandGenerator[None]:
        for one in event.out:
            if stream := self.streams.get(one.stream_id):
                yield from self.event_to_child(stream, one)
        yield from event.commands

    # The client

    def half_closed(self) -> bool:
        """Whether to answer an HTTP/1 client that has half-closed its connection. If so, watch for its disconnection."""
        server = cast("PatchedHttp1Server", self.connections[self.context.client])
        stream = self.streams.get(server.stream_id)
        if not isinstance(stream, PatchedStream) or not self.policy.takes(stream.flow):
            return False
        return connections.watch(self.context.client, lambda: self.client_left(server.stream_id))

    def client_left(self, stream_id: int) -> None:
        """Cancel the request of a client that has disconnected. mitmproxy does not notice after a half-close, as it no longer reads."""
        leg = cast("Leg", self.make_leg())  # the connection is still open on this side
        leg.inject([RequestProtocolError(stream_id, "Client disconnected.", ErrorCode.CLIENT_DISCONNECTED)])

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        context, own = object.__new__(Context), self.context  # `fork` first constructs a server with a UUID of its own (13 µs)
        vars(context).update(vars(own), layers=own.layers.copy(), options=values_of(own.options))
        self.streams[stream_id] = PatchedStream(context, stream_id, self)
        return iter(())  # type: ignore[return-value] # the caller delegates to it


class ClientTLS(ClientTLSLayer):
    """Client TLS that sends close_notify. Without it, clients treat a response without a length as truncated."""

    def send_data(self, data: bytes) -> CommandGenerator[None]:
        if out := encrypted(self.tls, data):
            yield commands.SendData(self.conn, out)

    def send_close(self, command: commands.CloseConnection) -> CommandGenerator[None]:
        if self.tunnel_state in (TunnelState.OPEN, TunnelState.CLOSED):
            with suppress(SSL.Error):
                self.tls.shutdown()
            yield from self.tls_interact()
        yield from super().send_close(command)


def patch(layers: Iterable[Layer], policy: HttpPolicy, direct_writer: DirectWriter | None) -> None:
    for layer in layers:
        if type(layer) is ClientTLSLayer:
            layer.__class__ = ClientTLS
        if type(layer) is HttpLayer:
            layer.__class__ = PatchedHttpLayer
            vars(layer).update(policy=policy, direct_writer=direct_writer, requests={})
