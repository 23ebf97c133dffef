"""What the page shows of threads and calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy.addons.view import View

from azure_openai_proxy.inspection.site import index as indexes
from azure_openai_proxy.inspection.site import queries as answers
from azure_openai_proxy.inspection.site.index import Index
from azure_openai_proxy.inspection.site.queries import Queries
from azure_openai_proxy.inspection.site.server import BadRequest, Query
from support.conversations import assistant, chat, failed, flow, tool_call, user

if TYPE_CHECKING:
    from mitmproxy import http

SYSTEM = {"role": "system", "content": "Be brief."}
RECORD = {"attempts": [{"backend": "west", "outcome": "429"}, {"backend": "east", "outcome": "ok"}, "?"], "client": "alice"}
EMBEDDING = ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "abc"}, {"data": [], "usage": {"prompt_tokens": 3}})


def queries(*flows: http.HTTPFlow) -> Queries:
    view = View()
    view.add(list(flows))
    return Queries(Index(view, lambda: None))


def session() -> list[http.HTTPFlow]:
    """Two calls, with a tool between them."""
    start = [SYSTEM, user("What is in a.py?")]
    called = assistant(None, tool_call("c1", "read", '{"path": "a.py"}'))
    result = {"role": "tool", "tool_call_id": "c1", "content": "def a(): ..."}
    first = chat(start, called, metadata={"record": RECORD, "operation": "POST /v1/chat/completions", "repaired": []})
    return [first, chat([*start, called, result], assistant("A function."), at=3, read=2000)]


async def test_a_list_comes_in_parts() -> None:
    """The newest first, with the number of all."""
    known = queries(*(chat([user(f"number {n}")], at=n) for n in range(5)), flow(*EMBEDDING, at=9))
    part = await known.threads(Query(offset="1", limit="2"))
    assert (5, ["number 3", "number 2"]) == (part["total"], [one["title"] for one in part["threads"]])
    assert {"call_count": 1, "child_count": 0, "depth": 0, "running": False}.items() <= part["threads"][0].items()
    singles = await known.threads(Query(kind="single"))
    assert (1, "embeddings") == (singles["total"], singles["threads"][0]["title"])


async def test_a_thread_shows_what_each_call_added() -> None:
    """New blocks, answers, attempts, the time axis with the tool that ran between two calls, and the previous call."""
    flows = session()
    shown = await queries(*flows).thread(Query(id=flows[0].id))
    first, second = shown["calls"]
    assert ["system", "user"] == [block["kind"] for block in first["new"]]
    assert ["tool_result"] == [block["kind"] for block in second["new"]]
    assert (None, flows[0].id) == (first["previous"], second["previous"])
    assert [{"backend": "west", "outcome": "429"}, {"backend": "east", "outcome": "ok"}] == first["attempt_list"]
    assert [{"name": "read", "start_ms": 1000, "duration_ms": 2000}] == shown["timeline"][0]["tools"]
    assert (None, [], 2) == (shown["parent"], shown["children"], shown["total"])
    assert [] == (await queries(*flows).thread(Query(id=flows[0].id, offset="2")))["calls"]


async def test_a_child_names_its_parent() -> None:
    """And the parent its children."""
    parent = chat([user("find it")], assistant(None, tool_call("c1", "agent", '{"task": "look for it"}')))
    child = chat([SYSTEM, user("look for it")], at=2)
    known = queries(parent, child)
    assert {"id": parent.id, "title": "find it"} == (await known.thread(Query(id=child.id)))["parent"]
    assert [child.id] == [one["id"] for one in (await known.thread(Query(id=parent.id)))["children"]]


async def test_a_running_call_has_no_duration() -> None:
    """One that is held by mitmproxy says so."""
    running = chat([user("one")], running=True)
    running.intercept()
    known = queries(running)
    shown = await known.thread(Query(id=running.id))
    assert (None, True, "request") == (shown["timeline"][0]["duration_ms"], shown["calls"][0]["running"], shown["calls"][0]["held"])


async def test_a_single_call() -> None:
    """It is shown like a thread of one call, without texts."""
    embedding = flow(*EMBEDDING)
    known = queries(embedding)
    shown = await known.thread(Query(id=embedding.id))
    assert ("embeddings", 1, []) == (shown["thread"]["title"], len(shown["calls"]), shown["calls"][0]["new"])
    assert [] == (await known.thread(Query(id=embedding.id, offset="1")))["calls"]
    assert 3 == (await known.call(Query(id=embedding.id)))["input_tokens"]


@pytest.mark.parametrize("path", ["thread", "call", "diff", "cache", "replay"])
async def test_what_was_removed_is_not_found(path: str) -> None:
    """The status is 404."""
    with pytest.raises(BadRequest) as caught:
        await getattr(queries(), path)(Query(id="nothing", a="nothing", b="nothing"))
    assert 404 == caught.value.status


async def test_the_texts_of_a_flow_that_is_gone() -> None:
    """A call whose flow mitmproxy has just removed is shown without them."""
    flows = session()
    known = queries(*flows)
    await known.index.ready()
    json = known.store.thread(flows[0].id)["calls"][0]
    known.index.view.clear()
    shown = await known.detail(json, 1, None)
    assert (False, False, []) == (shown["texts"], shown["is_replay"], shown["attempt_list"])


async def test_a_large_call_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result."""
    flows = session()
    expected = await queries(*flows).call(Query(id=flows[1].id))
    monkeypatch.setattr(indexes, "LARGE", 10)
    assert expected == await queries(*flows).call(Query(id=flows[1].id))
    assert 2 == expected["number"]


