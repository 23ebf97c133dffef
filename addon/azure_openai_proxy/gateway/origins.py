"""Rejects requests of web pages that may not use the proxy: the Origin check, and the Host check against DNS rebinding.

`config/origins` defines the allowed origins and host names.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mitmproxy.proxy import mode_specs

from azure_openai_proxy.config.origins import LONGEST, split
from azure_openai_proxy.errors import ProxyError

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.config.origins import Origins

__all__ = ["Gate", "Refused"]

logger = logging.getLogger(__name__)

_MOST_LOGGED = 100


class Refused(ProxyError):
    """The page that sent the request may not use the proxy."""

    status = 403
    type = "invalid_request_error"


class Gate:
    """Rejects requests of pages that may not use the proxy, and logs each page once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def refusal(self, flow: http.HTTPFlow, rule: Origins, *, authority: str, absolute: bool) -> Refused | None:
        """The error for a rejected request, or None. `authority`: the client's Host; `absolute`: the request target is an absolute URL."""
        found = _refusal(flow, rule, authority, absolute=absolute)
        if found and found.message not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged.add(found.message)
            logger.warning("%s was refused: %s", flow.client_conn.peername[0], found.message)
        return found


def _refusal(flow: http.HTTPFlow, rule: Origins, authority: str, *, absolute: bool) -> Refused | None:
    if rule.every:
        return None
    headers = flow.request.headers
    if (origin := headers.get("origin")) is not None:
        if not rule.allows(origin, authority):
            return Refused(
                f"A web page of the origin {_quoted(origin)} may not use this proxy: azure_openai_allowed_origins does not allow it.",
                code="origin_not_allowed",
            )
    elif headers.get("sec-fetch-site") == "cross-site":
        return Refused(
            "A web page of another site may not use this proxy without an Origin that azure_openai_allowed_origins allows.",
            code="origin_not_allowed",
        )
    host, _ = split(authority)
    if absolute or rule.owns(host) or not _came_straight_from_here(flow):
        return None
    return Refused(
        f"The proxy is not known by the host name {_quoted(host)}, which may be a web page's: add the name to azure_openai_hosts.",
        code="host_not_allowed",
    )


def _came_straight_from_here(flow: http.HTTPFlow) -> bool:
    """Whether the request arrived at a loopback address and is addressed to the proxy itself, not to another host through it."""
    client = flow.client_conn
    direct = flow.server_conn.address is None or isinstance(client.proxy_mode, mode_specs.ReverseMode)
    here = client.sockname[0].removeprefix("::ffff:")
    return direct and (here == "::1" or here.startswith("127."))


def _quoted(text: str) -> str:
    """Escape and shorten a client's text for a log line or error message, since control characters could affect a terminal."""
    return ascii(text[:LONGEST])
