"""The simulator is held against captures of the real service, then each of its switches against what it promises."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Cut, Delay, Gate, Simulator, content_filter, refusals, reshape, status
from azure_simulator.embeddings import vector
from azure_simulator.errors import AzureError
from azure_simulator.made_items import MadeItems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azure_simulator import Fault

DATED = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
V1 = "/openai/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello there"}]}
STREAM = {**HELLO, "stream": True}
PATIENCE = 10.0
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # for http://: by default httpx loads all certificate authorities for each client


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    with Simulator(entra_tokens=["entra"]) as simulator:
        yield simulator


@pytest.fixture
def azure(shared: Simulator) -> Simulator:
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def trust(shared: Simulator) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=shared.ca)


@pytest.fixture
def http(azure: Simulator, trust: ssl.SSLContext) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=azure.http_url, headers={"api-key": azure.key}, verify=trust, trust_env=False, timeout=PATIENCE) as client:
        yield client


def dated(deployment: str, operation: str = "chat/completions", version: str = "2024-10-21") -> str:
    return f"/openai/deployments/{deployment}/{operation}?api-version={version}"


def chunks(response: httpx.Response) -> list[Any]:
    """The JSON values of a stream that ends as it should."""
    *events, done, rest = response.text.split("\n\n")
    assert ("data: [DONE]", "") == (done, rest)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def shape(value: Any) -> Any:
    """Names and their order and types, without the values."""
    if isinstance(value, dict):
        return [(name, shape(member)) for name, member in value.items()]
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


# -- against captures -----------------------------------------------------------------------------------------------------------------

FILTERED = (
    '{"hate":{"filtered":false,"severity":"safe"},"jailbreak":{"detected":false,"filtered":false},"self_harm":{"filtered":false,'
    '"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}'
)
CAPTURED_FIRST = (
    'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":'
    f"{FILTERED}}}]}}"
)
CAPTURED_ROLE = (
    '{"choices":[{"content_filter_results":{},"delta":{"content":"","refusal":null,"role":"assistant"},"finish_reason":null,"index":0,'
    '"logprobs":null}],"created":1785610058,"id":"chatcmpl-E892Aoy89ODQ3TyvXXjI5UFYxqwFj","model":"gpt-5.4-mini-2026-03-17",'
    '"obfuscation":"zRj","object":"chat.completion.chunk","service_tier":"default","system_fingerprint":null,"usage":null}'
)
CAPTURED_LAST = (
    '{"choices":[{"content_filter_results":{},"delta":{},"finish_reason":"stop","index":0,"logprobs":null}],"created":1785610058,'
    '"id":"chatcmpl-E892Aoy89ODQ3TyvXXjI5UFYxqwFj","model":"gpt-5.4-mini-2026-03-17","obfuscation":"SemAF9d4G5HwxkF",'
    '"object":"chat.completion.chunk","service_tier":"default","system_fingerprint":null,"usage":null}'
)
CAPTURED_USAGE = (
    '{"choices":[],"created":1785610058,"id":"chatcmpl-E892Aoy89ODQ3TyvXXjI5UFYxqwFj","latency_checkpoint":{"engine_tbt_ms":3,'
    '"engine_ttft_ms":28,"engine_ttlt_ms":56,"pre_inference_ms":73,"service_tbt_ms":4,"service_ttft_ms":320,"service_ttlt_ms":362,'
    '"total_duration_ms":293,"user_visible_ttft_ms":248},"model":"gpt-5.4-mini-2026-03-17","obfuscation":"8EZi5gjGw66",'
    '"object":"chat.completion.chunk","service_tier":"default","system_fingerprint":null,"usage":{"completion_tokens":11,'
    '"completion_tokens_details":{"accepted_prediction_tokens":0,"audio_tokens":0,"reasoning_tokens":0,"rejected_prediction_tokens":0},'
    '"prompt_tokens":23,"prompt_tokens_details":{"audio_tokens":0,"cached_tokens":0},"total_tokens":34}}'
)
CAPTURED_GPT_4O = (
    '{"choices":[{"content_filter_results":{},"delta":{},"finish_reason":"stop","index":0,"logprobs":null}],"created":1750697159,'
    '"id":"chatcmpl-BleatwEUn3D8iXsgXpDqeOPEMuW3j","model":"gpt-4o-2024-08-06","object":"chat.completion.chunk",'
    '"system_fingerprint":"fp_ee1d74bde0"}'
)


def test_a_stream_has_the_chunks_of_the_capture(http: httpx.Client) -> None:
    """First, role, finish and usage chunk have the capture's names in the capture's order; the first is the capture's to the byte."""
    body = {**STREAM, "model": "gpt-5.4-mini", "stream_options": {"include_usage": True}}
    response = http.post(V1, json=body)
    assert CAPTURED_FIRST == response.text.split("\n\n")[0]
    first, role, *_, last, usage = chunks(response)
    assert 0 == first["created"]
    assert [shape(json.loads(text)) for text in (CAPTURED_ROLE, CAPTURED_LAST, CAPTURED_USAGE)] == [shape(role), shape(last), shape(usage)]


def test_an_older_model_streams_without_the_newer_members(http: httpx.Client) -> None:
    """gpt-4o has no obfuscation and no service tier, and without include_usage no usage."""
    *_, last = chunks(http.post(DATED, json=STREAM))
    assert shape(json.loads(CAPTURED_GPT_4O)) == shape(last)


