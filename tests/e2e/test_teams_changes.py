"""Changes of clients and groups while the proxy runs, and groups that do not exist, through a real mitmdump."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from azure_openai_proxy.accounting.ledger import keys
from azure_openai_proxy.accounting.ledger.database import parse
from support.load import wait_until
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from websockets.sync.client import ClientConnection

    from azure_simulator import Simulator

KEY = "sk-first-0123456789abcdef"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration file: the members of the client, and the names of groups with one request a minute."""
    path = tmp_path / "teams.yaml"

    def write(*groups: str, **members: Any) -> Path:
        clients = [{"name": "first", "key": KEY, **members}]
        limited = [{"name": name, "requests_per_minute": 1} for name in groups]
        path.write_text(json.dumps({"azure_openai_clients": clients, "azure_openai_client_groups": limited}))
        return path

    return write


@pytest.fixture
def mitmdump(azure: Simulator, confdir: Path, tmp_path: Path) -> Callable[..., Mitmdump]:
    def make(config: Path, **options: Any) -> Mitmdump:
        given = {"azure_openai_endpoint": azure.http_url, "azure_openai_config": config, **options}
        return Mitmdump(tmp_path / "home", confdir, options=given, env={"AZURE_OPENAI_TOKEN": azure.key})

    return make


def page(proxy: Mitmdump) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{proxy.url}/azure-openai-proxy/key", headers={"api-key": KEY}, timeout=PATIENCE).json()
    return found


def chat(proxy: Mitmdump, key: str) -> httpx.Response:
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=CHAT, headers={"api-key": key}, timeout=PATIENCE, trust_env=False)


def ask(connection: ClientConnection) -> dict[str, Any]:
    """Request a response, and return its last event or the error."""
    connection.send(json.dumps({"type": "response.create"}))
    while True:
        event: dict[str, Any] = json.loads(connection.recv(timeout=PATIENCE))
        if event["type"] in ("response.done", "error"):
            return event


def test_new_limits_hold_on_an_open_websocket(config: Callable[..., Path], mitmdump: Callable[..., Mitmdump]) -> None:
    """The next response of a WebSocket is admitted by the limits, the group and the models that the file has then."""
    with mitmdump(config()) as proxy:
        url = f"{proxy.url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime"
        with connect(url, additional_headers={"api-key": KEY}) as connection:
            assert "session.created" == json.loads(connection.recv(timeout=PATIENCE))["type"]
            assert ["response.done", "response.done"] == [ask(connection)["type"] for _ in range(2)]
            config("team", group="team")
            wait_until(lambda: page(proxy)["group"] == "team")
            assert "response.done" == ask(connection)["type"]
            refused = ask(connection)["error"]
            assert ("rate_limit_exceeded", True) == (refused["code"], "group team" in refused["message"])
            config(models=["gpt-4o"])
            wait_until(lambda: page(proxy)["models"] == ["gpt-4o"])
            assert "model_not_found" == ask(connection)["error"]["code"]
            config()
            wait_until(lambda: page(proxy)["models"] == ["*"])
            assert "response.done" == ask(connection)["type"]


def test_a_group_that_the_file_does_not_have(config: Callable[..., Path], mitmdump: Callable[..., Mitmdump]) -> None:
    """The proxy does not start with it, and a change to it while running is refused with a line of the log; both name the nearest group."""
    failed = mitmdump(config("team", group="taem")).launch()
    assert 1 == failed.wait()
    assert "first: group: there is no group taem: did you mean team?" in failed.log()
    with mitmdump(config("team", group="team")) as proxy:
        assert [200, 429] == [chat(proxy, KEY).status_code for _ in range(2)]
        config("teams", group="team")
        proxy.wait_for_log("first: group: there is no group team: did you mean teams.*the previous settings stay in force")
        assert 429 == chat(proxy, KEY).status_code


def test_a_managed_key_in_a_group(config: Callable[..., Path], mitmdump: Callable[..., Mitmdump], tmp_path: Path) -> None:
    """Its group is one of the file. While the file does not have it the key is refused, and not served without limits."""
    ledger = f"sqlite:///{tmp_path}/usage.db"
    _, managed = keys.create(parse(ledger), keys.ManagedKey(name="managed", client_group="team"))
    with mitmdump(config("taem"), azure_openai_ledger=ledger) as proxy:
        wait_until(lambda: chat(proxy, managed).status_code == 403)  # the ledger is read in the background
        refused = chat(proxy, managed).json()["error"]
        assert ("group_not_found", True) == (refused["code"], "group team" in refused["message"])
        proxy.wait_for_log("The key managed is refused: it is in the group team")
        assert 200 == chat(proxy, KEY).status_code
        config("team")
        wait_until(lambda: chat(proxy, managed).status_code == 200)
        assert 429 == chat(proxy, managed).status_code
