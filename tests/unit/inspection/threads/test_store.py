"""The threads of a list of flows, and their JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy.test import tflow

from azure_openai_proxy.config.prices import PriceFile, parse_models
from azure_openai_proxy.inspection.threads.calls import LONGEST_SAID
from azure_openai_proxy.inspection.threads.store import Threads
from support.conversations import START, Json, assistant, chat, failed, flow, stream, tool_call, usage, user

if TYPE_CHECKING:
    from pathlib import Path

    from mitmproxy import http

SYSTEM = {"role": "system", "content": "be good"}


def loaded(*flows: http.HTTPFlow) -> Threads:
    threads = Threads()
    list(threads.load(flows))
    return threads


def only(*flows: http.HTTPFlow) -> Json:
    found: Any = loaded(*flows).report()["threads"]
    assert 1 == len(found)
    thread: Json = found[0]
    return thread


def test_a_conversation_with_a_helper_and_a_retry() -> None:
    """Calls that continue each other are one thread, a helper is its child, and a repeated failed call is marked."""
    first = chat([SYSTEM, user("hi there")], assistant(None, tool_call("c1", "look", '{"text":"sub task"}')), at=0)
    result = {"role": "tool", "tool_call_id": "c1", "content": "result"}
    second = chat([SYSTEM, user("hi there"), assistant(None, tool_call("c1")), result], at=10)
    helper = chat([{"role": "system", "content": "you help"}, user("sub task")], at=5)
    refused, again = failed([SYSTEM, user("again")], at=20), chat([SYSTEM, user("again")], at=23)
    threads = Threads()
    assert [first.id, helper.id, first.id, refused.id, refused.id] == list(threads.load([first, second, helper, refused, again]))
    found = {thread["id"]: thread for thread in threads.report()["threads"]}
    assert [first.id, helper.id, refused.id] == list(found)
    assert [helper.id] == found[first.id]["children"]
    assert [False, True] == [call["retry"] for call in found[refused.id]["calls"]]
    assert (1, 10, 5) == tuple(found[refused.id][name] for name in ("errors", "input_tokens", "output_tokens"))


def test_the_documented_form() -> None:
    """A thread and a call have exactly the documented members."""
    assert {
        "id": "x",
        "title": "hi",
        "client": "",
        "model": "gpt-4o",
        "started": "2026-11-28T10:00:00.000Z",
        "duration_ms": 1000,
        "input_tokens": 10,
        "cached_input_tokens": 0,
        "output_tokens": 5,
        "cost_usd": 7.5e-05,
        "incomplete": False,
        "errors": 0,
        "parent": None,
        "children": [],
        "calls": [
            {
                "id": "x",
                "started": "2026-11-28T10:00:00.000Z",
                "model": "gpt-4o",
                "deployment": None,
                "backend": "proxy",
                "status": 200,
                "error": None,
                "attempts": 1,
                "repairs": [],
                "input_tokens": 10,
                "cached_input_tokens": 0,
                "output_tokens": 5,
                "cost_usd": 7.5e-05,
                "latency_ms": {"first_byte": 500, "total": 1000, "azure": {}},
                "new_messages": 1,
                "tool_calls": ["look"],
                "cache": {"expected_tokens": 0, "cached_tokens": 0, "broken_by": None},
                "retry": False,
                "handoff": False,
            }
        ],
    } == only(_named("x", chat([user("hi")], assistant(None, tool_call("c1")))))


def _named(id: str, made: http.HTTPFlow) -> http.HTTPFlow:
    made.id = id
    return made


def test_no_calls() -> None:
    """Flows that are no calls give no threads and nothing else."""
    threads = Threads()
    assert [] == list(threads.load([tflow.ttcpflow(), flow("/v1/models", {}, {})]))
    assert {"threads": []} == threads.report()
    assert threads.update(tflow.ttcpflow()) is None


def test_an_id_of_another_type() -> None:
    """A file may have a number as the id of a flow."""
    one = chat([user("one")])
    one.id = 5  # type: ignore[assignment]
    threads = loaded(one)
    assert ["5"] == threads.thread_ids
    assert one is threads.flow("5")


def test_single_calls() -> None:
    """Embeddings are listed apart, with their tokens."""
    body = {"data": [], **usage(3, written=0), "model": "text-embedding-3-small"}
    one = flow("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x"}, body)
    threads = loaded(one)
    assert [] == threads.report()["threads"]
    (found,) = threads.report()["single_calls"]
    assert ("embeddings", one.id, 3, 0) == (found["operation"], found["id"], found["input_tokens"], found["output_tokens"])
    assert ("embeddings", None) == (threads.call(one.id).operation, threads.thread_of(one.id))
    threads.remove(one.id)
    assert {"threads": []} == threads.report()


def test_unknown_tokens() -> None:
    """Unknown tokens make the sums unknown; a failed or a running call does not."""
    calls = [chat([user("one")]), chat([user("one"), assistant("fine"), user("two")], at=2, body=stream({"choices": []}))]
    known = only(calls[0], failed([user("one"), assistant("fine"), user("two")], at=2))
    assert (10, 5, False) == tuple(known[name] for name in ("input_tokens", "output_tokens", "incomplete"))
    half = only(chat([user("one")], body={"usage": {"prompt_tokens": 7}}))
    assert (7, 0, None, True) == tuple(half[name] for name in ("input_tokens", "cached_input_tokens", "output_tokens", "incomplete"))
    running = only(calls[0], chat([user("one"), assistant("fine"), user("two")], at=2, running=True))
    assert (10, None, False) == (running["input_tokens"], running["calls"][1]["status"], running["incomplete"])
    found = only(*calls)
    assert (None, None, None, None, True) == tuple(
        found[name] for name in ("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "incomplete")
    )


def test_costs_follow_the_prices(tmp_path: Path) -> None:
    """Without a price a cost is unknown, and new prices change the costs of known threads."""
    files: list[PriceFile | None] = [None]
    threads = Threads(lambda: files[0])
    one = chat([user("one")], model="own-model")
    threads.update(one)
    assert threads.thread(one.id)["cost_usd"] is None
    files[0] = PriceFile(tmp_path, parse_models({"own-model": {"input": 1, "output": 2}}))
    assert 2e-05 == threads.thread(one.id)["cost_usd"]


def test_a_thread_is_kept_up_to_date() -> None:
    """A running call becomes complete, with one revision for each change."""
    running = chat([user("one")], running=True)
    threads = loaded(running)
    before = threads.thread(running.id)
    assert before is threads.thread(running.id)
    done = _named(running.id, chat([user("one")]))
    threads.update(done)
    after = threads.thread(running.id)
    assert ([None], [200], 2) == (
        [call["status"] for call in before["calls"]],
        [call["status"] for call in after["calls"]],
        threads.revision,
    )
    next_one = chat([user("one"), assistant("fine"), user("two")], at=5)
    threads.update(next_one)
    assert 2 == len(threads.thread(running.id)["calls"])
    threads.remove(done.id)
    threads.remove(next_one.id)
    assert ({"threads": []}, 5) == (threads.report(), threads.revision)


def test_a_handoff_is_marked() -> None:
    """Another system prompt with other tools, or another model, is a handoff; a changed prompt alone is none."""
    more = [user("one"), assistant("fine"), user("two")]
    tools = {"tools": [{"type": "function", "function": {"name": "x"}}]}
    other = {"role": "system", "content": "be bad"}
    for messages, keywords, expected in (
        ([other, *more], {"extra": tools}, True),
        ([other, *more], {}, False),
        ([SYSTEM, *more], {"model": "o3"}, True),
    ):
        found = only(chat([SYSTEM, user("one")]), chat(messages, at=3, **keywords))
        assert [False, expected] == [call["handoff"] for call in found["calls"]]


def test_look_ups() -> None:
    """Threads are found by the start of their id or of a call's, flows and texts by the id of the call."""
    one, two = _named("abc-1", chat([user("one")])), _named("xyz-2", chat([user("one"), assistant("fine"), user("two")], at=3))
    other = _named("abd-3", chat([user("other")], at=9))
    threads = loaded(one, two, other)
    assert ["abc-1", "abc-1", "abc-1", None, None, None] == [threads.find(text) for text in ("abc-1", "abc", "xyz", "ab", "", "q")]
    assert (["abc-1", "abd-3"], "abc-1", two) == (threads.thread_ids, threads.thread_of("xyz-2"), threads.flow("xyz-2"))
    assert ["one\nfine", "fine\ntwo\nfine"] == [threads.search_text(id) for id in ("abc-1", "xyz-2")]
    previous, cached = threads.earlier("xyz-2")
    assert previous is cached is threads.call("abc-1")
    assert [2, 1] == [len(threads.thread(id)["calls"]) for id in threads.thread_ids]
    with pytest.raises(KeyError):
        threads.thread("q")


