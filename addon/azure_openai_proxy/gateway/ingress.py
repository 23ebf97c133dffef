"""The ways in: which connections and requests are ours. Decided here and nowhere else.

A request reaches the proxy as a gateway (its base URL, or reverse mode), as a forward proxy (an absolute URL), or inside a
connection to another host (CONNECT, SOCKS, transparent, WireGuard, a captured process). A gateway's request is ours under
any host name; the others are ours when they were meant for one of OpenAI's hosts. Everything else passes untouched, and a
TLS connection that is not ours is not even decrypted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mitmproxy.addons.upstream_auth import parse_upstream_auth
from mitmproxy.net.http.url import hostport
from mitmproxy.proxy import mode_specs

from azure_openai_proxy.egress.connect import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from mitmproxy import http, tls
    from mitmproxy.options import Options

__all__ = ["Upstream", "is_ours", "names_ours", "passes_through", "proxy", "upstream"]

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def names_ours(names: Iterable[str | None], hosts: AbstractSet[str]) -> bool:
    """Is one of the names OpenAI's? Names compare without case and without the root's dot."""
    return any(name.lower().rstrip(".") in hosts for name in names if name)


def is_ours(flow: http.HTTPFlow, hosts: AbstractSet[str], *, absolute: bool) -> bool:
    """Is this request for the API? `absolute`: it came with a whole URL, as a forward proxy's requests do."""
    if isinstance(flow.client_conn.proxy_mode, mode_specs.ReverseMode):
        return True
    if flow.server_conn.address is None:  # straight to the proxy
        return not absolute or names_ours([flow.request.host], hosts) or _is_proxy_itself(flow)
    tunnelled = [flow.server_conn.address[0], flow.client_conn.sni]
    if not flow.client_conn.tls_established:  # a transparent connection says only in its Host where it wanted to go
        tunnelled.append(flow.request.pretty_host)
    return names_ours(tunnelled, hosts)


def _is_proxy_itself(flow: http.HTTPFlow) -> bool:
    """A client with both a base URL and a proxy variable asks the proxy for the proxy."""
    here = flow.client_conn.sockname
    return flow.request.port == here[1] and flow.request.host in {*_LOCAL_NAMES, here[0]}


def passes_through(hello: tls.ClientHelloData, hosts: AbstractSet[str]) -> bool:
    """Should this TLS connection be tunnelled with the server's own certificate, undecrypted?"""
    if isinstance(hello.context.client.proxy_mode, mode_specs.ReverseMode):
        return False
    destination = hello.context.server.address
    return destination is not None and not names_ours([destination[0], hello.client_hello.sni], hosts)


class Upstream(NamedTuple):
    """The proxy that this one is behind, as a request of ours must know it."""

    connects: bool  # the client came by CONNECT, and so does everything that goes on
    authorization: bytes | None

    def prepare(self, request: http.Request) -> None:
        """A plain request that asks that proxy without CONNECT carries the whole URL and the password; any other carries neither.

        mitmproxy decides both when the request arrives, while it still goes where the client sent it.
        """
        if request.scheme == "https" or self.connects:
            if not request.is_http2:
                request.authority = ""
            return
        here = hostport(request.scheme, request.host, request.port)
        request.http_version = "HTTP/1.1"  # of an HTTP/2 request the whole URL would get lost on the way
        request.headers["host"] = request.authority = here
        if self.authorization:
            request.headers["proxy-authorization"] = self.authorization


def proxy(flow: http.HTTPFlow, options: Options) -> Proxy | None:
    """The proxy between this one and the world, if there is one; mitmproxy's `upstream_auth` is its password."""
    mode = flow.client_conn.proxy_mode
    if not isinstance(mode, mode_specs.UpstreamMode):
        return None
    credentials = options.upstream_auth
    return Proxy(mode.address[0], mode.address[1], mode.scheme == "https", parse_upstream_auth(credentials) if credentials else None)


def upstream(flow: http.HTTPFlow, options: Options) -> Upstream | None:
    """The same for a request that mitmproxy itself sends."""
    if not isinstance(flow.client_conn.proxy_mode, mode_specs.UpstreamMode):
        return None
    credentials = options.upstream_auth
    return Upstream(flow.server_conn.address is not None, parse_upstream_auth(credentials) if credentials else None)
