"""Every way to connect, with real clients: a chat and a stream, no request to api.openai.com, and other hosts keep their certificates."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from azure_simulator import tls
from support.asking import H1, H2, OPENAI, keeps_its_certificate, serves
from support.curl import Curl
from support.processes import Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Decoy

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


@pytest.fixture(params=["http", "https"])
def upstream(request: pytest.FixtureRequest, azure: Simulator) -> dict[str, Any]:
    """The options that lead to Azure, plain and by TLS."""
    if request.param == "http":
        return {"azure_openai_endpoint": azure.http_url}
    return {"azure_openai_endpoint": azure.https_url, "ssl_verify_upstream_trusted_ca": azure.ca}


def trusting(proxy: Mitmdump, *arguments: str) -> Curl:
    return Curl(["--cacert", str(proxy.ca), "--proxy-cacert", str(proxy.ca), *arguments])


def written(address: str, proxy: Mitmdump) -> str:
    return address.format(http=proxy.url, https=proxy.https_url)


GATEWAYS: dict[str, tuple[str, str, str]] = {
    "http": (H1, "{http}", "1.1"),
    "https": (H1, "{https}", "1.1"),
    "h2": (H2, "{https}", "2"),
}


@pytest.mark.parametrize("version, base, seen", GATEWAYS.values(), ids=GATEWAYS)
@pytest.mark.parametrize("mode", ["regular", f"reverse:{OPENAI}"], ids=["regular", "reverse"])
def test_gateway(
    mode: str,
    version: str,
    base: str,
    seen: str,
    upstream: dict[str, Any],
    azure: Simulator,
    decoy: Decoy,
    proxy: Proxies,
) -> None:
    """A client with a base URL: plain, by TLS, on HTTP/2."""
    through = proxy("--mode", mode, **upstream)

    assert seen == serves(trusting(through, version), written(base, through), azure)
    assert 0 == decoy.accepted


FORWARD: dict[str, tuple[str, str, str, str]] = {
    "plain": (H1, "{http}", "http://api.openai.com", "1.1"),
    "plain, proxy by TLS": (H1, "{https}", "http://api.openai.com", "1.1"),
    "CONNECT": (H1, "{http}", OPENAI, "1.1"),
    "CONNECT, h2": (H2, "{http}", OPENAI, "2"),
    "CONNECT, proxy by TLS": (H1, "{https}", OPENAI, "1.1"),
    "CONNECT, h2, proxy by TLS": (H2, "{https}", OPENAI, "2"),
}


@pytest.mark.parametrize("version, at, base, seen", FORWARD.values(), ids=FORWARD)
def test_forward_proxy(
    version: str,
    at: str,
    base: str,
    seen: str,
    upstream: dict[str, Any],
    azure: Simulator,
    decoy: Decoy,
    proxy: Proxies,
) -> None:
    """A client with a proxy variable and a hard-coded address."""
    through = proxy("--mode", "regular", **upstream)
    curl = trusting(through, version, "--proxy", written(at, through))

    assert seen == serves(curl, base, azure)
    assert 0 == decoy.accepted
    keeps_its_certificate(curl, azure.https_url, azure.ca, 401)


@pytest.mark.parametrize("version, base, seen", [(H1, "http://api.openai.com", "1.1"), (H1, OPENAI, "1.1"), (H2, OPENAI, "2")])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"], ids=["the client resolves", "the proxy resolves"])
def test_socks5(
    scheme: str, version: str, base: str, seen: str, upstream: dict[str, Any], azure: Simulator, decoy: Decoy, proxy: Proxies
) -> None:
    """A client that speaks SOCKS, with names or addresses: the name is in the TLS hello or in the Host."""
    through = proxy("--mode", "socks5", **upstream)
    pinned = ("--resolve", f"api.openai.com:{443 if base == OPENAI else 80}:127.0.0.2")
    curl = trusting(through, version, "--proxy", f"{scheme}://127.0.0.1:{through.port}", *pinned)

    assert seen == serves(curl, base, azure)
    assert 0 == decoy.accepted
    assert [] == [connection for connection in through.connections if connection.startswith("127.0.0.2:")]
    keeps_its_certificate(curl, azure.https_url, azure.ca, 401)


@pytest.fixture(scope="module")
def corporate(confdir: Path, _decoy: Decoy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mitmdump]:
    """A proxy with a password, which decrypts nothing."""
    options = {"proxyauth": "clerk:password", "ignore_hosts": ".*", "connection_strategy": "lazy", "stream_large_bodies": "1"}
    with Mitmdump(tmp_path_factory.mktemp("corporate"), confdir, options=options, scripts=(), decoy_port=_decoy.port) as proxy:
        yield proxy


BEHIND: dict[str, tuple[str, str, str, str]] = {
    "gateway, http": (H1, "", "{http}", "1.1"),
    "gateway, https": (H1, "", "{https}", "1.1"),
    "gateway, h2": (H2, "", "{https}", "2"),
    **FORWARD,
}


@pytest.mark.parametrize("version, at, base, seen", BEHIND.values(), ids=BEHIND)
def test_behind_a_proxy_with_a_password(
    version: str,
    at: str,
    base: str,
    seen: str,
    upstream: dict[str, Any],
    corporate: Mitmdump,
    azure: Simulator,
    decoy: Decoy,
    proxy: Proxies,
) -> None:
    """Azure and all other hosts are reached through the company's proxy only."""
    through = proxy("--mode", f"upstream:{corporate.url}", "--upstream-auth", "clerk:password", **upstream)
    corporate.forget()
    curl = trusting(through, version, "--proxy", written(at, through))

    assert seen == serves(curl, written(base, through), azure)
    assert 0 == decoy.accepted
    keeps_its_certificate(Curl(["--proxy", through.url]), azure.https_url, azure.ca, 401)
    assert {f"127.0.0.1:{corporate.port}"} == set(through.connections)
    assert [] != corporate.connections


def test_a_certificate_of_the_owner_s(tmp_path: Path, azure: Simulator, proxy: Proxies) -> None:
    """A gateway under its own name, with a certificate that its clients trust already; OpenAI's name goes on with the proxy's CA."""
    ca, _ = tls.make(tmp_path, ["gateway.example"])
    through = proxy("--mode", "regular", "--certs", f"gateway.example={tmp_path / 'server.pem'}")
    here = ("--resolve", f"gateway.example:{through.port}:127.0.0.1", "--cacert", str(ca))

    answer = Curl(here)("-H", f"api-key: {azure.key}", f"https://gateway.example:{through.port}/v1/models")

    assert ("", 200) == (answer.error, answer.status)
    assert "1.1" == serves(trusting(through, H1, "--proxy", through.url), OPENAI, azure)
