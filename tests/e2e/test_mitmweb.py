"""What a person finds in mitmweb, by the interface that its own pages use."""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from flows import of_each_kind

from azure_simulator import Delay, Gate
from support.mitmweb import Web, mitmweb
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from support.processes import Decoy, Mitmdump

KEY = "k-configured-by-the-owner-0123"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two three"}]
CHAT = {"model": "gpt-4o", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def web(azure: Simulator, decoy: Decoy, confdir: Path, tmp_path: Path) -> Iterator[Web]:
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": azure.key, "azure_openai_model_mapper": "fast=gpt-4o"}
    with mitmweb(tmp_path, confdir, decoy.port, **options) as web:
        yield web


def post(proxy: Mitmdump, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        proxy.url + path, json=body, headers={"authorization": "Bearer sk-client-s-own-0123"}, timeout=PATIENCE, trust_env=False
    )


def test_usage_is_seen_that_the_client_did_not_ask_for(azure: Simulator, web: Web) -> None:
    """Without any sink, a running mitmweb has Azure send the usage of a stream; the comment shows it, and the client's stream has none."""
    body = {name: value for name, value in CHAT.items() if name != "stream_options"}
    response = post(web.proxy, "/v1/chat/completions", body)
    assert {"include_usage": True} == json.loads(azure.requests[-1].body)["stream_options"]
    assert re.search(r" · \d+\+\d+ tokens", web.flows()[0]["comment"])
    assert response.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in response.text


def test_a_stream_is_seen_as_a_conversation(azure: Simulator, web: Web) -> None:
    """The comment summarises the stream; both views are chosen automatically; the other side of request and response is available."""
    azure.faults.next(Delay(0.01, chunk="each"))
    assert 200 == post(web.proxy, "/v1/chat/completions", CHAT | {"model": "fast"}).status_code
    flow = web.flows()[0]
    asked, answered = web.view(flow["id"], "request"), web.view(flow["id"], "response")
    assert flow["comment"].startswith("fast → gpt-4o · ")
    assert re.search(r" · \d+\+\d+ tokens( \([\d,]+ cached\))? · \$0\.\d+ · first chunk ", flow["comment"])
    assert "── system\nBe brief.\n\n── user\none two three" in asked
    assert "── assistant\nYou said: one two three" in answered
    assert "── chunks\nfirst after " in answered
    assert "── sent by Azure and dropped by the proxy\n1 whole event" in answered
    assert '"model":"fast"' in web.view(flow["id"], "request", "As the client sent it")
    assert "Bearer [key]" in web.view(flow["id"], "request", "As the client sent it")
    assert "prompt_filter_results" in web.view(flow["id"], "response", "As Azure sent it")


def test_a_request_never_shows_its_key(azure: Simulator, web: Web) -> None:
    """Not even while Azure thinks: what mitmweb may show at that moment is masked."""
    gate = Gate(before=None)
    azure.faults.next(gate)
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        sending = threading.Thread(target=lambda: client.post(web.proxy.url + "/v1/chat/completions", json=CHAT, headers={"api-key": KEY}))
        sending.start()
        assert gate.reached.wait(PATIENCE)
        shown = json.dumps(web.flows())
        gate.release()
        sending.join()
    assert "[key]" in shown
    assert [] == [key for key in (KEY, azure.key) if key in shown]
    assert azure.key == azure.requests[-1].header("api-key")


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the SDK does not
def test_a_saved_session_looks_as_it_did(azure: Simulator, web: Web) -> None:
    """Comments, marks and views of flows from a file, those too that the proxy answered by itself."""
    with openai.OpenAI(base_url=f"{web.proxy.url}/v1", api_key=KEY, max_retries=0) as client:
        of_each_kind(client, azure)
    post(web.proxy, "/v1/moderations", {"model": "m", "input": "hello"})

    def seen() -> list[Any]:
        shown = [(flow, web.view(flow["id"], "request"), web.view(flow["id"], "response")) for flow in web.flows()]
        return [(flow["comment"], flow["marked"], flow["request"]["headers"], *views) for flow, *views in shown]

    before = seen()
    saved = web.http.get("/flows/dump").raise_for_status().content
    web.http.post("/flows/dump", files={"filecontents": ("session.flows", saved)}).raise_for_status()
    assert "POST /v1/moderations · 404" in str(before)
    assert before == seen()


def test_commands(azure: Simulator, web: Web) -> None:
    """Each command returns its text, for one flow or for all."""
    post(web.proxy, "/v1/chat/completions", CHAT | {"model": "fast", "stream": False, "stream_options": None})
    explained = web.command("azure.explain", "@all")
    assert "fast → gpt-4o" in explained
    assert "2024-10-21, dated" in explained
    assert ["fast → gpt-4o"] == web.command("azure.models")
    assert "$AZURE_OPENAI_API_KEY" in web.command("azure.export", "curl", "@all")
    assert azure.key in web.command("azure.export", "curl", "@all", "true")


def test_another_deployment_is_asked_the_same(azure: Simulator, web: Web) -> None:
    """The configured key is put back, the new flow says how the answers differ, and both stay in the list."""
    post(web.proxy, "/v1/chat/completions", CHAT)
    web.command("azure.resend", "@all", "gpt-4o-mini")
    web.proxy.wait_for_log("the words are 100% the same")
    _, other = web.flows()
    assert "/openai/deployments/gpt-4o-mini/chat/completions?api-version=2024-10-21" == azure.requests[-1].path
    assert azure.key == azure.requests[-1].header("api-key")
    assert "gpt-4o-mini · " in other["comment"]
    assert "the words are 100% the same" in web.command("azure.explain", "@all")
    assert "── assistant\nYou said: one two three" in web.view(other["id"], "response")


def test_an_unknown_deployment_is_not_a_configured_model(web: Web) -> None:
    """The error names the deployment, and lists the models of the configuration."""
    post(web.proxy, "/v1/chat/completions", CHAT)
    web.command("azure.resend", "@all", "missing")
    web.proxy.wait_for_log("the words are")
    _, other = web.flows()
    shown = web.view(other["id"], "response")
    assert "Azure has no deployment `missing`. Configured models: fast." in shown


def test_a_flow_is_replayed_with_the_configured_key(azure: Simulator, web: Web) -> None:
    """mitmweb's own replay: the mask on the flow is replaced by the configured key in the request to Azure."""
    post(web.proxy, "/v1/chat/completions", CHAT)
    flow = web.flows()[0]
    web.http.post(f"/flows/{flow['id']}/replay").raise_for_status()
    again = azure.wait_for_request(2)
    assert again.done.wait(PATIENCE)
    assert (azure.key, 200) == (again.header("api-key"), again.status)
    assert "api-key: [key]" in "\n".join(f"{name}: {value}" for name, value in web.flows()[0]["request"]["headers"])


def test_a_request_is_edited_before_it_goes(azure: Simulator, web: Web) -> None:
    """It waits, without its key; a person changes its body; it goes with the key, and its answer comes back."""
    web.http.put("/options", json={"intercept": "~u chat/completions & ~q"}).raise_for_status()
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(post(web.proxy, "/v1/chat/completions", CHAT | {"stream": False, "stream_options": None}))
    )
    asking.start()
    waiting: list[dict[str, Any]] = []
    while not waiting:  # mitmweb tells of it as soon as it is asked
        waiting = [flow for flow in web.flows() if flow["intercepted"]]
    assert azure.key not in json.dumps(waiting)
    assert [] == azure.requests
    edited = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "edited"}]})
    web.http.put(f"/flows/{waiting[0]['id']}", json={"request": {"content": edited}}).raise_for_status()
    web.http.post(f"/flows/{waiting[0]['id']}/resume").raise_for_status()
    asking.join(PATIENCE)
    assert (azure.key, edited) == (azure.requests[0].header("api-key"), azure.requests[0].body.decode())
    assert "You said: edited" == answers[0].json()["choices"][0]["message"]["content"]


def test_an_answer_is_edited_before_it_returns(azure: Simulator, web: Web) -> None:
    """One that is read whole waits for a person too."""
    web.http.put("/options", json={"intercept": "~u chat/completions & ~s"}).raise_for_status()
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(post(web.proxy, "/v1/chat/completions", CHAT | {"stream": False, "stream_options": None}))
    )
    asking.start()
    assert azure.wait_for_request().done.wait(PATIENCE)
    waiting: list[dict[str, Any]] = []
    while not waiting:
        waiting = [flow for flow in web.flows() if flow["intercepted"] and flow.get("response")]
    web.http.put(f"/flows/{waiting[0]['id']}", json={"response": {"content": '{"edited": true}'}}).raise_for_status()
    web.http.post(f"/flows/{waiting[0]['id']}/resume").raise_for_status()
    asking.join(PATIENCE)
    assert {"edited": True} == answers[0].json()
