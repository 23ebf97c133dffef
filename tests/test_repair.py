"""The table, row by row; what each does end to end is tests/e2e/test_repair.py's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mitmproxy import http

from azure_openai_proxy import calls, repair
from azure_openai_proxy.backends import Backend, Base
from azure_openai_proxy.repair import Case, Change, Drop, Learned, Moved, Rename, Renamed, Role, Unstreamed, Version
from azure_openai_proxy.to_azure import Asked, Query

BACKEND = Backend(name="a", base=Base("https", "a", 443), apiversion="2024-10-21")
ROLE_LIST = "['system', 'user']"


def case(path: str = "/v1/chat/completions", *, dated: bool = False, deployment: str = "gpt-4o", mapped: bool = False) -> Case:
    call = calls.recognise("POST", path, {"content-type": "application/json"}, b'{"model":"gpt-4o"}')
    assert call
    return Case(call, {}, dated, deployment, mapped)


def asked(body: Any, version: str = "") -> Asked:
    return Asked(http.Headers(), Query("", version), body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    "message, given, changes",
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            case(),
            [Rename("max_tokens", "max_completion_tokens")],
        ),
        ("Unsupported parameter: 'user' is not supported with this model. Use 'safety_identifier' instead.", case(), [Drop("user")]),
        ("Unsupported parameter: 'tools' is not supported with this model. Use 'functions' instead.", case(), []),
        ("Unsupported parameter: 'temperature' is not supported with this model.", case(), [Drop("temperature")]),
        ("Unsupported parameter: 'tools' is not supported with this model.", case(), []),
        ("Unsupported value: 'messages[0].role' does not support 'developer' with this model.", case(), [Role("developer", "system")]),
        ("Unsupported value: 'input[3].role' does not support 'system' with this model.", case(), [Role("system", "developer")]),
        ("Unsupported value: 'messages[0].role' does not support 'tool' with this model.", case(), []),
        (
            "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported.",
            case(),
            [Drop("temperature")],
        ),
        ("Unsupported value: 'reasoning_effort' does not support 'minimal' with this model.", case(), []),
        (f"'developer' is not one of {ROLE_LIST} - 'messages.0.role'", case(), [Role("developer", "system")]),
        ("Unrecognized request argument supplied: verbosity", case(dated=True), [Moved("verbosity")]),
        ("Unrecognized request argument supplied: verbosity", case("/openai/v1/chat/completions"), []),
        ("Unrecognized request arguments supplied: user, store", case(), [Drop("user"), Drop("store")]),
        ("Unrecognized request arguments supplied: user, tools", case(), []),
        (
            "Unrecognized request argument supplied: max_completion_tokens",
            case(dated=True),
            [Rename("max_completion_tokens", "max_tokens")],
        ),
        ("Unknown parameter: 'service_tier'.", case(), [Drop("service_tier")]),
        ("The 'stream_options' parameter is only allowed when 'stream' is enabled.", case(), [Unstreamed()]),
        ("API version not supported", case(), [Version("v1")]),
        ("API version not supported", case(dated=True), [Version("2024-10-21")]),
        ("The API deployment for this resource does not exist. If", case(deployment="gpt-4o-2024-08-06"), [Renamed("gpt-4o")]),
        ("The API deployment for this resource does not exist. If", case(deployment="gpt-4o"), []),
        ("The API deployment for this resource does not exist. If", case(deployment="gpt-4o-2024-08-06", mapped=True), []),
        ("Something else.", case(), []),
    ],
)
def test_a_sentence_and_its_answer(message: str, given: Case, changes: list[Change]) -> None:
    """Every row, and what it leaves alone."""
    assert changes == repair.find(400, json.dumps({"error": {"message": message}}).encode(), given)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"error":"x"}', b'{"error":{"message":7}}', b"\xff"])
def test_what_says_nothing(content: bytes) -> None:
    """An answer without a sentence, and one that is no refusal of the request's form."""
    assert [] == repair.find(400, content, case())
    assert [] == repair.find(500, b'{"error":{"message":"API version not supported"}}', case())


