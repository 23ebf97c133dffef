"""An HTTP/1 client connection, which `client_leg.http1_connection` implements, in mitmproxy's HTTP layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_error_response

from azure_openai_proxy.client_leg.gate import Pause
from azure_openai_proxy.client_leg.http1_connection import Disconnected, Http1Connection, Unreadable
from azure_openai_proxy.client_leg.http1_requests import End, Head

from . import connections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mitmproxy.connection import Client
    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.layer import CommandGenerator

    from azure_openai_proxy.client_leg.http1_connection import Output
    from azure_openai_proxy.client_leg.interface import HttpPolicy

__all__ = ["LastOfConnection", "PatchedHttp1Server", "RequestUnreadable", "WholeRequest"]


@dataclass
class WholeRequest(http_events.RequestHeaders):
    """A request whose body was received with its head. The layers between here and the stream are passed once, not three times."""

    content: bytes = b""


class RequestUnreadable(HttpEvent):
    """The rest of a request cannot be parsed."""

    def __init__(self, stream_id: int, unreadable: Unreadable) -> None:
        super().__init__(stream_id)
        self.message, self.instead = unreadable


class LastOfConnection(http_events.ResponseEndOfMessage):
    """The end of a response or an upgraded connection, after which an HTTP/1 client may still send: what follows is no request."""


class PatchedHttp1Server(Http1Server):
    """Only the class is mitmproxy's, and the number of the current request, which mitmproxy needs for injected messages."""

    def __init__(self, context: Context, policy: HttpPolicy, half_closed: Callable[[], bool]) -> None:
        super().__init__(context)
        self.http1 = Http1Connection(
            self.conn,
            error_response=lambda failure: policy.error_response(failure, None),
            page=make_error_response,
            half_closed=half_closed,
        )
        self._half_closed = half_closed
        self._pause: Pause | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        for output in self.outputs(event):
            self.stream_id = self.http1.number
            yield output if isinstance(output, commands.Command) else self.event(output)
        self.stream_id = self.http1.number
        if (self.http1.is_full and self.conn.state is not ConnectionState.CLOSED) is not bool(self._pause):
            self.pause_or_resume()

    def pause_or_resume(self) -> None:
        """Read nothing more from the client while it is ahead, and watch for its disconnection as after a half-close.

        Not during a response that mitmproxy itself reads from upstream: it would wait, too. Nor once the connection is closed: mitmproxy
        then waits for the tasks of all transports, and fails if none has a task.
        """
        if self._pause:
            self._pause.remove()
            self._pause = None
        elif (handler := connections.handler(cast("Client", self.conn))) and self._half_closed():
            self._pause = Pause(handler.transports)

    def outputs(self, event: events.Event) -> Iterator[Output]:
        match event:
            case events.DataReceived():
                return self.http1.receive(event.data)
            case http_events.ResponseHeaders():
                return self.http1.begin(event.response)
            case http_events.ResponseData():
                return self.http1.body(event.data)
            case http_events.ResponseEndOfMessage():
                return self.http1.end(last=isinstance(event, LastOfConnection))
            case http_events.ResponseProtocolError():
                return self.http1.fail(event.code.http_status_code(), event.message)
            case events.ConnectionClosed() | events.Wakeup():
                return self.http1.close()
        return iter(())  # the start; trailers, which mitmproxy does not support either

    def event(self, output: Head | bytes | End | Unreadable | Disconnected) -> commands.Command:
        """The command that passes a part of a request on to its stream."""
        match output:
            case bytes():
                return ReceiveHttp(http_events.RequestData(self.stream_id, output))
            case Head(request, has_body, None):
                return ReceiveHttp(http_events.RequestHeaders(self.stream_id, request, not has_body))
            case Head(request, has_body, bytes(body)):
                return ReceiveHttp(WholeRequest(self.stream_id, request, not has_body, content=body))
            case End.END:
                return ReceiveHttp(http_events.RequestEndOfMessage(self.stream_id))
            case Unreadable():
                return ReceiveHttp(RequestUnreadable(self.stream_id, output))
            case _:
                return ReceiveHttp(
                    http_events.RequestProtocolError(self.stream_id, "Client disconnected.", http_events.ErrorCode.CLIENT_DISCONNECTED)
                )
