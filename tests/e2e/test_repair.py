"""Azure says what to change, and the client never hears of it: first the refusal and its cure, then the request that is right at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from azure_simulator import errors
from support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure_simulator import Fault, Simulator
    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call
    from conftest import Proxies

MESSAGES = [{"role": "user", "content": "hello"}]


def refusing(when: Callable[[dict[str, Any]], bool], message: str, status: int = 400) -> Fault:
    """Azure's 400 with these words for a body that meets the condition."""

    def fault(answer: Answer, call: Call) -> Answer:
        if not when(call.body):
            return answer
        return errors.AzureError(status, {"message": message, "type": "invalid_request_error", "param": None, "code": None}).answer

    return fault


class Case(NamedTuple):
    """What is asked, what the simulator does (None: it refuses by itself), and what the body Azure takes has of the named members."""

    name: str
    model: str
    asked: dict[str, Any]
    taken: dict[str, Any]  # None: not there
    fault: Fault | None = None
    version: str = "v1"
    path: str = ""  # what Azure's path must hold
    repaired: str = ""


def has_role(role: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: any(message["role"] == role for message in body["messages"])


CASES = (
    Case(
        "max_tokens",
        "o3-mini",
        {"max_tokens": 7},
        {"max_tokens": None, "max_completion_tokens": 7},
        repaired="max_tokens -> max_completion_tokens",
    ),
    Case("temperature", "o3-mini", {"temperature": 0.2}, {"temperature": None}, repaired="temperature left out"),
    Case("both", "o4-mini", {"temperature": 0.2, "max_tokens": 7}, {"temperature": None, "max_completion_tokens": 7}),
    Case(
        "max_completion_tokens",
        "gpt-4o",
        {"max_completion_tokens": 7},
        {"max_completion_tokens": None, "max_tokens": 7},
        version="2024-06-01",
    ),
    Case("a field of v1 only", "gpt-4o", {"verbosity": "low"}, {"verbosity": "low"}, version="2024-10-21", path="/openai/v1/"),
    Case("reasoning_effort", "o3-mini", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}, version="2024-10-21", path="/openai/v1/"),
    Case("stream_options", "gpt-4o", {"stream_options": {"include_usage": True}}, {"stream_options": None}),
    Case(
        "parallel_tool_calls",
        "gpt-4o",
        {"parallel_tool_calls": True},
        {"parallel_tool_calls": None},
        refusing(
            lambda body: "parallel_tool_calls" in body, "Unsupported parameter: 'parallel_tool_calls' is not supported with this model."
        ),
    ),
    Case(
        "service_tier",
        "gpt-4.1",
        {"service_tier": "flex"},
        {"service_tier": None},
        repaired="service_tier left out",
    ),
    Case(
        "user",
        "gpt-4o",
        {"user": "me"},
        {"user": None},
        refusing(lambda body: "user" in body, "Unknown parameter: 'user'."),
    ),
    Case(
        "developer",
        "gpt-4o",
        {"messages": [{"role": "developer", "content": "be brief"}, *MESSAGES]},
        {"messages": [{"role": "system", "content": "be brief"}, *MESSAGES]},
        refusing(
            has_role("developer"),
            "'developer' is not one of ['system', 'assistant', 'user', 'function', 'tool'] - 'messages.0.role'",
        ),
    ),
    Case(
        "system",
        "o3-mini",
        {"messages": [{"role": "system", "content": "be brief"}, *MESSAGES]},
        {"messages": [{"role": "developer", "content": "be brief"}, *MESSAGES]},
        refusing(has_role("system"), "Unsupported value: 'messages[0].role' does not support 'system' with this model."),
    ),
    Case("a dated name", "gpt-4o-2024-08-06", {}, {}, version="2024-10-21", path="/deployments/gpt-4o/", repaired="deployment gpt-4o"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
def test_azure_says_what_to_change(case: Case, stream: bool, azure: Simulator, proxy: Proxies) -> None:
    """The client sees success, and its second request reaches Azure once, right at once."""
    if stream and case.name == "stream_options":
        pytest.skip("a stream may have them")
    through = proxy(
        azure_openai_apiversion=case.version, azure_openai_debug_headers=True, env={"CASE": f"{case.name} {stream}"}
    )  # what is learned is this case's own
    if case.fault:
        azure.faults.always(case.fault)
    body = {"model": case.model, "messages": MESSAGES, "stream": stream} | case.asked

    with httpx.Client(base_url=through.url, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE, trust_env=False) as http:
        first = http.post("/v1/chat/completions", json=body)
        tried = len(azure.requests)
        second = http.post("/v1/chat/completions", json=body)

    assert (200, 200) == (first.status_code, second.status_code), first.text
    assert tried > 1
    assert tried + 1 == len(azure.requests)
    for received in (azure.requests[tried - 1], azure.requests[-1]):
        sent = json.loads(received.body)
        assert case.taken == {name: sent.get(name) for name in case.taken}
        assert case.path in received.path
    if case.repaired:
        assert case.repaired == first.headers["x-azure-openai-proxy-repaired"] == second.headers["x-azure-openai-proxy-repaired"]


def test_a_client_of_azures_with_a_version_that_v1_refuses(azure: Simulator, proxy: Proxies) -> None:
    """`API version not supported`: then without one."""
    path = "/openai/v1/chat/completions?api-version=preview"
    azure.faults.next(lambda _answer, _call: errors.api_version_not_supported().answer)
    answer = httpx.post(proxy().url + path, json={"model": "gpt-4o", "messages": MESSAGES}, headers={"api-key": azure.key}, trust_env=False)
    assert 200 == answer.status_code
    assert ["preview", None] == [received.query.get("api-version", [None])[0] for received in azure.requests]


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported value: 'reasoning_effort' does not support 'low' with this model.",
        "Unsupported parameter: 'tools' is not supported with this model.",
        "Unrecognized request argument supplied: response_format",
        "Something else is wrong.",
    ],
)
def test_what_changes_the_meaning_is_not_left_out(message: str, azure: Simulator, proxy: Proxies) -> None:
    """The client sees Azure's own error."""
    azure.faults.next(refusing(lambda _: True, message))
    through = proxy(azure_openai_apiversion="v1")
    body = {"model": "gpt-4o", "messages": MESSAGES}
    answer = httpx.post(f"{through.url}/v1/chat/completions", json=body, headers={"api-key": azure.key}, trust_env=False)
    assert (400, message, 1) == (answer.status_code, answer.json()["error"]["message"], len(azure.requests))


