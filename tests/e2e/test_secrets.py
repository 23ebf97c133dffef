"""No key appears in a log line, printed or not, or in a response."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from azure_simulator import Cut, refusals, reshape
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from azure_simulator import Fault, Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

VERBOSITIES = {
    "quiet": ["-q"],
    "default": [],
    "verbose": ["-v"],
    **{f"detail {level}": ["--set", f"flow_detail={level}", "--set", "termlog_verbosity=debug"] for level in range(5)},
}
CLIENT_S = "sk-the-client-s-own-key-77c1d09e"
MESSAGES = [{"role": "user", "content": "hello"}]


class Case(NamedTuple):
    """A request, and what Azure makes of it."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {"authorization": "Bearer {key}"}
    fault: Fault | None = None
    path: str = "/v1/chat/completions"


def chat(**more: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": MESSAGES} | more).encode()


CASES = {
    "an answer": Case(200, chat()),
    "an api-key": Case(200, chat(), {"api-key": "{key}"}),
    "a key in the query": Case(200, chat(), {}, path="/v1/chat/completions?api-key={key}"),
    "a stream": Case(200, chat(stream=True)),
    "an error in a stream": Case(200, chat(stream=True), fault=reshape.error_event(2)),
    "a connection cut": Case(502, chat(), fault=Cut()),
    "a refusal that repeats the key": Case(401, chat(), fault=refusals.echoing_key),
    "a busy Azure": Case(429, chat(), fault=refusals.status(429)),
    "a broken Azure": Case(500, chat(), fault=refusals.status(500, "html")),
    "no such deployment": Case(404, chat(model="nothing")),
    "no JSON": Case(400, b"{"),
    "no such operation": Case(404, chat(), path="/v1/nothing"),
    "a path outside": Case(404, chat(), path="/nothing"),
    "models, posted to": Case(404, b"", path="/v1/models"),
    "a head that cannot be read": Case(400, b"", {"authorization": "Bearer {key}", "x": "\x01"}),
}


def ask(case: Case, url: str, key: str) -> httpx.Response:
    headers = {name: value.replace("{key}", key) for name, value in case.headers.items()}
    return httpx.post(url + case.path.replace("{key}", key), content=case.body, headers=headers, timeout=PATIENCE, trust_env=False)


def told(proxy: Mitmdump, answers: list[httpx.Response]) -> list[str]:
    """All readable output, line by line."""
    heads = [f"{name}: {value}" for answer in answers for name, value in answer.headers.items()]
    return [*proxy.output, *proxy.records, *heads, *(line for answer in answers for line in answer.text.splitlines())]


@pytest.mark.parametrize("args", VERBOSITIES.values(), ids=VERBOSITIES)
def test_the_client_s_key_is_told_to_nobody(args: list[str], azure: Simulator, proxy: Proxies) -> None:
    """In success and failure, at every verbosity: the key reaches Azure and is repeated nowhere."""
    through = proxy(*args)
    answers = []
    for case in CASES.values():
        azure.faults.clear()
        if case.fault:
            azure.faults.always(case.fault)
        answers.append(ask(case, through.url, azure.key))

    assert {name: case.status for name, case in CASES.items()} == dict(zip(CASES, [answer.status_code for answer in answers], strict=True))
    assert {azure.key} == {request.header("api-key") for request in azure.requests}
    assert [] == [line for line in told(through, answers) if azure.key in line]


@pytest.mark.parametrize("args", VERBOSITIES.values(), ids=VERBOSITIES)
@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_owner_s_key_is_told_to_nobody(how: str, args: list[str], azure: Simulator, proxy: Proxies) -> None:
    """Neither a configured key appears, nor the unused key of the client."""
    through = proxy(*args, azure_openai_token=azure.key) if how == "option" else proxy(*args, env={"AZURE_OPENAI_TOKEN": azure.key})
    answers = []
    for case in CASES.values():
        azure.faults.clear()
        if case.fault:
            azure.faults.always(case.fault)
        answers.append(ask(case, through.url, CLIENT_S))

    assert {azure.key} == {request.header("api-key") for request in azure.requests}
    assert [] == [line for line in told(through, answers) if azure.key in line or CLIENT_S in line]
