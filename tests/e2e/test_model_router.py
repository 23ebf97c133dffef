"""Azure's model router and models of other makers, through a real mitmdump."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Simulator
from azure_simulator.answers import dumps, event, json_answer
from azure_simulator.operations import respond
from support.access_log import AccessLog
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call

KEY = "key-0123456789"
CONFIG = {"mode": "balanced", "models": ["gpt-5-mini", "gpt-oss-120b"], "session_affinity": {"strategy": "sticky"}}
DETAILS = {
    "model_router_details": {
        "mode": "balanced",
        "routing_trace": [{"latency_ms": 12, "attempts": [{"model": "gpt-5-mini", "result": {"status": 200, "error": None}}]}],
        "session_affinity": {"mode": "sticky", "source": "conversation", "decision": "initialize"},
    }
}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "routing_config": CONFIG}


def router(answer: Answer, call: Call) -> Answer:
    """The router's answer: the simulator's own deployments know no `routing_config`."""
    answer = respond(replace(call, body={name: value for name, value in call.body.items() if name != "routing_config"}), KEY, ())
    if not answer.stream:
        return replace(answer, parts=(dumps(json.loads(answer.body) | {"model_selection_details": DETAILS}),))
    first = event({"choices": [], "created": 0, "id": "", "model": "", "object": "", "model_selection_details": DETAILS})
    return replace(answer, parts=(first, *answer.parts[1:]))


def without_choices(answer: Answer, call: Call) -> Answer:
    """As gpt-oss answers now and then."""
    return json_answer(json.loads(answer.body) | {"choices": []})


@pytest.fixture(scope="module")
def azure() -> Iterator[Simulator]:
    with Simulator(key=KEY, deployments={"auto": "gpt-4o", "my-router": "gpt-4o"}) as azure:
        yield azure


@pytest.fixture(scope="module")
def mitmdump(azure: Simulator, tmp_path_factory: pytest.TempPathFactory, confdir: Path) -> Iterator[Mitmdump]:
    folder = tmp_path_factory.mktemp("router")
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": KEY, "azure_openai_access_log": str(folder / "log")}
    with Mitmdump(folder, confdir, options=options) as proxy:
        yield proxy


def ask(proxy: Mitmdump, **more: Any) -> httpx.Response:
    headers = {"Foundry-Features": "ModelRouterControls=V1Preview"}
    return httpx.post(f"{proxy.url}/v1/chat/completions", json={**CHAT, **more}, headers=headers, timeout=PATIENCE, trust_env=False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["auto", "my-router"])
def test_the_router(model: str, stream: bool, azure: Simulator, mitmdump: Mitmdump) -> None:
    """The header and the configuration reach Azure, and its choice the client and the access log."""
    azure.reset()
    azure.faults.always(router)
    log = AccessLog(mitmdump.home / "log")
    log.forget()
    answer = ask(mitmdump, model=model, stream=stream)
    assert 200 == answer.status_code
    assert json.dumps(DETAILS, separators=(",", ":")) in answer.text
    (received,) = azure.requests
    assert ("ModelRouterControls=V1Preview", CONFIG) == (received.header("foundry-features"), received.json["routing_config"])
    assert ("/openai/v1/" in received.path) is (model == "auto")
    assert DETAILS == log.one()["model_selection_details"]


def test_a_response_without_choices(azure: Simulator, mitmdump: Mitmdump) -> None:
    """A client that reads the first choice finds an empty one."""
    azure.reset()
    azure.faults.always(router, without_choices)
    (choice,) = ask(mitmdump, model="my-router").json()["choices"]
    assert ("", "stop") == (choice["message"]["content"], choice["finish_reason"])