@pytest.mark.parametrize(
    "change, body, after",
    [
        (Drop("user"), {"user": None, "a": 1}, {"a": 1}),
        (Drop("user"), {"a": 1}, None),
        (Unstreamed(), {"stream_options": {}}, {}),
        (Unstreamed(), {"stream_options": {}, "stream": True}, None),
        (Rename("max_tokens", "max_completion_tokens"), {"max_tokens": 1}, {"max_completion_tokens": 1}),
        (Rename("max_tokens", "max_completion_tokens"), {"max_tokens": 1, "max_completion_tokens": 2}, {"max_completion_tokens": 2}),
        (Rename("max_tokens", "max_completion_tokens"), {}, None),
        (Role("system", "developer"), {"messages": [{"role": "system"}, 7]}, {"messages": [{"role": "developer"}, 7]}),
        (Role("system", "developer"), {"input": [{"role": "user"}]}, None),
        (Role("system", "developer"), {"input": "hello"}, None),
    ],
)
def test_changes_of_a_body(change: Change, body: dict[str, Any], after: dict[str, Any] | None) -> None:
    """What has nothing to do with a request leaves its bytes alone and is not told of."""
    before = asked(body)
    route = repair.route(before, BACKEND, [change])
    assert (body if after is None else after) == json.loads(route.asked.content)
    assert ((change,) if after is not None else ()) == route.applied
    assert after is not None or route.asked is before


def test_changes_of_the_way() -> None:
    """v1 only for a request that has the field; a version in the place of the client's; a deployment in the place of the mapping's."""
    assert "v1" == repair.route(asked({"verbosity": "low"}), BACKEND, [Moved("verbosity")]).backend.apiversion
    assert BACKEND is repair.route(asked({}), BACKEND, [Moved("verbosity")]).backend
    route = repair.route(asked({}, "2020-01-01"), BACKEND, [Version("v1"), Renamed("gpt-4o")])
    assert ("v1", "", "gpt-4o") == (route.backend.apiversion, route.asked.query.api_version, route.deployment)


@pytest.mark.parametrize("content", [b"no", b"[]", b"\xff"])
def test_a_body_that_is_no_object(content: bytes) -> None:
    """It passes as it is."""
    assert content == repair.route(asked(content), BACKEND, [Drop("user")]).asked.content


def test_half_an_emoji_survives() -> None:
    """JSON can say what UTF-8 cannot."""
    route = repair.route(asked(b'{"user":1,"a":"\\ud83d"}'), BACKEND, [Drop("user")])
    assert b'{"a":"\\ud83d"}' == route.asked.content


@pytest.mark.parametrize(
    "change, text",
    [
        (Drop("user"), "user left out"),
        (Unstreamed(), "stream_options left out"),
        (Rename("a", "b"), "a -> b"),
        (Role("system", "developer"), "role system -> developer"),
        (Moved("verbosity"), "v1 for verbosity"),
        (Version("v1"), "api-version v1"),
        (Renamed("gpt-4o"), "deployment gpt-4o"),
    ],
)
def test_told_to_people(change: Change, text: str) -> None:
    """Each says what was done."""
    assert text == str(change)


def test_what_is_learned() -> None:
    """For one deployment of one backend, each change once; the one not used for longest is forgotten."""
    learned = Learned(most=2)
    learned.add("a", "d", [Drop("user")])
    learned.add("a", "d", [Drop("user"), Drop("store")])
    learned.add("a", "e", [Drop("seed")])
    assert ((Drop("user"), Drop("store")), ()) == (learned.get("a", "d"), learned.get("b", "d"))
    learned.add("a", "f", [Drop("seed")])
    assert [("a", "d"), ("a", "f")] == list(learned.all())
    learned.clear()
    assert {} == learned.all()