NO_ACCESS = (
    '{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid '
    'key for an active subscription and use a correct regional API endpoint for your resource."}}'
)
NO_DEPLOYMENT = (
    '{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist. If you created the deployment '
    'within the last 5 minutes, please wait a moment and try again."}}'
)
NOT_FOUND = '{"error":{"code":"404","message": "Resource not found"}}'
CONTENT_FILTER = (
    '{"error":{"message":"The response was filtered due to the prompt triggering Azure OpenAI\'s content management policy. Please modify '
    "your prompt and retry. To learn more about our content filtering policies please read our documentation: "
    'https://go.microsoft.com/fwlink/?linkid=2198766","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":'
    '{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true,"severity":"high"},"jailbreak":{"filtered":'
    'false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":'
    '{"filtered":false,"severity":"safe"}}}}}'
)


@pytest.mark.parametrize(
    "headers, path, allowed",
    [
        ([], DATED, False),
        ([("api-key", "wrong")], DATED, False),
        ([("api-key", "KEY")], DATED, True),
        ([("api-key", "KEY")], V1, True),
        ([("api-key", "KEY"), ("api-key", "KEY")], DATED, False),
        ([("api-key", "wrong"), ("authorization", "Bearer entra")], DATED, False),
        ([("authorization", "Bearer entra")], DATED, True),
        ([("authorization", "Bearer entra")], V1, True),
        ([("authorization", "Bearer KEY")], V1, True),
        ([("authorization", "Bearer KEY")], DATED, False),
        ([("authorization", "KEY")], V1, False),
        ([], "/nowhere", False),
    ],
)
def test_who_may_ask(azure: Simulator, headers: list[tuple[str, str]], path: str, allowed: bool) -> None:
    """The key, an Entra token, and on v1 the key as a Bearer are let in; all else gets Azure's 401 with its reason phrase."""
    given = [(name, value.replace("KEY", azure.key)) for name, value in headers]
    response = httpx.post(azure.http_url + path, headers=given, json={**HELLO, "model": "gpt-4o"}, verify=NO_TLS, trust_env=False)
    assert ((200, "OK") if allowed else (401, "PermissionDenied")) == (response.status_code, response.reason_phrase)
    assert allowed or response.text == NO_ACCESS


@pytest.mark.parametrize(
    "path, model, expected",
    [
        (dated("gpt-9"), None, (404, NO_DEPLOYMENT)),
        (V1, "gpt-9", (404, NO_DEPLOYMENT)),
        (dated("gpt-4o", version="2023-03-15-preview"), None, (404, NOT_FOUND)),
        ("/openai/deployments/gpt-4o/chat/completions", None, (404, NOT_FOUND)),
        (DATED + "&api-version=2024-10-21", None, (404, NOT_FOUND)),
        ("/openai/v1/chat", None, (404, NOT_FOUND)),
        ("//openai/v1/chat/completions", None, (404, NOT_FOUND)),
        ("/v1/chat/completions", None, (404, NOT_FOUND)),
        (V1 + "?api-version=2024-10-21", "gpt-4o", (400, '{"error":{"code":"BadRequest","message":"API version not supported"}}')),
    ],
)
def test_what_azure_has_not(http: httpx.Client, azure: Simulator, path: str, model: str | None, expected: tuple[int, str]) -> None:
    """Deployments, paths and versions that are not there get Azure's words to the byte."""
    response = httpx.post(azure.http_url + path, headers=http.headers, json={**HELLO, "model": model}, verify=NO_TLS, trust_env=False)
    assert expected == (response.status_code, response.text)


@pytest.mark.parametrize("query", ["", "?api-version=v1", "?api-version=preview"])
def test_versions_of_v1(http: httpx.Client, query: str) -> None:
    """The v1 form takes no version, v1 and preview."""
    assert 200 == http.post(V1 + query, json={**HELLO, "model": "gpt-4o"}).status_code


def test_only_post(http: httpx.Client) -> None:
    """Another method finds nothing there."""
    assert (404, NOT_FOUND) == ((response := http.get(DATED)).status_code, response.text)


def test_headers_of_an_answer(http: httpx.Client) -> None:
    """Rate limits are plain integers and the gateway's identifiers are there; a client's request id comes back."""
    headers = http.post(DATED, json=HELLO, headers={"x-ms-client-request-id": "mine"}).headers
    assert all(headers[f"x-ratelimit-{what}-{of}"].isdigit() for what in ("limit", "remaining", "reset") for of in ("requests", "tokens"))
    assert {"apim-request-id", "x-request-id", "x-ms-region", "azureml-model-session", "strict-transport-security"} <= set(headers)
    assert "mine" == headers["x-ms-client-request-id"]
    assert not any(name.startswith("openai-") for name in headers)


# -- refusals of the body -------------------------------------------------------------------------------------------------------------

MESSAGES = HELLO["messages"]


@pytest.mark.parametrize(
    "version, field, value, known",
    [
        ("2024-05-01-preview", "stream_options", {}, False),
        ("2024-05-01-preview", "max_completion_tokens", 5, False),
        ("2024-05-01-preview", "data_sources", [], True),
        ("2024-10-21", "max_completion_tokens", 5, True),
        ("2024-10-21", "parallel_tool_calls", True, True),
        ("2024-10-21", "store", True, False),
        ("2024-10-21", "reasoning_effort", "low", False),
        ("2025-03-01-preview", "store", True, True),
        ("2025-03-01-preview", "prediction", {}, True),
        ("2025-03-01-preview", "verbosity", "low", False),
        ("2025-04-01-preview", "reasoning_effort", "low", True),
        ("v1", "verbosity", "low", True),
        ("v1", "data_sources", [], False),
        ("v1", "service_tier", "auto", False),
        ("v1", "user", None, True),
    ],
)
def test_fields_by_version(http: httpx.Client, version: str, field: str, value: object, known: bool) -> None:
    """A field that the version lacks is refused by name."""
    path = V1 if version == "v1" else dated("gpt-4o", version=version)
    response = http.post(path, json={**STREAM, "model": "gpt-4o", field: value})
    message = f"Unrecognized request argument supplied: {field}"
    expected = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    assert (200 if known else 400) == response.status_code
    assert known or expected == response.json()["error"]


