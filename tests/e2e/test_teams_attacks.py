"""Clients that try to be served without a charge, or at the expense of others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from azure_openai_proxy.accounting.ledger.database import parse
from support.ledger import rows
from support.load import wait_until
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator

CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
CLIENTS: dict[str, dict[str, Any]] = {
    "alice": {"budget_usd": 5, "tokens_per_minute": 100_000},
    "bob": {"budget_usd": 5},
    "poor": {"budget_usd": 0.000001, "budget_period": "total"},
    "picky": {"models": ["gpt-4o"]},
}


def key(name: str) -> dict[str, str]:
    return {"api-key": f"sk-{name}-0123456789abcdef"}


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def proxy(azure: Simulator, confdir: Path, tmp_path: Path, ledger: str) -> Iterator[Mitmdump]:
    config = tmp_path / "teams.yaml"
    clients = [{"name": name, "key": key(name)["api-key"], **members} for name, members in CLIENTS.items()]
    config.write_text(json.dumps({"azure_openai_clients": clients}))
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_config": config, "azure_openai_ledger": ledger}
    with Mitmdump(tmp_path / "home", confdir, options=options, env={"AZURE_OPENAI_TOKEN": azure.key}) as started:
        wait_until(lambda: httpx.get(f"{started.url}/v1/models", headers=key("alice")).status_code == 200)  # the ledger was read
        yield started


def test_responses_of_others_and_hidden_usage(azure: Simulator, ledger: str, proxy: Mitmdump) -> None:
    """A response in the background is charged to its creator, whichever client polls it; padded options hide no usage; paths in other
    letters are refused. Each page of a key has the sum of the ledger.
    """
    with httpx.Client(base_url=proxy.url, timeout=PATIENCE) as http:
        body = {"model": "gpt-4o", "input": "word " * 400, "background": True}
        id = http.post("/v1/responses", json=body, headers=key("alice")).json()["id"]
        for _ in range(2):
            polled = http.get(f"/v1/responses/{id}", headers=key("bob")).json()
        assert "completed" == polled["status"]
        padded = json.dumps(CHAT)[:-1] + ',"stream":true,"stream_options":{"include_usage":false%s}}' % (" " * 5000)
        stream = http.post("/v1/chat/completions", content=padded, headers=key("alice") | {"content-type": "application/json"})
        assert b"[DONE]" in stream.content
        assert b"usage" not in stream.content
        before = len(azure.requests)
        for path in ("/v1/Chat/Completions", "/v1/rerank", "/v1/batches", "/v1/%62atches"):
            assert 403 == http.post(path, json=CHAT, headers=key("alice")).status_code
        assert [403, 403] == [http.post(path, json=CHAT, headers=key("picky")).status_code for path in ("/v1/batches", "/v1/Completions")]
        assert before == len(azure.requests)
        assert 200 == http.post("/v1/chat/c%6Fmpletions", json=CHAT, headers=key("alice")).status_code

        def used(name: str) -> float:
            return float(http.get("/azure-openai-proxy/key", headers=key(name)).json()["budget"]["used_usd"])

        def kept(name: str) -> float:
            found = [row for row in rows(parse(ledger)) if row["client"] == name]
            return sum((row["cost_usd"] or 0.0) + (row["estimated_cost_usd"] or 0.0) for row in found)

        wait_until(lambda: kept("alice") == pytest.approx(used("alice")))
        assert 0 < used("alice") < 0.001  # the estimate of the response was more
        assert 0 == used("bob") == kept("bob")
        chats = [row for row in rows(parse(ledger)) if row["operation"] == "chat.completions" and row["status"] == 200]
        assert ["known", "known"] == [row["usage_state"] for row in chats]


def test_audio_after_the_end_of_a_budget(azure: Simulator, proxy: Mitmdump) -> None:
    """A session that only transcribes gets one error event for its audio, which does not reach Azure."""
    url = f"{proxy.url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime"
    with connect(url, additional_headers=key("poor")) as connection:
        assert "session.created" == json.loads(connection.recv(timeout=PATIENCE))["type"]
        assert 200 == httpx.post(f"{proxy.url}/v1/chat/completions", json=CHAT, headers=key("poor"), timeout=PATIENCE).status_code
        for _ in range(3):
            connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}))
        connection.send(json.dumps({"type": "test.echo"}))
        events = [json.loads(connection.recv(timeout=PATIENCE)) for _ in range(2)]
    codes = [event["error"]["code"] for event in events if event["type"] == "error"]
    assert (["insufficient_quota"], "test.echo") == (codes, events[-1]["type"])
    assert ['{"type": "test.echo"}'] == azure.requests[0].frames
