"""The page with all its functions: which path is answered by what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .breakpoints import Breakpoints
from .index import Index
from .queries import Queries
from .replays import Replays
from .server import BadRequest, Server, event_stream
from .shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http
    from mitmproxy.addons.view import View

    from azure_openai_proxy.config.settings import Settings

    from .server import Query, Reply

__all__ = ["site"]


def site(view: View, settings: Callable[[], Settings], holds_streams: Callable[[http.HTTPFlow], bool]) -> Server:
    """The page of this mitmweb. It does nothing until it is opened. `holds_streams`: whether the stream of a flow can be withheld."""
    return Pages(view, settings, holds_streams).server


class Pages:
    def __init__(self, view: View, settings: Callable[[], Settings], holds_streams: Callable[[http.HTTPFlow], bool]) -> None:
        self.index = Index(view, lambda: settings().prices)
        self.queries = Queries(self.index)
        self.replays = Replays(self.index, settings)
        self.shares = Shares(self.index, settings)
        self.breakpoints = Breakpoints(self.index, self.notify_pages, lambda: settings().max_body, holds_streams)
        self.server = Server()
        self.notifying: set[asyncio.Task[None]] = set()
        queries = self.queries
        self.server.gets |= {
            "threads": queries.threads,
            "thread": queries.thread,
            "calls": queries.calls,
            "call": queries.call,
            "diff": queries.diff,
            "cache": queries.cache,
            "search": queries.search,
            "replay": self.replay_form,
            "events": self.events,
            "answer": self.answer,
            "breakpoints": self.state,
            "share": self.shares.share,
            "preview": self.shares.preview,
        }
        self.server.posts |= {
            "replay": self.replay,
            "breakpoint": self.arm,
            "disarm": self.disarm,
            "resume": self.resume,
            "drop": self.drop,
        }

    def notify_pages(self) -> None:
        """Notify the pages that a breakpoint has changed."""
        task = asyncio.get_running_loop().create_task(self.index.changed())
        self.notifying.add(task)
        task.add_done_callback(self.notifying.discard)

    async def events(self, _: Query) -> Reply:
        return event_stream(self.index.follow(self._news))

    def _news(self) -> dict[str, Any]:
        return {"version": self.index.version, "held": self.breakpoints.held_count(), "breakpoints": self.breakpoints.revision}

    async def answer(self, query: Query) -> Reply:
        flow = self.index.flow(query.get("id", ""))
        if flow is None:
            raise BadRequest("There is no such call.", 404)
        return event_stream(self.replays.answer(flow))

    async def state(self, _: Query) -> dict[str, Any]:
        return self.breakpoints.state()

    async def replay_form(self, query: Query) -> dict[str, Any]:
        return {**await self.queries.replay(query), "missing": self.replays.missing()}

    async def replay(self, body: dict[str, Any]) -> dict[str, Any]:
        flow = self.index.flow(str(body.get("id")))
        if flow is None:
            raise BadRequest("There is no such call. It may have been removed from the list of flows.", 404)
        return {"id": self.replays.start(flow, body).id}

    async def arm(self, body: dict[str, Any]) -> dict[str, Any]:
        made = self.breakpoints.arm(_text(body, "on"), _text(body, "thread"), _text(body, "model"))
        return {"number": made.number, "note": self.breakpoints.state()["note"]}

    async def disarm(self, body: dict[str, Any]) -> dict[str, Any]:
        number = body.get("number")
        if type(number) is not int:
            raise BadRequest("number must be a number.")
        self.breakpoints.disarm(number)
        return {}

    async def resume(self, body: dict[str, Any]) -> dict[str, Any]:
        self.breakpoints.resume(_text(body, "id"), body["body"] if isinstance(body.get("body"), str) else None)
        return {}

    async def drop(self, body: dict[str, Any]) -> dict[str, Any]:
        self.breakpoints.drop(_text(body, "id"))
        return {}


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a text.")
    return value.strip()
