"""Connections without a setting at the client, between two network namespaces: a gateway, WireGuard, and a captured process."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from azure_simulator import Simulator
from support.asking import H1, H2, OPENAI, keeps_its_certificate, serves
from support.curl import Curl
from support.marks import KERNEL, second_try
from support.network import Family, Network, needs, run
from support.processes import MITMDUMP, ROOT, Mitmdump
from support.world import World, captured, confined, no_cgroup, no_tun, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BY = {"http": (H1, "http://api.openai.com", "1.1"), "https": (H1, OPENAI, "1.1"), "h2": (H2, OPENAI, "2")}


METADATA = {"IPv4": "169.254.169.254", "IPv6": "[fd00:ec2::254]"}  # of a cloud

type Upstream = Callable[[Simulator], dict[str, Any]]


@pytest.fixture(params=["http", "https"])
def upstream(request: pytest.FixtureRequest) -> Upstream:
    """The options that lead to Azure, plain and by TLS."""
    if request.param == "http":
        return lambda azure: {"azure_openai_endpoint": azure.http_url}
    return lambda azure: {"azure_openai_endpoint": azure.https_url, "ssl_verify_upstream_trusted_ca": azure.ca}


def proxy(world: World, home: Path, confdir: Path, mode: str, prefix: Sequence[str] = (), **options: object) -> Mitmdump:
    """In the gateway's namespace, on every interface."""
    return Mitmdump(
        home,
        confdir,
        options={"listen_host": None, "listen_port": None} | options,
        args=("--mode", mode),
        command=(*(prefix or world.network.command(world.network.gateway)), MITMDUMP),
    )


def check(world: World, through: Mitmdump, prefix: Sequence[str]) -> None:
    """A client that runs under `prefix` is served, whatever it speaks, and all but OpenAI is left alone."""
    for version, base, seen in BY.values():
        assert seen == serves(Curl(["--cacert", str(through.ca), version], prefix), base, world.azure)
    keeps_its_certificate(Curl(prefix=prefix), "https://third.example", world.third_ca, 418)
    assert [0, 0] == [decoy.accepted for decoy in world.decoys]
    assert "api.openai.com" not in through.lookups


def with_iptables(network: Network) -> None:
    run(*network.command(network.gateway), str(ROOT / "deploy/transparent/redirect-iptables.sh"), "eth1")


def with_nftables(network: Network) -> None:
    run(*network.command(network.gateway), "nft", "-f", str(ROOT / "deploy/transparent/redirect.nft"))


def leads_nowhere_inside(through: Mitmdump, curl: Curl, host: str) -> None:
    """A client that is not of this machine asks for what only this machine should reach: no connection is tried."""
    for scheme in ("http", "https"):
        assert curl("-k", f"{scheme}://{host}/latest").status in (0, 403)
    assert [] == [connection for connection in through.connections if host.strip("[]") in connection]


@needs("curl")
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize(
    "redirect",
    [
        pytest.param(with_iptables, id="iptables", marks=needs("iptables")),
        pytest.param(with_nftables, id="nftables", marks=needs("nft")),
    ],
)
def test_transparent(redirect: Callable[[Network], None], family: Family, upstream: Upstream, tmp_path: Path, confdir: Path) -> None:
    """A gateway that clients do not know of: their default route leads through it, and the kernel hands it their web traffic."""
    with world(tmp_path, family) as there:
        redirect(there.network)
        with proxy(there, tmp_path / "home", confdir, "transparent", listen_port=8080, **upstream(there.azure)) as through:
            check(there, through, there.network.command(there.network.client))
            leads_nowhere_inside(through, Curl(prefix=there.network.command(there.network.client)), METADATA[family])


@needs("curl", "wg", "wireguard-go", but=no_tun())
def test_wireguard(upstream: Upstream, tmp_path: Path, confdir: Path) -> None:
    """A device that knows the proxy as its VPN, names included: all it gets is the configuration that mitmproxy prints."""
    with world(tmp_path) as there, proxy(there, tmp_path / "home", confdir, "wireguard", **upstream(there.azure)) as through:
        printed = through.wait_for_log(r"(?s)(\[Interface\].*)Endpoint = \S+:(\d+)")
        client = there.network.client
        # `wg-quick up` does the following with it; Address and DNS are lines of its own
        config = re.sub(r"(?m)^\s*(Address|DNS).*$", "", printed[1]) + f"Endpoint = {there.network.at.gateway}:{printed[2]}\n"
        (tmp_path / "wg0.conf").write_text(config)
        Path("/etc/netns", client, "resolv.conf").write_text("nameserver 10.0.0.53\n")
        # third.example is looked up through the tunnel; for OpenAI's name any address will do, and the recorder has only a decoy's
        Path("/etc/netns", client, "hosts").write_text(f"{there.network.at.openai} api.openai.com\n")
        with wireguard(there.network, tmp_path / "wg0.conf"):
            check(there, through, there.network.command(client))
            leads_nowhere_inside(through, Curl(prefix=there.network.command(client)), METADATA["IPv4"])


@contextmanager
def wireguard(network: Network, config: Path) -> Iterator[None]:
    """The client's end, in user space."""
    run(*network.command(network.client), "wireguard-go", "wg0")  # it goes to the background when the interface is there
    try:
        run(*network.command(network.client), "wg", "setconf", "wg0", str(config))
        network.ip(network.client, "address", "add", "10.0.0.1/32", "dev", "wg0")
        network.ip(network.client, "link", "set", "mtu", "1420", "dev", "wg0", "up")
        network.ip(network.client, "route", "replace", "default", "dev", "wg0")
        yield
    finally:
        subprocess.run([*network.command(network.client), "ip", "link", "delete", "wg0"], check=False)


@second_try(KERNEL)
@needs("curl", "sudo", but=no_cgroup())
def test_local_capture(upstream: Upstream, tmp_path: Path, confdir: Path) -> None:
    """One program of this machine, which knows of nothing: its connections are taken over in the kernel."""
    with world(tmp_path) as there, confined(there.network) as prefix:
        there.network.ip(there.network.gateway, "route", "add", "default", "via", there.network.at.client)
        with proxy(there, tmp_path / "home", confdir, "local:curl,talk", prefix, **upstream(there.azure)) as through:
            captured(Curl(prefix=prefix))
            check(there, through, prefix)
