"""What the mends of mitmproxy's HTTP layer ask of the rest of the project, and in which words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.errors import Failure

    from .upstream_leg import Response

__all__ = ["ABSOLUTE_FORM", "CLIENT_HOST", "HttpPolicy", "UpstreamRequest"]

ABSOLUTE_FORM = "azure_openai_absolute_form"
"""The name in a flow's metadata, which a saved flow keeps."""
CLIENT_HOST = "azure_openai_client_host"
"""In a flow's metadata too: the Host that the client sent, where mitmproxy writes another over it (reverse mode)."""


class UpstreamRequest(Protocol):
    """One request on its way."""

    @property
    def backlog(self) -> int:
        """Bytes of the body that wait in the process."""

    def start(self) -> None: ...

    def add(self, data: bytes) -> None:
        """The next bytes of a streamed body."""

    def complete(self) -> None:
        """The body is complete."""

    def send_upgraded(self, data: bytes) -> None:
        """Bytes of the protocol that the connection was upgraded to."""

    def cancel(self) -> None:
        """The client is gone, or wants no more."""


class HttpPolicy(Protocol):
    """What the mends ask. The flow may be one that no hook has seen, and may lack a host; None is for a head that nobody can read."""

    @property
    def fast_path(self) -> bool:
        """Whether to take shorter ways than mitmproxy's."""

    def early_response(self, flow: http.HTTPFlow) -> http.Response | None:
        """A response that does not depend on the request's body: it is sent at once, and the body is discarded unread."""

    def max_body(self, flow: http.HTTPFlow) -> int | None:
        """Bytes that the request's body may have. None: not ours, mitmproxy's own rules hold."""

    def max_message(self, flow: http.HTTPFlow) -> int | None:
        """Bytes that a WebSocket's message may have, from either side. None: not ours."""

    def may_stream_upload(self, flow: http.HTTPFlow) -> bool:
        """Whether a large body may be sent on before all of it has come; then `max_body` does not hold."""

    def start_streamed_upload(self, flow: http.HTTPFlow, start: bytes) -> None:
        """Make the request the one for upstream, with `stream` set for its body, or give it a response. `start` is what has come so far."""

    def on_the_wire(self, flow: http.HTTPFlow) -> http.Request | Failure:
        """The flow's request with what the flow does not show: its keys. A failure: it must not be sent."""

    def takes(self, flow: http.HTTPFlow) -> bool:
        """Whether the flow's request goes upstream by `send_upstream`. False: mitmproxy sends it."""

    def send_upstream(self, flow: http.HTTPFlow, client: Response, *, streamed: bool) -> UpstreamRequest:
        """Who sends the flow's request and gives `client` the response. `streamed`: its body is still to come."""

    def answer(self, failure: Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        """What the client is told. None: not ours, mitmproxy does what it always does."""

    def last_event(self, failure: Failure, flow: http.HTTPFlow) -> bytes | None:
        """The event that ends a stream that broke off. None: not ours."""
