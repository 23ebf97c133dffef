"""The destination of a request, in its URL, its authority and its Host header."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.api.backend import Base

    from .ingress import Upstream

__all__ = ["aim"]

_WITH_AUTHORITY = frozenset({b"HTTP/2.0", b"HTTP/3"})


def aim(request: http.Request, base: Base, upstream: Upstream | None) -> None:
    """Set the destination of `request` to `base`, through the upstream proxy if mitmproxy sends the request to one.

    An existing Host header is already correct.
    """
    data = request.data
    data.scheme, data.host, data.port = base.scheme.encode(), base.host, base.port  # Request's setters would rewrite Host
    if data.http_version in _WITH_AUTHORITY:
        request.authority = base.netloc  # the client may have sent neither :authority nor Host
    else:
        if data.authority:
            request.authority = ""  # for absolute-form requests inside a tunnel: Azure expects origin form
        if "host" not in data.headers:
            request.headers["Host"] = base.netloc  # inside a tunnel, mitmproxy accepts requests without Host
    if upstream:
        upstream.prepare(request)
