"""Faults of the status: a refusal in the place of the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from . import errors, headers
from .errors import AzureError

if TYPE_CHECKING:
    from .answers import Answer
    from .calls import Call
    from .faults import Fault

__all__ = ["content_filter", "echoing_key", "service_tier", "status", "stream_options"]

_MESSAGES = {
    408: "The operation was timeout.",
    500: "The server had an error while processing your request. Sorry about that!",
    502: "Bad gateway",
    503: "The service is temporarily unable to process your request. Please try again later.",
    504: "The upstream did not answer in time.",
}
"""Unverified, all of them; Azure's gateways word them in many ways."""


def _refusal(code: int, call: Call, retry_after: float) -> AzureError:
    if code == 401:
        return errors.no_access()
    if code == 404:
        return errors.deployment_not_found()
    if code == 429:
        name = call.operation.name if call.operation else "Unknown"
        return errors.too_many_requests(name, call.version or None, str(call.deployment), max(1, round(retry_after)))
    return AzureError(code, {"code": str(code), "message": _MESSAGES.get(code, f"Status {code}")})


_BODIES = {"html": (b"<html><head><title>{}</title></head><body><h1>{}</h1></body></html>", "text/html"), "empty": (b"", None)}


def status(code: int, body: Literal["json", "html", "empty"] = "json", *, retry_after: float | None = None, **more: str | None) -> Fault:
    """That status, with Azure's own words or another kind of body. A 429 has its retry and rate-limit headers (`retry_after`: seconds, 10).

    `more` changes its fields: `status(429, retry_after_ms=None, policy_id="DeploymentRatelimit-Token")`.
    """

    def fault(answer: Answer, call: Call) -> Answer:
        after = 10 if retry_after is None else retry_after
        refused = _refusal(code, call, after).answer.with_headers(**headers.gateway())
        if body != "json":
            text, content_type = _BODIES[body]
            refused = replace(refused, parts=(text.replace(b"{}", str(code).encode()),) if text else ())
            refused = refused.with_headers(content_type=content_type)
        if code == 429 or retry_after is not None:
            refused = refused.with_headers(retry_after=str(max(1, round(after))), retry_after_ms=str(round(after * 1000)))
        if code == 429:
            seconds = max(1, round(after))
            refused = refused.with_headers(**headers.limits(0, 0, seconds, seconds))
        return refused.with_headers(**more)

    return fault


def content_filter(answer: Answer, call: Call) -> Answer:
    """400: the prompt was filtered."""
    refused = errors.content_filter().answer
    return replace(refused, headers={**answer.headers, **refused.headers})


def echoing_key(answer: Answer, call: Call) -> Answer:
    """401 whose text repeats what the client sent as its key."""
    given = call.received.header("api-key") or call.received.header("authorization") or ""
    error = {"code": "401", "message": f"Access denied due to invalid subscription key: {given}"}
    return AzureError(401, error).answer.with_headers(**headers.gateway())


def stream_options(answer: Answer, call: Call) -> Answer:
    """400 to a request with `stream_options`, as of a deployment that does not know them; any other request is answered."""
    if call.asked.get("stream_options") is None:
        return answer
    return errors.unrecognized(["stream_options"]).answer.with_headers(**headers.gateway())


def service_tier(answer: Answer, call: Call) -> Answer:
    """400 to a request with another `service_tier` than Azure's defaults, as of a deployment that does not have it; unverified wording."""
    tier = call.asked.get("service_tier")
    if tier in (None, "auto", "default"):
        return answer
    error = {"message": f"Invalid service_tier argument: {tier}", "type": "invalid_request_error", "param": "service_tier", "code": None}
    return AzureError(400, error).answer.with_headers(**headers.gateway())
