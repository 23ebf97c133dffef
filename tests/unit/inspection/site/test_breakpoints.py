"""The next request or answer of a thread or a model is held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from mitmproxy.addons.view import View
from mitmproxy.test import taddons
from mitmproxy.websocket import WebSocketData

from azure_openai_proxy.inspection.body_store import Shelf, Tap
from azure_openai_proxy.inspection.site import breakpoints as points
from azure_openai_proxy.inspection.site.breakpoints import Breakpoints
from azure_openai_proxy.inspection.site.index import Index
from azure_openai_proxy.inspection.site.server import BadRequest
from support.conversations import assistant, chat, flow, user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mitmproxy import http

OURS = {"operation": "POST /v1/chat/completions", "model": "gpt-4o", "deployment": "prod"}


class World:
    def __init__(self, context: taddons.context) -> None:
        self.master = context.master
        self.view = View()
        self.changes = 0
        self.limit = 1000
        self.holds_streams = True
        self.breakpoints = Breakpoints(Index(self.view, lambda: None), self.changed, lambda: self.limit, lambda _: self.holds_streams)

    def changed(self) -> None:
        self.changes += 1

    def added(self) -> bool:
        return self.breakpoints in self.master.addons.chain

    def stream(self, *, kind: str = "text/event-stream", shelf: Shelf | None = None) -> tuple[http.HTTPFlow, Any]:
        """A flow whose answer is about to be streamed, and its tap."""
        one = self.arrive(user("one"))
        assert one.response
        one.response.headers["content-type"] = kind
        one.response.data.content = None
        tap = Tap(None, shelf, 0.0)
        one.response.stream = tap
        return one, tap

    def arrive(self, *messages: Any, **more: Any) -> http.HTTPFlow:
        one = chat(list(messages), metadata=OURS | more.pop("metadata", {}), **more)
        one.live = True
        self.view.add([one])
        return one


@pytest.fixture
def world() -> Iterator[World]:
    with taddons.context() as context:
        yield World(context)


async def test_the_next_request_of_a_model_is_held_once(world: World) -> None:
    """Another model goes on, and so does the next request. The addon is there only as long as it is needed."""
    points = world.breakpoints
    assert not world.added()
    points.arm("request", "", "prod")
    assert world.added()
    other = world.arrive(user("one"), running=True, metadata={"model": "gpt-4.1", "deployment": "gpt-4.1"})
    first, second = (world.arrive(user("one"), running=True) for _ in range(2))
    for one in (other, first, second):
        await points.request(one)
    assert [False, True, False] == [one.intercepted for one in (other, first, second)]
    (held,) = points.state()["held"]
    assert (first.id, "request", True, "gpt-4o") == (held["id"], held["on"], held["editable"], held["model"])
    assert (1, []) == (points.held_count(), points.armed)
    points.resume(first.id, '{"messages": []}')
    assert (False, b'{"messages": []}') == (first.intercepted, first.request.content)
    assert not world.added()
    assert (3, 3) == (world.changes, points.revision)


async def test_an_answer_of_a_thread_is_held(world: World) -> None:
    """Not its request, nor the answer of another thread."""
    points = world.breakpoints
    first = world.arrive(user("one"))
    await points._index.ready()
    points.arm("answer", first.id, "")
    assert ["one"] == [one["title"] for one in points.state()["armed"]]
    other = world.arrive(user("else"), at=1)
    later = world.arrive(user("one"), assistant("fine"), user("two"), at=2)
    await points.request(later)
    await points.response(other)
    await points.response(later)
    assert [False, True] == [other.intercepted, later.intercepted]
    assert "answer" == points.state()["held"][0]["on"]
    points.resume(later.id, None)
    assert [] == points.state()["held"]


async def test_only_calls_of_models_are_held(world: World) -> None:
    """Neither other requests, nor those that the proxy answers itself, nor flows from a file."""
    points = world.breakpoints
    points.arm("request", "", "")
    models = flow("/v1/models", {}, None, metadata={"operation": "GET /v1/models"})
    models.request.method, models.live = "GET", True
    answered = world.arrive(user("one"))
    loaded = chat([user("one")], running=True, metadata=OURS)
    loaded.live = False
    foreign = chat([user("one")], running=True)
    foreign.live = True
    for one in (models, answered, loaded, foreign):
        await points.request(one)
        assert not one.intercepted


async def test_a_held_request_is_dropped(world: World) -> None:
    """Its client gets an error; one that is not alive any more is just forgotten."""
    points = world.breakpoints
    for killable in (True, False):
        points.arm("request", "", "")
        one = world.arrive(user("one"), running=True)
        await points.request(one)
        one.live = killable
        points.drop(one.id)
        assert (False, killable) == (one.intercepted, one.error is not None)


async def test_a_flow_that_was_resumed_in_mitmweb(world: World) -> None:
    """It is not held any more."""
    points = world.breakpoints
    points.arm("request", "", "")
    one = world.arrive(user("one"), running=True)
    await points.request(one)
    one.resume()
    for id in (one.id, "nothing"):
        with pytest.raises(BadRequest, match="not held any more"):
            points.resume(id, None)
    points.arm("request", "", "")
    again = world.arrive(user("one"), running=True)
    await points.request(again)
    again.resume()
    assert {"note": "", "armed": [], "arriving": [], "held": []} == points.state()


async def test_a_breakpoint_is_removed(world: World) -> None:
    """Another one stays; a thread that is gone is shown by its id."""
    points = world.breakpoints
    first, second = points.arm("request", "gone", ""), points.arm("answer", "", "")
    points.disarm(first.number + 100)
    assert ["gone", ""] == [one["title"] for one in points.state()["armed"]]
    points.disarm(first.number)
    assert (True, [second]) == (world.added(), points.armed)
    points.disarm(second.number)
    assert not world.added()
    points.disarm(second.number)


def test_without_a_port_for_clients(world: World) -> None:
    """The page says that only replays can be held."""
    world.master.options.add_option("server", bool, False, "")
    assert "only replays" in world.breakpoints.state()["note"]


def test_breakpoints_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their number; and each holds a request or an answer."""
    monkeypatch.setattr(points, "MOST", 1)
    with pytest.raises(BadRequest, match="request or answer"):
        world.breakpoints.arm("connect", "", "")
    world.breakpoints.arm("request", "", "")
    with pytest.raises(BadRequest, match="too many"):
        world.breakpoints.arm("request", "", "")


