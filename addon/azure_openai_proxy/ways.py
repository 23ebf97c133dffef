"""The ways in: which connections and requests are ours. Decided here and nowhere else.

A request reaches the proxy as a gateway (its base URL, or reverse mode), as a forward proxy (an absolute URL), or inside a
connection to another host (CONNECT, SOCKS, transparent, WireGuard, a captured process). A gateway's request is ours under
any host name; the others are ours when they were meant for one of OpenAI's hosts. Everything else passes untouched, and a
TLS connection that is not ours is not even decrypted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.proxy import mode_specs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from mitmproxy import http, tls

__all__ = ["is_ours", "names_ours", "passes_through"]

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
