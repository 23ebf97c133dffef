"""The rows of the repair table. tests/e2e/test_repair.py covers them end to end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy import http

from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.request import ClientRequest, Query
from azure_openai_proxy.routing import repair
from azure_openai_proxy.routing.repair import Case
from azure_openai_proxy.routing.repair_changes import (
    Change,
    Drop,
    DropUnless,
    Moved,
    Rename,
    Renamed,
    Role,
    Unencrypted,
    Version,
    lasts,
)

BACKEND = Backend(name="a", base=Base("https", "a", 443), apiversion="2024-10-21")
ROLE_LIST = "['system', 'user']"


def case(
    body: dict[str, Any] | None = None,
    path: str = "/v1/chat/completions",
    *,
    dated: bool = False,
    deployment: str = "gpt-4o",
    mapped: bool = False,
) -> Case:
    call = operations.recognise("POST", path, {"content-type": "application/json"}, b'{"model":"gpt-4o"}')
    assert call
    return Case(call, asked({} if body is None else body), dated, deployment, mapped)


def asked(body: Any, version: str = "") -> ClientRequest:
    return ClientRequest(http.Headers(), Query("", version), body if isinstance(body, bytes) else json.dumps(body).encode())


V1, RESPONSES = "/openai/v1/chat/completions", "/v1/responses"


def said(**roles: str) -> dict[str, Any]:
    """A body with one message, or one input item, of the given role."""
    return {name: [{"role": role}] for name, role in roles.items()}


@pytest.mark.parametrize(
    "message, given, changes",
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            case({"max_tokens": 1}),
            [Rename("max_tokens", "max_completion_tokens")],
        ),
        (
            "Unsupported parameter: 'user' is not supported with this model. Use 'safety_identifier' instead.",
            case({"user": "me"}),
            [Drop("user")],
        ),
        ("Unsupported parameter: 'tools' is not supported with this model. Use 'functions' instead.", case({"tools": []}), []),
        (
            "Unsupported parameter: 'max_tokens'. In the Responses API, this parameter has moved to 'max_output_tokens'. Try again.",
            case({"max_tokens": 1}, RESPONSES),
            [Rename("max_tokens", "max_output_tokens")],
        ),
        (
            "Unsupported parameter: 'messages'. In the Responses API, this parameter has moved to 'input'. Try again.",
            case({"messages": []}, RESPONSES),
            [],
        ),
        ("Unsupported parameter: 'temperature' is not supported with this model.", case({"temperature": 1}), [Drop("temperature", "")]),
        (
            "Unsupported parameter: 'temperature' is not supported with this model.",
            case({"temperature": 1, "reasoning": {"effort": "high"}}, RESPONSES),
            [Drop("temperature", "high")],
        ),
        ("Unsupported parameter: 'tools' is not supported with this model.", case({"tools": []}), []),
        (
            "Unsupported parameter: 'reasoning.summary' is not supported with this model.",
            case({"reasoning": {"summary": "auto"}}, RESPONSES),
            [Drop("reasoning.summary")],
        ),
        (
            "Unsupported parameter: 'reasoning.effort' is not supported with this model.",
            case({"reasoning": {"effort": "low"}}, RESPONSES),
            [],
        ),
        (
            "prompt_cache_retention is not supported on this model",
            case({"prompt_cache_retention": "24h"}),
            [Drop("prompt_cache_retention")],
        ),
        (
            "Unsupported value: 'messages[0].role' does not support 'developer' with this model.",
            case(said(messages="developer")),
            [Role("developer", "system")],
        ),
        (
            "Unsupported value: 'input[0].role' does not support 'system' with this model.",
            case(said(input="system")),
            [Role("system", "developer")],
        ),
        ("Unsupported value: 'messages[0].role' does not support 'tool' with this model.", case(said(messages="tool")), []),
        ("Unsupported value: 'messages[7].role' does not support 'system' with this model.", case(said(messages="system")), []),
        (
            "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported.",
            case({"temperature": 0.5}),
            [Drop("temperature", "")],
        ),
        (
            "Unsupported value: 'prompt_cache_retention' does not support 'in-memory' with this model. Supported values are: '24h'.",
            case({"prompt_cache_retention": "in-memory"}),
            [Drop("prompt_cache_retention", value="in-memory")],
        ),
        ("Unsupported value: 'metadata' does not support {} with this model.", case({"metadata": {}}), []),
        ("Unsupported value: 'reasoning_effort' does not support 'minimal' with this model.", case({"reasoning_effort": "minimal"}), []),
        (f"'developer' is not one of {ROLE_LIST} - 'messages.0.role'", case(said(messages="developer")), [Role("developer", "system")]),
        ("Unrecognized request argument supplied: verbosity", case({"verbosity": "low"}, dated=True), [Moved("verbosity")]),
        ("Unrecognized request argument supplied: verbosity", case({"verbosity": "low"}, V1), []),
        (
            "Unrecognized request arguments supplied: user, store",
            case({"user": "me", "store": False}),
            [Drop("user"), Drop("store")],
        ),
        ("Unrecognized request arguments supplied: user, tools", case({"user": "me", "tools": []}), []),
        ("Unrecognized request argument supplied: store", case({"store": False}, dated=True), [Moved("store")]),
        ("Unrecognized request argument supplied: store", case({"store": None}), [Drop("store")]),
        ("Unrecognized request argument supplied: store", case({"store": True}), []),
        (
            "Unrecognized request argument supplied: litellm_session_id",
            case({"litellm_session_id": ""}, dated=True),
            [Drop("litellm_session_id")],
        ),
        (
            "Unrecognized request argument supplied: max_completion_tokens",
            case({"max_completion_tokens": 1}, dated=True),
            [Rename("max_completion_tokens", "max_tokens")],
        ),
        ("Unknown parameter: 'store'.", case({"store": False}, RESPONSES), []),
        ("Unknown parameter: 'service_tier'.", case({"service_tier": "auto"}), [Drop("service_tier")]),
        ("Unknown parameter: 'service_tier'.", case({"service_tier": "flex"}), []),
        ("Unknown parameter: 'service_tier'.", case({"service_tier": "default"}), []),
        ("Unknown parameter: 'service_tier'.", case({"service_tier": "flex"}, dated=True), [Moved("service_tier")]),
        ("Unknown parameter: 'client_metadata'.", case({"client_metadata": {}}, RESPONSES, dated=True), [Drop("client_metadata")]),
        ("Unknown parameter: 'input[1].metadata'.", case({"input": [1, {"metadata": 1}]}, RESPONSES), [Drop("input[].metadata")]),
        ("Unknown parameter: 'input[1].metadata'.", case({"input": [{"metadata": 1}]}, RESPONSES), []),
        ("Unknown parameter: 'input[0].metadata'.", case({"input": {"metadata": 1}}, RESPONSES), []),
        ("Unknown parameter: 'input[0].metadata.x'.", case({"input": [{"metadata": 1}]}, RESPONSES), []),
        ("Unknown parameter: 'input[0].encrypted_content'.", case({"input": [{"encrypted_content": "x"}]}, RESPONSES), []),
        (
            "Unknown parameter: 'reasoningEffort'. Did you mean 'reasoning_effort'?",
            case({"reasoningEffort": "low"}),
            [Rename("reasoningEffort", "reasoning_effort")],
        ),
        ("Unknown parameter: 'usr'. Did you mean 'user'?", case({"usr": "me"}), []),
        (
            "Additional properties are not allowed ('parsed', 'refusal' were unexpected) - 'messages.0'",
            case({"messages": [{"parsed": {}, "refusal": None}]}),
            [Drop("messages[].parsed"), Drop("messages[].refusal")],
        ),
        (
            "Additional properties are not allowed ('refusal' was unexpected) - 'messages.0'",
            case({"messages": [{"refusal": "I cannot"}]}),
            [],
        ),
        ("Additional properties are not allowed ('user' was unexpected)", case({"user": "me"}), [Drop("user")]),
        (
            "Validation error at #/seed: Extra inputs are not permitted\nValidation error at #/store: Extra inputs are not permitted",
            case({"seed": 1, "store": False}),
            [Drop("seed"), Drop("store")],
        ),
        (
            "Encrypted content is not supported with this model.",
            case({"include": ["reasoning.encrypted_content"]}, RESPONSES),
            [Unencrypted()],
        ),
        ("The 'stream_options' parameter is only allowed when 'stream' is enabled.", case(), [DropUnless("stream_options", "stream")]),
        ("The 'metadata' parameter is only allowed when 'store' is enabled.", case(), [DropUnless("metadata", "store")]),
        ("The 'metadata' parameter is only allowed when 'store' is enabled.", case({}, RESPONSES), []),
        ("API version not supported", case(), [Version("v1")]),
        ("API version not supported", case(dated=True), [Version("2024-10-21")]),
        ("The API deployment for this resource does not exist. If", case(deployment="gpt-4o-2024-08-06"), [Renamed("gpt-4o")]),
        ("The API deployment for this resource does not exist. If", case(deployment="gpt-4o"), []),
        ("The API deployment for this resource does not exist. If", case(deployment="gpt-4o-2024-08-06", mapped=True), []),
        ("Something else.", case(), []),
    ],
)
def test_a_sentence_and_its_answer(message: str, given: Case, changes: list[Change]) -> None:
    """Each row yields its changes, and none where the request must not be changed."""
    assert changes == repair.find(400, json.dumps({"error": {"message": message}}).encode(), given)


EVERYTHING = {
    "store": False,
    "temperature": 1,
    "user": "me",
    "seed": 1,
    "messages": [{"role": "user"}],
    "stream_options": {"include_usage": True},
}


@pytest.mark.parametrize(
    "message, body",
    [
        ("'Unrecognized request argument supplied: store' is not one of ['auto', 'default'] - 'service_tier'", {}),
        ("Invalid value: Unrecognized request arguments supplied: service_tier, store, temperature", {}),
        ("Unrecognized request argument supplied: store, temperature", {"store, temperature": 1}),
        ("Unrecognized request arguments supplied: store, temperature, user", {"store, temperature": 1}),
        ("Unrecognized request arguments supplied: store", {}),
        ("The model `x` failed.\nUnknown parameter: 'store'.", {}),
        ("Unknown parameter: 'x'. Unknown parameter: 'store'.", {}),
        ("Unknown parameter: 'store'. foo'.", {"store'. foo": 1}),
        ("Unknown parameter: 'metadata'.", {}),
        ("Unknown parameter: 'stream_options.include_obfuscation'.", {"stream_options.include_obfuscation": 1}),
        ("Unsupported value: 'x' does not support 'Unsupported parameter: 'user' is not supported with this model.' with this model.", {}),
        ("'system' is not one of ['x'] - 'messages.0.role' is not one of ['system', 'user'] - 'messages.0.role'", {}),
        ("'system' is not one of ['user'] - 'messages.0.role'", {}),
        ("Unsupported value: 'messages[0].role' does not support 'system' with this model.", {}),
        ("Validation error at #/x: Extra inputs are not permitted\nValidation error at #/user: Extra inputs are not permitted", {}),
        ("Validation error at #/data_sources/0/a\nValidation error at #/user: Extra inputs are not permitted", {}),
        ("Additional properties are not allowed ('x', 'user' were unexpected)", {}),
        ("user is not supported on this model. user is not supported on this model", {}),
        ("Unknown parameter: 'store'." + " " * 5000 + "x", {}),
    ],
)
def test_a_clients_text_in_a_message_causes_no_change(message: str, body: dict[str, Any]) -> None:
    """A client's values, names and models that Azure repeats in a message cause no change."""
    for dated in (False, True):
        content = json.dumps({"error": {"message": message}}).encode()
        assert [] == repair.find(400, content, case(EVERYTHING | body, dated=dated))


