"""Where the proxy connects, and for whom."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from mitmproxy.connection import Client, Server
from mitmproxy.options import Options
from mitmproxy.proxy import mode_specs, server_hooks
from mitmproxy.test import tflow

from azure_openai_proxy.api.backend import Backend, parse_base
from azure_openai_proxy.config.parsers import AllowedDestinations
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.gateway import relay_guard
from azure_openai_proxy.gateway.relay_guard import RelayGuard, exposed, is_local, is_public
from azure_openai_proxy.mitmproxy_patches import connections, install

if TYPE_CHECKING:
    from mitmproxy.proxy.context import Context

BACKEND = Backend(name="default", base=parse_base("http://10.0.0.7:9000")[0], apiversion="v1")


def settings(allowed: AllowedDestinations = "local") -> Settings:
    return Settings(backends=(BACKEND,), allowed_destinations=allowed)


def client(address: str = "192.0.2.1", mode: str = "regular") -> Client:
    return Client(peername=(address, 50000), sockname=("192.0.2.2", 8080), proxy_mode=mode_specs.ProxyMode.parse(mode))


def connecting(address: tuple[str, int] | None, who: Client | None = None) -> server_hooks.ServerConnectionHookData:
    return server_hooks.ServerConnectionHookData(Server(address=address), who or client())


@pytest.mark.parametrize(
    "address, public",
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fd00:ec2::254", False),
        ("fe80::1%eth0", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
        ("fec0::1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b:1::7f00:1", False),
        ("3fff::1", False),
        ("5f00::1", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:
    """An IPv4 address inside an IPv6 address is judged as the IPv4 address."""
    assert public == is_public(address)


@pytest.mark.parametrize(
    "who, local",
    [
        (client("127.0.0.1"), True),
        (client("::1"), True),
        (client("::ffff:127.0.0.1"), True),
        (client("192.0.2.1"), False),
        (client("::ffff:192.0.2.1"), False),
        (client("fe80::1%eth0"), False),
        (client("10.0.0.1", "wireguard"), False),
        (client("192.0.2.1", "local"), True),
    ],
)
def test_is_local(who: Client, local: bool) -> None:
    """Loopback, and captured processes."""
    assert local == is_local(who)


@pytest.mark.parametrize(
    "allowed, who, host, refused",
    [
        ("local", "192.0.2.1", "127.0.0.1", True),
        ("local", "192.0.2.1", "2130706433", True),
        ("local", "192.0.2.1", "8.8.8.8", False),
        ("local", "127.0.0.1", "127.0.0.1", False),
        ("public", "127.0.0.1", "127.0.0.1", True),
        ("public", "127.0.0.1", "8.8.8.8", False),
        ("any", "192.0.2.1", "127.0.0.1", False),
        ("off", "127.0.0.1", "8.8.8.8", True),
        ("local", "192.0.2.1", "a" * 64 + ".example", True),  # no name here, but another proxy may read it
        ("local", "192.0.2.1", "metadata.google.invalid", True),
        ("local", "192.0.2.1", "127.0.0.1.", True),
        ("local", "192.0.2.1", "0127.0.0.1", True),
        ("local", "192.0.2.1", "134744072", True),
        ("local", "192.0.2.1", "8.8.8.8@127.0.0.1", True),
        ("local", "192.0.2.1", "2606:4700::1111%lo", True),
        ("local", "192.0.2.1", "2606:4700::1111", False),
        ("local", "127.0.0.1", "metadata.google.invalid", False),
        ("off", "127.0.0.1", "metadata.google.invalid", True),
    ],
)
async def test_connecting(allowed: AllowedDestinations, who: str, host: str, refused: bool) -> None:
    """What a destination's addresses are decides, and who asks."""
    data = connecting((host, 80), client(who))

    await RelayGuard().connecting(data, settings(allowed))

    assert refused == bool(data.server.error)


@pytest.mark.parametrize(
    "address, mode, chosen, refused",
    [
        (("10.0.0.7", 9000), "regular", False, False),
        (("10.0.0.7", 9000), "socks5", True, True),
        (("10.0.0.7", 9001), "regular", False, True),
        (("10.0.0.8", 443), "reverse:https://10.0.0.8", True, False),
        (("10.0.0.9", 443), "reverse:https://10.0.0.8", True, True),
        (("10.0.0.8", 3128), "upstream:http://10.0.0.8:3128", False, False),
        (None, "regular", False, False),
    ],
)
async def test_the_owner_s_destinations(address: tuple[str, int] | None, mode: str, chosen: bool, refused: bool) -> None:
    """A backend, a reverse proxy's target and the proxy we are behind are not judged, unless it was the client who named them."""
    guard, data = RelayGuard(), connecting(address, client(mode=mode))
    if chosen:
        guard.note(cast("Context", SimpleNamespace(server=data.server)))

    await guard.connecting(data, settings("off" if mode == "x" else "local"))

    assert refused == bool(data.server.error)