@pytest.mark.parametrize(
    "path, body, message",
    [
        (DATED, b"{", "Your request contained invalid JSON: Expecting property name"),
        (V1, b"", "Your request contained invalid JSON: Expecting value"),
        (DATED, b"[" * 100_000, "Your request contained invalid JSON: "),
        (V1, [], "'model' is a required property"),
        (V1, {"messages": MESSAGES, "model": 5}, "'model' is a required property"),
        (DATED, [], "[] is not of type 'object'"),
        (DATED, {"a": 1, "b": 2}, "Unrecognized request arguments supplied: a, b"),
        (DATED, {}, "'messages' is a required property"),
        (DATED, {"messages": []}, "[] is too short - 'messages'"),
        (DATED, {"messages": None}, "None is not of type 'array' - 'messages'"),
        (DATED, {"messages": "hi"}, "'hi' is not of type 'array' - 'messages'"),
        (DATED, {"messages": ["hi"]}, "'hi' is not of type 'object' - 'messages.0'"),
        (DATED, {"messages": [{}]}, "'role' is a required property - 'messages.0'"),
        (DATED, {**HELLO, "n": True}, "True is not of type 'integer' - 'n'"),
        (DATED, {**HELLO, "n": 0}, "0 is less than the minimum of 1 - 'n'"),
        (DATED, {**HELLO, "temperature": 3}, "3 is greater than the maximum of 2 - 'temperature'"),
        (DATED, {**HELLO, "stop": 1}, "1 is not of type 'string' or 'array' - 'stop'"),
        (DATED, {**HELLO, "stream_options": {}}, "The 'stream_options' parameter is only allowed when 'stream' is enabled."),
        (DATED, {**HELLO, "tool_choice": "auto"}, "'tool_choice' is only allowed when 'tools' are specified."),
        (DATED, {**HELLO, "tools": [{"type": "function"}]}, "Missing required parameter: 'tools[].function.name'."),
        (dated("gpt-35-turbo-instruct", "completions"), {}, "'prompt' is a required property"),
        (dated("gpt-35-turbo-instruct", "completions"), {"prompt": ["a", {}]}, "{} is not of type 'string' - 'prompt'"),
        (dated("gpt-35-turbo-instruct", "completions"), {"prompt": "a", "stream_options": {}}, "The 'stream_options' parameter is only"),
        (dated("text-embedding-3-small", "embeddings"), {"input": [{}]}, "'$.input' is invalid."),
        (dated("text-embedding-3-small", "embeddings"), {"input": ["a"] * 2049}, "2049 inputs are too long"),
        (dated("text-embedding-3-small", "embeddings"), {"input": "a", "encoding_format": "hex"}, "'hex' is not one of"),
        (dated("text-embedding-3-small", "embeddings"), {"input": "a", "dimensions": 9999}, "Invalid value for 'dimensions' = 9999."),
        (
            dated("text-embedding-ada-002", "embeddings"),
            {"input": "a", "dimensions": 5},
            "This model does not support specifying dimensions.",
        ),
        (
            dated("text-embedding-3-small"),
            HELLO,
            "The chatCompletion operation does not work with the specified model, text-embedding-3-small.",
        ),
        (dated("gpt-4o", "embeddings"), {"input": "a"}, "The embeddings operation does not work with the specified model, gpt-4o."),
        (dated("gpt-4o", "completions"), {"prompt": "a"}, "The completion operation does not work with the specified model, gpt-4o."),
        (dated("o4-mini"), {**HELLO, "max_tokens": 5}, "Unsupported parameter: 'max_tokens' is not supported with this model. Use"),
        (dated("gpt-5-mini"), {**HELLO, "temperature": 0.2}, "Unsupported value: 'temperature' does not support 0.2 with this model. Only"),
    ],
)
def test_bad_bodies(http: httpx.Client, path: str, body: Any, message: str) -> None:
    """A body that cannot be used is a 400 that says why, in the shape of Azure's errors."""
    response = http.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert 400 == response.status_code
    assert response.json()["error"]["message"].startswith(message)


def test_the_codes_that_say_what_to_change(http: httpx.Client) -> None:
    """A reasoning model's refusals name the parameter and carry a code; a request without them is answered."""
    refused = [http.post(dated("o4-mini"), json={**HELLO, **more}).json()["error"] for more in ({"max_tokens": 5}, {"temperature": 0.2})]
    assert [("max_tokens", "unsupported_parameter"), ("temperature", "unsupported_value")] == [(e["param"], e["code"]) for e in refused]
    taken = http.post(dated("o4-mini"), json={**HELLO, "max_completion_tokens": 5, "temperature": 1})
    assert 200 == taken.status_code


# -- answers --------------------------------------------------------------------------------------------------------------------------


