"""The headers of Azure's answers, as a client of OpenAI's expects them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from azure_openai_proxy.errors import request_id
from azure_openai_proxy.formats import compression

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["drop_origin_headers", "headers"]

# Those of RFC 9110, and Proxy-Connection. Not transfer-encoding, nor `connection: close`: mitmproxy acts on them.
_HOP_BY_HOP = b"connection keep-alive proxy-authenticate proxy-connection te trailer upgrade"
# A browser applies these to the origin that they come from, which is the proxy's: it would never again speak plain HTTP to anything on
# localhost, delete what the pages there have stored, or let other pages read the answer. Those for readers the proxy sets itself.
_OF_THE_ORIGIN = frozenset(
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
_DROPPED = frozenset(_HOP_BY_HOP.split()) | _OF_THE_ORIGIN
# Types that a browser shows as a page, with scripts of the proxy's origin; of several in one header it may take any.
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
    """Shape the headers of an answer, in place. Not for a 101: its `upgrade` must stay.

    `stream` says that a `Stream` rewrites the body, and `http1` that the answer came over HTTP/1, where a body whose length is
    no longer known must be chunked if the connection is to live.
    """
    named = [name.strip().lower().encode(errors="surrogateescape") for name in headers.get("connection", "").split(",")]
    dropped = _DROPPED.union(named) - _NEVER_DROPPED if named != [b""] else _DROPPED
    kept = [_NOSNIFF]
    for field in headers.fields:
        name = field[0].lower()
        if name in _RESETS:
            if (told := _reset(field[1])) is not None:
                kept.append((field[0], told))
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
    """Drop what a browser would apply to the proxy's origin from headers that are not shaped otherwise: a 101's, a recording's."""
    headers.fields = tuple(field for field in headers.fields if field[0].lower() not in _OF_THE_ORIGIN)


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
    """As OpenAI writes it; None for Azure's -1, which says nothing, and for what clients that parse durations would break on."""
    value = value.strip()
    if len(value) > _LONGEST_RESET:
        return None
    if _SECONDS.fullmatch(value):
        return _duration(int(value)).encode()
    return value if _DURATION.fullmatch(value) else None


def _duration(seconds: int) -> str:
    """As OpenAI writes it, which is as Go does: `10s`, `5m0s`, `1h1m1s`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