def test_off(azure: Simulator, proxy: Proxies) -> None:
    """`azure_openai_repair=false`: Azure's error as it is."""
    through = proxy(azure_openai_repair=False)
    body = {"model": "o3-mini", "messages": MESSAGES, "max_tokens": 7}
    answer = httpx.post(f"{through.url}/v1/chat/completions", json=body, headers={"api-key": azure.key}, trust_env=False)
    assert (400, "unsupported_parameter", 1) == (answer.status_code, answer.json()["error"]["code"], len(azure.requests))


def test_four_changes_are_the_most(azure: Simulator, proxy: Proxies) -> None:
    """One that is refused for ever is given up, and the client sees the last refusal."""
    names = ["user", "store", "metadata", "seed", "top_p", "temperature"]
    for name in names:
        azure.faults.always(refusing(lambda body, name=name: name in body, f"Unknown parameter: '{name}'."))  # type: ignore[misc]
    through = proxy(azure_openai_apiversion="v1", azure_openai_max_attempts=9)
    body = {"model": "gpt-4o", "messages": MESSAGES, **dict.fromkeys(names)}
    answer = httpx.post(f"{through.url}/v1/chat/completions", json=body, headers={"api-key": azure.key}, trust_env=False)
    assert (400, 5) == (answer.status_code, len(azure.requests))
