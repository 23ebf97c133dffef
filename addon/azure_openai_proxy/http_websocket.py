"""A WebSocket after its upgrade: one that breaks off is not told as a regular end.

mitmproxy closes the other side with 1000 then, and a client takes half an answer for a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mitmproxy.proxy.layers.http import HttpStream
from mitmproxy.proxy.layers.websocket import WebsocketConnection, WebsocketLayer
from wsproto.events import CloseConnection, Event
from wsproto.frame_protocol import CloseReason

if TYPE_CHECKING:
    from mitmproxy.proxy import commands
    from mitmproxy.proxy.layer import CommandGenerator

__all__ = ["Upgrading"]


class ToClient(WebsocketConnection):
    def send2(self, event: Event) -> commands.SendData:
        # OpenAI's SDKs connect again after 1011, and after nothing else that a proxy could say.
        return super().send2(_told(event, CloseReason.INTERNAL_ERROR, "The connection upstream broke off."))


class ToServer(WebsocketConnection):
    def send2(self, event: Event) -> commands.SendData:
        return super().send2(_told(event, CloseReason.GOING_AWAY, "The client is gone."))


def _told(event: Event, code: CloseReason, reason: str) -> Event:
    broke_off = isinstance(event, CloseConnection) and event.code == CloseReason.ABNORMAL_CLOSURE
    return CloseConnection(code=code, reason=reason) if broke_off else event


class Upgrading(HttpStream):
    def flow_done(self) -> CommandGenerator[None]:
        doing = super().flow_done()
        reply: Any = None
        while True:
            try:
                command = doing.send(reply)
            except StopIteration:
                return
            if isinstance(child := self.child_layer, WebsocketLayer) and "server_ws" in vars(child):  # it has begun
                child.client_ws.__class__, child.server_ws.__class__ = ToClient, ToServer
            reply = yield command