def test_a_connection_without_a_destination_is_nobody_s_choice() -> None:
    """Straight to the proxy: there is no destination yet."""
    guard = RelayGuard()
    guard.note(cast("Context", SimpleNamespace(server=Server(address=None))))
    assert 0 == len(guard._chosen)


async def test_a_check_that_fails_refuses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Before connecting, an unexpected error counts as a refusal."""

    async def broken(*_: object) -> set[str]:
        raise RuntimeError("broken resolver")

    monkeypatch.setattr(relay_guard, "resolve", broken)
    data = connecting(("public.example", 80))

    await RelayGuard().connecting(data, settings())

    assert "could not be checked" in str(data.server.error)
    assert "broken resolver" in caplog.text


@pytest.mark.parametrize(
    "host, plain",
    [
        ("example.com", True),
        ("example.com.", True),
        ("my_host-1.example", True),
        ("b\u00fccher.example", True),
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("1.example", True),
        ("a.0x", False),
        ("0x7f.1", False),
        ("0177.0.0.1", False),
        ("\uff11\uff12\uff17.0.0.1", False),
        ("127\u30020\u30020\u30021.", False),
        ("a b", False),
        ("a\r\nb", False),
        ("a/b", False),
        ("fe80::1%eth0", False),
        ("", False),
        (".", False),
        ("a..b", False),
    ],
)
def test_is_plain(host: str, plain: bool) -> None:
    """Only a spelling that all resolvers interpret in the same way can be checked here."""
    assert plain == relay_guard.is_plain(host)


@pytest.mark.parametrize(
    "allowed, who, peer, sock, cut",
    [
        ("local", "192.0.2.1", "127.0.0.1", None, True),
        ("local", "192.0.2.1", "8.8.8.8", None, False),
        ("local", "192.0.2.1", "8.8.8.8", "10.0.0.1", False),
        ("local", "192.0.2.1", "8.8.8.8", "8.8.8.8", True),
        ("local", "192.0.2.1", None, None, True),
        ("local", "192.0.2.1", "no address", None, True),
        ("local", "127.0.0.1", "127.0.0.1", None, False),
        ("local", "127.0.0.1", None, None, False),
        ("public", "127.0.0.1", "127.0.0.1", None, True),
        ("any", "192.0.2.1", "127.0.0.1", None, False),
    ],
)
def test_connected(
    allowed: AllowedDestinations, who: str, peer: str | None, sock: str | None, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that was taken in the end is judged once more; one that is not known, or is no address, is refused."""
    seen: list[Any] = []
    monkeypatch.setattr(connections, "cut", lambda *what: seen.append(what))
    data = connecting(("rebinding.example", 80), client(who))
    data.server.peername = (peer, 80) if peer else None
    data.server.sockname = (sock, 50000) if sock else None

    RelayGuard().connected(data, settings(allowed))

    assert cut == bool(seen)


