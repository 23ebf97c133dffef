"""The content views of OpenAI flows: the conversation, the answer, the request before translation and the response before translation.

A flow contains the request as sent to Azure and the response as sent to the client. The client's request and Azure's response are
in the flow's metadata (`flow_metadata`). The first two views are the default for OpenAI flows and selectable for any flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy import contentviews, http
from mitmproxy.contentviews import Contentview, Metadata

from . import flow_metadata, request_text, response_text

if TYPE_CHECKING:
    from mitmproxy.contentviews import SyntaxHighlight
    from mitmproxy.optmanager import OptManager

__all__ = ["VIEWS", "AsAzureView", "ConversationView", "ResponseView", "register"]

_NO = -1.0
_OFFERED = 0.0
_CHOSEN = 2.0  # above 1 beats JSON


class ConversationView(Contentview):
    name = "Conversation"
    syntax_highlight: SyntaxHighlight = "none"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        return request_text.conversation(data, _content_type(metadata))

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        if not data or not _from_client(metadata):
            return _NO
        return _CHOSEN if flow_metadata.is_ours(metadata.flow) and _is_text(data, metadata) else _OFFERED


class ResponseView(Contentview):
    name = "Answer"
    syntax_highlight: SyntaxHighlight = "none"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        if metadata.websocket_message or metadata.flow is None:
            return response_text.render(data, _content_type(metadata))
        saved = flow_metadata.parse(metadata.flow)
        return response_text.render(data, _content_type(metadata), chunks=saved.chunks, azure_body=saved.azure_body)

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        if not data or _from_client(metadata):
            return _NO
        return _CHOSEN if flow_metadata.is_ours(metadata.flow) and _is_text(data, metadata) else _OFFERED


class AsClientView(Contentview):
    """The client's request, before translation."""

    name = "As the client sent it"
    syntax_highlight: SyntaxHighlight = "none"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        client_request = flow_metadata.parse(metadata.flow).client_request if metadata.flow else None
        if client_request is None:
            raise ValueError("this flow does not contain the client's request")
        return flow_metadata.message(f"{client_request.method} {client_request.path}", client_request.headers, client_request.body(data))

    def render_priority(self, data: bytes, metadata: Metadata) -> float:  # noqa: ARG002 - as mitmproxy calls it
        return _OFFERED if _from_client(metadata) and not metadata.websocket_message and flow_metadata.is_ours(metadata.flow) else _NO


class AsAzureView(Contentview):
    """Azure's response, before translation."""

    name = "As Azure sent it"
    syntax_highlight: SyntaxHighlight = "none"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        saved = flow_metadata.parse(metadata.flow) if metadata.flow else flow_metadata.NOTHING
        return flow_metadata.message(saved.status, saved.headers, data if saved.azure_body is None else saved.azure_body)

    def render_priority(self, data: bytes, metadata: Metadata) -> float:  # noqa: ARG002 - as mitmproxy calls it
        return _OFFERED if not _from_client(metadata) and not metadata.websocket_message and flow_metadata.is_ours(metadata.flow) else _NO


VIEWS = (ConversationView(), ResponseView(), AsClientView(), AsAzureView())


def register(options: OptManager) -> None:
    """Register the views, and add the comment column to mitmweb's list unless the user has configured the columns."""
    for view in VIEWS:
        contentviews.add(view)  # replaces a view of the same name, so the addon can be reloaded
    if "web_columns" in options and not options.has_changed("web_columns"):
        options.web_columns = [*options.web_columns, "comment"]


def _content_type(metadata: Metadata) -> str:
    """The content type with its parameters, such as a form's boundary."""
    if metadata.http_message is not None:
        return str(metadata.http_message.headers.get("content-type", ""))
    return metadata.content_type or ""


def _from_client(metadata: Metadata) -> bool:
    if metadata.websocket_message:
        return metadata.websocket_message.from_client
    return isinstance(metadata.http_message, http.Request)


def _is_text(data: bytes, metadata: Metadata) -> bool:
    """Whether the body is JSON, an event stream or a form. mitmproxy has views for audio and images."""
    kind = _content_type(metadata).lower()
    return kind.startswith(("application/json", "text/event-stream", "multipart/")) or data[:1] in (b"{", b"[")
