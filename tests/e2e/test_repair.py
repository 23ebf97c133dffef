"""Repairs that Azure's error messages name, invisible to the client: first a refusal and its repair, then requests right from the start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from azure_simulator import errors
from support.processes import PATIENCE

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
    """A request, the simulator's fault (None: it refuses by itself), and the named members in the body that Azure accepts."""

    name: str
    model: str
    asked: dict[str, Any]
    taken: dict[str, Any]  # None: not there
    fault: Fault | None = None
    version: str = "v1"
    path: str = ""  # what Azure's path must hold
    operation: str = "/v1/chat/completions"
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
        {"service_tier": "auto"},
        {"service_tier": None},
        repaired="service_tier left out",
    ),
    Case(
        "store, in neither form",
        "gpt-4o",
        {"store": False},
        {"store": None},
        refusing(lambda body: "store" in body, "Unrecognized request argument supplied: store"),
        version="2024-10-21",
        path="/openai/v1/",
        repaired="v1 for store, store left out",
    ),
    Case(
        "input[0].internal_chat_message_metadata_passthrough",
        "gpt-4o",
        {"input": [{"role": "user", "content": "hello", "internal_chat_message_metadata_passthrough": {}}]},
        {"input": [{"role": "user", "content": "hello"}]},
        operation="/v1/responses",
    ),
    Case(
        "input[1].metadata, dated",
        "gpt-4o",
        {"input": [{"role": "user", "content": "hello"}, {"role": "user", "content": "you", "metadata": {"a": "b"}}]},
        {"input": [{"role": "user", "content": "hello"}, {"role": "user", "content": "you"}]},
        version="2025-04-01-preview",
        path="/openai/responses",
        operation="/v1/responses",
    ),
    Case(
        "client_metadata",
        "gpt-4o",
        {"input": "hello", "client_metadata": {"a": "b"}},
        {"client_metadata": None},
        operation="/v1/responses",
        repaired="client_metadata left out",
    ),
    Case(
        "encrypted reasoning",
        "gpt-4o",
        {"input": "hello", "include": ["reasoning.encrypted_content"]},
        {"include": []},
        operation="/v1/responses",
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
    )  # the learned repair belongs to this case only
    if case.fault:
        azure.faults.always(case.fault)
    chat = {"messages": MESSAGES} if "chat" in case.operation else {}
    body = {"model": case.model, "stream": stream} | chat | case.asked

    with httpx.Client(base_url=through.url, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE, trust_env=False) as http:
        first = http.post(case.operation, json=body)
        tried = len(azure.requests)
        second = http.post(case.operation, json=body)

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
    names = ["user", "prediction", "metadata", "seed", "top_p", "temperature"]
    for name in names:
        azure.faults.always(refusing(lambda body, name=name: name in body, f"Unknown parameter: '{name}'."))  # type: ignore[misc]
    through = proxy(azure_openai_apiversion="v1", azure_openai_max_attempts=9)
    body = {"model": "gpt-4o", "messages": MESSAGES, **dict.fromkeys(names)}
    answer = httpx.post(f"{through.url}/v1/chat/completions", json=body, headers={"api-key": azure.key}, trust_env=False)
    assert (400, 5) == (answer.status_code, len(azure.requests))


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
@pytest.mark.parametrize("version, forms", [("v1", ["v1"]), ("2024-10-21", ["deployments", "v1"])])
@pytest.mark.parametrize(
    "operation, given",
    [
        ("/v1/chat/completions", {"service_tier": "flex"}),
        ("/v1/chat/completions", {"service_tier": "priority"}),
        ("/v1/chat/completions", {"service_tier": "default"}),
        ("/v1/chat/completions", {"store": True}),
        ("/v1/responses", {"store": False}),
        ("/v1/responses", {"service_tier": "flex"}),
    ],
    ids=str,
)
def test_a_price_or_a_promise_is_not_left_out(
    operation: str, given: dict[str, Any], version: str, forms: list[str], stream: bool, azure: Simulator, proxy: Proxies
) -> None:
    """The refusal of the last form that might have taken it reaches the client, each time; nothing is sent without it."""
    (name,) = given
    message = f"Unrecognized request argument supplied: {name}"
    azure.faults.always(refusing(lambda body: body.get(name) is not None, message))
    through = proxy(azure_openai_apiversion=version)
    body = {"model": "gpt-4o", "stream": stream, **({"messages": MESSAGES} if "chat" in operation else {"input": "hello"}), **given}
    forms = forms[-1:] if "responses" in operation else forms
    with httpx.Client(base_url=through.url, headers={"api-key": azure.key}, timeout=PATIENCE, trust_env=False) as http:
        for _ in range(2):
            answer = http.post(operation, json=body)
            assert (400, message) == (answer.status_code, answer.json()["error"]["message"])
    assert all(given[name] == json.loads(received.body)[name] for received in azure.requests)
    assert forms * 2 == [received.path.split("/")[2] for received in azure.requests]


