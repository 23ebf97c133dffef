"""Details of client keys that clients depend on: one connection for several keys, what counts, what is recorded, and a stream's end."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from azure_openai_proxy.accounting.ledger.database import parse
from azure_simulator import Gate
from support.ledger import rows
from support.load import wait_until
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator

CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
CLIENTS: dict[str, dict[str, Any]] = {
    "first": {},
    "narrow": {"requests_per_minute": 2, "models": ["gpt-4o", "gpt-realtime"]},
    "spender": {"tokens_per_minute": 100_000, "budget_usd": 5},
    "removed": {},
}
LIMITS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


def key(name: str) -> dict[str, str]:
    return {"api-key": f"sk-{name}-0123456789abcdef"}


def write(config: Path, *names: str) -> None:
    clients = [{"name": name, "key": key(name)["api-key"], **CLIENTS[name]} for name in names]
    config.write_text(json.dumps({"azure_openai_clients": clients}))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write(tmp_path / "teams.yaml", *CLIENTS)
    return tmp_path / "teams.yaml"


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def proxy(azure: Simulator, confdir: Path, tmp_path: Path, config: Path, ledger: str) -> Iterator[Mitmdump]:
    options = {
        "azure_openai_endpoint": azure.http_url,
        "azure_openai_config": config,
        "azure_openai_ledger": ledger,
        "azure_openai_metrics": "127.0.0.1:0",
    }
    with Mitmdump(tmp_path / "home", confdir, options=options, env={"AZURE_OPENAI_TOKEN": azure.key}) as started:
        wait_until(lambda: httpx.get(f"{started.url}/v1/models", headers=key("spender")).status_code == 200)  # the ledger was read
        yield started


@pytest.fixture
def http(proxy: Mitmdump) -> Iterator[httpx.Client]:
    """One connection."""
    with httpx.Client(base_url=proxy.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=1)) as client:
        yield client


def test_a_key_counts_for_its_request(azure: Simulator, http: httpx.Client) -> None:
    """Not for its connection: of requests on one connection each is that of its own key, or of none."""
    ports = set()
    asked = []
    for name in ("first", "", "narrow", "unknown", "first"):
        response = http.get("/azure-openai-proxy/key", headers=key(name) if name else {})
        ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        asked.append((response.status_code, response.json().get("name")))
    assert [(200, "first"), (401, None), (200, "narrow"), (401, None), (200, "first")] == asked
    assert 1 == len(ports)
    assert [] == azure.requests


def test_refusals_count_nothing(azure: Simulator, http: httpx.Client) -> None:
    """Refusals and the proxy's own answers have the headers of the limits, and use nothing of them; answers of Azure do."""
    chat = "/v1/chat/completions"
    others = [
        http.post(chat, json=CHAT | {"model": "gpt-4.1"}, headers=key("narrow")),
        http.post(chat, json={"messages": []}, headers=key("narrow")),
        http.get("/v1/models", headers=key("narrow")),
        http.get("/azure-openai-proxy/key", headers=key("narrow")),
    ]
    assert [403, 400, 200] == [response.status_code for response in others[:3]]
    assert [("2", "2", "0ms")] * len(others) == [tuple(response.headers.get(name) for name in LIMITS) for response in others]
    assert [] == azure.requests
    left = []
    for _ in range(3):
        response = http.post(chat, json=CHAT, headers=key("narrow"))
        left.append((response.status_code, response.headers["x-ratelimit-remaining-requests"]))
    assert [(200, "1"), (200, "0"), (429, "0")] == left


def test_models_in_paths_and_websockets(azure: Simulator, proxy: Mitmdump, http: httpx.Client) -> None:
    """A model that the key may not use is refused in the path of an old operation, in the query of a WebSocket and in its messages."""
    refused = http.post("/v1/engines/gpt-4.1/completions", json={"prompt": "one"}, headers=key("narrow"))
    assert (403, "model_not_found") == (refused.status_code, refused.json()["error"]["code"])
    url = f"{proxy.url.replace('http', 'ws', 1)}/v1"
    with pytest.raises(InvalidStatus) as found, connect(f"{url}/realtime?model=gpt-4.1", additional_headers=key("narrow")):
        pass
    assert 403 == found.value.response.status_code
    with connect(f"{url}/responses", additional_headers=key("narrow")) as connection:
        connection.send(json.dumps({"type": "response.create", "model": "gpt-4.1", "input": "one"}))
        event = json.loads(connection.recv(timeout=PATIENCE))
    assert ("error", "model_not_found") == (event["type"], event["error"]["code"])
    assert 1 == len(azure.requests)
    assert [] == azure.requests[0].frames


def test_the_stream_of_a_removed_client(azure: Simulator, config: Path, proxy: Mitmdump, http: httpx.Client) -> None:
    """It ends as usual, and the next request of the client is refused."""
    azure.faults.next(gate := Gate(1))

    def read() -> bytes:
        with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=CHAT | {"stream": True}, headers=key("removed")) as stream:
            return stream.read()

    with ThreadPoolExecutor() as threads:
        text = threads.submit(read)
        assert gate.reached.wait(PATIENCE)
        write(config, *[name for name in CLIENTS if name != "removed"])
        wait_until(lambda: http.get("/v1/models", headers=key("removed")).status_code == 401)
        gate.release()
        assert b"[DONE]" in text.result()


def test_what_the_ledger_has(azure: Simulator, ledger: str, proxy: Mitmdump, http: httpx.Client) -> None:
    """A stream that its client has left keeps its unknown tokens, and has its charge as the estimated cost; the page of a key and the
    billing probes are in no row; the metrics have the refusals and what is left of the budget.
    """
    azure.faults.next(gate := Gate(2))
    words = {"stream": True, "messages": [{"role": "user", "content": "x" * 40_000}]}
    with http.stream("POST", "/v1/chat/completions", json=CHAT | words, headers=key("spender")):
        assert gate.reached.wait(PATIENCE)

    def used() -> float:
        return float(httpx.get(f"{proxy.url}/azure-openai-proxy/key", headers=key("spender")).json()["budget"]["used_usd"])

    wait_until(lambda: used() > 0)
    gate.release()
    for path in ("/v1/dashboard/billing/subscription", "/v1/dashboard/billing/usage"):
        assert 200 == httpx.get(f"{proxy.url}{path}", headers=key("spender")).status_code
    statuses = [http.post("/v1/chat/completions", json=CHAT, headers=key("narrow")).status_code for _ in range(3)]
    assert [200, 200, 429] == statuses
    chats = [("narrow", 200), ("narrow", 200), ("narrow", 429), ("spender", 200)]
    wait_until(lambda: len([row for row in rows(parse(ledger)) if row["operation"] == "chat.completions"]) == len(chats))
    kept = rows(parse(ledger))
    assert chats == sorted((row["client"], row["status"]) for row in kept if row["operation"] == "chat.completions")
    assert not [row for row in kept if row["operation"] not in ("chat.completions", "models.list", "models")]
    left = next(row for row in kept if row["client"] == "spender" and row["operation"] == "chat.completions")
    assert (None, None, None) == (left["input_tokens"], left["output_tokens"], left["cost_usd"])
    assert used() == pytest.approx(left["estimated_cost_usd"])
    page = httpx.get(proxy.wait_for_log(r"(http://127.0.0.1:\d+/metrics)")[1], timeout=PATIENCE).text
    assert 'azure_openai_proxy_limit_refusals_total{client="narrow",limit="requests_per_minute"} 1.0' in page
    assert f'azure_openai_proxy_budget_remaining_usd{{client="spender"}} {5 - used()}'[:70] in page
