"""What a failed attempt says: about the backend, about the request, and how useful it is for the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy import http

from . import repair, tiers

if TYPE_CHECKING:
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import ClientRequest
    from azure_openai_proxy.errors import Failure

__all__ = [
    "BACKEND_STATUSES",
    "FAILOVER_STATUSES",
    "GONE",
    "cause",
    "is_missing",
    "is_repeatable",
    "is_tier_refusal",
    "is_unknown",
    "rank",
]

FAILOVER_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which another backend may succeed."""
BACKEND_STATUSES = frozenset({401, 403, 404})
"""Statuses that concern one backend's key, permissions or deployments."""
GONE = frozenset({"upstream_unreachable", "upstream_connect_timeout", "upstream_error"})
"""Failures without an answer of the backend. One that takes too long is not gone."""
_UNKNOWN = frozenset({"invalid_encrypted_content", "previous_response_not_found"})
"""Codes of errors about items and responses that another backend made."""


def cause(what: Failure | http.Response) -> str:
    """The status of a failed response, or the code of another failure."""
    return str(what.status_code) if isinstance(what, http.Response) else what.code


def is_missing(response: http.Response) -> bool:
    """Whether the deployment does not exist or the key may not use it. A wrong path, id or version of the client does not count."""
    if response.status_code == 404:
        code = repair.error_object(response.get_content(strict=False) or b"").get("code")
        return isinstance(code, str) and code.lower() == "deploymentnotfound"
    return response.status_code == 401 or (
        response.status_code == 403 and bool(repair.error_object(response.get_content(strict=False) or b""))
    )  # (a gateway's 403 without Azure's error object may concern the text of one prompt)


def is_unknown(response: http.Response) -> bool:
    """Whether the backend does not know an object that the request refers to: another one may have made it."""
    if response.status_code != 400:
        return False
    said = repair.error_object(response.get_content(strict=False) or b"")
    return str(said.get("code")) in _UNKNOWN or str(said.get("message")).startswith("Item with id '")


def is_tier_refusal(response: http.Response, tier: str) -> bool:
    """Whether Azure refused the tier of the request; never if it has none."""
    return bool(tier) and tiers.is_refusal(response, tier)


def is_repeatable(call: Call, client_request: ClientRequest) -> bool:
    """Whether a request is safe to send twice."""
    if call.method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "WS"):
        return True
    if call.method != "POST" or not call.endpoint.repeatable:
        return False
    return b'"background"' not in client_request.content or not repair.read(client_request).get("background")


def rank(response: http.Response, tier: str) -> int:
    """Rank of a failure by its use for the client: other 4xx first, then 429, 5xx, and a key or deployment missing at one backend."""
    status = response.status_code
    if status == 429:
        return 3
    if status in FAILOVER_STATUSES:
        return 2
    return 1 if status in BACKEND_STATUSES or is_tier_refusal(response, tier) else 4