# Messages in which Azure or a gateway quotes a client's text. Outside the quotation they name no parameter.
QUOTING = (
    "Invalid value: '{}'. Supported values are: 'auto', 'default', 'flex', and 'priority'.",
    "'{}' is not one of ['auto', 'default'] - 'service_tier'",
    "'{}' is not of type 'boolean' - 'stream'",
    "The model '{}' does not exist.",
    "The chat operation does not work with the specified model, {}. Please choose different model and try again.",
    "Invalid type for 'user': expected a string, but got {}.",
    "{} is not a valid JSON Schema.",
    "Unknown parameter: 'x.{}'.",
    "Unsupported value: 'x' does not support '{}' with this model.",
    "Unrecognized request argument supplied: x{}",
    "Validation error at #/x{}: Extra inputs are not permitted",
    "Additional properties are not allowed ('x{}' was unexpected)",
)
_PIECES = st.sampled_from(
    [
        "Unrecognized request arguments supplied: store, temperature",
        "Unknown parameter: 'store'.",
        "Unsupported parameter: 'temperature' is not supported with this model.",
        "Validation error at #/store: Extra inputs are not permitted",
        "Additional properties are not allowed ('store', 'user' were unexpected)",
        "store is not supported on this model",
        "store", "temperature", "user", "stream_options.include_usage", "messages[0].role", "'", '"', ",", ", ", ".", "'.", " ", "\n", "x",
        "#/", ": ", "Did you mean 'user'?", "is not one of ['x'] - 'messages.0.role'", "with this model.",
    ]
)  # fmt: skip