@pytest.mark.parametrize("known", [True, False], ids=["known mitmproxy", "unknown mitmproxy"])
def test_a_connection_to_the_proxy_itself(known: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is closed where requests for a gateway with an unknown name would go round in circles."""
    seen: list[Any] = []
    monkeypatch.setattr(connections, "cut", lambda *what: seen.append(what))
    monkeypatch.setattr(install, "patches_http", lambda: known)
    data = connecting(("gateway.example", 8080))
    data.server.peername = data.client.sockname
    RelayGuard().connected(data, settings("any"))
    assert known != bool(seen)
    assert known != ("add the name to azure_openai_hosts" in caplog.text)


def test_a_connection_that_cannot_be_closed_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task ends before either side gets a byte of the other's."""

    def broken(*_: object) -> None:
        raise KeyError("transports")

    monkeypatch.setattr(connections, "cut", broken)
    data = connecting(("rebinding.example", 80))
    data.server.peername = ("127.0.0.1", 80)

    with pytest.raises(asyncio.CancelledError):
        RelayGuard().connected(data, settings())


@pytest.mark.parametrize(
    "host, port, allowed, cut",
    [
        ("10.0.0.7", 9000, "off", False),
        ("10.0.0.7", 22, "local", True),
        ("metadata.google.invalid", 80, "local", True),
        ("8.8.8.8", 443, "local", False),
        ("8.8.8.8", 443, "off", True),
    ],
)
async def test_asking_upstream(host: str, port: int, allowed: AllowedDestinations, cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another proxy is asked for is judged by its own name: the connection shows only that proxy's."""
    seen: list[Any] = []
    monkeypatch.setattr(connections, "cut", lambda *what: seen.append(what))
    flow = tflow.tflow()
    flow.client_conn = client(mode="upstream:http://10.0.0.8:3128")
    flow.request.host, flow.request.port = host, port

    await RelayGuard().asking_upstream(flow, settings(allowed))

    assert cut == bool(seen)


def options(*, onboarding: bool = True) -> Options:
    made = Options()
    made.add_option("onboarding", bool, onboarding, "")
    made.add_option("onboarding_host", str, "mitm.it", "")
    return made


async def test_request() -> None:
    """A request is answered, and kept without its key; a replayed one is the owner's own."""
    flow = tflow.tflow()
    flow.request.headers["authorization"] = "Bearer a-key-for-openai"
    flow.client_conn = client()
    flow.request.host = "127.0.0.1"
    await RelayGuard().request(flow, settings(), Options())
    assert flow.response
    assert 403 == flow.response.status_code
    assert b"destination_refused" in (flow.response.content or b"")
    assert "Bearer [key]" == flow.request.headers["authorization"]

    flow.response = None
    flow.request.host = "8.8.8.8"
    await RelayGuard().request(flow, settings(), Options())
    assert flow.response is None

    flow.request.host, flow.is_replay = "127.0.0.1", "request"
    await RelayGuard().request(flow, settings(), Options())
    assert flow.response is None


@pytest.mark.parametrize(
    "host, header, mode, onboarding, refused",
    [
        ("mitm.it", "mitm.it", "regular", True, False),
        ("mitm.it", "mitm.it", "upstream:http://10.0.0.8:3128", True, False),
        ("198.20.0.1", "mitm.it", "transparent", True, False),
        ("169.254.169.254", "mitm.it", "upstream:http://10.0.0.8:3128", True, True),
        ("169.254.169.254", "mitm.it", "regular", True, True),
        ("mitm.it", "other.example", "upstream:http://10.0.0.8:3128", True, True),
        ("mitm.it", "mitm.it", "upstream:http://10.0.0.8:3128", False, True),
    ],
)
async def test_the_ca_s_own_host(host: str, header: str, mode: str, onboarding: bool, refused: bool) -> None:
    """It is let through where mitmproxy answers itself; a Host header alone opens nothing."""
    flow = tflow.tflow()
    flow.client_conn = client(mode=mode)
    flow.request.host = host
    flow.request.headers["host"] = header

    await RelayGuard().request(flow, settings("off"), options(onboarding=onboarding))

    assert refused == bool(flow.response)


@pytest.mark.parametrize(
    "modes, host, where",
    [
        (["regular"], "", "any address of this machine"),
        (["regular"], "0.0.0.0", "0.0.0.0"),
        (["regular@127.0.0.1:1", "socks5@192.0.2.1:1080"], "127.0.0.1", "192.0.2.1"),
        (["regular"], "127.0.0.1", None),
        (["regular"], "::1", None),
        (["regular"], "localhost", None),
        (["regular"], "proxy.localhost", None),
        (["regular"], "proxy.example.com", "proxy.example.com"),
        (["wireguard", "local"], "", None),
    ],
)
def test_exposed(modes: list[str], host: str, where: str | None) -> None:
    """Whether others than this machine's own clients are listened to."""
    assert where == exposed(modes, host)


@pytest.mark.parametrize(
    "secret, proxyauth, host, keys_required, warned",
    [
        ({"token": "key"}, None, "", False, True),
        ({"entra": "default"}, None, "", False, True),
        ({}, None, "", False, False),
        ({"token": "key"}, "user:password", "", False, False),
        ({"token": "key"}, None, "127.0.0.1", False, False),
        ({"token": "key"}, None, "", True, False),
    ],
)
def test_warn(
    secret: dict[str, Any], proxyauth: str | None, host: str, keys_required: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that any client may use is worth a warning, and so is an identity."""
    chosen = Settings(backends=(dataclasses.replace(BACKEND, **secret),))
    options = cast("Options", SimpleNamespace(mode=["regular"], listen_host=host, proxyauth=proxyauth))
    relay_guard.warn(chosen, options, keys_required=keys_required)
    assert warned == ("uses the configured key" in caplog.text)


async def test_resolve() -> None:
    """Every address of a name, none for a host that is not a name."""
    assert {"127.0.0.1"} == await relay_guard.resolve("127.1", 80)
    assert set() == await relay_guard.resolve("a" * 64, 80)
