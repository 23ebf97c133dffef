"""The target of a request, before mitmproxy modifies the request: its form, its Host, and the destination in it."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from mitmproxy.net.http import url
from mitmproxy.proxy import mode_specs

from .interface import ABSOLUTE_FORM, CLIENT_HOST

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.connection import Client

__all__ = ["parse_authority", "record"]

_LONGEST = 255
_parse = url.parse_authority
_remembered = lru_cache(maxsize=128)(_parse)  # a ValueError is not remembered


def parse_authority[Text: (str, bytes)](authority: Text, check: bool) -> tuple[str, int | None]:  # noqa: FBT001 - mitmproxy's signature
    """mitmproxy's function, with a memory: it uses Python's IDNA codec (9 µs), and clients repeat their Host or `:authority`."""
    return _remembered(authority, check) if len(authority) <= _LONGEST else _parse(authority, check)


def record(flow: http.HTTPFlow, client: Client, *, transparent: bool) -> None:
    """Record the form of the request target and the Host. `transparent`: mitmproxy knows the destination, and replaces the Host."""
    request = flow.request
    if transparent or request.method == "CONNECT":
        if isinstance(client.proxy_mode, mode_specs.ReverseMode):
            flow.metadata[CLIENT_HOST] = request.host_header
        return
    flow.metadata[ABSOLUTE_FORM] = bool(request.scheme == "http" if request.is_http2 or request.is_http3 else request.authority)
    if request.host:
        return
    scheme = "https" if client.tls else "http"
    if request.http_version == "HTTP/1.0" and "host" not in request.headers:
        # Host is optional in HTTP/1.0, but mitmproxy requires it
        address, number, *_ = client.sockname
        request.headers["Host"] = url.hostport(scheme, f"[{address}]" if ":" in address else address, number)
    host = request.host_header or ""
    if len(host) <= _LONGEST:
        with suppress(ValueError):  # mitmproxy refuses it
            request.data.host, port = _remembered(host, check=True)
            request.data.port = port if port is not None else 443 if client.tls else 80
            request.scheme = scheme
