"""Relay guard: which destinations a client may reach through the proxy (SSRF protection).

A forward proxy connects to destinations that the client chooses, including some that the client cannot reach itself: services on the
proxy's loopback, the private network, a cloud's metadata service with its credentials. So a client on another machine may reach only public
addresses (`azure_openai_allowed_destinations`), for every spelling of an address and every name that resolves to it.

A destination is checked twice: before connecting, all addresses of the name, so that a refused host receives no packet; and after
connecting, the address actually used, before any byte is forwarded, since DNS may have changed in between (DNS rebinding). Destinations
chosen by the owner (a backend, the upstream proxy, a reverse proxy's target) are not checked.

The check concerns the address to which a connection is made, or which an upstream proxy is asked for; names in a Host header or in TLS have
no effect. If a check fails unexpectedly, the destination is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from typing import TYPE_CHECKING
from weakref import WeakSet

from mitmproxy.proxy import mode_specs

from azure_openai_proxy import errors
from azure_openai_proxy.api import redaction
from azure_openai_proxy.config.startup_warnings import is_loopback
from azure_openai_proxy.mitmproxy_patches import connections, install

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mitmproxy import http
    from mitmproxy.connection import Address, Client, Server
    from mitmproxy.options import Options
    from mitmproxy.proxy import server_hooks
    from mitmproxy.proxy.context import Context

    from azure_openai_proxy.config.parsers import AllowedDestinations
    from azure_openai_proxy.config.settings import Settings

__all__ = ["Refused", "RelayGuard", "exposed", "is_local", "is_public", "warn"]

logger = logging.getLogger(__name__)

# Looks public, but on Azure's virtual machines it reaches services of the platform.
PLATFORM = frozenset({ipaddress.ip_address("168.63.129.16")})
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
UNICAST = ipaddress.IPv6Network("2000::/3")
"""Contains all public IPv6 addresses. `is_global` is also true for others, e.g. site-local addresses."""
DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")
HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")
NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
"""Last label of a name that some resolvers parse as an IPv4 address, each differently (0127.0.0.1, 2130706433, 0x7f.1)."""


class Refused(errors.ProxyError):
    """The client may not reach this destination."""

    status = 403
    type = "invalid_request_error"
    code = "destination_refused"


def is_public(text: str) -> bool:
    """Whether an IP address is public, i.e. reachable without this proxy. Of an IPv6 address that embeds IPv4 addresses, these decide."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inner = [str(v4) for v4 in carried if v4]
        if inner:
            return all(map(is_public, inner))
        if address not in UNICAST or address in DOCUMENTATION:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved) and address not in PLATFORM


def is_local(client: Client) -> bool:
    """Whether the client runs on this machine, so that it could connect to the destination itself."""
    if isinstance(client.proxy_mode, mode_specs.LocalMode):
        return True
    address = ipaddress.ip_address(client.peername[0].partition("%")[0])
    return address.is_loopback or bool(isinstance(address, ipaddress.IPv6Address) and (v4 := address.ipv4_mapped) and v4.is_loopback)


def is_plain(host: str) -> bool:
    """Whether all resolvers interpret this host in the same way: an IP address in standard notation, or a name that is not a number.

    An upstream proxy resolves the host again, so a spelling that it may interpret differently cannot be checked here.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return "%" not in host
    try:
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    return bool(HOST_NAME.fullmatch(name)) and not NUMBER.fullmatch(name.removesuffix(".").rpartition(".")[2])


def responds_locally(flow: http.HTTPFlow, options: Options) -> bool:
    """Whether mitmproxy answers this request itself (the page with its CA certificate, at mitm.it) without a connection."""
    if "onboarding" not in options or not options.onboarding:
        return False
    if flow.request.pretty_host != (host := options.onboarding_host):
        return False
    # a transparent client resolves the name itself; the address is checked when the connection is made
    return flow.request.host == host or isinstance(flow.client_conn.proxy_mode, mode_specs.TransparentMode)


async def resolve(host: str, port: int) -> set[str]:
    """The addresses of a host; empty if it does not resolve on this machine."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(sockaddr[0]) for *_, sockaddr in found}


