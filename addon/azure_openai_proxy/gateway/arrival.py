"""The client's request as it arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.api import credentials, realtime
from azure_openai_proxy.api import request as azure_request

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from mitmproxy import http

__all__ = ["Arrival", "is_upgrade", "operation_method", "path_of"]


class Arrival(NamedTuple):
    """The parts of the client's request that the stages of its translation read."""

    request: http.Request
    method: str
    path: str
    query: azure_request.Query
    content: bytes  # the body, or the beginning of a streamed one
    more: bool  # the rest of the body is streamed

    @classmethod
    def read(cls, request: http.Request, start: bytes | None, replaced: AbstractSet[str]) -> Arrival:
        """Read a request, and remove the key from its query. `start`: the available beginning of a streamed body.

        `replaced`: the API versions, in lower case, instead of which the configured one is used.
        """
        path, _, query_text = request.path.partition("?")
        query = azure_request.Query.read(query_text)
        if query.api_key:
            request.path = credentials.without_key(request.path)  # the flow is kept even if the request is rejected
        if query.api_version.lower() in replaced:
            query = query._replace(api_version="")
        if not query.api_key and (key := realtime.key(request.headers)):
            query = query._replace(api_key=key)
        content = (request.raw_content or b"") if start is None else start
        return cls(request, request.method, path, query, content, more=start is not None)


def path_of(request: http.Request) -> str:
    """The path of a request without its query."""
    return request.path.partition("?")[0]


def is_upgrade(request: http.Request) -> bool:
    """Whether a request opens a WebSocket."""
    return request.method == "GET" and str(request.headers.get("upgrade", "")).lower() == "websocket"


def operation_method(request: http.Request) -> str:
    """The method by which `api.operation` knows a request; "WS" for a WebSocket upgrade."""
    return "WS" if is_upgrade(request) else request.method
