"""The interface between mitmproxy's HTTP layer, as it is patched, and the rest of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.errors import Failure

    from .flow_control import FlowControl, UpstreamRequest

__all__ = ["ABSOLUTE_FORM", "CLIENT_HOST", "HttpPolicy"]

ABSOLUTE_FORM = "azure_openai_absolute_form"
"""Key in a flow's metadata: whether the request target was in absolute form. Saved flows contain it."""
CLIENT_HOST = "azure_openai_client_host"
"""Key in a flow's metadata: the client's Host header, which mitmproxy overwrites in reverse mode."""


class HttpPolicy(Protocol):
    """Decisions that the patched HTTP layer requests. The flow may not have been passed to any hook yet, and may lack a host.

    The flow is None for a request whose head cannot be parsed.
    """

    @property
    def fast_path(self) -> bool:
        """Whether to use the fast path."""

    def early_response(self, flow: http.HTTPFlow) -> http.Response | None:
        """A response to send immediately, without reading the request body, which is discarded."""

    def max_body(self, flow: http.HTTPFlow) -> int | None:
        """Maximum bytes of the request body. None for requests that are not translated, to which mitmproxy's own limits apply."""

    def max_message(self, flow: http.HTTPFlow) -> int | None:
        """Maximum bytes of a WebSocket message in either direction. None for requests that are not translated."""

    def may_stream_upload(self, flow: http.HTTPFlow) -> bool:
        """Whether a large body may be forwarded before it is complete. If so, `max_body` does not apply."""

    def start_streamed_upload(self, flow: http.HTTPFlow, start: bytes) -> None:
        """Translate the request and set `stream` for its body, or set a response. `start`: the part of the body received so far."""

    def request_with_keys(self, flow: http.HTTPFlow) -> http.Request | Failure:
        """A copy of the flow's request with the keys, which the flow does not contain. A `Failure` if it must not be sent."""

    def takes(self, flow: http.HTTPFlow) -> bool:
        """Whether `send_upstream` sends the flow's request; otherwise mitmproxy does."""

    def send_upstream(self, flow: http.HTTPFlow, client: FlowControl, *, streamed: bool) -> UpstreamRequest:
        """Create the task that sends the flow's request and passes the response to `client`. `streamed`: the body is not complete yet."""

    def error_response(self, failure: Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        """The error response for the client. None for requests that are not translated: mitmproxy then handles the error."""

    def last_event(self, failure: Failure, flow: http.HTTPFlow) -> bytes | None:
        """The event that ends a truncated stream. None for requests that are not translated."""
