"""The simulator's prompt cache and its scripted model, for sessions of agents."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from azure_simulator import PromptCache, Simulator, planned
from azure_simulator.prompt_cache import prompt

WORDS = " ".join(f"word{n}" for n in range(1300))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"properties": {"at": {"type": "string"}, "n": {"type": "integer"}}, "required": ["at", "n"]},
        },
    },
    {
        "type": "function",
        "function": {"name": "go", "parameters": {"properties": {"how": {"enum": ["fast"]}, "to": {"type": ["array", "null"]}}}},
    },
]


def body(*texts: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text} for text in texts], **more}


def read(cache: PromptCache, asked: dict[str, Any], deployment: str = "gpt-4o") -> int:
    return cache.read(deployment, asked, prompt(asked, deployment))


def test_the_prompt_cache() -> None:
    """The start that an earlier call had is cached from 1,024 tokens on in steps of 128, by deployment and key, until it expires."""
    now = [0.0]
    cache = PromptCache(lambda: now[0])
    assert [0, 1280] == [read(cache, body(WORDS)), read(cache, body(WORDS, "more"))]
    assert 1024 <= read(cache, body(WORDS.replace("word1100", "changed"))) < 1280
    assert [0, 0, 0] == [read(cache, body("short")), read(cache, body(WORDS), "other"), read(cache, body(WORDS, prompt_cache_key="k"))]
    assert [0, 0] == [read(cache, body(WORDS, tools=TOOLS)), read(cache, body(f"first {WORDS}"))]
    now[0] += 24 * 3600 + 1
    assert 0 == read(cache, body(WORDS))
    asked = body(f"again {WORDS}", prompt_cache_options={"ttl": "30m"})
    assert 0 == read(cache, asked)
    now[0] += 1801
    assert 0 == read(cache, asked)


@pytest.mark.parametrize("api", ["chat/completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_scripted_session(api: str, stream: bool) -> None:
    """The model calls the tools of the plan, with arguments of their schemas, and its usage says what was cached."""
    text = f"{{look:there go}} {WORDS}"
    tools = TOOLS if api == "chat/completions" else [{"type": "function", **tool["function"]} for tool in TOOLS]  # type: ignore[dict-item]
    given = {"messages": [{"role": "user", "content": text}]} if api == "chat/completions" else {"input": text}
    asked: dict[str, Any] = {"model": "gpt-4o", "tools": tools, "stream": stream, **given}
    if stream and api == "chat/completions":
        asked["stream_options"] = {"include_usage": True}
    with (
        Simulator() as azure,
        httpx.Client(base_url=f"{azure.http_url}/openai/v1", headers={"api-key": azure.key}, trust_env=False) as client,
    ):
        azure.script, azure.prompt_cache = planned, PromptCache()
        answers = [client.post(f"/{api}", json=asked, timeout=20).raise_for_status().text for _ in range(2)]
        azure.reset()
        assert [azure.script, azure.prompt_cache] == [None, None], "for the next test"
    assert all("look" in answer and "go" in answer for answer in answers)
    assert ['"cached_tokens":0' in answer for answer in answers] == [True, False]
    if not stream:
        found = json.loads(answers[0])
        calls = found["choices"][0]["message"]["tool_calls"] if "choices" in found else found["output"]
        arguments = [json.loads((call.get("function") or call)["arguments"]) for call in calls]
        assert [{"at": "there", "n": 1}, {"how": "fast"}] == arguments


def test_plans() -> None:
    """Without a plan there is no reply, after it and without the tools there are words."""
    assert planned(body("hello")) is None
    reply = planned(body("{look}"))
    assert reply
    assert ((), "After 0 turns with tools the work is done: {look}") == (reply.tools, reply.text)
    done = body("{look}", tools=TOOLS)
    done["messages"].append({"role": "assistant", "tool_calls": [{"id": "c"}]})
    assert (planned(done) or reply).text.startswith("After 1 turn with tools")
    items = [{"role": "user", "content": "{look} {go}"}, *({"type": "function_call", "call_id": name} for name in "ab"), "no item"]
    second = planned({"input": items, "tools": TOOLS})
    assert second
    assert ["go"] == [tool.name for tool in second.tools]
