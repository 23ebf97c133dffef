"""One thread in full."""

from __future__ import annotations

import gc

import pytest

from azure_openai_proxy.inspection.threads import details
from azure_openai_proxy.inspection.threads.store import Threads
from support.conversations import assistant, chat, flow, responses, tool_call, user

SYSTEM = {"role": "system", "content": "be good"}
TOOLS = {
    "tools": [{"type": "function", "function": {"name": "look"}}, {"type": "web_search"}, 5],
    "functions": [{"name": "old"}],
    "seed": 1,
}


def test_a_conversation_is_shown_once() -> None:
    """Each call has its new blocks, answers are not repeated, and a result is beside its tool call."""
    first = chat([SYSTEM, user("one")], assistant("so", tool_call("c1")), extra=TOOLS)
    result = {"role": "tool", "tool_call_id": "c1", "content": "42"}
    second = chat([SYSTEM, user("one"), {**assistant("so", tool_call("c1")), "reasoning": "hm"}, result, user("two")], at=5)
    threads = Threads()
    list(threads.load([first, second]))
    one, two = details.thread(threads, first.id)["calls"]
    assert [("system", "be good"), ("user", "one")] == [(block["kind"], block["text"]) for block in one["new"]]
    assert ["assistant", "tool_call"] == [block["kind"] for block in one["answer"]]
    assert ("42", True) == (one["answer"][1]["result"]["text"], two["new"][0]["beside_call"])
    assert [("tool_result", 3), ("user", 4)] == [(block["kind"], block["message"]) for block in two["new"]]
    assert (["look", "web_search", "", "old"], {"seed": 1}, first.id) == (one["tools"], one["parameters"], one["thread"])
    assert {"unit": "tokens", "system": 1, "tools": 9, "history": 0, "new": 0} == one["context"]


def test_a_failed_call_has_the_message_of_its_error() -> None:
    """Besides the code; an error of another form has none."""
    threads = Threads()
    for error, message in (({"message": "too many", "code": "429"}, "too many"), ({"code": "429"}, ""), ("no", "")):
        one = chat([user("x")], status=429, body={"error": error})
        threads.update(one)
        assert message == details.call(threads, one.id)["error_message"]


def test_a_call_whose_flow_is_gone() -> None:
    """The numbers remain, without texts."""
    threads = Threads()
    made = chat([user("one")], read=None)
    id = threads.update(made) or ""
    del made
    gc.collect()
    found = details.call(threads, id)
    assert (False, [], {"unit": "characters", "system": 0, "tools": 0, "history": 0, "new": 3}) == (
        found["texts"],
        found["new"],
        found["context"],
    )
    with pytest.raises(KeyError):
        details.call(threads, "unknown")
    single = flow("/v1/embeddings", {"input": "x"}, {})
    threads.update(single)
    with pytest.raises(KeyError):
        details.call(threads, single.id)


def test_a_chain_of_responses() -> None:
    """New instructions are new, and the history is what Azure has."""
    one = responses("one", [assistant("fine")], id="resp_d", read=100, extra={"instructions": "be good"})
    two = responses("two", [], at=5, read=150, extra={"previous_response_id": "resp_d", "instructions": "be bad"})
    threads = Threads()
    list(threads.load([one, two]))
    found = details.thread(threads, one.id)["calls"]
    assert [["system", "user"], ["system", "user"]] == [[block["kind"] for block in call["new"]] for call in found]
    assert (105, 150) == (found[1]["context"]["history"], sum(found[1]["context"][name] for name in ("system", "tools", "history", "new")))
    alone = responses("two", [], at=50, read=150, extra={"previous_response_id": "resp_unknown"})
    threads.update(alone)
    assert 0 == details.call(threads, alone.id)["context"]["history"]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts, large images and very many blocks are shown in part."""
    monkeypatch.setattr(details, "MOST_BLOCKS", 2)
    monkeypatch.setattr(details, "LONGEST_MEDIA", 30)
    parts = [
        {"type": "text", "text": "x" * 50},
        {"image_url": "data:image/png;base64,AAAA"},
        {"image_url": "data:image/png;base64," + "A" * 99},
    ]
    threads = Threads()
    made = chat([{"role": "user", "content": parts}, user("b"), user("c")])
    threads.update(made)
    found = details.call(threads, made.id, longest=20)
    assert (["x" * 20, "b"], 30, 1) == ([block["text"] for block in found["new"]], found["new"][0]["more_characters"], found["more_blocks"])
    assert [True, False] == [bool(media["data"]) for media in found["new"][0]["media"]]


def test_times() -> None:
    """The parts of the time are those that are known."""
    threads = Threads()
    known = {
        "record": {
            "overhead": 0.002,
            "latency": {"pre_inference_ms": 7, "engine_ttft_ms": 8, "service_ttft_ms": 9, "total_duration_ms": 10},
        }
    }
    made = chat([user("x")], metadata=known)
    threads.update(made)
    found = details.call(threads, made.id)["latency"]
    assert {
        "proxy": 2.0,
        "connect": None,
        "streaming": 500.0,
        "azure_pre_inference": 7,
        "azure_engine_first_token": 8,
        "azure_service_first_token": 9,
        "azure_total": 10,
    } == found
    running = chat([user("y")], running=True)
    threads.update(running)
    assert details.call(threads, running.id)["latency"]["streaming"] is None


def test_a_conversation_that_was_stored_is_sent_again() -> None:
    """After calls that left their messages at Azure, as after a new connection: what they had is not new, and explains no miss."""
    asked, said = (
        user("one"),
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a long answer, so that it links"}]},
    )
    called = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "42"}
    first = responses([asked], [called], id="r1", read=2000)
    second = responses([result], [said], at=3, read=2100, cached=1920, extra={"previous_response_id": "r1"})
    third = responses([asked, called, result, said, user("two")], [], at=6, read=2200)
    threads = Threads()
    list(threads.load([first, second, third]))
    (found,) = (details.thread(threads, id) for id in threads.thread_ids)
    call = found["calls"][2]
    assert [("user", "two")] == [(block["kind"], block["text"]) for block in call["new"]]
    assert (3, "unexplained") == (call["new_messages"], call["cache"]["broken_by"]["block"])
    assert [first.id, second.id] == [one.id for one in threads.known_before(third.id)]
    assert [first.id] == [one.id for one in threads.known_before(second.id)]