def sent(one: http.HTTPFlow, *data: bytes) -> list[list[bytes]]:
    assert one.response
    assert callable(one.response.stream)
    return [list(cast("list[bytes]", one.response.stream(part))) for part in data]


def released(one: http.HTTPFlow) -> Any:
    assert one.response
    return one.response.stream.release_withheld(one.response)  # type: ignore[union-attr]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("body", [None, "data: \u00e9\n\n"])
async def test_a_streamed_answer_is_held_whole(world: World, body: str | None, stored: bool) -> None:
    """Nothing of it is sent before it was held. It goes on as it came, or edited, and stays stored only if bodies are."""
    points = world.breakpoints
    points.arm("answer", "", "gpt-4o")
    one, _ = world.stream()
    assert one.response
    await points.responseheaders(one)
    assert ([], [one.id]) == (points.armed, [each["id"] for each in points.state()["arriving"]])
    assert world.added()
    assert [[], [], []] == sent(one, b"data: 1\n\n", b"data: [DONE]\n\n", b"")
    if stored:
        one.response.data.content = b"data: 1\n\ndata: [DONE]\n\n"  # by the recorder
    await points.response(one)
    (held,) = points.state()["held"]
    assert (True, "data: 1\n\ndata: [DONE]\n\n", True) == (one.intercepted, held["body"], held["editable"])
    points.resume(one.id, body)
    expected = (body or "data: 1\n\ndata: [DONE]\n\n").encode()
    assert expected == released(one)
    assert (expected if stored else None) == one.response.data.content
    assert not world.added()


