"""The blocks of README.md and docs/, pasted: each is run as it stands, with a simulated Azure in the place of RESOURCE.openai.azure.com.

They run in a network namespace, where port 8080 is free and eth1 leads to clients.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from azure_simulator import tls
from support.curl import Curl
from support.network import needs
from support.processes import MITMDUMP, PATIENCE, ROOT, Mitmdump
from support.shell import installed
from support.world import World, captured, confined, no_cgroup, no_tun, world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from azure_simulator import Simulator

DOCUMENTS = ("README.md", "docs/connecting-clients.md", "docs/deploy.md", "docs/inspector.md", "docs/observability.md", "docs/teams.md")
# Replacements for the reader's own names: the rest of a line is run as it is written.
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
    "deploy: Prometheus and Grafana 1": "test_deploy.py reads the file: there is no daemon",
    "deploy: Ledger 1": "test_deploy.py reads the file: there is no daemon",
    **{f"teams: From one shared key to three clients {number}": "test_three_clients" for number in (1, 2, 3)},
    "teams: Managed keys 1": "test_managed_keys",
    "teams: Replicas 1": "test_deploy.py reads the file: there is no daemon",
    "deploy: Kubernetes 1": "test_deploy.py has the schemas read the manifests: there is no cluster",
}
ACCESS_LOG, METRICS, USAGE = "observability: Access log 2", "observability: Prometheus 2", "observability: Ledger 2"
RECORDING, INSPECT, SHARE = "inspector: The inspector: calls as threads 1", "inspector: On a file 1", "inspector: Sharing 1"
SINKS = (
    "observability: Access log 1",
    "observability: Prometheus 1",
    "observability: OpenTelemetry 1",
    "observability: Ledger 1",
    RECORDING,
)
"""They start the proxy with one option each, and one process has them all."""


def test_every_block_is_run() -> None:
    """Here, or where it says."""
    run = {name for way in WAYS for name in (way.proxy, *way.client)} | {ENDPOINT, *NETWORK, WIREGUARD, f"{LOCAL} 1", f"{LOCAL} 2"}
    run |= {ACCESS_LOG, METRICS, USAGE, *SINKS, INSPECT, SHARE}
    assert set(BLOCKS) == run | set(ELSEWHERE)
    assert not run & set(ELSEWHERE)


class Reader(NamedTuple):
    """Who follows the documents, on the gateway or on a client's machine."""

    there: World
    home: Path
    certificate: Path
    ca: Path  # of the certificate
    folder: Path = ROOT

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
        """Wait until the proxy is ready, and return its output so far."""
        process = subprocess.Popen(
            [*(prefix or self.prefix), "bash", "-ec", self.written(f"{BLOCKS[ENDPOINT]}{script}")],
            cwd=self.folder,
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

    def prints(self, script: str, end: str) -> str:
        """What a block that does not end by itself prints up to `end`, in a terminal, because programs buffer what they write to a pipe."""
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [*self.prefix, "bash", "-ec", self.written(script)],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            printed = ""
            while end not in printed:
                printed += re.sub(r"\x1b\[[\d;]*m|\r", "", os.read(ours, 65536).decode())
            return printed
        finally:
            os.close(ours)
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()

    def runs(self, script: str, prefix: Sequence[str] = (), **env: str) -> str:
        """What a client's blocks print."""
        done = subprocess.run(
            [*(prefix or self.prefix), "bash", "-ec", self.written(script)],
            cwd=self.folder,
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
    """A block that starts the proxy in several ways is run as several scripts, each with the lines before the starts."""
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


def of_all(blocks: Sequence[str]) -> str:
    """One start of the proxy with the options of each block, after their other lines."""
    lines = [line for block in blocks for line in block.splitlines()]
    starts = [line.partition("#")[0].removeprefix("azure-openai-proxy ") for line in lines if START.match(line)]
    assert len(blocks) == len(starts)
    return "\n".join([*(line for line in lines if not START.match(line)), f"azure-openai-proxy {' '.join(starts)}"])


@needs("curl", "jq")
def test_the_sinks_and_the_inspector(reader: Reader, tmp_path: Path) -> None:
    """Each sink of docs/observability.md, and the recording of docs/inspector.md, shows the calls of a client by the next blocks."""
    (tmp_path / "addon").symlink_to(ROOT / "addon")
    here = reader._replace(folder=tmp_path)
    with here.starts(of_all([BLOCKS[name] for name in SINKS])):
        assert SAID in here.runs(BLOCKS[f"{POINT} 1"])
        logged = json.loads(here.prints(BLOCKS[ACCESS_LOG], "\n}\n"))
        assert ("gpt-4o", 200, False) == (logged["model"], logged["status"], None in logged.values())
        assert re.search(r'(?m)^azure_openai_proxy_requests_total\{.*model="gpt-4o".*\} 1\.0$', here.runs(BLOCKS[METRICS]))
    usage = here.runs(BLOCKS[USAGE])
    assert re.search(r"(?m)^gpt-4o +1 +0 ", usage)
    assert usage.splitlines()[-1].startswith("removed 0 rows from before ")
    assert (tmp_path / "sessions.csv").read_text().startswith("session,requests,")
    printed = here.runs(f"{BLOCKS[INSPECT]}\n{BLOCKS[SHARE]}")
    assert 2 <= printed.count("Hello")
    (form,) = re.findall(r"(?s)```json\n(.*?)```", (ROOT / "docs/inspector.md").read_text())
    (documented,), (found,) = (json.loads(text)["threads"] for text in (form, (tmp_path / "threads.json").read_text()))
    assert [*documented] == [*found]
    assert [*documented["calls"][0]] == [*found["calls"][0]]
    assert "Hello" in (tmp_path / "thread.html").read_text()


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl")
def test_three_clients(azure: Simulator, tmp_path: Path) -> None:
    """The blocks of docs/teams.md, pasted one after the other: the last one prints a response and what the key has left."""
    first, start, use = (textwrap.dedent(block) for name, block in BLOCKS.items() if name.startswith("teams: From one shared key"))
    paste: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = installed(tmp_path) | {
        "AZURE_OPENAI_ENDPOINT": azure.http_url,
        "AZURE_OPENAI_API_KEY": azure.key,
        "AZURE_OPENAI_PROXY_ADDRESS": "127.0.0.1:0",
    }
    printed = subprocess.run(["bash", "-ec", f"{first}\nenv"], env=env, check=True, **paste).stdout
    keys = dict(line.split("=", 1) for line in printed.splitlines() if "_KEY=sk-" in line)
    assert 3 == len(keys)
    process = subprocess.Popen(["bash", "-ec", f"exec env {start}"], env=env, **paste)
    assert process.stdout
    port = None
    for line in process.stdout:
        if found := re.search(r"listening at 127\.0\.0\.1:(\d+)", line):
            port = found[1]
            break
    rest = threading.Thread(target=process.stdout.read, daemon=True)
    rest.start()
    try:
        assert port
        said = subprocess.run(["bash", "-ec", use.replace("8080", port)], env=env, check=True, timeout=PATIENCE, **paste).stdout
    finally:
        process.terminate()
        process.wait(PATIENCE)
        rest.join(PATIENCE)
        process.stdout.close()
    assert SAID in said
    assert '"limit_usd": 50.0' in said
    assert not any(key in repr(azure.requests) for key in keys.values())


def test_managed_keys(tmp_path: Path) -> None:
    """The block of docs/teams.md about managed keys: each command works, and prints a key where it makes one."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    block = BLOCKS["teams: Managed keys 1"]
    ran = subprocess.run(
        ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert 2 == len(re.findall("(?m)^sk-[A-Za-z0-9_-]{43}$", ran.stdout))
    assert "carol is deleted" in ran.stdout


def test_the_demo() -> None:
    """The first thing that README has."""
    done = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
    assert 0 == done.returncode, done.stderr
    assert "You said: What does a proxy do?" in done.stdout
