"""Responses that the proxy generates itself: health checks, CORS preflights, the list of models, billing stubs."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .large_bodies import LargeBody
    from .model_mapping import Mapper
    from .operation import Call

__all__ = [
    "KEY_PAGE",
    "MODERATION_INPUTS",
    "MOST_MODERATIONS",
    "add_cors",
    "health",
    "is_own_page",
    "is_probe",
    "is_self_service",
    "not_found",
    "preflight",
    "respond",
    "unflagged_moderation",
    "welcome",
]

_WELCOME = """\
Azure OpenAI Proxy: OpenAI's API, answered by Azure OpenAI.

Point an OpenAI client here (base URL: this address with /v1), or send it through as a proxy.
Available models: GET /v1/models
"""

KEY_PAGE = "/azure-openai-proxy/key"
"""The page about a client's key."""
_FOR_PROBES = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", "x-azure-openai-proxy": "1"}
"""`azure-openai-proxy doctor` recognises the proxy by the last header before it sends a key."""
_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
MOST_MODERATIONS = 2048
"""Maximum number of texts in one request. The response has a result for each, which is many times longer than the shortest text."""
MODERATION_INPUTS = "input.*"
"""The place of the inputs in a large body."""


def welcome() -> http.Response:
    """Return the page for a browser that opens the proxy's address."""
    return http.Response.make(200, _WELCOME, {"content-type": "text/plain; charset=utf-8"})


def is_own_page(method: str, path: str) -> bool:
    """Return whether the request is not one of the API: a preflight, a health check or the start page."""
    return method == "OPTIONS" or (method in ("GET", "HEAD") and (is_probe(path) or path.partition("?")[0] == "/"))


def is_self_service(method: str, path: str) -> bool:
    """Return whether a client asks what its key has left: such a request has no usage record."""
    bare = path.partition("?")[0]
    return method in ("GET", "HEAD") and (bare == KEY_PAGE or "/dashboard/billing/" in bare)


def is_probe(path: str) -> bool:
    return path in ("/healthz", "/readyz")


def health(path: str, not_ready: Callable[[], str | None], detail: Callable[[], str] = str) -> http.Response | None:
    """Return the response to a health check; None for another path. `/healthz`: the process runs. `/readyz`: it can serve requests, with a
    detail if there is one, or 503 with the reason.
    """
    if not is_probe(path):
        return None
    if path == "/readyz" and (reason := not_ready()):
        return http.Response.make(503, f"{reason}\n", _FOR_PROBES)
    more = detail() if path == "/readyz" else ""
    return http.Response.make(200, f"ok: {more}\n" if more else "ok\n", _FOR_PROBES)


def not_found() -> http.Response:
    """Return the response for a path outside the API."""
    return http.Response.make(404, "Not found.\n", {"content-type": "text/plain; charset=utf-8"})


def respond(call: Call, mapper: Mapper, discovered: Sequence[str] = (), may_use: Callable[[str], bool] = lambda _: True) -> http.Response:
    """Return the response for an operation that the table assigns to the proxy. `discovered`: deployments in addition to the configured
    models; `may_use`: whether the client may use a model.

    Raises:
        NotFound: the mapping does not cover the model, or Azure lacks the operation.
    """
    match call.endpoint.handled_by:
        case "models":
            return _json(_models(call, mapper, discovered, may_use, _model))
        case "engines":
            return _json(_models(call, mapper, discovered, may_use, _engine))
        case "billing" if (probe := call.path.rpartition("/")[2]) in _BILLING:
            return _json(_BILLING[probe])
    instead = f" Instead: {call.endpoint.instead}." if call.endpoint.instead else ""
    raise NotFound(f"Azure OpenAI has no {call.operation}.{instead}", code="unsupported_by_azure")


