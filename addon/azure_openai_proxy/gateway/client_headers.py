"""Headers of all responses to the client: those of its connection, and the proxy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure_openai_proxy import errors
from azure_openai_proxy.api import realtime, response_headers

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.routing.attempts import Attempts

__all__ = ["set_connection", "set_own"]


def set_connection(response: http.Response, client_headers: http.Headers | None, *, played: bool) -> None:
    """Set the headers that the client expects of its connection or its WebSocket.

    `client_headers`: those of a request that was sent to Azure, as the client sent them; `played`: a recording answers the request.
    """
    upgraded = response.status_code == 101
    if upgraded or played:
        response_headers.drop_origin_headers(response.headers)
    if client_headers is None:
        return
    if upgraded and (protocol := realtime.accepted_protocol(client_headers, response.headers)):
        response.headers["sec-websocket-protocol"] = protocol
    elif response.is_http11 and "close" in client_headers.get("connection", "").lower():
        response.headers["connection"] = "close"  # mitmproxy looks for it in the request, which was rewritten


def set_own(headers: http.Headers, attempts: Attempts | None, *, is_azures: bool, debug: bool) -> None:
    """Set the proxy's own headers: the id of a response that is not Azure's, and what it has left out of the request.

    `debug`: report the attempts too (`azure_openai_debug_headers`).
    """
    if not is_azures:
        headers.setdefault("x-request-id", errors.request_id())
        headers.setdefault("x-content-type-options", "nosniff")
    if attempts is None:
        return
    if attempts.tier_dropped:
        headers["x-azure-openai-proxy-tier-fallback"] = attempts.tier_dropped
    if attempts.dropped:
        headers["x-azure-openai-proxy-lost-items"] = str(attempts.dropped)
    if debug:
        headers.update(attempts.headers())
