"""Starting: with the settings people have, and with those that cannot be used."""

from __future__ import annotations

import re
import socket
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from support import MITMDUMP, PATIENCE, ROOT, SCRIPT, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from azure_simulator import Simulator

ENDPOINT = "https://resource.openai.azure.com"
KEY = "a-key-that-nobody-may-read-42"


@pytest.fixture
def mitmdump(tmp_path: Path, confdir: Path) -> Callable[..., Mitmdump]:
    def make(env: Mapping[str, str] | None = None, **more: object) -> Mitmdump:
        return Mitmdump(tmp_path / "home", confdir, env=env or {}, **more)  # type: ignore[arg-type]

    return make


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


BAD = {
    "nothing set": ({}, {}, "AZURE_OPENAI_ENDPOINT="),
    "an endpoint that is none": ({"AZURE_OPENAI_ENDPOINT": "ftp://x"}, {}, "environment variable AZURE_OPENAI_ENDPOINT"),
    "a key in its place": ({"AZURE_OPENAI_ENDPOINT": KEY}, {}, "azure_openai_endpoint"),
    "no such version": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_APIVERSION": "2024-13-01"}, {}, "AZURE_OPENAI_APIVERSION"),
    "no such mode": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT}, {"azure_openai_proxy_mode": "aws"}, "--set"),
    "half a mapping": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_MODEL_MAPPER": "gpt-4o"}, {}, "model=deployment"),
    "an address that is none": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_PROXY_ADDRESS": "here"}, {}, "HOST:PORT"),
    "a size that is none": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT}, {"azure_openai_max_body": "much"}, "256m"),
    "a key of two lines": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_TOKEN": f"{KEY}\n{KEY}"}, {}, "azure_openai_token"),
    "a file that is missing": ({"AZURE_OPENAI_CONFIG": "nowhere.yaml"}, {}, "nowhere.yaml"),
}


@pytest.mark.parametrize("env, options, says", BAD.values(), ids=BAD)
def test_a_bad_setting_ends_the_start(env: dict[str, str], options: dict[str, str], says: str, mitmdump: Callable[..., Mitmdump]) -> None:
    """With one line that says what, where and what would be right; without a traceback, without the key."""
    started = mitmdump(env, options=options).launch()
    assert 1 == started.wait()
    about = [line for line in started.output if "azure_openai" in line and "Loading script" not in line]
    assert 1 == len(about), started.log()
    assert says in about[0]
    assert "Traceback" not in started.log()
    assert KEY not in started.log()


def test_an_unknown_key_in_the_file_names_the_nearest(mitmdump: Callable[..., Mitmdump], tmp_path: Path) -> None:
    """A slip of the pen stops the start, and does not pass as the default."""
    file = tmp_path / "settings.yaml"
    file.write_text(f"azure_openai_endpoint: {ENDPOINT}\nazure_openai_tokn: {KEY}\n")
    started = mitmdump({"AZURE_OPENAI_CONFIG": str(file)}).launch()
    assert 1 == started.wait()
    assert "did you mean azure_openai_token" in started.log()
    assert KEY not in started.log()


def test_the_strongest_setting_counts(mitmdump: Callable[..., Mitmdump], tmp_path: Path, confdir: Path) -> None:
    """The command line beats the environment, this the file, and this mitmproxy's own config.yaml."""
    own = tmp_path / "confdir"
    own.mkdir()
    for pem in confdir.glob("*.pem"):
        (own / pem.name).write_bytes(pem.read_bytes())
    (own / "config.yaml").write_text("azure_openai_apiversion: 2024-02-01\nazure_openai_token: from-confdir\n")
    file = tmp_path / "settings.yaml"
    file.write_text("azure_openai_apiversion: 2024-06-01\nazure_openai_endpoint: https://file.openai.azure.com\n")
    env = {"AZURE_OPENAI_CONFIG": str(file), "AZURE_OPENAI_ENDPOINT": "https://environment.openai.azure.com"}
    with mitmdump(env, options={"confdir": own, "azure_openai_apiversion": "v1"}) as started:
        line = started.wait_for_log("azure mode: .*")[0]
    assert "https://environment.openai.azure.com, API version v1" in line
    assert "key configured" in line


def test_the_start_tells_what_is_in_force(mitmdump: Callable[..., Mitmdump]) -> None:
    """Endpoint, version, mappings and address in one line, never the key; a pasted URL is understood."""
    env = {
        "AZURE_OPENAI_ENDPOINT": f"{ENDPOINT}/openai/deployments/d/chat/completions?api-version=2024-06-01",
        "AZURE_OPENAI_MODEL_MAPPER": "a=b,c=d",
        "AZURE_OPENAI_TOKEN": f"{KEY}\n",
        "AZURE_OPENAI_APIVERSION": "",
    }
    with mitmdump(env) as started:
        line = started.wait_for_log("azure mode: .*")[0]
    assert f"{ENDPOINT}, API version 2024-06-01, 2 mappings beside the default, key configured" in line
    assert KEY not in started.log()


COMMANDS = {
    "the script": ([MITMDUMP], [SCRIPT], False),
    "the command": ([sys.executable, "-m", "azure_openai_proxy.launcher"], [], True),
}


@pytest.mark.parametrize("command, scripts, from_the_beginning", COMMANDS.values(), ids=COMMANDS)
def test_it_listens_where_it_is_told(
    command: list[str], scripts: list[Path], from_the_beginning: bool, mitmdump: Callable[..., Mitmdump], azure: Simulator
) -> None:
    """Started as a script, mitmproxy's own port is open for a moment first; with the command it never is."""
    port = free_port()
    env = {
        "AZURE_OPENAI_ENDPOINT": azure.http_url,
        "AZURE_OPENAI_PROXY_ADDRESS": f"127.0.0.1:{port}",
        "PYTHONPATH": f"{ROOT / 'addon'}:{ROOT / 'tests' / 'recorder'}",
    }
    options = {"listen_host": None, "listen_port": None}
    if not from_the_beginning:
        options["mode"] = None
    with mitmdump(env, command=command, scripts=scripts, options=options) as started:
        started.wait_for_log(rf"listening at 127\.0\.0\.1:{port}")
        assert 200 == httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=PATIENCE, trust_env=False).status_code
        addresses = re.findall(r"listening at (\S+?)\.?$", "\n".join(started.records), re.MULTILINE)
    assert from_the_beginning == (addresses == [f"127.0.0.1:{port}"])
