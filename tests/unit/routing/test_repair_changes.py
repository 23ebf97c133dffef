"""The changes of requests: how each one is applied, written and exchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mitmproxy import http

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.request import ClientRequest, Query
from azure_openai_proxy.routing import repair
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
    packed,
    unpacked,
)

BACKEND = Backend(name="a", base=Base("https", "a", 443), apiversion="2024-10-21")


def asked(body: Any) -> ClientRequest:
    return ClientRequest(http.Headers(), Query(""), body if isinstance(body, bytes) else json.dumps(body).encode())


def test_client_specific_repairs_are_not_learned() -> None:
    """A repair is not learned if it depends on a single value or on a field that a client invented."""
    changes: list[Change] = [Drop("user"), Drop("user", value="x"), Moved("verbosity"), Moved("made_up"), Version("v1"), Rename("a", "b")]
    assert [Drop("user"), Moved("verbosity"), Version("v1"), Rename("a", "b")] == list(filter(lasts, changes))


@pytest.mark.parametrize(
    "change, body, after",
    [
        (Drop("user"), {"user": None, "a": 1}, {"a": 1}),
        (Drop("user"), {"a": 1}, None),
        (Drop("temperature", ""), {"temperature": 1}, {}),
        (Drop("temperature", ""), {"temperature": 1, "reasoning_effort": "none"}, None),
        (Drop("temperature", "high"), {"temperature": 1, "reasoning": {"effort": "high"}}, {"reasoning": {"effort": "high"}}),
        (Drop("temperature", "high"), {"temperature": 1, "reasoning_effort": ["high"]}, None),
        (Drop("user", value="x"), {"user": "x"}, {}),
        (Drop("user", value="x"), {"user": "y"}, None),
        (Drop("service_tier"), {"service_tier": "flex"}, None),
        (Drop("service_tier"), {"service_tier": "auto"}, {}),
        (Drop("store"), {"store": True}, None),
        (Drop("store"), {"store": 0}, None),
        (Drop("input[].metadata"), {"input": [{"metadata": 1, "a": 1}, {"metadata": 2}, "x"]}, {"input": [{"a": 1}, {}, "x"]}),
        (Drop("input[].metadata"), {"input": {"metadata": 1}}, None),
        (Drop("stream_options.include_usage"), {"stream_options": {"include_usage": True}}, {"stream_options": {}}),
        (Drop("messages[].refusal"), {"messages": [{"refusal": None}, {"refusal": "no"}]}, {"messages": [{}, {"refusal": "no"}]}),
        (DropUnless("metadata", "store"), {"metadata": {}}, {}),
        (DropUnless("metadata", "store"), {"metadata": {}, "store": True}, None),
        (Unencrypted(), {"include": ["reasoning.encrypted_content", "x"]}, {"include": ["x"]}),
        (Unencrypted(), {"include": "reasoning.encrypted_content"}, None),
        (Unencrypted(), {"include": ["x"], "input": "reasoning.encrypted_content"}, None),
        (DropUnless("stream_options", "stream"), {"stream_options": {}}, {}),
        (DropUnless("stream_options", "stream"), {"stream_options": {}, "stream": True}, None),
        (Rename("max_tokens", "max_completion_tokens"), {"max_tokens": 1}, {"max_completion_tokens": 1}),
        (Rename("max_tokens", "max_completion_tokens"), {"max_tokens": 1, "max_completion_tokens": 2}, {"max_completion_tokens": 2}),
        (Rename("max_tokens", "max_completion_tokens"), {}, None),
        (Rename("max_tokens", "max_completion_tokens"), {"stop": "max_tokens"}, None),
        (Role("system", "developer"), {"messages": [{"role": "system"}, 7]}, {"messages": [{"role": "developer"}, 7]}),
        (Role("system", "developer"), {"input": [{"role": "user"}]}, None),
        (Role("system", "developer"), {"input": "hello"}, None),
    ],
)
def test_changes_of_a_body(change: Change, body: dict[str, Any], after: dict[str, Any] | None) -> None:
    """A change that does not concern a request leaves its bytes alone and is not reported."""
    before = asked(body)
    route = repair.route(before, BACKEND, [change])
    assert (body if after is None else after) == json.loads(route.client_request.content)
    assert ((change,) if after is not None else ()) == route.applied
    assert after is not None or route.client_request is before


@pytest.mark.parametrize("content", [b"no user", b'["user"]', b"user\xff"])
def test_a_body_that_is_no_object(content: bytes) -> None:
    """A body that is not a JSON object is not changed."""
    assert content == repair.route(asked(content), BACKEND, [Drop("user")]).client_request.content


def test_half_an_emoji_survives() -> None:
    """A lone surrogate, which JSON can express and UTF-8 cannot, survives a change."""
    route = repair.route(asked(b'{"user":1,"a":"\\ud83d"}'), BACKEND, [Drop("user")])
    assert b'{"a":"\\ud83d"}' == route.client_request.content


@pytest.mark.parametrize(
    "change, text",
    [
        (Drop("user"), "user left out"),
        (DropUnless("stream_options", "stream"), "stream_options left out"),
        (DropUnless("metadata", "store"), "metadata left out"),
        (Unencrypted(), "reasoning.encrypted_content left out"),
        (Rename("a", "b"), "a -> b"),
        (Role("system", "developer"), "role system -> developer"),
        (Moved("verbosity"), "v1 for verbosity"),
        (Version("v1"), "api-version v1"),
        (Renamed("gpt-4o"), "deployment gpt-4o"),
    ],
)
def test_each_change_has_a_text(change: Change, text: str) -> None:
    """The text of each change describes it."""
    assert text == str(change)


@pytest.mark.parametrize(
    "change",
    [
        Drop("temperature"),
        Drop("top_p", effort="low"),
        DropUnless("metadata", "store"),
        Unencrypted(),
        Rename("max_tokens", "max_completion_tokens"),
        Role("system", "developer"),
        Moved("tools"),
        Version("2024-10-21"),
        Renamed("gpt-4o"),
    ],
)
def test_a_change_for_other_replicas(change: Change) -> None:
    """Each kind of change survives JSON."""
    assert change == unpacked(json.loads(json.dumps(packed(change))))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        ["Drop"],
        ["Nothing", "a"],
        ["Drop", 1],
        ["Drop", "a" * 201],
        ["Drop", "a", "*", "b"],
        ["Moved", "of_a_client"],
        ["Role", "a"],
    ],
)
def test_a_change_that_is_not_taken_over(value: object) -> None:
    """Anything else than a change that may be learned for all clients is nothing."""
    assert unpacked(value) is None