async def test_a_held_answer_that_left_the_store(world: World) -> None:
    """It goes on as it came."""
    points = world.breakpoints
    points.arm("answer", "", "")
    one, _ = world.stream()
    assert one.response
    await points.responseheaders(one)
    sent(one, b"data: 1\n\n", b"")
    await points.response(one)
    one.response.data.content = None
    points.resume(one.id, None)
    assert b"data: 1\n\n" == released(one)


async def test_an_answer_above_the_limit_is_not_held(world: World) -> None:
    """It is sent while it arrives from there on, the breakpoint waits for the next answer, and says why."""
    world.limit = 10
    points = world.breakpoints
    armed = points.arm("answer", "", "")
    one, _ = world.stream()
    await points.responseheaders(one)
    assert [[], [b"data: 1\n\n", b"data: 2\n\n"], [b"data: 3\n\n"], []] == sent(one, b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n", b"")
    await points.response(one)
    assert (False, b"", [armed]) == (one.intercepted, released(one), points.armed)
    assert "larger than the limit of bodies (10 bytes)" in points.state()["armed"][0]["note"]
    points.disarm(armed.number)
    assert not world.added()


async def test_an_answer_that_breaks_off_is_not_held(world: World) -> None:
    """The client gets what arrived; the breakpoint waits for the next answer, and says why until it held one."""
    points = world.breakpoints
    armed = points.arm("answer", "", "")
    one, _ = world.stream()
    await points.responseheaders(one)
    assert [[]] == sent(one, b"data: 1\n\n")
    points.error(one)
    assert (b"data: 1\n\n", [armed]) == (released(one), points.armed)
    assert "broke off" in points.state()["armed"][0]["note"]
    points.error(one)
    await points.response(world.arrive(user("two")))
    assert [] == points.armed
    assert {} == points._notes


async def test_an_arriving_answer_goes_on(world: World) -> None:
    """At a person's wish it is sent with the next bytes."""
    points = world.breakpoints
    points.arm("answer", "", "")
    one, _ = world.stream()
    await points.responseheaders(one)
    assert [[]] == sent(one, b"data: 1\n\n")
    points.resume(one.id, None)
    assert [[b"data: 1\n\n", b"data: 2\n\n"], []] == sent(one, b"data: 2\n\n", b"")
    await points.response(one)
    assert (False, False) == (one.intercepted, world.added())


async def test_streams_that_cannot_be_held(world: World) -> None:
    """A binary one, and one of a replay: the breakpoint stays and says why."""
    points = world.breakpoints
    points.arm("answer", "", "")
    for kind, holds, why in (("audio/mpeg", True, "no event stream"), ("text/event-stream", False, "of a replay")):
        world.holds_streams = holds
        one, tap = world.stream(kind=kind)
        await points.responseheaders(one)
        await points.response(one)
        assert one.response
        assert (False, tap) == (one.intercepted, one.response.stream)
        assert why in points.state()["armed"][0]["note"]


async def test_streams_that_no_breakpoint_names(world: World) -> None:
    """Neither another model's stream nor a buffered answer is withheld."""
    points = world.breakpoints
    points.arm("answer", "", "gpt-4.1")
    one, tap = world.stream()
    buffered = world.arrive(user("two"))
    for each in (one, buffered, world.arrive(user("three"), running=True)):
        await points.responseheaders(each)
    assert one.response
    assert (tap, {}) == (one.response.stream, points.arriving)


async def test_a_websocket_cannot_be_held(world: World) -> None:
    """Breakpoints of its model say why."""
    points = world.breakpoints
    points.arm("request", "", "")
    points.arm("answer", "", "gpt-4.1")
    socket = flow("/v1/responses", {}, {}, status=101, metadata={**OURS, "operation": "GET /v1/responses"})
    socket.request.method, socket.live, socket.websocket = "GET", True, WebSocketData()
    await points.response(socket)
    assert [True, False] == ["A WebSocket was not held" in one["note"] for one in points.state()["armed"]]
    assert not socket.intercepted
