"""Nobody's way into networks that are not theirs: where the proxy connects, and for whom.

A forward proxy connects to where its client says, and so reaches what the client cannot: services on this machine's loopback, the
private network, the metadata of a cloud with its credentials. So a client that is not on this machine is led to public addresses only
(`azure_openai_allowed_destinations`), however the address is written and whatever name resolves to it.

A destination is judged twice. Before connecting, by every address that its name has: what is refused sees no packet of ours. After
connecting, by the address that was really taken, before a byte flows: a name may have changed its mind in between. Where *we* send a
request (a backend, the proxy we are behind, a reverse proxy's target) is the owner's choice and not judged.

Only the address that a connection is made to (or that another proxy is asked for) is judged, never a name in a Host header or in TLS. A
check that fails in an unexpected way refuses the destination.
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
from azure_openai_proxy.mitmproxy_patches import connections

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

# An address that looks public and is none: Azure's machines have their platform's services there.
PLATFORM = frozenset({ipaddress.ip_address("168.63.129.16")})
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
UNICAST = ipaddress.IPv6Network("2000::/3")
"""All public IPv6 addresses are in this network; `is_global` is also true of addresses outside it, site-local ones for example."""
DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")
HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")
NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
"""The last label of a name that resolvers read as an IPv4 address, each in its own way (0127.0.0.1, 2130706433, 0x7f.1)."""


class Refused(errors.ProxyError):
    """The destination is not one for this client."""

    status = 403
    type = "invalid_request_error"
    code = "destination_refused"


def is_public(text: str) -> bool:
    """Whether an IP address is one that anybody could reach without us; for one that carries an IPv4 address, whether that is."""
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
    """Whether the client runs on this machine, and could connect to everything itself."""
    if isinstance(client.proxy_mode, mode_specs.LocalMode):
        return True
    address = ipaddress.ip_address(client.peername[0].partition("%")[0])
    return address.is_loopback or bool(isinstance(address, ipaddress.IPv6Address) and (v4 := address.ipv4_mapped) and v4.is_loopback)


def is_plain(host: str) -> bool:
    """Whether every resolver reads this host in the same way: an IP address in its usual form, or a name that is not a number.

    Another proxy resolves the host again, so a spelling that it may read differently cannot be judged here.
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


def answered_here(flow: http.HTTPFlow, options: Options) -> bool:
    """Whether mitmproxy answers this request itself (with its CA, at mitm.it) and connects to nothing."""
    if "onboarding" not in options or not options.onboarding:
        return False
    if flow.request.pretty_host != (host := options.onboarding_host):
        return False
    # a transparent client resolves the name itself; where the connection then goes is judged when it is made
    return flow.request.host == host or isinstance(flow.client_conn.proxy_mode, mode_specs.TransparentMode)


async def resolve(host: str, port: int) -> set[str]:
    """The addresses of a host; empty if it has none here."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(sockaddr[0]) for *_, sockaddr in found}


class RelayGuard:
    def __init__(self) -> None:
        self._chosen: WeakSet[Server] = WeakSet()

    def note(self, context: Context) -> None:
        """Remember that a client chose this connection's destination (CONNECT, SOCKS, a redirected connection), and not we."""
        if context.server.address:
            self._chosen.add(context.server)

    async def refusal(self, client: Client, address: Address, allowed: AllowedDestinations) -> str | None:
        """Why this client is not led there; None: it is."""
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
        """Answer a request (CONNECT too) for a destination that its client is not led to; behind another proxy nobody else would."""
        if flow.is_replay or answered_here(flow, options):  # a replay is the owner's own request
            return
        try:
            await self.check(flow.client_conn, (flow.request.host, flow.request.port), settings.allowed_destinations)
        except Refused as error:
            flow.response = errors.response(error)
            redaction.hide(flow.request)  # it may be a client's key for OpenAI, and the flow is kept

    async def check(self, client: Client, address: Address, allowed: AllowedDestinations) -> None:
        """Raises Refused for a destination that this client is not led to, and if that cannot be decided."""
        try:
            reason = await self.refusal(client, address, allowed)
        except Exception:
            logger.exception("The destination %r could not be checked", address)
            reason = "it could not be checked"
        if reason:
            logger.warning("%s asked for %r, port %s and was refused: %s", client.peername[0], *address[:2], reason)
            raise Refused(f"{address[0]} is not reached through this proxy: {reason}.")

    async def connecting(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> None:
        """For the `server_connect` hook: every connection passes here, whatever the mode and the protocol."""
        if data.server.address and not self._ours(data, settings):
            try:
                await self.check(data.client, data.server.address, settings.allowed_destinations)
            except Refused as error:
                data.server.error = error.message

    def connected(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> None:
        """For the `server_connected` hook: the address that was taken must be one of those that would have been allowed."""
        if settings.allowed_destinations == "any" or self._ours(data, settings):
            return
        try:
            reason = None if settings.allowed_destinations == "local" and is_local(data.client) else _reason_against(data.server)
        except Exception:
            logger.exception("The connection to %r could not be checked", data.server.address)
            reason = "it could not be checked"
        if reason:
            logger.warning("%s asked for %r and was cut off: %s", data.client.peername[0], data.server.address, reason)
            _cut(data.client, data.server)

    async def asking_upstream(self, flow: http.HTTPFlow, settings: Settings) -> None:
        """For the `http_connect_upstream` hook: another proxy is asked for this destination, which no connection of ours shows."""
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
    """Why this open connection may not be used."""
    if not server.peername:
        return "its address is not known"
    if server.sockname and server.sockname[0] == server.peername[0]:
        return "it is this machine (azure_openai_allowed_destinations)"
    return _reason({server.peername[0]})


def _cut(client: Client, server: Server) -> None:
    """Close a connection; if that is not possible, its task ends here, and neither side gets a byte of the other's."""
    try:
        connections.cut(client, server)
    except Exception as error:
        logger.exception("The connection to %r could not be closed and is abandoned", server.address)
        raise asyncio.CancelledError from error


def _reason(addresses: set[str]) -> str | None:
    if hidden := sorted(address for address in addresses if not is_public(address)):
        return f"{hidden[0]} is no public address (azure_openai_allowed_destinations)"
    return None


def warn(settings: Settings, options: Options) -> None:
    """Tell an owner whose key (or identity) anybody may use."""
    keyed = any(backend.token or backend.entra for backend in settings.backends)
    if keyed and not options.proxyauth and (host := exposed(options.mode, options.listen_host)):
        logger.warning(
            "Whoever reaches %s uses the configured key: listen on 127.0.0.1 (AZURE_OPENAI_PROXY_ADDRESS), or leave it to the clients.",
            host,
        )


def exposed(modes: Sequence[str], listen_host: str) -> str | None:
    """Where others than this machine's own clients are listened to; None: nowhere."""
    for mode in map(mode_specs.ProxyMode.parse, modes):
        if mode.type_name in ("wireguard", "local"):  # a device with its key; a process of this machine
            continue
        host = mode.listen_host(listen_host)
        if host != "localhost" and not (host and ipaddress.ip_address(host).is_loopback):
            return host or "any address of this machine"
    return None
