"""Nothing that is kept holds a key: a saved file, a HAR, mitmweb's own interface, an export, the log."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from flows import of_each_kind
from websockets.sync.client import connect

from azure_simulator import Cut, others, refusals
from support.mitmweb import Web, mitmweb
from support.processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator
    from support.processes import Decoy

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the SDK does not

CLIENT_S = "sk-the-client-s-own-key-77c1d09e"
JWT = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzZWNyZXQifQ.c2lnbmF0dXJl"
MINTED = {
    "/v1/realtime/client_secrets": {"session": {"type": "realtime", "model": "gpt-realtime"}},
    "/v1/realtime/translations/client_secrets": {"session": {"model": "gpt-realtime"}},
    "/v1/realtime/sessions": {},
    "/v1/realtime/transcription_sessions": {},
    "/openai/realtimeapi/sessions?api-version=2025-04-01-preview": {},
    "/openai/realtimeapi/transcription_sessions?api-version=2025-04-01-preview": {},
    "/v1/webhook_endpoints": {},
}
"""Answered with a secret that is made for the client."""
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


def ask_in_every_way(web: Web, azure: Simulator, key: str) -> None:
    """Keys in every place that a client has for one, and requests that go wrong."""
    url = web.proxy.url
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        of_each_kind(client, azure)
    with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as http:
        for headers in ({"api-key": key}, {"authorization": f"Bearer {JWT}"}, {"authorization": key}):
            http.post("/v1/chat/completions", json=CHAT, headers=headers)
        http.post(f"/v1/chat/completions?api-key={key}", json=CHAT)
        http.get(f"/nothing?api-key={key}")
        for path, body in MINTED.items():
            made = http.post(path, json=body, headers={"api-key": key}).raise_for_status().text
            assert others.EPHEMERAL in made or others.SIGNING in made
        http.post("/v1/realtime/calls", content="v=0", headers={"authorization": f"Bearer {others.EPHEMERAL}"})
        for fault in (Cut(), refusals.echoing_key, refusals.status(500, "html")):
            azure.faults.next(fault)
            http.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers={"api-key": key})
    with connect(
        url.replace("http", "ws") + "/v1/realtime?model=gpt-realtime",
        subprotocols=["realtime", f"openai-insecure-api-key.{key}"],  # type: ignore[list-item]
    ) as socket:
        socket.recv(timeout=PATIENCE)
    with connect(url.replace("http", "ws") + f"/v1/realtime?model=gpt-realtime&api-key={key}") as socket:
        socket.recv(timeout=PATIENCE)


@pytest.mark.parametrize("configured", [True, False], ids=["the owner's key", "the clients' own"])
def test_no_secret_is_kept(configured: bool, azure: Simulator, decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """A session of every kind, and of every place that a key can be in: none of the secrets is in anything that stays."""
    flows, har = tmp_path / "flows", tmp_path / "all.har"
    options = {"azure_openai_endpoint": azure.http_url, "save_stream_file": flows, "hardump": har, "termlog_verbosity": "debug"}
    if configured:
        options["azure_openai_token"] = azure.key
    told: list[str] = []
    with mitmweb(tmp_path / "home", confdir, decoy.port, **options) as web:
        ask_in_every_way(web, azure, CLIENT_S if configured else azure.key)
        told += [json.dumps(web.flows()), web.http.get("/options").text, web.http.get("/events").text, web.http.get("/flows/dump").text]
        for flow in web.flows():
            for message in [name for name in ("request", "response") if flow.get(name)]:
                told += [web.view(flow["id"], message, view) for view in ("auto", "raw", "as the client sent it", "as azure sent it")]
        assert len([text for text in told if re.search(r'"(value|signing_secret)": ?"\[key\]"', text)]) >= 3 * len(MINTED)
        told += [
            web.command("azure.explain", "@all"),
            *(web.command("azure.export", how, "~m POST & ~bq messages") for how in ("curl", "httpx")),
        ]
        told += [*web.proxy.output, *web.proxy.records]
        count = len(web.flows())
    told += [*web.proxy.output, flows.read_bytes().decode("utf-8", "replace"), har.read_text()]
    assert count > 20
    secrets = (azure.key, CLIENT_S, JWT, others.EPHEMERAL, others.SIGNING)
    assert [] == [text[max(0, text.find(secret) - 80) :][:200] for text in told for secret in secrets if secret in text]
    assert "[key]" in told[0]
