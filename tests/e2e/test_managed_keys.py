"""Managed keys through a real mitmdump: from the command to the refusal, over restarts, and without the database."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.load import wait_until
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from azure_simulator import Simulator
    from support.postgres import Postgres

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
CONFIG = """\
azure_openai_backends:
  - {{name: one, endpoint: "{url}", token: "{key}"}}
azure_openai_clients: [{clients}]
"""


@pytest.fixture
def mitmdump(azure: Simulator, confdir: Path, tmp_path: Path) -> Callable[..., Mitmdump]:
    """A mitmdump with a ledger, which is not started. `clients` are those of its file."""

    def make(ledger: str, home: str = "home", clients: str = "", **options: object) -> Mitmdump:
        config = tmp_path / f"{home}.yaml"
        text = CONFIG.format(url=azure.http_url, key=azure.key, clients=clients)
        config.write_text(text if clients else text.rpartition("azure_openai_clients")[0])
        return Mitmdump(
            tmp_path / home,
            confdir,
            options={"azure_openai_config": config, **options},
            env={"AZURE_OPENAI_LEDGER": ledger} if ledger else {},
        )

    return make


def keys(ledger: str, *arguments: str) -> Any:
    """Run `azure-openai-proxy keys` and return its JSON."""
    ran = subprocess.run(
        [sys.executable, "-m", "azure_openai_proxy.cli.command", "keys", *arguments, "--ledger", ledger, "--format", "json"],
        capture_output=True,
        check=True,
    )
    return json.loads(ran.stdout)


def chat(proxy: Mitmdump, key: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=PATIENCE, trust_env=False)


def becomes(proxy: Mitmdump, key: str, status: int) -> None:
    wait_until(lambda: chat(proxy, key).status_code == status)


def own_page(proxy: Mitmdump, key: str) -> dict[str, Any]:
    """What the proxy says of the key, once it knows it: its first reading of the database may have found another one alone."""
    url, headers = f"{proxy.url}/azure-openai-proxy/key", {"api-key": key}
    wait_until(lambda: httpx.get(url, headers=headers, timeout=PATIENCE).status_code == 200)
    found: dict[str, Any] = httpx.get(url, headers=headers, timeout=PATIENCE).json()
    return found


def test_the_life_of_a_key(mitmdump: Callable[..., Mitmdump], tmp_path: Path) -> None:
    """A key opens and closes a running proxy within seconds, also under load; after the last one was deleted the proxy stays closed, over a
    restart too; no key is in the database, the log, the flows, the metrics or an error.
    """
    ledger = f"sqlite:///{tmp_path}/usage.db"
    flows = tmp_path / "flows"
    proxy = mitmdump(ledger, azure_openai_metrics="127.0.0.1:0", save_stream_file=flows)
    errors = []
    with proxy:
        assert 200 == chat(proxy).status_code  # no client: no key is needed
        alice = keys(ledger, "create", "alice", "--models", "gpt-4o*")["key"]
        bob = keys(ledger, "create", "bob", "--rpm", "1")["key"]
        becomes(proxy, "", 401)
        assert 200 == chat(proxy, alice).status_code
        page = own_page(proxy, bob)
        assert ("bob", 1) == (page["name"], page["limits"]["requests_per_minute"]["limit"])
        assert [200, 429] == [chat(proxy, bob).status_code for _ in range(2)]
        rotated = keys(ledger, "rotate", "bob", "--grace", "1h")["key"]
        becomes(proxy, rotated, 429)  # the limit is the client's, not the key's
        assert 429 == chat(proxy, bob).status_code
        bobs = keys(ledger, "rotate", "bob")["key"]
        becomes(proxy, bob, 401)
        becomes(proxy, rotated, 401)
        passed: list[float] = []
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                begun = time.monotonic()
                if chat(proxy, alice).status_code == 200:
                    passed.append(begun)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(passed) > 10)
        keys(ledger, "disable", "alice")
        revoked = time.monotonic()
        wait_until(lambda: chat(proxy, alice).status_code == 401)
        stop.set()
        for thread in threads:
            thread.join()
        assert max(passed) - revoked < 5
        refused = chat(proxy, alice)
        assert ("invalid_api_key", True) == (refused.json()["error"]["code"], "disabled" in refused.json()["error"]["message"])
        errors.append(refused.text)
        for name in ("alice", "bob"):
            keys(ledger, "delete", name)
        becomes(proxy, bobs, 401)
        metrics = httpx.get(proxy.wait_for_log(r"(http://127.0.0.1:\d+/metrics)")[1], timeout=PATIENCE).text
        assert "alice" in metrics
    log = proxy.log() + "\n".join(proxy.records)
    with mitmdump(ledger, "again") as again:
        errors.append(chat(again, alice).text)
        assert 401 == chat(again).status_code
        log += again.log() + "\n".join(again.records)
    everything = b"".join(file.read_bytes() for file in [flows, *tmp_path.glob("usage.db*")]) + "".join([log, metrics, *errors]).encode()
    assert not any(key.removeprefix("sk-").encode() in everything for key in (alice, bob, rotated, bobs))


def test_without_the_database(mitmdump: Callable[..., Mitmdump], postgres: Postgres) -> None:
    """Until the database was read, requests get 503, except with a key of the file without a budget; later the last known keys hold."""
    ledger = postgres.create()
    alice = keys(ledger, "create", "alice")["key"]
    clients = "{name: file, key: sk-of-the-file}, {name: rich, key: sk-of-the-rich, budget_usd: 5}, {name: alice, key: sk-of-alice}"
    postgres.stop()
    try:
        with mitmdump(ledger, clients=clients.rpartition(", {")[0]) as proxy:
            assert 200 == chat(proxy, "sk-of-the-file").status_code
            for key in ("", alice, "sk-of-the-rich", "sk-unknown"):
                refused = chat(proxy, key)
                assert (503, True) == (refused.status_code, "azure_openai_ledger" in refused.json()["error"]["message"])
            postgres.start()
            becomes(proxy, alice, 200)
            assert [200, 401, 401] == [chat(proxy, key).status_code for key in ("sk-of-the-rich", "sk-unknown", "")]
            postgres.stop()
            proxy.wait_for_log("The ledger cannot be written")
            wait_until(lambda: sum("The ledger cannot be written" in line for line in proxy.output) >= 2)
            assert [200, 401] == [chat(proxy, key).status_code for key in (alice, "sk-unknown")]
    finally:
        postgres.start()
    with mitmdump(ledger, "twice", clients=clients) as proxy:  # the name is in the file too
        assert [200, 401] == [chat(proxy, key).status_code for key in ("sk-of-alice", alice)]
        assert 1 == sum("The key alice of the database is not used" in line for line in proxy.output)


def test_required_without_a_client(mitmdump: Callable[..., Mitmdump], tmp_path: Path) -> None:
    """`required` without any client starts only with a ledger, and serves no request until there is a key."""
    ledger = f"sqlite:///{tmp_path}/usage.db"
    with mitmdump(ledger, azure_openai_client_auth="required") as proxy:
        assert 401 == chat(proxy).status_code
        becomes(proxy, keys(ledger, "create", "alice")["key"], 200)
    alone = mitmdump("", "alone", azure_openai_client_auth="required").launch()
    assert 1 == alone.wait()
    assert "azure_openai_client_auth" in alone.log()
    with mitmdump(ledger, "optional", azure_openai_client_auth="optional") as proxy:
        assert [200, 401] == [chat(proxy, key).status_code for key in ("", "sk-unknown")]


def test_budgets_of_replicas(mitmdump: Callable[..., Mitmdump], tmp_path: Path) -> None:
    """Without Redis, replicas share what was spent through the ledger, a restart knows it, and the end of one budget is not another's."""
    ledger = f"sqlite:///{tmp_path}/usage.db"
    alice = keys(ledger, "create", "alice", "--budget", "0.000001/month")["key"]
    bob = keys(ledger, "create", "bob", "--budget", "5/day")["key"]
    with mitmdump(ledger) as one, mitmdump(ledger, "two") as two:
        assert [200, 429, 200] == [chat(one, key).status_code for key in (alice, alice, bob)]
        becomes(two, alice, 429)
        spent = httpx.get(f"{one.url}/azure-openai-proxy/key", headers={"api-key": bob}, timeout=PATIENCE).json()["budget"]["used_usd"]
        assert spent > 0

        def used() -> float:
            page = httpx.get(f"{two.url}/azure-openai-proxy/key", headers={"api-key": bob}, timeout=PATIENCE).json()
            return float(page["budget"]["used_usd"])

        wait_until(lambda: used() == pytest.approx(spent))
    with mitmdump(ledger, "restarted") as again:
        refused = chat(again, alice)
        assert ("insufficient_quota", "false") == (refused.json()["error"]["code"], refused.headers["x-should-retry"])
        assert 200 == chat(again, bob).status_code
