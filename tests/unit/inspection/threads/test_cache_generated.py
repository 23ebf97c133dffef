"""The causes of misses in generated conversations, whose cached tokens are those of the simulator's prompt cache."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from azure_openai_proxy.inspection.threads.store import Threads
from azure_simulator.prompt_cache import PromptCache, prompt
from support.conversations import START, Json, assistant, chat, user
from support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

WORDS = [f"word{n}" for n in range(400)]


class Conversation:
    """A conversation at a resource of its own, whose requests can be changed before they are sent."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.time = 0.0
        self.backend, self.deployment, self.model = "west", "prod", "gpt-4o"
        self.caches = {name: PromptCache(lambda: START + self.time) for name in ("west", "east")}
        self.extra: Json = {"tools": [{"type": "function", "function": {"name": name, "description": self.text(20)}} for name in "abc"]}
        self.messages: list[Json] = [{"role": "system", "content": self.text(size)}, user(self.text(size))]
        self.flows: list[http.HTTPFlow] = []

    def text(self, words: int) -> str:
        return " ".join(self.random.choices(WORDS, k=words))

    def call(self) -> None:
        """Send the conversation, and go on with the answer and another question."""
        body = {"messages": self.messages, **self.extra}
        tokens = prompt(body, self.deployment)
        cached = self.caches[self.backend].read(self.deployment, body, tokens)
        answer = assistant(self.text(self.random.randint(10, 100)))
        self.flows.append(
            chat(
                copy.deepcopy(self.messages),
                answer,
                at=self.time,
                model=self.model,
                read=len(tokens),
                cached=cached,
                extra=copy.deepcopy(self.extra),
                metadata={"backend": self.backend, "deployment": self.deployment},
            )
        )
        self.messages += [answer, user(self.text(self.random.randint(5, 200)))]
        self.time += 10

    def verdicts(self) -> list[Json]:
        threads = Threads()
        list(threads.load(self.flows))
        (thread,) = threads.report()["threads"]
        return [call["cache"] for call in thread["calls"]]


def tools(one: Conversation) -> None:
    one.extra["tools"] = [*one.extra["tools"][1:], one.extra["tools"][0]]


def description(one: Conversation) -> None:
    one.extra["tools"][0]["function"]["description"] += " now"


def date(one: Conversation) -> None:
    one.messages[0]["content"] = f"2026-11-28 10:{one.random.randint(10, 59)} {one.text(one.size)}"


def space(one: Conversation) -> None:
    one.messages[0]["content"] = one.messages[0]["content"].replace(" ", "  ", 1)


def model(one: Conversation) -> None:
    one.model, one.deployment = ("gpt-4o-mini", "small") if one.model == "gpt-4o" else ("gpt-4o", "prod")


def response_format(one: Conversation) -> None:
    one.extra["response_format"] = {"type": "json_schema", "json_schema": {"name": f"form{one.random.random()}"}}


def edit(one: Conversation) -> None:
    one.messages[1]["content"] = "edited " + one.messages[1]["content"]


def reformat(one: Conversation) -> None:
    one.messages[2]["content"] = f"```{one.random.random()}\n{one.messages[2]['content']}\n```"


def window(one: Conversation) -> None:
    if len(one.messages) > 4:
        del one.messages[1:3]


def backend(one: Conversation) -> None:
    one.backend = "east" if one.backend == "west" else "west"


def deployment(one: Conversation) -> None:
    one.deployment = f"{one.deployment}-2"


def expiry(one: Conversation) -> None:
    one.time += 24 * 3600 + 60


def key(one: Conversation) -> None:
    one.extra["prompt_cache_key"] = f"key{one.random.random()}"


BREAKS: list[tuple[Callable[[Conversation], None], Json]] = [
    (tools, {"block": "tools", "index": None}),
    (description, {"block": "tools", "index": None}),
    (date, {"block": "system", "index": None}),
    (space, {"block": "system", "index": None}),
    (model, {"block": "model", "index": None}),
    (response_format, {"block": "response_format", "index": None}),
    (edit, {"block": "message", "index": 1}),
    (reformat, {"block": "message", "index": 2}),
    (window, {"block": "message", "index": 1}),
    (backend, {"block": "backend", "index": None}),
    (deployment, {"block": "backend", "index": None}),
    (expiry, {"block": "expired", "index": None}),
    (key, {"block": "prompt_cache_key", "index": None}),
]


@pytest.mark.parametrize(("change", "expected"), BREAKS, ids=[change.__name__ for change, _ in BREAKS])
def test_each_break_is_named(change: Callable[[Conversation], None], expected: Json) -> None:
    """After a change the cache is missed, its cause is named, and the next call finds its prompt again."""
    one = Conversation(1, 1200)
    for _ in range(3):
        one.call()
    change(one)
    one.call()
    one.call()
    found = one.verdicts()
    assert [None, None, None, expected, None] == [verdict["broken_by"] for verdict in found]
    assert found[3]["cached_tokens"] < found[3]["expected_tokens"]


def test_the_time_of_the_cache_options() -> None:
    """A prompt that is kept for half an hour is missed after an hour."""
    one = Conversation(2, 1200)
    one.extra["prompt_cache_options"] = {"ttl": "30m"}
    one.call()
    one.call()
    one.time += 3600
    one.call()
    assert [None, None, {"block": "expired", "index": None}] == [verdict["broken_by"] for verdict in one.verdicts()]


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.sampled_from([200, 450, 600]), st.lists(st.none() | st.sampled_from(BREAKS), max_size=4))
def test_no_cause_is_named_falsely(seed: int, size: int, steps: list[Any]) -> None:
    """In any conversation a cause is named only if fewer tokens are cached than expected, and then it is the change that was made."""
    one = Conversation(seed, size)
    one.call()
    changes: list[Json | None] = [None]
    for step in steps:
        if step:
            step[0](one)
        one.call()
        changes.append(step[1] if step else None)
    for verdict, change in zip(one.verdicts(), changes, strict=True):
        missed = verdict["cached_tokens"] < verdict["expected_tokens"]
        if not verdict["broken_by"]:
            assert not missed or change is not None, "a prompt that became shorter"
        else:
            assert missed
            assert verdict["broken_by"] in (change, {"block": "short", "index": None})
