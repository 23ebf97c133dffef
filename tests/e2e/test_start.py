"""Starting: with the settings people have, and with those that cannot be used."""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from azure_simulator import Simulator
from support.processes import MITMDUMP, PATIENCE, ROOT, SCRIPT, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

ENDPOINT = "https://resource.openai.azure.com"
KEY = "a-key-that-nobody-may-read-42"


@pytest.fixture
def mitmdump(tmp_path: Path, confdir: Path) -> Callable[..., Mitmdump]:
    def make(env: Mapping[str, str] | None = None, **more: object) -> Mitmdump:
        return Mitmdump(tmp_path / "home", confdir, env=env or {}, fresh=True, **more)  # type: ignore[arg-type]

    return make


@pytest.fixture
def evil() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


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
    "a slip in a name": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT}, {"azure_openai_tokn": KEY}, "did you mean azure_openai_token"),
    "hyphens in a name": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT}, {"azure-openai-max-body": "1m"}, "did you mean azure_openai_max_body"),
    "a list of backends": ({"AZURE_OPENAI_ENDPOINT": ENDPOINT}, {"azure_openai_backends": "a"}, "mitm_config.yaml only"),
    "a secret that is missing": (
        {"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_ENTRA": "client_secret", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"},
        {},
        "(environment variable AZURE_OPENAI_ENTRA): client_secret needs AZURE_CLIENT_SECRET in the environment of the proxy",
    ),
    "a file that is missing": ({"AZURE_OPENAI_CONFIG": "nowhere.yaml"}, {}, "nowhere.yaml"),
    "a user who does not exist": (
        {"AZURE_OPENAI_ENDPOINT": ENDPOINT},
        {"azure_openai_access_log": "~nobody-has-this-name/log"},
        "~nobody-",
    ),
    "a file of such a user": ({"AZURE_OPENAI_CONFIG": "~nobody-has-this-name/config.yaml"}, {}, "there is no file ~nobody-"),
}


@pytest.mark.parametrize("env, options, says", BAD.values(), ids=BAD)
def test_a_bad_setting_ends_the_start(env: dict[str, str], options: dict[str, str], says: str, mitmdump: Callable[..., Mitmdump]) -> None:
    """With one line that names the setting, its source and the valid values; without a traceback, without the key."""
    started = mitmdump(env, options=options).launch()
    assert 1 == started.wait()
    about = [line for line in started.output if re.search("azure.openai", line) and "Loading script" not in line]
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


posix = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
FILES = {
    "all users may write it": pytest.param(0o666, None, "all users may write it", marks=posix),
    "another user's": pytest.param(0o644, 4711, "it belongs to user 4711", marks=root),
}


@pytest.mark.parametrize("mode, owner, says", FILES.values(), ids=FILES)
@pytest.mark.parametrize("command", ["the script", "the command"])
def test_a_file_of_others_ends_the_start(
    command: str, mode: int, owner: int | None, says: str, mitmdump: Callable[..., Mitmdump], tmp_path: Path
) -> None:
    """It is in the working directory, which no option names; one line gives the reason."""
    file = tmp_path / "home" / "mitm_config.yaml"
    file.parent.mkdir()
    file.write_text("azure_openai_max_body: 1m\n")
    file.chmod(mode)
    if owner is not None:
        os.chown(file, owner, -1)
    program, scripts, _ = COMMANDS[command]
    env = {"AZURE_OPENAI_ENDPOINT": ENDPOINT, "PYTHONPATH": f"{ROOT / 'addon'}:{ROOT / 'tests' / 'support' / 'recorder'}"}

    started = mitmdump(env, command=program, scripts=scripts).launch()

    assert 1 == started.wait()
    assert 1 == started.log().count(f"mitm_config.yaml is not used: {says}"), started.log()
    assert "Traceback" not in started.log()