QUOTED = (
    ("service_tier", "Unrecognized request arguments supplied: service_tier, store, temperature"),
    ("prompt_cache_key", "Unsupported parameter: 'temperature' is not supported with this model."),
    ("user", "x' is not one of ['y'] - 'messages.0.role"),
)


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
@pytest.mark.parametrize("version", ["v1", "2024-10-21"])
@pytest.mark.parametrize("name, text", QUOTED)
def test_a_text_that_azure_repeats_teaches_nothing(
    name: str, text: str, version: str, stream: bool, azure: Simulator, proxy: Proxies
) -> None:
    """Azure's error quotes one client's value or model; the requests of others reach Azure as they are."""
    azure.faults.always(refusing(lambda body: body.get(name) == text, f"Invalid value: '{text}'. {text}"))
    azure.faults.always(refusing(lambda body: "Unrecognized" in body.get("model", ""), f"The model '{text}' does not exist. {text}", 404))
    through = proxy(azure_openai_apiversion=version, env={"CASE": f"{name} {version} {stream}"})
    full = {"model": "gpt-4o", "messages": MESSAGES, "stream": stream, "store": False, "temperature": 0.5, "seed": 7}
    with httpx.Client(base_url=through.url, headers={"api-key": azure.key}, timeout=PATIENCE, trust_env=False) as http:
        answer = http.post("/v1/chat/completions", json=full | {name: text})
        assert 400 == answer.status_code
        assert text in answer.json()["error"]["message"]
        http.post("/v1/chat/completions", json=full | {"model": text})
        before = len(azure.requests)
        azure.faults.clear()
        http.post("/v1/chat/completions", json=full)
    assert {"store": False, "temperature": 0.5, "seed": 7} == {
        member: json.loads(azure.requests[before].body).get(member) for member in ("store", "temperature", "seed")
    }


def test_one_clients_value_or_version_changes_no_other_request(azure: Simulator, proxy: Proxies) -> None:
    """A value that a model refuses is left out for that request; what an old api-version lacks stays in requests to a newer one."""
    azure.faults.always(
        refusing(
            lambda body: body.get("prompt_cache_retention") == "in-memory",
            "Unsupported value: 'prompt_cache_retention' does not support 'in-memory' with this model. Supported values are: '24h'.",
        )
    )
    through = proxy(azure_openai_apiversion="v1", env={"CASE": "one client's value"})
    body = {"model": "gpt-4o", "messages": MESSAGES}
    native = "/openai/deployments/gpt-4o/chat/completions?api-version="
    with httpx.Client(base_url=through.url, headers={"api-key": azure.key}, timeout=PATIENCE, trust_env=False) as http:
        for value, left in (("in-memory", None), ("24h", "24h")):
            assert 200 == http.post("/v1/chat/completions", json=body | {"prompt_cache_retention": value}).status_code
            assert left == json.loads(azure.requests[-1].body).get("prompt_cache_retention")
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        for version, kept in (("2024-05-01-preview", False), ("2024-10-21", True)):
            assert 200 == http.post(native + version, json=streamed).status_code
            assert kept is ("stream_options" in json.loads(azure.requests[-1].body))
