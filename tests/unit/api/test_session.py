"""The session of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from azure_openai_proxy.api import session
from azure_openai_proxy.api.large_bodies import LargeBody
from azure_openai_proxy.formats import json_scan


@pytest.mark.parametrize(
    "headers, found",
    [
        ({"x-session-affinity": "a", "session_id": "b"}, "a"),
        ({"x-claude-code-session-id": "a", "session_id": "b"}, "a"),
        ({"session-id": "a", "x-session-id": "b"}, "a"),
        ({"x-session-affinity": "", "x-session-id": "b"}, "b"),
        ({"x-session-affinity": "a" * 256, "x-session-id": "b"}, "b"),
        ({"x-session-affinity": "a\udc80", "x-session-id": "b"}, "b"),
        ({"x-other": "a"}, None),
    ],
)
def test_in_header(headers: dict[str, str], found: str | None) -> None:
    """The first header with a valid value counts."""
    assert found == session.in_header(headers)


@pytest.mark.parametrize(
    "header, key, previous, found",
    [
        ("h", "k", None, "h"),
        (None, "k", "r", "k"),
        (None, "k\n", "r", "first of r"),
        (None, None, "r\n", None),
        (None, None, None, None),
    ],
)
def test_of_record(header: str | None, key: str | None, previous: str | None, found: str | None) -> None:
    """A header, the key of the prompt cache, and the chain of responses count in this order."""
    assert found == session.of_record(header, key, previous, lambda response_id, _: f"first of {response_id}")


def body(**members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], **members}


def of_routing(members: dict[str, Any], *, large: bool = False, **headers: str) -> bytes | None:
    fields = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    if not large:
        return session.of_routing(fields, members)
    content = json.dumps(members).encode()
    return session.of_routing(fields, {}, LargeBody(content, json_scan.outline(content, every=True)))


@pytest.mark.parametrize("large", [False, True])
def test_the_order_of_identities(large: bool) -> None:
    """The first of two identities counts: our header, the cache's key, the response or conversation before, an agent's header, the text."""
    every = body(prompt_cache_key="p", previous_response_id="r", conversation={"id": "c"})
    headers = {"X_Session_Affinity": "a", "x_claude_code_session_id": "x", "session_id": "i"}
    found = [of_routing(every, large=large, **headers)]
    del headers["X_Session_Affinity"]
    for name in ("prompt_cache_key", "previous_response_id", "conversation"):
        found.append(of_routing(every, large=large, **headers))
        del every[name]
    found.append(of_routing(every | {"conversation": "c"}, large=large, **headers))
    for _ in range(3):
        found.append(of_routing(every, large=large, **headers))
        headers.popitem() if headers else None
    expected = [
        b"x-session-affinity\0a",
        b"prompt\0p",
        b"response\0r",
        b"conversation\0c",
        b"conversation\0c",
        b"x-claude-code-session-id\0x",
        b"x-claude-code-session-id\0x",
    ]
    assert expected == found[:7]
    assert found[7]
    assert found[7].startswith(b"beginning\0")


def test_codex_header_with_an_underscore() -> None:
    """The header of Codex is `session_id`."""
    assert b"session_id\0i" == session.of_routing(((b"Session_Id", b"i"), (b"accept-with", b"x")), body())


@pytest.mark.parametrize("invalid", ["", "a" * 256, "a\n", 5, None, {"id": 3}])
def test_an_invalid_id_is_none(invalid: Any) -> None:
    """An id that is too long, not printable or no string is ignored."""
    names = ("prompt_cache_key", "previous_response_id", "conversation")
    assert of_routing(body()) == of_routing(body(**dict.fromkeys(names, invalid)))


RESPONSES = {"instructions": "s", "input": [{"role": "user", "content": [{"type": "input_text", "text": "u"}]}]}
TOOL = {"type": "function", "name": "f"}


@pytest.mark.parametrize("large", [False, True])
def test_the_beginning_of_a_conversation(large: bool) -> None:
    """A conversation keeps its identity as it grows. Other tools, another system prompt or first message make another session."""
    later = [{"role": "assistant", "content": "a"}, "no item", {"role": "user", "content": "v"}]
    for start, items in ((body(tools=[TOOL]), "messages"), (RESPONSES | {"tools": [TOOL]}, "input")):
        first = of_routing(start, large=large)
        assert first
        assert first == of_routing(start | {items: [*start[items], *later]}, large=large)
        others = (
            start | {"tools": [TOOL, TOOL]},
            start | {"tools": None},
            start | {items: [{"role": "developer", "content": "t"}, {"role": "user", "content": "u"}], "instructions": None},
            start | {items: [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]},
        )
        assert len({first, *(of_routing(other, large=large) for other in others)}) == 5
    assert of_routing({"input": "hello"}, large=large) != of_routing({"input": "hello you"}, large=large)
    assert of_routing({"model": "m"}, large=large) is None


def test_a_beginning_without_a_user() -> None:
    """Without a message of the user nothing identifies the session."""
    assert of_routing({"messages": [{"role": "system", "content": "s"}, 5, {"role": "user"}]}) is None
    assert of_routing({"messages": "text" * 3}) is not None
    assert of_routing({"messages": {"role": "user"}}) is None


def deep(levels: int) -> Any:
    value: Any = "u"
    for _ in range(levels):
        value = [value]
    return value


def test_a_small_and_a_large_body() -> None:
    """A session keeps its identity when its body becomes large."""
    for start in (body(tools=[TOOL]), RESPONSES, body(), {"input": [], **body()}):
        assert of_routing(start) == of_routing(start, large=True)


def test_large_beginnings() -> None:
    """A beginning that is too large to be parsed is identified by its first bytes."""
    image = body(messages=[{"role": "user", "content": "u" * session.WINDOW}])
    first = of_routing(image, large=True)
    assert first
    assert first == of_routing(image | {"messages": [*image["messages"], {"role": "user", "content": "v"}]}, large=True)
    assert first != of_routing(image | {"messages": [{"role": "user", "content": "x" * session.WINDOW}]}, large=True)
    tools = [TOOL | {"description": "d" * session.TOOLS}]
    found = {of_routing(body(tools=tools), large=True), of_routing(body(tools=[*tools, TOOL]), large=True)}
    assert len(found) == 2
    assert None not in found


def test_hostile_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginning that nests too deep, or has too many messages of no user, is no identity or is compared by its bytes."""
    nested = body(messages=[{"role": "user", "content": deep(2100)}])
    assert session.of_routing((), nested) is None
    many = body(messages=[{"role": "tool"}] * 40 + [{"role": "user", "content": "u"}])
    assert of_routing(many) is None
    assert of_routing(many, large=True)
    monkeypatch.setattr(json, "loads", raising)
    monkeypatch.setattr(session, "_DECODER", Raising())
    assert of_routing(body(tools=[TOOL]), large=True) is None
    assert of_routing(body(), large=True)


def raising(text: bytes) -> None:
    if text.startswith(b"["):
        raise RecursionError


class Raising:
    raw_decode = staticmethod(lambda _: raising(b"["))
