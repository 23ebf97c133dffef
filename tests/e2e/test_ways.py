"""Every way in, for real: a chat and a stream by it, while api.openai.com is asked for nothing and other hosts keep their certificate."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from azure_simulator import Gate
from curl import Curl, events
from support import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support import Decoy

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")

OPENAI = "https://api.openai.com"
ANSWER = "You said: one two three"
H1, H2 = "--http1.1", "--http2"


def body(**more: object) -> str:
    return json.dumps({"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "one two three"}]} | more)


def serves(curl: Curl, base: str, azure: Simulator) -> str:
    """A chat and a stream come through, the stream event by event; the HTTP version that the client got."""
    ask = ("-H", f"Authorization: Bearer {azure.key}", "-H", "Content-Type: application/json", f"{base}/v1/chat/completions", "-d")

    answer = curl(*ask, body())
    assert (200, "") == (answer.status, answer.error)
    assert ANSWER == answer.json["choices"][0]["message"]["content"]

    gate = Gate(before=3)
    azure.faults.next(gate)
    with curl.lines(*ask, body(stream=True)) as lines:
        chunks = events(lines)
        first = json.loads(next(chunks))
        assert gate.reached.wait(PATIENCE)  # Azure holds the next one back, and yet the first is here
        gate.release()
        rest = list(chunks)
    assert "assistant" == first["choices"][0]["delta"]["role"]
    assert ANSWER == "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in rest[:-1])
    assert "[DONE]" == rest[-1]

    assert [azure.key] * 2 == [request.header("api-key") for request in azure.requests]
    return answer.http


def keeps_its_certificate(curl: Curl, third_party: str, ca: Path) -> None:
    """The client trusts the third party's CA alone, so it is the third party's certificate that it sees."""
    answer = curl("--cacert", str(ca), f"{third_party}/v1/models")
    assert ("", 401) == (answer.error, answer.status)  # the proxy itself would answer with the models


@pytest.fixture(params=["http", "https"])
def upstream(request: pytest.FixtureRequest, azure: Simulator) -> dict[str, object]:
    """The options that lead to Azure, plain and by TLS."""
    if request.param == "http":
        return {"azure_openai_endpoint": azure.http_url}
    return {"azure_openai_endpoint": azure.https_url, "ssl_verify_upstream_trusted_ca": azure.ca}


def trusting(proxy: Mitmdump, *arguments: str) -> Curl:
    return Curl(["--cacert", str(proxy.ca), "--proxy-cacert", str(proxy.ca), *arguments])


GATEWAYS: dict[str, tuple[str, Callable[[Mitmdump], str], str]] = {
    "http": (H1, lambda proxy: proxy.url, "1.1"),
    "https": (H1, lambda proxy: proxy.https_url, "1.1"),
    "h2": (H2, lambda proxy: proxy.https_url, "2"),
}


@pytest.mark.parametrize("version, base, seen", GATEWAYS.values(), ids=GATEWAYS)
@pytest.mark.parametrize("mode", ["regular", f"reverse:{OPENAI}"], ids=["regular", "reverse"])
def test_gateway(
    mode: str,
    version: str,
    base: Callable[[Mitmdump], str],
    seen: str,
    upstream: dict[str, object],
    azure: Simulator,
    decoy: Decoy,
    proxy: Proxies,
) -> None:
    """A client with a base URL: plain, by TLS, on HTTP/2."""
    through = proxy("--mode", mode, **upstream)

    assert seen == serves(trusting(through, version), base(through), azure)
    assert 0 == decoy.accepted


FORWARD: dict[str, tuple[str, Callable[[Mitmdump], str], str, str]] = {
    "plain": (H1, lambda proxy: proxy.url, "http://api.openai.com", "1.1"),
    "plain, proxy by TLS": (H1, lambda proxy: proxy.https_url, "http://api.openai.com", "1.1"),
    "CONNECT": (H1, lambda proxy: proxy.url, OPENAI, "1.1"),
    "CONNECT, h2": (H2, lambda proxy: proxy.url, OPENAI, "2"),
    "CONNECT, proxy by TLS": (H1, lambda proxy: proxy.https_url, OPENAI, "1.1"),
    "CONNECT, h2, proxy by TLS": (H2, lambda proxy: proxy.https_url, OPENAI, "2"),
}


@pytest.mark.parametrize("version, at, base, seen", FORWARD.values(), ids=FORWARD)
def test_forward_proxy(
    version: str,
    at: Callable[[Mitmdump], str],
    base: str,
    seen: str,
    upstream: dict[str, object],
    azure: Simulator,
    decoy: Decoy,
    proxy: Proxies,
) -> None:
    """A client with a proxy variable and a hard-coded address."""
    through = proxy("--mode", "regular", **upstream)
    curl = trusting(through, version, "--proxy", at(through))

    assert seen == serves(curl, base, azure)
    assert 0 == decoy.accepted
    keeps_its_certificate(curl, azure.https_url, azure.ca)


@pytest.mark.parametrize("version, base, seen", [(H1, "http://api.openai.com", "1.1"), (H1, OPENAI, "1.1"), (H2, OPENAI, "2")])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"], ids=["the client resolves", "the proxy resolves"])
def test_socks5(
    scheme: str, version: str, base: str, seen: str, upstream: dict[str, object], azure: Simulator, decoy: Decoy, proxy: Proxies
) -> None:
    """A client that speaks SOCKS, with names or addresses: the name is in the TLS hello or in the Host."""
    through = proxy("--mode", "socks5", **upstream)
    pinned = ("--resolve", f"api.openai.com:{443 if base == OPENAI else 80}:127.0.0.2")
    curl = trusting(through, version, "--proxy", f"{scheme}://127.0.0.1:{through.port}", *pinned)

    assert seen == serves(curl, base, azure)
    assert 0 == decoy.accepted
    assert [] == [connection for connection in through.connections if connection.startswith("127.0.0.2:")]
    keeps_its_certificate(curl, azure.https_url, azure.ca)


@pytest.fixture(scope="module")
def corporate(confdir: Path, _decoy: Decoy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mitmdump]:
    """A proxy with a password, which decrypts nothing."""
    options = {"proxyauth": "clerk:password", "ignore_hosts": ".*", "connection_strategy": "lazy", "stream_large_bodies": "1"}
    with Mitmdump(tmp_path_factory.mktemp("corporate"), confdir, options=options, scripts=(), decoy_port=_decoy.port) as proxy:
        yield proxy


BEHIND: dict[str, tuple[str, Callable[[Mitmdump], str], str, str]] = {
    "gateway, http": (H1, lambda proxy: "", "", "1.1"),
    "gateway, https": (H1, lambda proxy: "", "tls", "1.1"),
    "gateway, h2": (H2, lambda proxy: "", "tls", "2"),
    **FORWARD,
}


@pytest.mark.parametrize("version, at, base, seen", BEHIND.values(), ids=BEHIND)
def test_behind_a_proxy_with_a_password(
    version: str,
    at: Callable[[Mitmdump], str],
    base: str,
    seen: str,
    upstream: dict[str, object],
    corporate: Mitmdump,
    azure: Simulator,
    decoy: Decoy,
    proxy: Proxies,
) -> None:
    """Azure, and everyone else, is reached through the company's proxy alone."""
    through = proxy("--mode", f"upstream:{corporate.url}", "--upstream-auth", "clerk:password", **upstream)
    corporate.forget()
    curl = trusting(through, version, "--proxy", at(through))

    assert seen == serves(curl, base.replace("tls", through.https_url) or through.url, azure)
    assert 0 == decoy.accepted
    keeps_its_certificate(Curl(["--proxy", through.url]), azure.https_url, azure.ca)
    assert {f"127.0.0.1:{corporate.port}"} == set(through.connections)
    assert [] != corporate.connections
