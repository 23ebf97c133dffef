"""The blocks of README.md and docs/, pasted: each is run as it stands, with a simulated Azure in the place of RESOURCE.openai.azure.com.

They run in a network namespace, where port 8080 is free and eth1 leads to clients.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from azure_simulator import tls
from support.curl import Curl
from support.network import needs
from support.processes import MITMDUMP, PATIENCE, ROOT, Mitmdump
from support.shell import installed
from support.world import World, captured, confined, no_cgroup, no_tun, world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCUMENTS = ("README.md", "docs/connecting-clients.md", "docs/deploy.md")
# What is at the reader's: the rest of a line is run as it is written.
RESOURCE = "https://RESOURCE.openai.azure.com"
CERTIFICATE = "/etc/ssl/gateway.pem"
NAMES = ("gateway.example.com", "proxy.example.com")

START = re.compile(r"(\w+=\S+ |sudo -E )*(azure-openai-proxy|\"\$\(command -v azure-openai-proxy\)\"|mitmdump|make (run|scale))\b")
SAID = "You said: Hello"
MODELS = '"object": "list"'


def blocks() -> dict[str, str]:
    """Every block for a shell, by its document, its heading and its number there."""
    found: dict[str, str] = {}
    for document in DOCUMENTS:
        for section in re.split(r"(?m)^#+ ", (ROOT / document).read_text())[1:]:
            heading = section.partition("\n")[0]
            for number, block in enumerate(re.findall(r"```sh\n(.*?)```", section, re.DOTALL), 1):
                found[f"{Path(document).stem}: {heading} {number}"] = block
    return found


BLOCKS = blocks()
PROBE = BLOCKS["README: Connect a client 1"].splitlines()[-1]  # a chat with the SDK, as the environment says


class Way(NamedTuple):
    """A block that starts the proxy, the blocks of a client that it serves, and what they print in the end."""

    proxy: str
    client: Sequence[str]
    prints: str = SAID
    needs: Sequence[pytest.MarkDecorator] = ()


POINT, ENDPOINT, BASE = "README: Connect a client", "connecting-clients: Connecting clients 1", "connecting-clients: Base URL"
NETWORK = ("connecting-clients: Transparent proxy 1", "connecting-clients: Transparent proxy 2")
WIREGUARD, LOCAL = "connecting-clients: WireGuard 1", "connecting-clients: Local capture"
WAYS = (
    Way("README: Start the proxy 1", [f"{POINT} 1"]),
    Way("README: Start the proxy 2", [f"{POINT} 2"], "[DONE]", [needs("curl")]),
    Way("README: Start the proxy 3", [f"{POINT} 3"]),
    Way("README: Map models to deployments 1", [f"{POINT} 1"]),
    Way(f"{BASE} 1", [f"{BASE} 2"]),
    Way(f"{BASE} 3", [f"{BASE} 4"]),
    Way(f"{BASE} 5", [f"{BASE} 2"]),
    Way(
        "connecting-clients: Browser clients 1",
        ["connecting-clients: Browser clients 2"],
        "access-control-allow-origin: https://chat.example.com",
        [needs("curl")],
    ),
    Way("connecting-clients: HTTP proxy 1", ["connecting-clients: HTTP proxy 2"]),
    Way("connecting-clients: HTTP proxy 1", ["connecting-clients: Client environment 1"]),
    Way("connecting-clients: SOCKS5 1", ["connecting-clients: SOCKS5 2"], MODELS, [needs("curl")]),
    Way("connecting-clients: Upstream proxy 1", [f"{BASE} 2"]),
    Way("deploy: Several processes on one machine 1", [f"{BASE} 2"], SAID, [needs("curl", "haproxy")]),
    Way("deploy: Front end on the same machine 1", ["deploy: Front end on the same machine 2"], SAID, [needs("curl", "haproxy")]),
)
ELSEWHERE = {
    "README: Azure OpenAI Proxy 1": "test_the_demo, and whatever runs this",
    "deploy: Container 1": "test_image.py builds it and runs it",
    "deploy: Container 2": "test_image.py mounts one",
    "deploy: Container 3": "test_image.py",
    "deploy: Container 4": "test_deploy.py reads the file: there is no daemon",
    "deploy: systemd 1": "test_deploy.py has systemd read the unit: it did not start this machine",
    "deploy: Kubernetes 1": "test_deploy.py has the schemas read the manifests: there is no cluster",
}


def test_every_block_is_run() -> None:
    """Here, or where it says."""
    run = {name for way in WAYS for name in (way.proxy, *way.client)} | {ENDPOINT, *NETWORK, WIREGUARD, f"{LOCAL} 1", f"{LOCAL} 2"}
    assert set(BLOCKS) == run | set(ELSEWHERE)
    assert not run & set(ELSEWHERE)


class Reader(NamedTuple):
    """Who follows the documents, on the gateway or on a client's machine."""

    there: World
    home: Path
    certificate: Path
    ca: Path  # of the certificate

    @property
    def _environment(self) -> dict[str, str]:
        key = self.there.azure.key
        return installed(self.home) | {"AZURE_OPENAI_API_KEY": key, "OPENAI_API_KEY": key}

    def written(self, text: str) -> str:
        return text.replace(RESOURCE, self.there.azure.http_url).replace(CERTIFICATE, str(self.certificate))

    @property
    def prefix(self) -> tuple[str, ...]:
        return self.there.network.command(self.there.network.gateway)

    @contextmanager
    def starts(self, script: str, prefix: Sequence[str] = ()) -> Iterator[str]:
        """The proxy, ready; what it has printed until then."""
        process = subprocess.Popen(
            [*(prefix or self.prefix), "bash", "-ec", self.written(f"{BLOCKS[ENDPOINT]}{script}")],
            cwd=ROOT,
            env=installed(self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout
        printed = ""
        for line in process.stdout:
            printed += line
            if "API version" in line:
                break
        rest = threading.Thread(target=process.stdout.read, daemon=True)
        rest.start()
        try:
            assert "API version" in printed, printed
            yield printed
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            rest.join(PATIENCE)  # it is read to its end when the last process has ended
            assert not rest.is_alive(), f"it does not stop: {script}"
            process.stdout.close()
            process.wait()

    def runs(self, script: str, prefix: Sequence[str] = (), **env: str) -> str:
        """What a client's blocks print."""
        done = subprocess.run(
            [*(prefix or self.prefix), "bash", "-ec", self.written(script)],
            cwd=ROOT,
            env=self._environment | env,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    ca, _ = tls.make(folder, ["gateway.example.com"])
    with world(tmp_path_factory.mktemp("world")) as there:
        network = there.network
        hosts = {network.gateway: f"127.0.0.1 {' '.join(NAMES)}\n", network.client: f"{network.at.gateway} PROXY\n"}
        for namespace, lines in hosts.items():
            with Path("/etc/netns", namespace, "hosts").open("a") as file:
                file.write(lines)
        network.ip(network.gateway, "route", "add", "default", "via", network.at.client)
        there.azure.deployments["prod-4o"] = "gpt-4o"
        yield Reader(there, folder, folder / "server.pem", ca)
        assert [0, 0] == [decoy.accepted for decoy in there.decoys]


@pytest.fixture(scope="module")
def corporate(reader: Reader, confdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The other proxy, with its password."""
    options = {"proxyauth": "USER:PASSWORD", "ignore_hosts": ".*", "listen_port": 3128}
    home = tmp_path_factory.mktemp("corporate")
    with Mitmdump(home, confdir, options=options, scripts=(), command=(*reader.prefix, MITMDUMP)):
        yield


def starting(block: str) -> list[str]:
    """A block that starts the proxy in several ways is as many scripts: what comes before is in each."""
    lines = block.replace("\\\n", " ").splitlines()
    before = [line for line in lines if not START.match(line)]
    return ["\n".join([*before, line]) for line in lines if START.match(line)] or ["\n".join([*before, "azure-openai-proxy"])]


CASES = [
    pytest.param(script, way.client, way.prints, marks=[needs(), *way.needs], id=f"{way.proxy}{f', {number}' if number else ''}")
    for way in WAYS
    for number, script in enumerate(starting(BLOCKS[way.proxy]))
]


@pytest.mark.parametrize("script, client, prints", CASES)
def test_a_block_that_starts_the_proxy(script: str, client: Sequence[str], prints: str, reader: Reader, corporate: None) -> None:
    """And those of its client: pasted, they work."""
    asked = "\n".join(BLOCKS[name] for name in client)
    if "export" in asked.splitlines()[-1] or "eval" in asked.splitlines()[-1]:
        asked += PROBE
    trust = {"SSL_CERT_FILE": str(reader.ca)} if CERTIFICATE in script else {}
    with reader.starts(script):
        if "scale" in script:  # the balancer has to find them
            reader.runs("curl -sS --retry 60 --retry-delay 1 --retry-all-errors http://localhost:8080/readyz")
        assert prints in reader.runs(asked, **trust)


UNDO = {
    NETWORK[0]: "deploy/transparent/redirect-iptables.sh eth1 -D",
    NETWORK[1]: "nft delete table inet azure_openai_proxy",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs("sudo", "iptables", "nft")) for name in NETWORK])
def test_a_network(name: str, reader: Reader) -> None:
    """A client of it that knows of nothing but the CA; and what the files say undoes it."""
    network = reader.there.network
    with reader.starts(BLOCKS[name]):
        ca = str(reader.home / ".mitmproxy" / "mitmproxy-ca-cert.pem")
        assert SAID in reader.runs(PROBE, network.command(network.client), SSL_CERT_FILE=ca)
        reader.runs(UNDO[name])
    assert "redirect" not in reader.runs("nft list ruleset").lower()


@needs(but=no_tun())
def test_a_phone_or_a_laptop(reader: Reader) -> None:
    """It prints a configuration, with a line where the machine's address goes."""
    with reader.starts(BLOCKS[WIREGUARD]) as printed:
        assert re.search(r"(?s)\[Interface\].*\[Peer\].*\n *Endpoint = ", printed)


@needs("sudo", "curl", but=no_cgroup())
def test_a_program_on_this_machine(reader: Reader) -> None:
    """One that is named, and knows of nothing but the CA."""
    with confined(reader.there.network) as prefix, reader.starts(BLOCKS[f"{LOCAL} 1"], prefix):
        captured(Curl(prefix=prefix))
        assert MODELS in reader.runs(BLOCKS[f"{LOCAL} 2"], prefix)


@needs("curl")
def test_another_machine(reader: Reader, tmp_path: Path) -> None:
    """`env` gets the CA from the proxy."""
    line = re.search(r'eval "\$\(azure-openai-proxy env --proxy http://PROXY:8080\)"', (ROOT / "docs/connecting-clients.md").read_text())
    assert line
    network = reader.there.network
    elsewhere = reader._replace(home=tmp_path)
    with reader.starts(BLOCKS["connecting-clients: HTTP proxy 1"]):
        assert SAID in elsewhere.runs(f"{line[0]}\n{PROBE}", network.command(network.client))


def test_the_demo() -> None:
    """The first thing that README has."""
    done = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
    assert 0 == done.returncode, done.stderr
    assert "You said: What does a proxy do?" in done.stdout