def test_chat(http: httpx.Client) -> None:
    """The answer repeats the last user message, is the underlying model's, and counts its tokens."""
    body = {"messages": [{"role": "user", "content": "no"}, *MESSAGES, {"role": "assistant", "content": "?"}], "n": 2}
    answer = http.post(DATED, json=body).json()
    assert sorted(answer) == list(answer)
    assert ["You said: hello there"] * 2 == [choice["message"]["content"] for choice in answer["choices"]]
    assert ("gpt-4o-2024-11-20", 10) == (answer["model"], answer["usage"]["completion_tokens"])
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert json.loads(FILTERED) == answer["prompt_filter_results"][0]["content_filter_results"]


@pytest.mark.parametrize(
    "more, content, finish",
    [
        ({"max_tokens": 2}, "You said", "length"),
        ({"response_format": {"type": "json_object"}}, '{"you_said": "hello there"}', "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "parts"}]}]}, "You said: parts", "stop"),
        ({"messages": [{"role": "system", "content": "x"}]}, "You said: ", "stop"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "You said: ?", "stop"),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "You said: hello there", "stop"),
    ],
)
def test_chat_streams_what_it_says_whole(http: httpx.Client, more: dict[str, Any], content: str, finish: str) -> None:
    """Put together, the deltas are the content of the answer that is not streamed, for every choice."""
    whole = http.post(DATED, content=json.dumps({**HELLO, **more})).json()["choices"][0]
    events = chunks(http.post(DATED, content=json.dumps({**STREAM, **more, "n": 2})))[1:]
    assert (content, finish) == (whole["message"]["content"], whole["finish_reason"])
    for index in range(2):
        choices = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert content == "".join(choice["delta"].get("content", "") for choice in choices)
        assert [None] * (len(choices) - 1) + [finish] == [choice["finish_reason"] for choice in choices]


@pytest.mark.parametrize(
    "choice, name, finish",
    [("required", "look", "tool_calls"), ({"type": "function", "function": {"name": "find"}}, "find", "stop")],
)
def test_a_tool_that_must_be_called_is_called(http: httpx.Client, choice: Any, name: str, finish: str) -> None:
    """The call is the same whole and streamed, and carries the message."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "find")]
    asked = {"tools": tools, "tool_choice": choice}
    whole = http.post(DATED, json={**HELLO, **asked}).json()["choices"][0]
    (call,) = whole["message"]["tool_calls"]
    assert (name, {"text": "hello there"}, finish) == (
        call["function"]["name"],
        json.loads(call["function"]["arguments"]),
        whole["finish_reason"],
    )
    deltas = [event["choices"][0]["delta"] for event in chunks(http.post(DATED, json={**STREAM, **asked}))[1:-1]]
    assert name == deltas[0]["tool_calls"][0]["function"]["name"]
    assert call["function"]["arguments"] == "".join(delta["tool_calls"][0]["function"]["arguments"] for delta in deltas)


def test_a_tool_that_is_not_there(http: httpx.Client) -> None:
    """A tool choice must be one of the tools."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    response = http.post(DATED, json={**HELLO, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "find"}}})
    assert "tool_choice" == response.json()["error"]["param"]