def _models(
    call: Call, mapper: Mapper, discovered: Sequence[str], may_use: Callable[[str], bool], shape: Callable[[str], dict[str, object]]
) -> dict[str, object]:
    configured = mapper.names() if mapper.entries or not discovered else []  # the default entries are a guess
    names = list(filter(may_use, dict.fromkeys([*configured, *discovered])))
    if call.model is None:
        return {"object": "list", "data": [shape(name) for name in names]}
    if call.model in names or mapper.mapped(call.model):
        return shape(call.model)
    raise NotFound(
        f"The model '{call.model}' does not exist here. Configured models: {', '.join(names)}.", param="model", code="model_not_found"
    )


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "azure-openai"}


def _engine(name: str) -> dict[str, object]:
    return {"id": name, "object": "engine", "created": None, "owner": "azure-openai", "ready": True}


# Web front ends request these paths before they accept a key. Azure bills elsewhere, so all amounts are zero.
_BILLING: dict[str, dict[str, object]] = {
    "subscription": {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": 0,
        "hard_limit_usd": 0,
        "system_hard_limit_usd": 0,
        "access_until": 0,
    },
    "usage": {"object": "list", "daily_costs": [], "total_usage": 0},
    "credit_grants": {
        "object": "credit_summary",
        "total_granted": 0,
        "total_used": 0,
        "total_available": 0,
        "grants": {"object": "list", "data": []},
    },
}


def _json(value: object) -> http.Response:
    return http.Response.make(200, json.dumps(value), {"content-type": "application/json"})


def preflight(request: http.Request) -> http.Response:
    """Answer a CORS preflight. It allows every requested method and header.

    SDKs send a dozen headers of their own (`x-stainless-*`), so the requested list is echoed.
    """
    response = http.Response.make(204, b"", {"access-control-max-age": "86400"})
    echoed = {
        "access-control-request-method": "access-control-allow-methods",
        "access-control-request-headers": "access-control-allow-headers",
    }
    for requested, allowed in echoed.items():
        if requested in request.headers:
            response.headers[allowed] = request.headers[requested]
    if request.headers.get("access-control-request-private-network") == "true":
        response.headers["access-control-allow-private-network"] = "true"
    return response


def add_cors(response: http.Response, origin: str | None) -> None:
    """Allow a page of `origin` to read this response and its headers. Without an origin the response is unchanged."""
    if not origin:
        return
    response.headers["access-control-allow-origin"] = origin
    response.headers["vary"] = ", ".join(dict.fromkeys([*filter(None, [response.headers.get("vary")]), "Origin"]))
    response.headers["access-control-expose-headers"] = ", ".join(
        dict.fromkeys(name.lower() for name in response.headers if not name.lower().startswith("access-control-"))
    )


def unflagged_moderation(content: bytes, large: LargeBody | None = None) -> http.Response:
    """Return one result for each text, or one for a list of inputs of several types. The id says that nothing was checked.

    Raises:
        BadRequest: the input is missing, or has more than `MOST_MODERATIONS` texts.
    """
    count, model = _inputs_of_large(large) if large else _inputs_of(content)
    if not count:
        raise BadRequest("`input` is required: a text, or a list of inputs.", param="input")
    if count > MOST_MODERATIONS:
        raise BadRequest(f"`input` has more than {MOST_MODERATIONS} texts.", param="input")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {category: [] for category in _CATEGORIES},
    }
    document = {"id": f"modr-unchecked-{uuid.uuid4().hex}", "model": model or "unchecked", "results": [result] * count}
    return http.Response.make(200, json.dumps(document), {"content-type": "application/json"})


def _inputs_of(content: bytes) -> tuple[int, Any]:
    """Return the number of requested results, and the model."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return 0, None
    given = document.get("input") if isinstance(document, dict) else None
    if not given or not isinstance(given, str | list):
        return 0, None
    return len(given) if isinstance(given, list) and isinstance(given[0], str) else 1, document.get("model")


def _inputs_of_large(large: LargeBody) -> tuple[int, Any]:
    member = large.outline.get("input") if large.outline else None
    kind = large.content[member.value] if member else 0
    items = large.outline.at(MODERATION_INPUTS) if large.outline and kind == ord("[") else []
    texts = bool(items) and large.content[items[0].value] == ord('"')
    text = kind == ord('"') and member and member.end - member.value > 2
    return len(items) if texts else int(bool(items) or bool(text)), large.value("model")
