"""The openai SDK, three generations of it, through a real mitmdump, each way a client can come."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

from azure_simulator.embeddings import vector
from support.processes import PATIENCE, ROOT

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Decoy, Mitmdump

CLIENTS = ROOT / "tests" / "clients"


class Client(NamedTuple):
    name: str
    script: str
    version: str  # the beginning of `openai.__version__`, so that no other version is tested by mistake

    @property
    def python(self) -> Path:
        """Of the environment that `make test` sets up for it."""
        if self.name == "newest":
            return Path(sys.executable)
        python = ROOT / f".venv-openai-{self.name}" / "bin" / "python"
        if not python.exists():
            pytest.skip(f"no environment for openai {self.name}: `make test` makes it")
        return python


NEWEST = Client("newest", "modern.py", "")
FIRST = Client("1.0", "modern.py", "1.0.")
LEGACY = Client("0.28", "legacy.py", "0.28.")


def way(name: str, proxy: Mitmdump) -> dict[str, str]:
    """The environment that sends a client this way."""
    return {
        "http": {"BASE_URL": f"{proxy.url}/v1"},
        "https": {"BASE_URL": f"{proxy.https_url}/v1"},
        "h2": {"BASE_URL": f"{proxy.https_url}/v1", "HTTP2": "yes"},
        "HTTPS_PROXY": {"HTTPS_PROXY": proxy.url},
    }[name]


def run(client: Client, env: dict[str, str]) -> str:
    command = [str(client.python), str(CLIENTS / client.script)]
    clean = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    done = subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def packed(text: str) -> str:
    return base64.b64encode(struct.pack("<1536f", *vector(text, 1536))).decode()


@pytest.mark.parametrize("form", ["2024-10-21", "v1"])
@pytest.mark.parametrize(
    "client, come_by",
    [
        (NEWEST, "http"),
        (NEWEST, "https"),
        (NEWEST, "h2"),
        (NEWEST, "HTTPS_PROXY"),
        (FIRST, "http"),
        (FIRST, "https"),
        (FIRST, "h2"),
        (FIRST, "HTTPS_PROXY"),
        (LEGACY, "http"),  # it stands on requests, which speaks no HTTP/2
        (LEGACY, "https"),
        (LEGACY, "HTTPS_PROXY"),
    ],
    ids=lambda value: value.name if isinstance(value, Client) else value,
)
def test_a_client_works_and_nobody_calls_openai(
    client: Client, come_by: str, form: str, azure: Simulator, decoy: Decoy, proxy: Proxies
) -> None:
    """Whatever the SDK and the way, its user sees OpenAI, Azure gets every call, and api.openai.com is not even looked up."""
    through = proxy(azure_openai_apiversion=form)
    trust = {"SSL_CERT_FILE": str(through.ca), "REQUESTS_CA_BUNDLE": str(through.ca)}

    seen = json.loads(run(client, {"KEY": azure.key} | trust | way(come_by, through)))

    assert {
        "chat": ["gpt-3.5-turbo", "assistant", "You said: Grüße, Azure", "stop"],
        "stream": "You said: Grüße, Azure",
        "stream roles": ["assistant"],
        "stream ends": ["stop"],
        "stream model": ["gpt-3.5-turbo"],
        "completion": seen["completion"],
        "embedding of a string": [vector("one", 1536)],
        "embeddings of a list": [vector("one", 1536), vector("two", 1536)],
        "embedding in base64": [packed("one")],
        "models": seen["models"],
        "http": ["HTTP/2"] if come_by == "h2" else [],
    } == seen
    assert "Once upon" in seen["completion"]
    assert "gpt-3.5-turbo" in seen["models"]
    assert 6 == len(azure.requests)
    assert {azure.key} == {request.header("api-key") for request in azure.requests}
    assert 0 == decoy.accepted
    assert {azure.http_url} >= {f"http://{connection}" for connection in through.connections}  # none if the pool had one open
    assert {"127.0.0.1"} == set(through.lookups) | {"127.0.0.1"}


@pytest.mark.parametrize("client", [NEWEST, FIRST, LEGACY], ids=lambda client: client.name)
def test_the_generations_are_what_they_are_called(client: Client) -> None:
    """Each environment holds the SDK it is named after."""
    script = "import openai.version; print(openai.version.VERSION)"
    done = subprocess.run([str(client.python), "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE)

    assert client.version == done.stdout[: len(client.version)]


def test_the_decoy_would_have_counted(decoy: Decoy, proxy: Proxies, azure: Simulator) -> None:
    """In openai mode the proxy does call api.openai.com, and both the decoy and the recorder see it."""
    through = proxy(azure_openai_proxy_mode="openai")

    httpx.get(f"{through.url}/v1/models", timeout=PATIENCE, trust_env=False)

    assert 1 == decoy.accepted
    assert "api.openai.com" in through.lookups
    assert [f"127.0.0.1:{decoy.port}"] == through.connections
    assert [] == azure.requests
