"""The page as a whole: each of its paths."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from mitmproxy.addons.view import View
from mitmproxy.test import taddons

from azure_openai_proxy.inspection.site.pages import Pages, site
from support.conversations import chat, user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.inspection.site.server import Reply

SETTINGS = cast("Settings", SimpleNamespace(prices=None, max_body=1000, backends=[]))


@pytest.fixture
def view() -> Iterator[View]:
    with taddons.context():
        view = View()
        view.add([chat([user("one")])])
        yield view


async def get(pages: Pages, path: str, **query: str) -> Any:
    reply = await pages.server.respond("GET", f"api/{path}", query, b"", "")
    return json.loads(reply.body) if isinstance(reply.body, bytes) else reply


async def post(pages: Pages, path: str, value: object) -> tuple[int, Any]:
    reply = await pages.server.respond("POST", f"api/{path}", {}, json.dumps(value).encode(), "")
    assert isinstance(reply.body, bytes)
    return reply.status, json.loads(reply.body)


async def first_event(reply: Reply) -> Any:
    assert not isinstance(reply.body, bytes)
    event = await anext(reply.body)
    await reply.body.aclose()
    return json.loads(event.removeprefix(b"data: "))


async def test_the_page_is_made_of_its_parts(view: View) -> None:
    """A list, news, and an answer that has ended."""
    pages = Pages(view, lambda: SETTINGS, bool)
    assert {"threads", "thread", "calls", "call", "diff", "cache", "search"} <= site(view, lambda: SETTINGS, bool).gets.keys()
    listed = await get(pages, "threads")
    assert ["one"] == [one["title"] for one in listed["threads"]]
    assert {"version": 1, "held": 0, "breakpoints": 0} == await first_event(await get(pages, "events"))
    assert {"text": "fine", "done": True} == await first_event(await get(pages, "answer", id=view[0].id))
    assert {"error": "There is no such call."} == await get(pages, "answer", id="nothing")


async def test_breakpoints_by_their_paths(view: View) -> None:
    """Armed and removed; a flow that is not held cannot go on."""
    pages = Pages(view, lambda: SETTINGS, bool)
    status, made = await post(pages, "breakpoint", {"on": "request", "model": " gpt-4o "})
    assert (200, "gpt-4o") == (status, (await get(pages, "breakpoints"))["armed"][0]["model"])
    assert (400, {"error": "number must be a number."}) == await post(pages, "disarm", {"number": True})
    assert (200, {}) == await post(pages, "disarm", made)
    assert (400, {"error": "on must be a text."}) == await post(pages, "breakpoint", {"on": 1})
    one = view[0]
    for path in ("resume", "drop"):
        pages.breakpoints.held[one.id] = cast("Any", one), "request"
        one.intercept()
        assert (200, {}) == await post(pages, path, {"id": one.id, "body": "{}" if path == "resume" else None})
        assert 404 == (await post(pages, path, {"id": one.id}))[0]


async def test_the_form_of_a_replay(view: View) -> None:
    """It says what is missing for a replay."""
    form = await get(Pages(view, lambda: SETTINGS, bool), "replay", id=view[0].id)
    assert ("gpt-4o", True) == (form["model"], "azure_openai_endpoint" in form["missing"])


async def test_a_replay_of_nothing(view: View) -> None:
    """A call that is gone, and one that was not sent to a deployment."""
    pages = Pages(view, lambda: SETTINGS, bool)
    assert 404 == (await post(pages, "replay", {"id": "nothing"}))[0]
    assert 400 == (await post(pages, "replay", {"id": view[0].id}))[0]


async def test_a_replay_by_its_path(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id of the new flow is returned."""
    pages = Pages(view, lambda: SETTINGS, bool)
    monkeypatch.setattr(pages.replays, "start", lambda flow, body: SimpleNamespace(id=f"copy of {flow.id} with {body['model']}"))
    assert (200, {"id": f"copy of {view[0].id} with m"}) == await post(pages, "replay", {"id": view[0].id, "model": "m"})
