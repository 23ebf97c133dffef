"""Which requests the proxy answers itself. `api.local_responses` and `client_keys` write the responses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from azure_openai_proxy import errors
from azure_openai_proxy.api import local_responses

from . import client_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from mitmproxy import http

    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.config.settings import Settings

    from .admission import Admission
    from .arrival import Arrival

__all__ = ["before_reading", "key_page", "of_operation"]

_NOT_FORWARDED = frozenset({"TRACE", "TRACK", "CONNECT", "WS"})
"""TRACE and TRACK return the key in the response, CONNECT opens a tunnel, and WS is this proxy's internal name for a WebSocket upgrade."""
_PATTERN = re.compile(r"[*?\[]")
"""In the models of a client: matches many names."""


def before_reading(arrival: Arrival, not_ready: Callable[[], str | None], ready_detail: Callable[[], str]) -> http.Response | None:
    """Answer preflights, the welcome page and health checks, for which no operation needs to be recognised.

    Raises:
        BadRequest: the API version is invalid.
        Failed: no operation has this method.
    """
    method = arrival.method
    if method == "OPTIONS":
        return local_responses.preflight(arrival.request)
    arrival.query.check()
    if method.upper() in _NOT_FORWARDED:
        raise errors.Failed(405, "method_not_allowed", f"{method[:20]} is not a method of the API.")
    if method not in ("GET", "HEAD"):
        return None
    return local_responses.welcome() if arrival.path == "/" else local_responses.health(arrival.path, not_ready, ready_detail)


def key_page(arrival: Arrival, admission: Admission | None) -> http.Response | None:
    """Answer a client about its own key.

    Raises:
        NoKey: the request has none.
    """
    if arrival.path != local_responses.KEY_PAGE or arrival.method not in ("GET", "HEAD"):
        return None
    if admission is None:
        raise errors.NoKey("Send the key that this page is about.")
    return client_keys.key_page(admission.teams, admission.client)


def of_operation(
    call: Call, arrival: Arrival, settings: Settings, discovered: Sequence[str], large: LargeBody | None, admission: Admission | None
) -> http.Response | Coroutine[Any, Any, http.Response] | None:
    """Answer an operation that is not Azure's, as far as the key of the client may see it. None for those that are sent to Azure.

    `discovered`: the deployments to list; `large`: the values found in a large body.

    Raises:
        ProxyError: the operation has no answer.
    """
    handled_by = call.endpoint.handled_by
    if handled_by == "azure":
        return None
    if handled_by == "moderations" and settings.moderations_unflagged:
        return local_responses.unflagged_moderation(arrival.content, large)
    if admission is None:
        return local_responses.respond(call, settings.listed, discovered)
    client = admission.client
    if handled_by == "billing":
        if call.path.endswith("/subscription"):
            return client_keys.subscription(admission.teams, client)
        if call.path.endswith("/usage"):
            return client_keys.usage(admission.teams, client, arrival.query.rest)
    named = [name for name in client.models if not _PATTERN.search(name) and any(one.serves(name) for one in settings.backends)]
    listed = [*(() if client.backends else discovered), *named]
    return local_responses.respond(call, settings.listed, listed, client.may_use)