@pytest.mark.parametrize(
    "prompt, said",
    [
        ("a b", ["You said: a b"]),
        (["a", "b"], ["You said: a", "You said: b"]),
        ([1, 2], ["You said: 1 2"]),
        ([[1], [2]], ["You said: 1", "You said: 2"]),
    ],
)
def test_completions(http: httpx.Client, prompt: Any, said: list[str]) -> None:
    """Each prompt has its choice, whole and streamed, with usage when it is asked for."""
    body = {"model": "gpt-35-turbo-instruct", "prompt": prompt}
    whole = http.post("/openai/v1/completions", json=body).json()
    assert said == [choice["text"] for choice in whole["choices"]]
    first, *events, usage = chunks(
        http.post("/openai/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}})
    )
    streamed = ["".join(c["text"] for event in events for c in event["choices"] if c["index"] == index) for index in range(len(said))]
    assert said == streamed
    assert len(said) == len(first["prompt_filter_results"])
    assert whole["usage"] == usage["usage"]
    assert [] == usage["choices"]


def test_completions_stop_at_their_limit(http: httpx.Client) -> None:
    """`max_tokens` cuts the answer, `echo` puts the prompt before it, and without include_usage there is no usage."""
    path = dated("gpt-35-turbo-instruct", "completions")
    choice = http.post(path, json={"prompt": "hi", "max_tokens": 1, "echo": True}).json()["choices"][0]
    assert ("hiYou", "length") == (choice["text"], choice["finish_reason"])
    assert all("usage" not in event for event in chunks(http.post(path, json={"prompt": "hi", "stream": True})))


@pytest.mark.parametrize("value", ["a b", ["a b", "c"], [1, 2, 3], [[1, 2], [3]]])
def test_embeddings(http: httpx.Client, value: Any) -> None:
    """Floats and base64 hold the same unit vector, which follows from the input alone."""
    body = {"model": "text-embedding-3-small", "input": value}
    floats = http.post("/openai/v1/embeddings", json=body).json()
    packed = http.post("/openai/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    inputs = value if isinstance(value, list) and not isinstance(value[0], int) else [value]
    assert [vector(item, 1536) for item in inputs] == [item["embedding"] for item in floats["data"]]
    unpacked = [list(struct.unpack("<1536f", base64.b64decode(item["embedding"]))) for item in packed["data"]]
    assert [item["embedding"] for item in floats["data"]] == unpacked
    assert [pytest.approx(1)] * len(inputs) == [sum(x * x for x in item) for item in unpacked]
    assert ["data", "model", "object", "usage"] == list(floats)


def test_embeddings_of_another_size(http: httpx.Client) -> None:
    """`dimensions` is the length of the vector."""
    answer = http.post(dated("text-embedding-3-small", "embeddings"), json={"input": "a", "dimensions": 7}).json()
    assert 7 == len(answer["data"][0]["embedding"])


def test_deployments_stand_for_models(http: httpx.Client, azure: Simulator) -> None:
    """A deployment has any name, percent-encoded in a path, and any model."""
    azure.deployments |= {"my gpt/4": "gpt-4.1", "novel": "novel-1"}
    answered = [http.post(dated(name), json=HELLO).json()["model"] for name in ("my%20gpt%2F4", "novel")]
    assert ["gpt-4.1-2025-04-14", "novel-1"] == answered


# -- received requests ----------------------------------------------------------------------------------------------------------------


def test_requests_are_kept_as_they_were_on_the_wire(http: httpx.Client, azure: Simulator) -> None:
    """Method, raw path, headers in order and case, body, TLS and version; and how the answer ended."""
    body = b'{"messages": [{"role": "user", "content": "x"}]}  '
    http.post(azure.https_url + dated("gpt%2D4o") + "&a=%20b&a=", content=body, headers=[("X-One", "1"), ("x-one", "2")])
    received = azure.wait_for_request(1, PATIENCE)
    assert ("POST", dated("gpt%2D4o") + "&a=%20b&a=", body, True, "1.1") == (
        received.method,
        received.path,
        received.body,
        received.tls,
        received.http_version,
    )
    assert [("X-One", "1"), ("x-one", "2")] == [pair for pair in received.headers if pair[0].lower() == "x-one"]
    assert ("1, 2", None) == (received.header("x-ONE"), received.header("none"))
    assert {"api-version": ["2024-10-21"], "a": [" b", ""]} == received.query
    assert received.done.wait(PATIENCE)
    assert (200, "answered", [received]) == (received.status, received.outcome, azure.requests)
    assert "x" == received.json["messages"][0]["content"]


def test_waiting_for_a_request_that_does_not_come(azure: Simulator) -> None:
    """The wait ends with the count."""
    with pytest.raises(TimeoutError, match=r"0 of 1 requests came within 0\.01 s"):
        azure.wait_for_request(timeout=0.01)


def test_it_goes_and_comes_back() -> None:
    """Stopped, it refuses connections; started again, it has the same ports, certificate and memory."""
    with Simulator(names=["azure.example"]) as azure:
        address, ca = azure.http_url, azure.ca.read_bytes()
        assert 401 == httpx.post(address, verify=NO_TLS, trust_env=False).status_code
        azure.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.post(address, verify=NO_TLS, trust_env=False)
        azure.start()
        assert 401 == httpx.post(address, verify=NO_TLS, trust_env=False).status_code
        assert (address, ca, 2) == (azure.http_url, azure.ca.read_bytes(), len(azure.requests))
    azure.stop()
    assert not azure.ca.exists()


def test_its_certificate_has_the_names_given() -> None:
    """A client that asks for one of them is satisfied."""
    with Simulator(names=["azure.example"]) as azure:
        trust = ssl.create_default_context(cafile=azure.ca)
        port = int(azure.https_url.rpartition(":")[2])
        for name in ("azure.example", "localhost", "127.0.0.1"):
            with socket.create_connection(("127.0.0.1", port)) as plain, trust.wrap_socket(plain, server_hostname=name) as tls:
                assert tls.version() == "TLSv1.3"


def test_a_port_that_is_taken() -> None:
    """It is an error where the simulator was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="address already in use"):
        Simulator(port=taken.getsockname()[1]).__enter__()


# -- faults ---------------------------------------------------------------------------------------------------------------------------


def texts(response: httpx.Response) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in chunks(response) if event["choices"])


def test_the_queue_and_the_standing_faults(http: httpx.Client, azure: Simulator) -> None:
    """A queued fault meets its number of matching requests, in the place of the standing ones; reset forgets both."""
    azure.faults.always(status(503))
    azure.faults.always(status(500), when=lambda call: call.form == "v1")
    azure.faults.next(status(502), times=2, deployment="gpt-4o")
    azure.faults.next(deployment="gpt-4.1")
    paths = [dated("gpt-4.1-mini"), DATED, dated("gpt-4.1"), DATED, DATED, V1]
    assert [503, 502, 200, 502, 503, 500] == [http.post(path, json={**HELLO, "model": "gpt-4o"}).status_code for path in paths]
    azure.reset()
    assert 200 == http.post(DATED, json=HELLO).status_code


@pytest.mark.parametrize("code", [401, 404, 408, 429, 500, 502, 503, 504, 418])
@pytest.mark.parametrize("body", ["json", "html", "empty"])
def test_statuses(http: httpx.Client, azure: Simulator, code: int, body: Any) -> None:
    """Any status, with JSON, HTML, or nothing in its body."""
    azure.faults.next(status(code, body))
    response = http.post(DATED, json=HELLO)
    kind = {"json": "application/json", "html": "text/html", "empty": None}[body]
    assert (code, kind) == (response.status_code, response.headers.get("content-type"))
    assert body == ("empty" if not response.content else "html" if response.text.startswith("<html>") else "json")
    assert body != "json" or isinstance(response.json()["error"]["message"], str)


@pytest.mark.parametrize(
    "path, message",
    [
        (
            dated("gpt-4o", version="2024-05-01-preview"),
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-05-01-preview have exceeded token rate ",
        ),
        (
            V1,
            "Your requests to gpt-4o for gpt-4o in Sweden Central have exceeded the token rate limit for your current AIServices S0 ",
        ),
        ("/elsewhere?api-version=1", "Your requests to None for None"),
    ],
)
def test_too_many_requests(http: httpx.Client, azure: Simulator, path: str, message: str) -> None:
    """A 429 has Azure's words for its form and says in three ways when to come back."""
    azure.faults.next(status(429, retry_after=1.5, policy_id="DeploymentRatelimit-Token", retry_after_ms="1500"))
    response = http.post(path, json={**HELLO, "model": "gpt-4o"})
    assert response.json()["error"]["message"].startswith(message)
    assert "Please retry after 2 seconds." in response.json()["error"]["message"]
    expected = {
        "retry-after": "2",
        "retry-after-ms": "1500",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "2",
        "policy-id": "DeploymentRatelimit-Token",
    }
    assert expected == {name: response.headers.get(name) for name in expected}


def test_a_filtered_prompt(http: httpx.Client, azure: Simulator) -> None:
    """The 400 of the content filter is Azure's to the byte."""
    azure.faults.next(content_filter)
    assert (400, CONTENT_FILTER) == ((response := http.post(DATED, json=HELLO)).status_code, response.text)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer abc", "api-key": ""}])
def test_an_error_that_repeats_the_key(http: httpx.Client, azure: Simulator, headers: dict[str, str]) -> None:
    """What the client sent as its key is in the text."""
    azure.faults.next(refusals.echoing_key)
    message = http.post(DATED, json=HELLO, headers=headers).json()["error"]["message"]
    assert message.endswith(headers.get("authorization", azure.key))


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    "cut, body, error, got",
    [
        (Cut(), HELLO, httpx.RemoteProtocolError, None),
        (Cut(), STREAM, httpx.RemoteProtocolError, None),
        (Cut(0), STREAM, httpx.RemoteProtocolError, 0),
        (Cut(2), STREAM, httpx.RemoteProtocolError, 2),
        (Cut(99), STREAM, httpx.RemoteProtocolError, 9),
        (Cut(byte=10), HELLO, httpx.RemoteProtocolError, 0),
        (Cut(2, reset=True), STREAM, httpx.ReadError, 2),
    ],
)
def test_cuts(http: httpx.Client, azure: Simulator, secure: bool, cut: Cut, body: Any, error: type[Exception], got: int | None) -> None:
    """The connection ends at the configured place, after all bytes before it were written."""
    if secure and cut.reset and sys.version_info < (3, 12, 3):
        error = httpx.RemoteProtocolError  # ssl took a reset for the end (python/cpython#115627)
    azure.faults.next(cut)
    read = bytearray()
    statuses = []

    def ask() -> None:
        with http.stream("POST", (azure.https_url if secure else "") + DATED, json=body) as response:
            statuses.append(response.status_code)
            for piece in response.iter_raw():
                read.extend(piece)

    with pytest.raises(error):
        ask()
    assert ([] if got is None else [200]) == statuses
    assert (got or 0) == read.count(b"\n\n")
    assert cut.byte in (None, len(read))
    received = azure.wait_for_request()
    assert received.done.wait(PATIENCE)
    assert "cut" == received.outcome
    assert 200 == http.post(DATED, json=HELLO).status_code


@pytest.mark.parametrize("secure", [False, True])
def test_a_gate_holds_one_chunk_back(http: httpx.Client, azure: Simulator, secure: bool) -> None:
    """The client has the bytes before it, and those after it once it is released."""
    gate = Gate(before=3)
    azure.faults.next(gate)
    with http.stream("POST", (azure.https_url if secure else "") + DATED, json=STREAM) as response:
        assert gate.reached.wait(PATIENCE)
        pieces = response.iter_raw()
        before = b""
        while before.count(b"\n\n") < 3:
            before += next(pieces)
        assert azure.wait_for_request().outcome is None
        assert 3 == before.count(b"\n\n")
        gate.release()
        gate.release()
        assert (before + b"".join(pieces)).endswith(b"data: [DONE]\n\n")


def test_a_gate_before_the_answer(azure: Simulator) -> None:
    """With no chunk named, the status line waits too; several requests wait at one gate."""
    gate = Gate(before=None)
    azure.faults.always(gate)

    async def run() -> list[int]:
        async with httpx.AsyncClient(headers={"api-key": azure.key}, trust_env=False, timeout=PATIENCE) as client:
            asked = [asyncio.create_task(client.post(azure.http_url + DATED, json=HELLO)) for _ in range(3)]
            await asyncio.to_thread(azure.wait_for_request, 3, PATIENCE)
            assert not any(task.done() for task in asked)
            gate.release()
            return [(await task).status_code for task in asked]

    assert [200] * 3 == asyncio.run(run())


def test_a_client_that_leaves(http: httpx.Client, azure: Simulator) -> None:
    """It is noticed while a chunk is held back, and other requests at the gate go on."""
    gate = Gate(before=1)
    azure.faults.next(gate, times=2)
    with http.stream("POST", DATED, json=STREAM):
        assert gate.reached.wait(PATIENCE)
    left = azure.wait_for_request()
    assert left.done.wait(PATIENCE)
    assert "client left" == left.outcome
    gate.release()
    assert "You said: hello there" == texts(http.post(DATED, json=STREAM))


def test_stopping_lets_go_of_requests() -> None:
    """A request that is held at a gate does not hold up the end."""
    with Simulator() as azure:
        gate = Gate(before=None)
        azure.faults.next(gate)
        with socket.create_connection(("127.0.0.1", int(azure.http_url.rpartition(":")[2]))) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert gate.reached.wait(PATIENCE)
            azure.stop()
            assert b"" == client.recv(100)
    assert "client left" == azure.requests[0].outcome


@pytest.mark.parametrize("delay, steps", [(Delay(0), 0), (Delay(0, 2), 1), (Delay(0, "each"), 8)])
def test_delays(http: httpx.Client, azure: Simulator, delay: Delay, steps: int) -> None:
    """Waits go before the answer, one chunk, or each chunk but the first, and change nothing that is said."""
    seen: list[int] = []

    def look(answer: Any, call: Any) -> Any:
        seen.append(answer.parts.count(delay))
        return answer

    azure.faults.next(delay, look)
    assert "You said: hello there" == texts(http.post(DATED, json=STREAM))
    assert [steps] == seen


EMPTY = '{"id":"","object":"","created":0,"model":"","choices":[]}'


@pytest.mark.parametrize(
    "fault, expected",
    [
        (reshape.no_done, lambda text: text.removesuffix("data: [DONE]\n\n")),
        (reshape.double_done, lambda text: text + "data: [DONE]\n\n"),
        (reshape.unfinished_done, lambda text: text.removesuffix("\n")),
        (reshape.crlf, lambda text: text.replace("\n", "\r\n")),
        (reshape.comments, lambda text: text.replace("data: ", ": keep-alive\n\ndata: ")),
        (reshape.empty_chunks, lambda text: text.replace("data: ", f"data: {EMPTY}\n\ndata: ")),
        (reshape.null_content, lambda text: text.replace('"delta":{},"finish', '"delta":null,"finish')),
        (reshape.null_message, lambda text: text),
        (reshape.split(1), lambda text: text),
        (reshape.split(3, 1000), lambda text: text),
        (reshape.compressed("gzip"), lambda text: text),
        (reshape.compressed("deflate"), lambda text: text),
        (reshape.no_content_type, lambda text: text),
    ],
)
def test_other_ways_to_write_a_stream(http: httpx.Client, azure: Simulator, fault: Fault, expected: Callable[[str], str]) -> None:
    """The bytes differ from a plain answer's in what the fault says and in nothing else."""
    seen: list[str] = []

    def look(answer: Any, call: Any) -> Any:
        seen.append(answer.body.decode())
        return answer

    azure.faults.next(look, fault)
    response = http.post(DATED, json={**STREAM, "messages": [{"role": "user", "content": "wörld 🌍"}]})
    assert expected(seen[0]) == response.text


def test_split_writes_what_was_before_a_gate(http: httpx.Client, azure: Simulator) -> None:
    """Bytes that do not fill a write are written when a step comes."""
    gate = Gate(before=1)
    azure.faults.next(gate, reshape.split(100_000))
    gate.release()
    assert "You said: hello there" == texts(http.post(DATED, json=STREAM))


@pytest.mark.parametrize("coding, bits", [("gzip", 31), ("deflate", 15)])
@pytest.mark.parametrize("body", [HELLO, STREAM])
def test_compressed_answers(http: httpx.Client, azure: Simulator, coding: Any, bits: int, body: Any) -> None:
    """Bodies are compressed on the wire, and of a stream each chunk can be read when it has come."""
    gate = Gate(before=2)
    azure.faults.next(gate, reshape.compressed(coding))
    gate.release()
    with http.stream("POST", DATED, json=body) as response:
        raw = b"".join(response.iter_raw())
    assert coding == response.headers["content-encoding"]
    assert b"hello" in zlib.decompress(raw, bits)


def test_no_content_type(http: httpx.Client, azure: Simulator) -> None:
    """The header is not there at all."""
    azure.faults.next(reshape.no_content_type)
    assert "content-type" not in http.post(DATED, json=STREAM).headers


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("fault, code", [(reshape.error_event, None), (lambda n: reshape.error_event(n, status=429, done=True), "429")])
def test_an_error_inside_a_stream(http: httpx.Client, azure: Simulator, after: int, fault: Any, code: str | None) -> None:
    """It has status 200, the chunks before it, and is the last thing said."""
    azure.faults.next(Delay(0, 1), fault(after), when=lambda call: call.body["stream"])
    response = http.post(DATED, json=STREAM)
    *before, error = (json.loads(text[6:]) for text in response.text.removesuffix("data: [DONE]\n\n").split("\n\n") if text)
    assert (200, after) == (response.status_code, len(before))
    assert code == error["error"]["code"]


@pytest.mark.parametrize(
    "fault",
    [
        reshape.error_event(),
        reshape.typed_error(),
        reshape.empty_chunks,
        reshape.null_content,
        reshape.comments,
        reshape.async_filter(),
        reshape.crlf,
        reshape.no_done,
    ],
)
def test_what_is_not_a_stream_stays_json(http: httpx.Client, azure: Simulator, fault: Fault) -> None:
    """Faults of streams leave other answers alone."""
    azure.faults.next(fault)
    assert "You said: hello there" == http.post(DATED, json=HELLO).json()["choices"][0]["message"]["content"]


def test_a_message_that_is_null(http: httpx.Client, azure: Simulator) -> None:
    """So is the text of a completion."""
    azure.faults.always(reshape.null_message)
    assert http.post(DATED, json=HELLO).json()["choices"][0]["message"] is None


def test_a_typed_error(http: httpx.Client, azure: Simulator) -> None:
    """It follows so many events, has their next number, and ends the stream."""
    azure.faults.next(Delay(0, 1), reshape.typed_error(2))
    response = http.post("/openai/v1/responses", json={"model": "gpt-4o", "input": "hello", "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]
    assert [("response.created", 0), ("response.in_progress", 1), ("error", 2)] == [(one["type"], one["sequence_number"]) for one in events]


CAPTURED_VERDICT = (
    '{"index":0,"finish_reason":null,"content_filter_results":{},'
    '"content_filter_offsets":{"check_offset":44,"start_offset":44,"end_offset":198}}'
)


def test_the_asynchronous_filter(http: httpx.Client, azure: Simulator) -> None:
    """Verdicts come in chunks of their own, without delta, one of them after the finish; the content is untouched."""
    azure.faults.next(Delay(0, 1), reshape.async_filter())
    events = chunks(http.post(DATED, json={**STREAM, "stream_options": {"include_usage": True}}))
    verdicts = [event for event in events if event["choices"] and "delta" not in event["choices"][0]]
    assert list(json.loads(CAPTURED_VERDICT)) == list(verdicts[0]["choices"][0])
    assert [("", "", "", 0, None)] * 6 == [tuple(v[name] for name in ("id", "object", "model", "created", "usage")) for v in verdicts]
    offsets = [verdict["choices"][0]["content_filter_offsets"] for verdict in verdicts]
    assert [(0, 3), (3, 8), (8, 9), (9, 15), (15, 21), (21, 21)] == [(o["start_offset"], o["end_offset"]) for o in offsets]
    finish = next(index for index, event in enumerate(events) if event["choices"] and event["choices"][0]["finish_reason"])
    assert verdicts[-1] == events[finish + 1]
    said = "".join(event["choices"][0].get("delta", {}).get("content", "") for event in events if event["choices"])
    assert "You said: hello there" == said


def test_the_asynchronous_filter_ends_an_answer(http: httpx.Client, azure: Simulator) -> None:
    """The last choice has finish_reason content_filter and no delta."""
    azure.faults.next(reshape.async_filter(filtered=True))
    *_, last = chunks(http.post(DATED, json=STREAM))
    assert ("content_filter", False) == (last["choices"][0]["finish_reason"], "delta" in last["choices"][0])


@pytest.mark.parametrize("body", [HELLO, STREAM])
def test_no_filter(http: httpx.Client, azure: Simulator, body: Any) -> None:
    """No verdict is anywhere, and the first chunk is the one with the role."""
    azure.faults.next(Delay(0, 0), reshape.no_filter)
    response = http.post(DATED, json=body)
    assert (200, False) == (response.status_code, "filter" in response.text)
    assert "assistant" in response.text.split("\n\n")[0]


# -- the command ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_the_command(number: int) -> None:
    """It prints its address in one line, answers with its switches, logs one line a request, never the key, and ends at a signal."""
    arguments = ["--key", "secret-key", "--deployment", "mine=gpt-4.1", "--deployment", "gpt-4o", "--log", "--fail", "429", "--times", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "azure_simulator", *arguments],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        trust = ssl.create_default_context(cafile=told["ca"])
        answers = [
            httpx.post(told[scheme] + dated("mine"), headers={"api-key": told["key"]}, json=HELLO, verify=trust, trust_env=False)
            for scheme in ("http_url", "https_url")
        ]
        assert [429, 200] == [answer.status_code for answer in answers]
        assert "gpt-4.1-2025-04-14" == answers[1].json()["model"]
        process.send_signal(number)
        rest, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (0, "") == (process.returncode, rest)
    assert [f"POST {dated('mine')} {code} answered" for code in (429, 200)] == log.splitlines()


@pytest.mark.slow
def test_every_switch_of_the_command() -> None:
    """Together they still make an answer, with the marks of each."""
    switches = ["--async-filter", "--no-done", "--crlf", "--no-content-type", "--compress", "gzip", "--delay", "0", "--chunk-delay", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "azure_simulator", *switches, "--error-event", "5"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        answer = httpx.post(told["http_url"] + DATED, headers={"api-key": told["key"]}, json=STREAM, verify=NO_TLS, trust_env=False)
        process.terminate()
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert ("gzip", None) == (answer.headers["content-encoding"], answer.headers.get("content-type"))
    assert "error" in json.loads(answer.text.split("\r\n\r\n")[5].removeprefix("data: "))
    assert "content_filter_offsets" in answer.text


def test_items_belong_to_a_resource() -> None:
    """A resource refuses the references and the encrypted contents of another one, and accepts its own and unknown ones."""
    made, other = MadeItems(), MadeItems()
    reasoning = {"type": "reasoning", "id": made.id("rs"), "encrypted_content": made.encrypted()}
    reference = {"type": "item_reference", "id": made.id("msg")}
    known: list[object] = [reasoning, reference, {"type": "item_reference", "id": "msg_1"}, {"encrypted_content": "gAAAAA"}, "x"]
    made.check({"input": known, "previous_response_id": made.id("resp")})
    made.check({"input": "hello"})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input": [reference]}, "Item with id '.*' not found"),
        ({"input": [reasoning | {"id": None}]}, "could not be verified"),
        ({"input": [reasoning | {"encrypted_content": None}]}, "Item with id '.*' not found"),
        ({"previous_response_id": made.id("resp")}, "Previous response with id '.*' not found"),
    ]
    for foreign, text in cases:
        with pytest.raises(AzureError, match=text):
            other.check(foreign)
