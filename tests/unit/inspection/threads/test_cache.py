"""Why a prompt cache was not used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.inspection.threads import cache
from azure_openai_proxy.inspection.threads.store import Threads
from support.conversations import Json, assistant, chat, failed, responses, user

if TYPE_CHECKING:
    from mitmproxy import http

SYSTEM = {"role": "system", "content": "be good"}
FIRST = [SYSTEM, user("one")]
NEXT = [*FIRST, assistant("fine"), user("two")]
TOOLS = [{"type": "function", "function": {"name": name}} for name in "ab"]
HERE = {"backend": "west", "deployment": "prod"}


def verdict(*flows: http.HTTPFlow) -> Json:
    """The verdict on the last flow, which is in the thread of the first one."""
    threads = Threads()
    list(threads.load(flows))
    known: Json = threads.thread(flows[0].id)["calls"][-1]["cache"]
    return known


def second(messages: object = NEXT, *, at: float = 5, cached: int = 0, read: int = 2100, **more: Any) -> http.HTTPFlow:
    return chat(messages, at=at, read=read, cached=cached, **more)


def first(messages: object = FIRST, read: int | None = 2000, **more: Any) -> http.HTTPFlow:
    return chat(messages, read=read, **more)


def cause(block: str, index: int | None = None) -> Json:
    return {"block": block, "index": index}


BREAKS: list[tuple[Json, Json, Json]] = [
    ({}, {"model": "gpt-4o-mini"}, cause("model")),
    ({"extra": {"tools": TOOLS}}, {"extra": {"tools": TOOLS[::-1]}}, cause("tools")),
    ({"extra": {"tools": TOOLS}}, {"extra": {"tools": [*TOOLS, TOOLS[0]]}}, cause("tools")),
    ({}, {"extra": {"response_format": {"type": "json_object"}}}, cause("response_format")),
    ({}, {"messages": [{"role": "system", "content": "be good at 10:01"}, *NEXT[1:]]}, cause("system")),
    ({}, {"messages": [SYSTEM, SYSTEM, *NEXT[1:]]}, cause("system")),
    ({}, {"messages": [SYSTEM, user("one "), *NEXT[2:]]}, cause("message", 1)),
    ({"messages": NEXT}, {"messages": [*NEXT[:2], assistant("fine."), *NEXT[3:], assistant("fine"), user("3")]}, cause("message", 2)),
    ({"metadata": HERE}, {"metadata": {**HERE, "backend": "east"}}, cause("backend")),
    ({"metadata": HERE}, {"metadata": {**HERE, "deployment": "spare"}}, cause("backend")),
    ({}, {"at": 24 * 3600 + 2}, cause("expired")),
    ({"extra": {"prompt_cache_options": {"ttl": "30m"}}}, {"at": 1803}, cause("expired")),
    ({"extra": {"prompt_cache_key": "a"}}, {"extra": {"prompt_cache_key": "b"}}, cause("prompt_cache_key")),
    ({}, {"read": 1000}, cause("short")),
    ({}, {}, cause("unexplained")),
]


@pytest.mark.parametrize(("before", "after", "expected"), BREAKS, ids=[f"{n} {case[2]['block']}" for n, case in enumerate(BREAKS)])
def test_each_cause_is_named(before: Json, after: Json, expected: Json) -> None:
    """The first block of the prompt that differs is the cause, else a cause outside the prompt."""
    assert {"expected_tokens": 1920, "cached_tokens": 0, "broken_by": expected} == verdict(first(**before), second(**after))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (1023, {}, 0),
        (1024, {"cached": 1024}, 1024),
        (2000, {"cached": 1920}, 1920),
        (2000, {"cached": 2048}, 1920),
        (None, {}, 0),
        (2000, {"read": None}, 0),
        (2000, {"messages": NEXT[:1] + NEXT[1:2], "read": 1500, "cached": 1408, "headers": {"x-stainless-retry-count": "1"}}, 1920),
        (2000, {"status": 429, "body": {"error": {"code": "429"}}}, 0),
    ],
)
def test_no_break(before: int | None, after: Json, expected: int) -> None:
    """Nothing is broken below 1,024 tokens, with as many cached tokens as possible, or if the tokens are unknown."""
    found = verdict(first(read=before), second(**after))
    assert (expected, None) == (found["expected_tokens"], found["broken_by"])


def test_the_first_call_of_a_thread_expects_nothing() -> None:
    """A first call has no break, and its cached tokens are shown."""
    assert {"expected_tokens": 0, "cached_tokens": 128, "broken_by": None} == verdict(first(cached=128))


def test_only_calls_that_azure_has_read_count() -> None:
    """A failed call before, and one that still ran, do not count."""
    slow = first(took=60)
    found = verdict(first(), failed(NEXT, at=2), second(at=5))
    assert (1920, cause("unexplained")) == (found["expected_tokens"], found["broken_by"])
    assert 1920 == verdict(slow, second(at=5))["expected_tokens"], "the call continues it"
    other = second([*FIRST, assistant("another"), user("two")], at=6, took=60)
    last = second([*NEXT, assistant("fine"), user("three")], at=20, read=2200)
    assert 2048 == verdict(first(), second(at=5), other, last)["expected_tokens"]


def test_responses_leave_their_history_at_azure() -> None:
    """With `previous_response_id` the instructions are compared, and not the messages."""
    one = responses([user("one")], [], id="resp_a", read=2000, extra={"instructions": "be good"})
    more: dict[str, Any] = {"extra": {"previous_response_id": "resp_a", "instructions": "be good"}, "at": 5, "read": 2100}
    assert cause("unexplained") == verdict(one, responses([user("two")], [], **more))["broken_by"]
    more["extra"] = {"previous_response_id": "resp_a", "instructions": "be bad"}
    assert cause("system") == verdict(one, responses([user("two")], [], **more))["broken_by"]
    text = {"text": {"format": {"type": "json_object"}}, "previous_response_id": "resp_a", "instructions": "be good"}
    assert cause("response_format") == verdict(one, responses("two", [], at=5, read=2100, extra=text))["broken_by"]


@pytest.mark.parametrize(
    ("ttl", "at", "block"), [("1h", 3603, "expired"), (60, 63, "expired"), ("soon", 3603, "unexplained"), (1.5, 9, "unexplained")]
)
def test_times_of_the_cache_options(ttl: object, at: float, block: str) -> None:
    """A time to live is a number with a unit, or of seconds; anything else is ignored."""
    assert cause(block) == verdict(first(extra={"prompt_cache_options": {"ttl": ttl}}), second(at=at))["broken_by"]


def test_new_messages() -> None:
    """The items that the request before did not have count, with its answer; all of them in a chain of responses."""
    threads = Threads()
    list(threads.load([one := first(), second(), second([*NEXT[:1], user("edited"), *NEXT[2:], assistant("fine"), user("three")], at=9)]))
    assert [2, 2, 3] == [call["new_messages"] for call in threads.thread(one.id)["calls"]]
    list(
        threads.load(
            [head := responses("one", [], id="resp_n", at=20), responses("two", [], at=22, extra={"previous_response_id": "resp_n"})]
        )
    )
    assert [1, 1] == [call["new_messages"] for call in threads.thread(head.id)["calls"]]
    assert 0 == cache.new_items([], threads.call(threads.update(chat([], at=50)) or ""))
