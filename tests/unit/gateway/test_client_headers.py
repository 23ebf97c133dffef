"""The headers of all responses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from mitmproxy import http

from support.exchanges import JSON, answering, asking, chat, exchange, talking, two_backends


def test_an_answer_of_our_own_has_an_id() -> None:
    """To ask about, as Azure's have."""
    asked = exchange()
    answer = asked.request(asking("GET", "/v1/models"))
    assert answer
    asked.response_head(answer)
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(("said", "closes"), [("close", True), ("Keep-Alive, Close", True), ("keep-alive", False)])
def test_a_client_that_wants_the_connection_closed(said: str, closes: bool) -> None:
    """It said so in a header that does not go to Azure."""
    asked = exchange()
    asked.request(asking("POST", "/v1/chat/completions", b'{"model":"gpt-4o"}', connection=said))
    response = http.Response.make(200, b"{}", JSON)
    asked.response_head(response)
    assert closes == (response.headers.get("connection") == "close")


def test_a_browser_gets_the_subprotocol_it_asked_for() -> None:
    """It would close a connection that answers with none."""
    response = http.Response.make(101, b"", {"upgrade": "websocket"})
    talking().response_head(response)
    assert "realtime" == response.headers["sec-websocket-protocol"]


def test_items_are_left_out_and_counted() -> None:
    """The response says how many items were left out of its request, whose backend is gone."""
    asked = two_backends()
    asked.settings = replace(asked.settings, drop_lost_items=True, debug_headers=False)
    asked.shared.owners.claim("k" * 64, "gone")
    item = {"type": "reasoning", "encrypted_content": "k" * 80}
    request = asking("POST", "/v1/responses", json.dumps({"model": "gpt-4o", "input": [item]}).encode())
    asked.request(request)
    assert [] == json.loads(request.content or b"")["input"]
    response = answering(200, b"{}")
    asked.response_head(response)
    assert "1" == response.headers["x-azure-openai-proxy-lost-items"]


def test_a_tier_that_was_left_out_is_named() -> None:
    """In the response's headers, without the option for debug headers."""
    asked = two_backends()
    asked.settings = replace(asked.settings, tier_fallback=True, debug_headers=False)
    request = asking("POST", "/v1/chat/completions", chat(service_tier="flex"))
    asked.request(request)
    for _ in range(2):
        asked.next_attempt(request, answering(429, b""))
    response = answering(200, b"{}")
    asked.response_head(response)
    assert ("flex", b"service_tier" in (request.raw_content or b"")) == (response.headers["x-azure-openai-proxy-tier-fallback"], False)
