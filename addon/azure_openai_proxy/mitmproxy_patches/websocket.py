"""WebSocket connections after the upgrade: a size limit for messages, and close codes for broken connections.

mitmproxy buffers each message completely, and decompresses it, without a limit. If a connection breaks, it closes the other side with code
1000 (normal), so that a client takes a truncated response for a complete one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from mitmproxy.proxy.layers.http import HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import ResponseProtocolError
from mitmproxy.proxy.layers.websocket import WebsocketConnection, WebsocketLayer

from azure_openai_proxy.client_leg.message_limit import MessageLimit, for_client, for_server, limit_inflation

from .http1_server import LastOfConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mitmproxy.proxy import commands, events
    from mitmproxy.proxy.layer import CommandGenerator
    from wsproto.events import Event

    from azure_openai_proxy.client_leg.interface import HttpPolicy

__all__ = ["Upgrading"]


class Limited(WebsocketConnection):
    """One side of a WebSocket with a limit for messages."""

    limit: MessageLimit
    adapted: Callable[[Event, MessageLimit], Event]
    """Returns the event to send to this side for one of the other."""

    def events(self) -> Iterator[Event]:
        return self.limit.checked(super().events(), lambda: self.state.name == "OPEN")

    def send2(self, event: Event) -> commands.SendData:
        return super().send2(self.adapted(event, self.limit))


class Upgrading(HttpStream):
    policy: HttpPolicy

    def limit(self, websocket: WebsocketLayer) -> None:
        limit = self.policy.max_message(self.flow)
        sides: Any = ((websocket.client_ws, for_client), (websocket.server_ws, for_server))
        for side, adapted in sides:
            side.__class__ = Limited
            vars(side).update(limit=MessageLimit(limit), adapted=adapted)
            if limit is not None:
                limit_inflation(side._proto.extensions, limit)  # noqa: SLF001 - there is no public attribute

    def passthrough(self, event: events.Event) -> CommandGenerator[None]:
        doing, child = super().passthrough(event), self.child_layer
        return self.relayed(doing, child) if isinstance(child, WebsocketLayer) else doing

    def relayed(self, doing: CommandGenerator[None], child: WebsocketLayer) -> CommandGenerator[None]:
        """Close the connection of a client that is still sending gracefully: a TCP reset could overtake the close frame."""
        if type(child.client_ws) is WebsocketConnection:
            self.limit(child)  # before the first message
        for command in doing:
            if (
                isinstance(command, SendHttp)
                and isinstance(command.event, ResponseProtocolError)
                and cast("Any", child.client_ws).limit.exceeded
            ):
                command.event = LastOfConnection(self.stream_id)
            yield command
        if not self.flow.live:  # both sides are closed
            self.child_layer, self._handle_event = None, self.state_errored
            for side in (child.client_ws, child.server_ws):
                side.frame_buf = [b""]
            del child.flow, self.flow