def test_the_searched_texts_have_a_limit() -> None:
    """Only the end of long new texts is kept."""
    threads = loaded(made := chat([user("old"), user("x" * LONGEST_SAID), user("word " * 100)]))
    assert (LONGEST_SAID, True) == (len(threads.search_text(made.id)), threads.search_text(made.id).startswith("x"))


def test_times_that_no_date_can_have() -> None:
    """An impossible time in a file counts as the first one."""
    made = chat([user("one")])
    made.request.timestamp_start = 1e30
    assert ("1970-01-01T00:00:00.000Z", 0) == (only(made)["started"], only(made)["duration_ms"])
    assert START


@pytest.mark.parametrize("time", [math.nan, math.inf, 1e308, -1.0])
def test_impossible_times_are_unknown(time: float) -> None:
    """A time of a file that no clock shows is unknown, and the report is made."""
    made = chat([user("one")], metadata={"first_chunk": time})
    assert made.response
    made.request.timestamp_start = made.request.timestamp_end = made.response.timestamp_start = made.response.timestamp_end = time
    made.server_conn.timestamp_start, made.server_conn.timestamp_tcp_setup = 1e300, time
    assert ("1970-01-01T00:00:00.000Z", 0) == (only(made)["started"], only(made)["duration_ms"])
    assert {"first_byte": None, "total": None, "azure": {}} == only(made)["calls"][0]["latency_ms"]
