"""Nobody's way into networks that are not theirs: where the proxy connects, and for whom.

A forward proxy connects to where its client says, and so reaches what the client cannot: services on this machine's loopback, the
private network, the metadata of a cloud with its credentials. So a client that is not on this machine is led to public addresses only
(`azure_openai_relay`), however the address is written and whatever name resolves to it.

A destination is judged twice. Before connecting, by every address that its name has: what is refused sees no packet of ours. After
connecting, by the address that was really taken, before a byte flows: a name may have changed its mind in between. Where *we* send a
request (a backend, the proxy we are behind, a reverse proxy's target) is the owner's choice and not judged.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING
from weakref import WeakSet

from mitmproxy.proxy import mode_specs

from . import connections, errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mitmproxy import http
    from mitmproxy.connection import Address, Client, Server
    from mitmproxy.options import Options
    from mitmproxy.proxy import server_hooks
    from mitmproxy.proxy.context import Context

    from .option_values import Relay
    from .settings import Settings

__all__ = ["Guard", "Refused", "exposed", "is_local", "is_public", "warn"]

logger = logging.getLogger(__name__)

# An address that looks public and is none: Azure's machines have their platform's services there.
PLATFORM = frozenset({ipaddress.ip_address("168.63.129.16")})
CERTIFICATES = "mitm.it"
"""Where clients get the CA from: mitmproxy answers itself. Where it is told not to, the connection is judged like any other."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


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
    return address.is_global and not (address.is_multicast or address.is_reserved) and address not in PLATFORM


def is_local(client: Client) -> bool:
    """Whether the client runs on this machine, and could connect to everything itself."""
    if isinstance(client.proxy_mode, mode_specs.LocalMode):
        return True
    address = ipaddress.ip_address(client.peername[0].partition("%")[0])
    return address.is_loopback or bool(isinstance(address, ipaddress.IPv6Address) and (v4 := address.ipv4_mapped) and v4.is_loopback)


async def resolve(host: str, port: int) -> set[str]:
    """The addresses of a host, in whatever way it is written. None: nobody can connect to it either."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(sockaddr[0]) for *_, sockaddr in found}


class Guard:
    def __init__(self) -> None:
        self._chosen: WeakSet[Server] = WeakSet()

    def note(self, context: Context) -> None:
        """Remember that a client chose this connection's destination (CONNECT, SOCKS, a redirected connection), and not we."""
        if context.server.address:
            self._chosen.add(context.server)

    async def refusal(self, client: Client, address: Address, relay: Relay) -> str | None:
        """Why this client is not led there; None: it is."""
        if relay == "off":
            return "azure_openai_relay is off: only OpenAI's API is served here"
        if relay == "any" or (relay == "local" and is_local(client)):
            return None
        host, port = address[:2]
        return _reason(await resolve(host, port))

    async def request(self, flow: http.HTTPFlow, settings: Settings) -> None:
        """Answer a request (CONNECT too) for a destination that its client is not led to; behind another proxy nobody else would."""
        if flow.is_replay or flow.request.pretty_host == CERTIFICATES:  # the owner's doing; answered in this process
            return
        try:
            await self.check(flow.client_conn, (flow.request.host, flow.request.port), settings.relay)
        except Refused as error:
            flow.response = errors.response(error)

    async def check(self, client: Client, address: Address, relay: Relay) -> None:
        """Raises Refused for a destination that this client is not led to."""
        if reason := await self.refusal(client, address, relay):
            logger.warning("%s asked for %s:%s and was refused: %s", client.peername[0], *address[:2], reason)
            raise Refused(f"{address[0]} is not reached through this proxy: {reason}.")

    async def connecting(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> None:
        """For the `server_connect` hook: every connection passes here, whatever the mode and the protocol."""
        if data.server.address and not self._ours(data, settings):
            try:
                await self.check(data.client, data.server.address, settings.relay)
            except Refused as error:
                data.server.error = error.message

    def connected(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> None:
        """For the `server_connected` hook: the address that was taken must be one of those that would have been allowed."""
        if settings.relay == "any" or self._ours(data, settings) or (settings.relay == "local" and is_local(data.client)):
            return
        if data.server.peername and (reason := _reason({data.server.peername[0]})):
            logger.warning("%s asked for %s and was cut off: %s", data.client.peername[0], data.server.address, reason)
            connections.cut(data.client, data.server)

    def _ours(self, data: server_hooks.ServerConnectionHookData, settings: Settings) -> bool:
        """Whether the owner chose this destination."""
        mode, address = data.client.proxy_mode, (data.server.address or ("", 0))[:2]
        if isinstance(mode, mode_specs.ReverseMode | mode_specs.UpstreamMode) and address == mode.address:
            return True
        return data.server not in self._chosen and address in settings.destinations


def _reason(addresses: set[str]) -> str | None:
    if hidden := sorted(address for address in addresses if not is_public(address)):
        return f"{hidden[0]} is no public address (azure_openai_relay)"
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
