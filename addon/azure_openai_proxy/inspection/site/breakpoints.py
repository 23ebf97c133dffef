"""Breakpoints of the page: the next request or answer of a thread or a model is held with mitmproxy's intercept.

A streamed answer is withheld from the client until it is complete. The addon is in mitmproxy's list of addons only while a breakpoint is
armed or an answer is being withheld.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mitmproxy import ctx, hooks, http

from azure_openai_proxy.formats import compression
from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.body_store import Tap, Withheld
from azure_openai_proxy.inspection.threads import calls

from .server import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .index import Index

__all__ = ["Breakpoint", "Breakpoints"]

MOST = 50
LONGEST_SHOWN = 4 << 20
"""Bytes of a body that can be edited in the page."""
TOO_LARGE = "An answer was not held: it is larger than the limit of bodies ({} bytes)."
BROKE_OFF = "An answer was not held: it broke off."
NO_TEXT = "An answer was not held: it is streamed, and it is no event stream."
NO_STREAM = "A streamed answer was not held: it is of a replay, or this mitmproxy can only send it on while it arrives."
NO_SERVER = "mitmweb has no open port for clients (`server=false`), so that only replays can be held."
WEBSOCKET = "A WebSocket was not held: only requests of HTTP and their answers are."


class Breakpoint(NamedTuple):
    number: int
    on: str  # request or answer
    thread: str = ""
    model: str = ""


class Breakpoints:
    name = "azure_openai_breakpoints"

    def __init__(
        self, index: Index, changed: Callable[[], None], max_body: Callable[[], int], holds_streams: Callable[[http.HTTPFlow], bool]
    ) -> None:
        self.armed: list[Breakpoint] = []
        self.held: dict[str, tuple[http.HTTPFlow, str]] = {}
        self.arriving: dict[str, tuple[http.HTTPFlow, Breakpoint]] = {}
        """Flows whose streamed answer is withheld and not yet complete."""
        self.revision = 0
        """Increases with each change that the page has to show."""
        self._index, self._notify_pages = index, changed
        self._max_body, self._holds_streams = max_body, holds_streams
        self._notes: dict[int, str] = {}  # why a breakpoint did not hold the last call that it matched
        self._number = 0
        self._added = False

    # From the page

    def arm(self, on: str, thread: str, model: str) -> Breakpoint:
        """Hold the next request or answer of a thread or a model, or of any call if neither is given."""
        if on not in ("request", "answer"):
            raise BadRequest("on must be request or answer.")
        if len(self.armed) >= MOST:
            raise BadRequest("There are too many breakpoints.")
        self._number += 1
        made = Breakpoint(self._number, on, thread, model)
        self.armed.append(made)
        if not self._added:
            self._added = True
            ctx.master.addons.add(self)
        self._changed()
        return made

    def disarm(self, number: int) -> None:
        self.armed = [one for one in self.armed if one.number != number]
        self._notes.pop(number, None)
        self._rest()
        self._changed()

    def resume(self, id: str, body: str | None) -> None:
        """Let a held flow go on, with another body if one is given; or an answer that is still arriving."""
        if id in self.arriving:
            flow, _ = self.arriving.pop(id)
            _withheld(flow).pass_on()
            self._rest()
            self._changed()
            return
        flow, on = self._take(id)
        if body is not None:
            message = flow.request if on == "request" else flow.response
            assert message
            flow.backup()
            message.content = body.encode("utf-8", "replace")
        flow.resume()
        self._notify(flow)

    def drop(self, id: str) -> None:
        """End a held flow. The client gets an error."""
        flow, _ = self._take(id)
        if flow.killable:
            flow.kill()
        flow.resume()
        self._notify(flow)

    def held_count(self) -> int:
        """The number of flows that are held."""
        return sum(flow.intercepted for flow, _ in self.held.values())

    def state(self) -> dict[str, Any]:
        for id in [id for id, (flow, _) in self.held.items() if not flow.intercepted]:  # resumed in mitmweb
            del self.held[id]
        armed = [{**one._asdict(), "title": self._title(one.thread), "note": self._notes.get(one.number, "")} for one in self.armed]
        arriving = [{"id": flow.id, **_names(flow)} for flow, _ in self.arriving.values()]
        note = "" if ctx.options.server else NO_SERVER
        return {"note": note, "armed": armed, "arriving": arriving, "held": [_held(flow, on) for flow, on in self.held.values()]}

    def _title(self, id: str) -> str:
        return str(self._index.store.thread(id)["title"]) or id if id in self._index.store.thread_ids else id

    def _take(self, id: str) -> tuple[http.HTTPFlow, str]:
        found = self.held.pop(id, None)
        if found is None or not found[0].intercepted:
            raise BadRequest("This flow is not held any more.", 404)
        self._rest()
        return found

    def _notify(self, flow: http.HTTPFlow) -> None:
        ctx.master.addons.trigger(hooks.UpdateHook([flow]))
        self._changed()

    def _changed(self) -> None:
        self.revision += 1
        self._notify_pages()

    def _rest(self) -> None:
        if self._added and not self.armed and not self.arriving:
            self._added = False
            ctx.master.addons.remove(self)

    # mitmproxy's hooks, after those of the proxy

    async def request(self, flow: http.HTTPFlow) -> None:
        if flow.response is None and (matching := await self._match(flow, "request")):
            self._hold(flow, matching)

    async def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Withhold an answer that would be streamed."""
        response = flow.response
        if response is None or not response.stream or not (matching := await self._match(flow, "answer")):
            return
        if not self._holds_streams(flow) or not isinstance(response.stream, Tap):
            self._note(matching, NO_STREAM)
        elif "text/event-stream" not in response.headers.get("content-type", ""):
            self._note(matching, NO_TEXT)
        else:
            self.armed.remove(matching)
            self.arriving[flow.id] = flow, matching
            limit = self._max_body()
            response.stream = Withheld(response.stream, limit, lambda: self._missed(flow, TOO_LARGE.format(f"{limit:,}")))
            self._changed()

    async def response(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        assert response
        if arrived := self.arriving.pop(flow.id, None):
            _withheld(flow).hold(response)
            response.trailers = None  # they would be sent before the body
            self._hold(flow, arrived[1])
        elif flow.websocket:
            for on in ("request", "answer"):
                if missing := await self._match(flow, on):
                    self._note(missing, WEBSOCKET)
        elif not response.stream and (matching := await self._match(flow, "answer")):
            self._hold(flow, matching)

    def error(self, flow: http.HTTPFlow) -> None:
        self._missed(flow, BROKE_OFF)

    async def _match(self, flow: http.HTTPFlow, on: str) -> Breakpoint | None:
        """The breakpoint that holds this flow."""
        if not flow.live or not flow_metadata.is_ours(flow):
            return None
        for one in [one for one in self.armed if one.on == on]:
            if await self._matches(one, flow) and one in self.armed:
                return one
        return None

    async def _matches(self, breakpoint: Breakpoint, flow: http.HTTPFlow) -> bool:
        if breakpoint.model and breakpoint.model not in (
            flow.metadata.get(f"{flow_metadata.PREFIX}model"),
            flow.metadata.get(f"{flow_metadata.PREFIX}deployment"),
        ):
            return False
        if not breakpoint.thread:
            return calls.is_call(flow)
        return await self._index.place(flow) == breakpoint.thread

    def _hold(self, flow: http.HTTPFlow, matching: Breakpoint) -> None:
        if matching in self.armed:
            self.armed.remove(matching)
        self._notes.pop(matching.number, None)
        self.held[flow.id] = flow, matching.on
        flow.intercept()
        self._notify(flow)

    def _missed(self, flow: http.HTTPFlow, why: str) -> None:
        """Wait for another answer: this one could not be held to its end."""
        if found := self.arriving.pop(flow.id, None):
            self.armed.append(found[1])
            self._note(found[1], why)

    def _note(self, breakpoint: Breakpoint, why: str) -> None:
        self._notes[breakpoint.number] = why
        self._changed()


def _withheld(flow: http.HTTPFlow) -> Withheld:
    stream = flow.response and flow.response.stream
    assert isinstance(stream, Withheld)
    return stream


def _names(flow: http.HTTPFlow) -> dict[str, Any]:
    known = flow_metadata.known(flow)
    return {name: known.get(name) for name in ("model", "deployment", "backend")}


def _held(flow: http.HTTPFlow, on: str) -> dict[str, Any]:
    message = flow.request if on == "request" else flow.response
    content = compression.content_or_nothing(message) if message else b""
    return {
        "id": flow.id,
        "on": on,
        **_names(flow),
        "editable": len(content) <= LONGEST_SHOWN,
        "body": content[:LONGEST_SHOWN].decode("utf-8", "replace"),
    }
