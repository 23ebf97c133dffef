"""The threads of a view, read while a page is open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from mitmproxy.addons.view import View
from mitmproxy.test import tflow

from azure_openai_proxy.inspection.site import index as indexes
from azure_openai_proxy.inspection.site.index import Index
from support.conversations import assistant, chat, flow, user, websocket

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.flow import Flow

    from azure_openai_proxy.inspection.threads import calls


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are read at once."""
    monkeypatch.setattr(indexes, "DELAY", 0)


def index(*flows: Flow) -> Index:
    view = View()
    view.add(list(flows))
    return Index(view, lambda: None)


def conversation() -> list[http.HTTPFlow]:
    first = [user("one")]
    return [chat(first, assistant("uno")), chat([*first, assistant("uno"), user("two")], assistant("dos"), at=2)]


async def test_flows_are_read_once() -> None:
    """A second round reads nothing, and a change of a flow is read."""
    flows = conversation()
    known = index(*reversed(flows))
    await known.ready()
    assert [(flows[0].id, 0)] == known.rows()
    version = known.version
    await known.ready()
    assert version == known.version
    flows[1].comment = "changed"
    await known.ready()
    assert version + 1 == known.version
    assert known.rows() is known.rows()


async def test_the_newest_thread_is_first() -> None:
    """Each child is below its parent."""
    spawn = {"id": "c1", "type": "function", "function": {"name": "agent", "arguments": '{"task": "look for it"}'}}
    parent = chat([user("find it")], assistant(None, spawn))
    child = chat([{"role": "system", "content": "You look."}, user("look for it")], at=2)
    later = chat([user("something else")], at=9)
    known = index(parent, child, later)
    await known.ready()
    assert [(later.id, 0), (parent.id, 0), (child.id, 1)] == known.rows()


async def test_a_page_gets_news_until_it_is_closed() -> None:
    """A new flow, and one that is removed; afterwards changes are not followed."""
    flows = conversation()
    known = index(flows[0], tflow.ttcpflow())
    news = known.follow(lambda: {"version": known.version})
    seen = [await anext(news)]

    async def until(threads: int) -> None:
        while len(known.store.calls(flows[0].id) if known.rows() else []) != threads:
            seen.append(await anext(news))

    await until(1)
    known.view.add([flows[1]])
    await until(2)
    known.view.remove([flows[1]])
    await until(1)
    assert seen == sorted(seen, key=lambda one: one["version"] if one else 0)
    await known.ready()
    other = known.follow(dict)
    assert {} == await anext(other)
    await other.aclose()
    await news.aclose()
    known.view.add([flows[1]])
    await asyncio.sleep(0)
    assert 1 == len(known.store.calls(flows[0].id))
    await known.ready()
    assert 2 == len(known.store.calls(flows[0].id))
    known.view.clear()
    await known.ready()
    assert [] == known.rows()


async def test_a_page_without_news_gets_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """By which the server notices that the page is gone."""
    monkeypatch.setattr(indexes, "HEARTBEAT", 0.01)
    known = index()
    await known.ready()
    news = known.follow(lambda: {"same": True})
    assert {"same": True} == await anext(news)
    assert await anext(news) is None
    await news.aclose()


async def test_other_work_goes_on_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages see the flows that were read so far."""
    monkeypatch.setattr(indexes, "SLICE", 0)
    known = index(*(chat([user(f"number {n}")], at=n) for n in range(5)), flow("/other", {}, {}, at=9))
    versions = []

    async def watch() -> None:
        while not known.complete:
            versions.append(known.version)
            await asyncio.sleep(0)

    await asyncio.gather(watch(), known.ready())
    assert len(set(versions)) > 2
    assert 5 == len(known.rows())


async def test_a_large_flow_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the wait for it ends early, the reading goes on; if the page is closed, it is read the next time."""
    monkeypatch.setattr(indexes, "LARGE", 10)
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    known = index(conversation()[0])
    read = known.store.read

    def slow(one: Flow) -> list[calls.Call]:
        loop.call_soon_threadsafe(began.set)
        return read(one)

    monkeypatch.setattr(known.store, "read", slow)
    news = known.follow(dict)
    await anext(news)
    await began.wait()
    await news.aclose()
    await asyncio.sleep(0)
    assert [] == known.rows()
    await known.ready(seconds=0)
    while not known.rows():
        await asyncio.sleep(0)
    assert known.complete


async def test_a_large_websocket_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its responses are calls, whose flows are found by their ids. New messages are read."""
    monkeypatch.setattr(indexes, "LARGE", 10)
    one = websocket(("one two", "uno"), ("three four", "tres"), ("five six", "cinq"))
    assert one.websocket
    messages, one.websocket.messages = one.websocket.messages, one.websocket.messages[:3]
    known = index(one)
    await known.ready()
    assert [(f"{one.id}.1", 0)] == known.rows()
    one.websocket.messages = messages
    await known.ready()
    assert [f"{one.id}.3", f"{one.id}.2", f"{one.id}.1"] == [id for id, _ in known.rows()]
    found = known.flow(f"{one.id}.2")
    assert found
    assert b"three four" in (found.request.content or b"")
    news = known.follow(lambda: {"version": known.version})
    await anext(news)
    await known.ready(f"{one.id}.1")
    await news.aclose()
    known.view.clear()
    await known.ready()
    assert [] == known.rows()


async def test_the_thread_of_a_request_that_waits() -> None:
    """It is known before there is a response."""
    flows = conversation()
    running = chat([user("one"), assistant("uno"), user("two")], at=2, running=True)
    known = index(flows[0], running)
    assert flows[0].id == await known.place(running)
    assert known.flow("nothing") is None


async def test_a_page_reads_a_call_that_it_asks_for() -> None:
    """While it follows events, a request reads the flow that it names, and no other change."""
    flows = conversation()
    known = index(flows[0])
    news = known.follow(lambda: {"version": known.version})
    await anext(news)
    await known.ready()
    other = chat([user("other")], at=9)
    known.view.add([flows[1], other])
    await known.ready(flows[1].id, "nothing")
    assert (flows[0].id, None) == (known.store.thread_of(flows[1].id), known.store.thread_of(other.id))
    assert other.id == await known.place(other)
    await news.aclose()


async def test_reading_leaves_time_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first reading each slice is followed by a pause that grows with the time which the page has taken."""
    monkeypatch.setattr(indexes, "SLICE", -1)
    monkeypatch.setattr(indexes, "REST", 1)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    known = index(*(chat([user(f"number {n}")], at=n) for n in range(3)))
    news = known.follow(lambda: {"version": known.version})
    await anext(news)
    while not known.complete:
        await anext(news)
    monkeypatch.setattr(asyncio, "sleep", pause)
    known.spent = 100
    known.view.add([chat([user(f"later {n}")], at=20 + n) for n in range(3)])
    while len(known.rows()) < 6:
        await anext(news)
    await news.aclose()
    assert 100 < max(pauses)
    assert 3 <= sum(pause > 0 for pause in pauses)