async def test_two_calls_differ() -> None:
    """In their request by block and in their answer; each side names its call."""
    flows = [chat([user("on 2026-11-28")], assistant("a b"), at=0), chat([user("on 2026-11-29")], assistant("a c"), at=5)]
    shown = await queries(*flows).diff(Query(a=flows[0].id, b=flows[1].id))
    assert (flows[0].id, flows[1].id) == (shown["a"]["thread"], shown["b"]["id"])
    changed = {one["block"]: one["pieces"] for one in shown["blocks"] if one["change"] == "changed"}
    assert {"change": "insert", "text": "2026-11-29", "volatile": True} in changed["message"]
    assert {"change": "delete", "text": "b", "volatile": False} in changed["answer"]


async def test_why_a_cache_broke() -> None:
    """The block that differs from the call whose prompt could have been cached; none if the cause is elsewhere."""
    before = [{"role": "system", "content": "On Monday."}, user("one")]
    after = [{"role": "system", "content": "On Tuesday."}, user("one"), assistant("fine"), user("two")]
    flows = [chat(before, read=2048), chat(after, read=2060, at=5)]
    shown = await queries(*flows).cache(Query(id=flows[1].id))
    assert flows[0].id == shown["earlier"]
    (block,) = shown["blocks"]
    assert "system" == block["block"]
    assert {"change": "delete", "text": "Monday", "volatile": False} in block["pieces"]
    same = [chat([user("one")], read=2048), chat([user("one"), assistant("fine"), user("two")], read=2060, cached=2048, at=5)]
    assert [] == (await queries(*same).cache(Query(id=same[1].id)))["blocks"]
    with pytest.raises(BadRequest, match="No call before"):
        await queries(*flows).cache(Query(id=flows[0].id))