@root
def test_a_file_that_another_user_puts_there(mitmdump: Callable[..., Mitmdump], azure: Simulator, evil: Simulator, tmp_path: Path) -> None:
    """In the working directory of a running proxy: it is refused, and requests go where they went."""
    env = {"AZURE_OPENAI_ENDPOINT": azure.http_url, "AZURE_OPENAI_TOKEN": azure.key}
    with mitmdump(env) as started:
        file = tmp_path / "home" / "new.yaml"
        file.write_text(f"map_remote: ['|{azure.http_url}|{evil.http_url}']\nsave_stream_file: stolen\n")
        os.chown(file, 4711, -1)
        file.rename(file.with_name("mitm_config.yaml"))
        started.wait_for_log("mitm_config.yaml is not used: it belongs to user 4711.*the previous settings stay in force")
        answer = httpx.post(
            f"{started.url}/v1/chat/completions",
            json={"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]},
            timeout=PATIENCE,
            trust_env=False,
        )

    assert 200 == answer.status_code
    assert ([], 1) == (evil.requests, len(azure.requests))
    assert not file.with_name("stolen").exists()


@root
def test_the_files_of_who_called_sudo(mitmdump: Callable[..., Mitmdump], tmp_path: Path) -> None:
    """They are used, and the file in force is named; a group that may write one is warned about, once."""
    file = tmp_path / "settings.yaml"
    file.write_text(f"azure_openai_endpoint: {ENDPOINT}\n")
    os.chown(file, 4711, 4711)
    file.chmod(0o664)
    with mitmdump({"AZURE_OPENAI_CONFIG": str(file), "SUDO_UID": "4711"}) as started:
        started.wait_for_log(f"Configuration file: {file}")
        started.wait_for_log(f"{file}: the group 4711 may write it")
        assert 1 == started.log().count("may write it")


CARELESS = {
    "http to another machine": ({"azure_openai_endpoint": "http://198.51.100.7"}, "unencrypted"),
    "a key on the command line": ({"azure_openai_endpoint": ENDPOINT, "azure_openai_token": KEY}, "command line"),
    "no verification": ({"azure_openai_endpoint": ENDPOINT, "ssl_insecure": True}, "ssl_insecure: Azure's certificate"),
}


@pytest.mark.parametrize("options, says", CARELESS.values(), ids=CARELESS)
def test_careless_settings_are_named(options: dict[str, object], says: str, mitmdump: Callable[..., Mitmdump]) -> None:
    """Each with one warning at the start, which does not hold the key."""
    with mitmdump(options=options) as started:
        pass
    assert [says] == [word for _, word in CARELESS.values() if word in started.log()]
    assert 1 == started.log().count(says)
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
    "the command": ([sys.executable, "-m", "azure_openai_proxy.cli.command"], [], True),
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
        "PYTHONPATH": f"{ROOT / 'addon'}:{ROOT / 'tests' / 'support' / 'recorder'}",
    }
    options = {"listen_host": None, "listen_port": None}
    if not from_the_beginning:
        options["mode"] = None
    with mitmdump(env, command=command, scripts=scripts, options=options) as started:
        started.wait_for_log(rf"listening at 127\.0\.0\.1:{port}")
        assert 200 == httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=PATIENCE, trust_env=False).status_code
        addresses = re.findall(r"listening at (\S+?)\.?$", "\n".join(started.records), re.MULTILINE)
    assert from_the_beginning == (addresses == [f"127.0.0.1:{port}"])


@pytest.mark.parametrize("command, scripts", [pair[:2] for pair in COMMANDS.values()], ids=COMMANDS)
def test_it_moves_where_the_file_says(
    command: list[str], scripts: list[Path], mitmdump: Callable[..., Mitmdump], azure: Simulator, tmp_path: Path
) -> None:
    """An address that is changed in the file applies without a restart, however the proxy was started."""
    first, second = free_port(), free_port()
    file = tmp_path / "settings.yaml"
    file.write_text(f"azure_openai_proxy_address: 127.0.0.1:{first}\n")
    env = {
        "AZURE_OPENAI_ENDPOINT": azure.http_url,
        "AZURE_OPENAI_CONFIG": str(file),
        "PYTHONPATH": f"{ROOT / 'addon'}:{ROOT / 'tests' / 'support' / 'recorder'}",
    }
    options = {"listen_host": None, "listen_port": None}
    with mitmdump(env, command=command, scripts=scripts, options=options) as started:
        started.wait_for_log(rf"listening at 127\.0\.0\.1:{first}")
        file.write_text(f"azure_openai_proxy_address: 127.0.0.1:{second}\n")
        started.wait_for_log(rf"listening at 127\.0\.0\.1:{second}")
        assert 200 == httpx.get(f"http://127.0.0.1:{second}/v1/models", timeout=PATIENCE, trust_env=False).status_code
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{first}/v1/models", timeout=PATIENCE, trust_env=False)
