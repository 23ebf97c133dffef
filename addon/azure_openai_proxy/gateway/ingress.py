"""Decides which connections and requests are API requests that the proxy translates ("ours").

Clients use the proxy as a gateway (base URL, or reverse mode), as a forward proxy (absolute URL), or inside a connection to another host
(CONNECT, SOCKS, transparent, WireGuard, local capture). Gateway requests are translated for any host name; all others only if their
destination is one of OpenAI's hosts. Other requests are forwarded unchanged, and other TLS connections are not decrypted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mitmproxy.addons.upstream_auth import parse_upstream_auth
from mitmproxy.net.http.url import hostport
from mitmproxy.proxy import mode_specs

from azure_openai_proxy.client_leg.interface import ABSOLUTE_FORM, CLIENT_HOST
from azure_openai_proxy.egress.connect import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from mitmproxy import http, tls
    from mitmproxy.options import Options

__all__ = ["Upstream", "absolute_form", "client_host", "is_ours", "names_ours", "passes_through", "proxy", "upstream"]

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def names_ours(names: Iterable[str | None], hosts: AbstractSet[str]) -> bool:
    """Whether one of the names is in `hosts`, ignoring case and a trailing dot."""
    return any(name.lower().rstrip(".") in hosts for name in names if name)


def is_ours(flow: http.HTTPFlow, hosts: AbstractSet[str], *, absolute: bool) -> bool:
    """Whether this is an API request. `absolute`: the request target is an absolute URL, as for a forward proxy."""
    if isinstance(flow.client_conn.proxy_mode, mode_specs.ReverseMode):
        return True
    if flow.server_conn.address is None:  # sent directly to the proxy, without a tunnel
        return not absolute or names_ours([flow.request.host], hosts) or _is_proxy_itself(flow)
    tunnelled = [flow.server_conn.address[0], flow.client_conn.sni]
    if not flow.client_conn.tls_established:  # in a transparent connection only the Host header has the destination's name
        tunnelled.append(flow.request.pretty_host)
    return names_ours(tunnelled, hosts)


def absolute_form(flow: http.HTTPFlow, *, records_form: bool) -> bool:
    """Whether the request target is in absolute form, as for a forward proxy. False for origin form (gateway) and inside a tunnel.

    mitmproxy removes the difference from requests of HTTP/1. Without the patch that records it (`records_form`), each of them may be for
    another host.
    """
    recorded = flow.metadata.get(ABSOLUTE_FORM)
    if recorded is not None or records_form:
        return bool(recorded)
    request = flow.request
    if isinstance(flow.client_conn.proxy_mode, mode_specs.ReverseMode):
        return False
    if request.is_http2 or request.is_http3:
        return request.scheme == "http"
    return bool(request.authority) or not isinstance(flow.client_conn.proxy_mode, mode_specs.UpstreamMode)


def client_host(flow: http.HTTPFlow) -> str:
    """The Host header that the client sent (`:authority` over HTTP/2), or ""."""
    return str(flow.metadata.get(CLIENT_HOST) or flow.request.host_header or "")


def _is_proxy_itself(flow: http.HTTPFlow) -> bool:
    """Whether the destination is this proxy, as for a client with both a base URL and a proxy variable."""
    here = flow.client_conn.sockname
    return flow.request.port == here[1] and flow.request.host in {*_LOCAL_NAMES, here[0]}


def passes_through(hello: tls.ClientHelloData, hosts: AbstractSet[str]) -> bool:
    """Whether to tunnel this TLS connection without decrypting it, so that the client sees the server's own certificate."""
    if isinstance(hello.context.client.proxy_mode, mode_specs.ReverseMode):
        return False
    destination = hello.context.server.address
    return destination is not None and not names_ours([destination[0], hello.client_hello.sni], hosts)


class Upstream(NamedTuple):
    """The upstream proxy (mitmproxy's `upstream:` mode) for a request that mitmproxy sends."""

    connects: bool  # the client used CONNECT, so mitmproxy does too
    authorization: bytes | None  # value of Proxy-Authorization

    def prepare(self, request: http.Request) -> None:
        """Set the authority and the credentials for the upstream proxy.

        A plain HTTP request without CONNECT needs an absolute URL and the credentials; all others must have neither. mitmproxy sets both
        when the request arrives, that is, for the client's original destination.
        """
        if request.scheme == "https" or self.connects:
            if not request.is_http2:
                request.authority = ""
            return
        here = hostport(request.scheme, request.host, request.port)
        request.http_version = "HTTP/1.1"  # from an HTTP/2 request mitmproxy would not form an absolute URL
        request.headers["host"] = request.authority = here
        if self.authorization:
            request.headers["proxy-authorization"] = self.authorization


def proxy(flow: http.HTTPFlow, options: Options) -> Proxy | None:
    """The upstream proxy (mitmproxy's `upstream:` mode) with the credentials of `upstream_auth`; None without that mode."""
    mode = flow.client_conn.proxy_mode
    if not isinstance(mode, mode_specs.UpstreamMode):
        return None
    credentials = options.upstream_auth
    return Proxy(mode.address[0], mode.address[1], mode.scheme == "https", parse_upstream_auth(credentials) if credentials else None)


def upstream(flow: http.HTTPFlow, options: Options) -> Upstream | None:
    """The upstream proxy for a request that mitmproxy itself sends; None without that mode."""
    if not isinstance(flow.client_conn.proxy_mode, mode_specs.UpstreamMode):
        return None
    credentials = options.upstream_auth
    return Upstream(flow.server_conn.address is not None, parse_upstream_auth(credentials) if credentials else None)