@given(st.sampled_from(QUOTING), st.lists(_PIECES, max_size=6).map("".join), st.booleans())
@example(QUOTING[4], "x. API version not supported", True)
@example("{} is not a valid JSON Schema.", "Unsupported parameter: 'temperature' is not supported with this model.", False)
def test_quoted_client_text_is_safe(quoting: str, text: str, dated: bool) -> None:
    """A quoted text changes only members that the request really has, and no learned repair depends on the text."""
    content = json.dumps({"error": {"message": quoting.format(text)}}).encode()
    assert [] == [change for change in repair.find(400, content, case(EVERYTHING, dated=dated)) if lasts(change)]


def test_the_parameter_that_azure_names_beside_the_sentence() -> None:
    """A message whose parameter differs from Azure's `param` causes no change, because it contains a client's text."""
    for param, changes in (("user", [Drop("user")]), ("service_tier", []), (None, [Drop("user")]), (7, [Drop("user")])):
        error = {"message": "Unsupported parameter: 'user' is not supported with this model.", "param": param}
        assert changes == repair.find(400, json.dumps({"error": error}).encode(), case({"user": "me"}))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"error":"x"}', b'{"error":{"message":7}}', b"\xff"])
def test_responses_without_a_message(content: bytes) -> None:
    """A response without a message or with another kind of error causes no change."""
    assert [] == repair.find(400, content, case())
    assert [] == repair.find(400, content + b" " * 70000, case())
    assert [] == repair.find(500, b'{"error":{"message":"API version not supported"}}', case())


def test_changes_of_the_way() -> None:
    """`Moved` applies only to requests with the field, `Version` replaces the client's, and `Renamed` the mapped deployment."""
    assert "v1" == repair.route(asked({"verbosity": "low"}), BACKEND, [Moved("verbosity")]).backend.apiversion
    assert BACKEND is repair.route(asked({}), BACKEND, [Moved("verbosity")]).backend
    route = repair.route(asked({}, "2020-01-01"), BACKEND, [Version("v1"), Renamed("gpt-4o")])
    assert ("v1", "", "gpt-4o") == (route.backend.apiversion, route.client_request.query.api_version, route.deployment)
