"""Translation of the headers of Azure's responses for OpenAI clients."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from azure_openai_proxy.errors import request_id
from azure_openai_proxy.formats import compression

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["drop_origin_headers", "headers"]

# The hop-by-hop headers of RFC 9110 and Proxy-Connection, except transfer-encoding and `connection: close`, which mitmproxy interprets.
_HOP_BY_HOP = b"connection keep-alive proxy-authenticate proxy-connection te trailer upgrade"
# A browser applies these headers to the origin of the response, which is the proxy's. It would refuse plain HTTP to all of localhost,
# delete the stored data of pages there, or let other pages read the response. The proxy sets its own CORS headers.
_ORIGIN_HEADERS = frozenset(
    b"""
    accept-ch access-control-allow-credentials access-control-allow-headers access-control-allow-methods access-control-allow-origin
    access-control-allow-private-network access-control-expose-headers access-control-max-age activate-storage-access alt-svc
    clear-site-data content-security-policy content-security-policy-report-only critical-ch cross-origin-embedder-policy
    cross-origin-embedder-policy-report-only cross-origin-opener-policy cross-origin-opener-policy-report-only
    cross-origin-resource-policy document-policy expect-ct feature-policy nel origin-agent-cluster origin-trial permissions-policy
    public-key-pins public-key-pins-report-only refresh report-to reporting-endpoints secure-session-registration
    sec-session-registration service-worker-allowed set-cookie set-cookie2 set-login sourcemap speculation-rules
    strict-transport-security supports-loading-mode timing-allow-origin use-as-dictionary x-content-type-options x-sourcemap
    """.split()
)
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_DROPPED = frozenset(_HOP_BY_HOP.split()) | _ORIGIN_HEADERS
# Types that a browser renders as a page, with scripts of the proxy's origin. If one header has several types, a browser may use any of
# them.
_PAGE = re.compile(rb"(?i)html|[+/]xml|/xsl|x-mixed-replace")
_SVG = re.compile(rb"(?i)image/svg\+xml(?:;[^,]*)?")
_PLAIN_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_SANDBOX = (b"content-security-policy", b"sandbox")
_NEVER_DROPPED = frozenset({b"", b"close", b"transfer-encoding", b"content-length", b"content-type"})
_REQUEST_IDS = ("apim-request-id", "x-ms-request-id", "x-ms-client-request-id")
_RESETS = frozenset({b"x-ratelimit-reset-requests", b"x-ratelimit-reset-tokens"})
_LONGEST_RESET = 64
_SECONDS = re.compile(rb"[0-9]{1,9}")
_DURATION = re.compile(rb"(?:[0-9]+(?:\.[0-9]+)?(?:h|m|s|ms|us|\xc2\xb5s|ns))+")


def headers(headers: http.Headers, *, stream: bool, http1: bool = False) -> None:
    """Translate the headers of a response, in place. Not for a 101, whose `upgrade` must stay.

    `stream`: a `ResponseStream` rewrites the body. `http1`: the response arrived over HTTP/1, where a body of unknown length must be
    chunked to keep the connection open.
    """
    named = [name.strip().lower().encode(errors="surrogateescape") for name in headers.get("connection", "").split(",")]
    dropped = _DROPPED.union(named) - _NEVER_DROPPED if named != [b""] else _DROPPED
    kept = [_NOSNIFF]
    for field in headers.fields:
        name = field[0].lower()
        if name in _RESETS:
            if (reset := _reset(field[1])) is not None:
                kept.append((field[0], reset))
        elif name == b"content-type" and _PAGE.search(field[1]):
            kept += [field, _SANDBOX] if _SVG.fullmatch(field[1]) else [_PLAIN_TEXT]
        elif name not in dropped:
            kept.append(field)
    if b"close" in named:
        kept.append((b"connection", b"close"))
    if not headers.get("x-request-id"):
        found = next((headers[name] for name in _REQUEST_IDS if headers.get(name)), None) or request_id()
        kept = [field for field in kept if field[0].lower() != b"x-request-id"]
        kept.append((b"x-request-id", found.encode(errors="surrogateescape")))
    headers.fields = tuple(kept)
    if stream:
        _rewritten(headers, http1=http1)


def drop_origin_headers(headers: http.Headers) -> None:
    """Remove the headers that a browser applies to the proxy's origin, for a 101 or a recorded response."""
    headers.fields = tuple(field for field in headers.fields if field[0].lower() not in _ORIGIN_HEADERS)


def _rewritten(headers: http.Headers, *, http1: bool) -> None:
    if not headers.get("content-type"):
        headers["content-type"] = "text/event-stream"
    if "cache-control" not in headers:
        headers["cache-control"] = "no-cache"
    if compression.known(headers.get("content-encoding")):
        del headers["content-encoding"]
    if "content-length" in headers:
        del headers["content-length"]
        if http1:
            headers["transfer-encoding"] = "chunked"


def _reset(value: bytes) -> bytes | None:
    """Return the value in OpenAI's format. Return None for Azure's -1, which means nothing, and for values that clients cannot parse as a
    duration.
    """
    value = value.strip()
    if len(value) > _LONGEST_RESET:
        return None
    if _SECONDS.fullmatch(value):
        return _duration(int(value)).encode()
    return value if _DURATION.fullmatch(value) else None


def _duration(seconds: int) -> str:
    """Return a duration in OpenAI's format, which is Go's: `10s`, `5m0s`, `1h1m1s`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