async def test_calls_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest, and one that is wanted though it is older."""
    monkeypatch.setattr(answers, "MOST_CHOICES", 2)
    monkeypatch.setattr(answers, "MOST_SORTED", 10)
    flows = [chat([user(f"number {n}")], at=n) for n in range(30)]
    known = queries(*flows)
    assert [flows[29].id, flows[28].id] == [one["id"] for one in (await known.calls(Query()))["calls"]]
    chosen = (await known.calls(Query(include=flows[0].id)))["calls"]
    assert ("number 0", 3) == (chosen[-1]["title"], len(chosen))
    assert 2 == len((await known.calls(Query(include="nothing")))["calls"])
    assert 2 == len((await queries(*flows[:3]).calls(Query()))["calls"])


async def test_a_call_as_a_form() -> None:
    """Its messages, its thread and its answer."""
    flows = session()
    shown = await queries(*flows).replay(Query(id=flows[1].id))
    assert (flows[0].id, "A function.") == (shown["thread"], shown["call"]["answer"][0]["text"])
    assert "What is in a.py?" == shown["items"][1]["text"]


async def found(known: Queries, **query: str) -> list[str]:
    return [hit["id"] for hit in (await known.search(Query(query)))["hits"]]


async def test_everything_said_is_found() -> None:
    """Of user, assistant, tool and arguments, in the call that was the first to have it, without regard to case.

    The words are shown with those around them.
    """
    flows = session()
    known = queries(*flows)
    for words, place in (("WHAT IS IN", 0), ("a function.", 1), ("def a()", 1), ('"path": "a.py"', 0)):
        assert flows[place].id in await found(known, q=words)
    hit = (await known.search(Query(q="function")))["hits"][0]
    assert ["A ", "function", "."] == [hit["parts"][0][-2:], *hit["parts"][1:]]
    assert [] == await found(known, q="nowhere")


async def test_filters() -> None:
    """Each one alone."""
    cheap = chat([user("cheap")], read=10)
    dear = chat(
        [user("dear")], read=900_000, at=60, metadata={"record": {"client": "alice", "repairs": ["max_tokens"]}, "deployment": "prod"}
    )
    refused = failed([user("refused")], at=120, model="gpt-4.1")
    known = queries(cheap, dear, refused)
    expected: list[tuple[dict[str, Any], list[http.HTTPFlow]]] = [
        ({}, [refused, dear, cheap]),
        ({"model": "GPT-4.1"}, [refused]),
        ({"deployment": "pro"}, [dear]),
        ({"client": "ali"}, [dear]),
        ({"status": "429"}, [refused]),
        ({"status": "4xx"}, [refused]),
        ({"repaired": "yes"}, [dear]),
        ({"repaired": "no"}, [refused, cheap]),
        ({"cost_over": "0.5"}, [dear]),
        ({"tokens_over": "1000"}, [dear]),
        ({"since": "2026-11-28T10:00:30Z"}, [refused, dear]),
    ]
    assert [[one.id for one in flows] for _, flows in expected] == [await found(known, **query) for query, _ in expected]


@pytest.mark.parametrize("name", ["cost_over", "tokens_over", "since"])
async def test_a_filter_that_is_invalid(name: str) -> None:
    """The reason names it."""
    with pytest.raises(BadRequest, match=f"{name} must be"):
        await queries().search(Query({name: "x"}))


async def test_a_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that there are more, and lets other work go on."""
    monkeypatch.setattr(answers, "MOST_HITS", 2)
    monkeypatch.setattr(answers, "SLICE", 0)
    known = queries(*(chat([user(f"number {n}")], at=n) for n in range(3)))
    shown = await known.search(Query(q="number"))
    assert (2, True) == (len(shown["hits"]), shown["more"])


@pytest.mark.parametrize("words", ["links", "STRASSE", "straße", "ß", ""])
async def test_letters_that_are_longer_without_case(words: str) -> None:
    """The marked part is what was searched for, also behind a letter that `casefold` makes two of."""
    known = queries(chat([user("Straße ß links")]))
    (hit,) = (await known.search(Query(q=words)))["hits"]
    expected = {"": None, "links": "links", "ß": "ß"}.get(words, "Straße")
    assert expected == (hit["parts"] and hit["parts"][1])


async def test_replies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, media and parameters beyond the limits are left out, and further calls come with the next reply."""
    monkeypatch.setattr(answers, "LONGEST_CALL", 30)
    monkeypatch.setattr(answers, "LONGEST_THREAD", 50)
    monkeypatch.setattr(answers, "LONGEST_PARAMETERS", 20)
    images = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * size}"}} for size in (4, 5, 2)]
    start = [user("a" * 20), user("b" * 15), {"role": "user", "content": images}]
    first = chat(start, assistant("c" * 9), extra={"metadata": {"d": "e" * 30}})
    second = chat([*start, assistant("c" * 9), user("more")], at=5, extra={"seed": 1})
    known = queries(first, second)
    shown = await known.thread(Query(id=first.id))
    assert 2 == shown["total"]
    (one,) = shown["calls"]
    texts = [(len(block["text"]), block.get("more_characters")) for block in (*one["new"], *one["answer"])]
    assert [(20, None), (10, 5), (0, None), (0, 9)] == texts
    assert [26, 0, 0] == [len(media["data"]) for media in one["new"][2]["media"]]
    assert {} == one["parameters"]
    (two,) = (await known.thread(Query(id=first.id, offset="1")))["calls"]
    assert ("more", {"seed": 1}) == (two["new"][0]["text"], two["parameters"])