class RelayGuard:
    def __init__(self) -> None:
        self._chosen: WeakSet[Server] = WeakSet()

    def note(self, context: Context) -> None:
        """Record that the client chose this connection's destination (CONNECT, SOCKS, a redirected connection), not the owner."""
        if context.server.address:
            self._chosen.add(context.server)

    async def refusal(self, client: Client, address: Address, allowed: AllowedDestinations) -> str | None:
        """The reason why this client may not reach the address, or None if it may."""
        if allowed == "off":
            return "azure_openai_allowed_destinations is off: only OpenAI's API is served here"
        if allowed == "any" or (allowed == "local" and is_local(client)):
            return None
        host, port = address[:2]
        if not is_plain(host):
            return "it is neither a host name nor an IP address in its usual form (azure_openai_allowed_destinations)"
        if not (addresses := await resolve(host, port)):
            return "its name does not resolve here, so it may stand for any address (azure_openai_allowed_destinations)"
        return _reason(addresses)

    async def request(self, flow: http.HTTPFlow, settings: Settings, options: Options) -> None:
        """Reject a request (or CONNECT) for a refused destination. Behind an upstream proxy this is the only check of plain requests."""
        if flow.is_replay or responds_locally(flow, options):  # a replay is the owner's own request
            return
        try:
            await self.check(flow.client_conn, (flow.request.host, flow.request.port), settings.allowed_destinations)
        except Refused as error:
            flow.response = errors.response(error)
            redaction.hide(flow.request)  # the request may contain a client's key for OpenAI, and the flow is kept

    async def check(self, client: Client, address: Address, allowed: AllowedDestinations) -> None:
        """Check a destination for this client.

        Raises:
            Refused: the client may not reach the destination, or the check failed.
        """
        try:
            reason = await self.refusal(client, address, allowed)
        except Exception:
            logger.exception("The destination %r could not be checked", address)
            reason = "it could not be checked"
        if reason:
            logger.warning("Refused a connection of %s to %r, port %s: %s", client.peername[0], *address[:2], reason)
            raise Refused(f"This proxy does not connect to {address[0]}: {reason}.")

    async def connecting(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> None:
        """For the `server_connect` hook, which mitmproxy calls for every connection in all modes and protocols."""
        if data.server.address and not self._ours(data, settings):
            try:
                await self.check(data.client, data.server.address, settings.allowed_destinations)
            except Refused as error:
                data.server.error = error.message

    def connected(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> None:
        """For the `server_connected` hook: check the address actually used, and close the connection if it is refused."""
        if not install.patches_http() and data.server.peername and data.server.peername[:2] == data.client.sockname[:2]:
            logger.warning(
                "The proxy is not known as %r: add the name to azure_openai_hosts.", data.server.address and data.server.address[0]
            )
            _cut(data.client, data.server)  # the request would arrive here again and again
            return
        if settings.allowed_destinations == "any" or self._ours(data, settings):
            return
        try:
            reason = None if settings.allowed_destinations == "local" and is_local(data.client) else _reason_against(data.server)
        except Exception:
            logger.exception("The connection to %r could not be checked", data.server.address)
            reason = "it could not be checked"
        if reason:
            logger.warning("A connection of %s to %r was cut off: %s", data.client.peername[0], data.server.address, reason)
            _cut(data.client, data.server)

    async def asking_upstream(self, flow: http.HTTPFlow, settings: Settings) -> None:
        """For the `http_connect_upstream` hook: check a CONNECT's destination. `server_connect` sees only the upstream proxy."""
        destination = (flow.request.host, flow.request.port)
        if destination in settings.destinations:
            return
        try:
            await self.check(flow.client_conn, destination, settings.allowed_destinations)
        except Refused:
            _cut(flow.client_conn, flow.server_conn)

    def _ours(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> bool:
        """Whether the owner chose this destination."""
        mode, address = data.client.proxy_mode, (data.server.address or ("", 0))[:2]
        if isinstance(mode, mode_specs.ReverseMode | mode_specs.UpstreamMode) and address == mode.address:
            return True
        return data.server not in self._chosen and address in settings.destinations


def _reason_against(server: Server) -> str | None:
    """The reason why this open connection may not be used, or None."""
    if not server.peername:
        return "its address is not known"
    if server.sockname and server.sockname[0] == server.peername[0]:
        return "it is this machine (azure_openai_allowed_destinations)"
    return _reason({server.peername[0]})


def _cut(client: Client, server: Server) -> None:
    """Close a connection. If that fails, cancel its task, so that no bytes are forwarded in either direction."""
    try:
        connections.cut(client, server)
    except Exception as error:
        logger.exception("The connection to %r could not be closed and is abandoned", server.address)
        raise asyncio.CancelledError from error


def _reason(addresses: set[str]) -> str | None:
    if hidden := sorted(address for address in addresses if not is_public(address)):
        return f"{hidden[0]} is not a public address (azure_openai_allowed_destinations)"
    return None


def warn(settings: Settings, options: Options, *, keys_required: bool) -> None:
    """Warn if clients on other machines can use the configured key (or identity) without authentication.

    `keys_required`: clients need a key of the proxy, which may be in the ledger.
    """
    keyed = any(backend.token or backend.entra for backend in settings.backends) and not keys_required
    if keyed and not options.proxyauth and (host := exposed(options.mode, options.listen_host)):
        logger.warning(
            "Any client that can reach %s uses the configured key: listen on 127.0.0.1 (AZURE_OPENAI_PROXY_ADDRESS), or configure no key.",
            host,
        )


def exposed(modes: Sequence[str], listen_host: str) -> str | None:
    """The first address on which clients of other machines can connect; None if there is none."""
    for mode in map(mode_specs.ProxyMode.parse, modes):
        if mode.type_name in ("wireguard", "local"):  # only devices with a WireGuard key; only local processes
            continue
        host = mode.listen_host(listen_host)
        if not is_loopback(host):
            return host or "any address of this machine"
    return None
