"""The threads of a list of flows, kept up to date flow by flow."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from mitmproxy import http

from azure_openai_proxy.accounting.prices import Prices
from azure_openai_proxy.formats.sequences import common_prefix

from . import cache, report, sockets
from .calls import Call, keep_new_texts, read
from .grouping import Groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mitmproxy.flow import Flow

    from azure_openai_proxy.config.prices import PriceFile

    from .grouping import Thread
    from .report import Json

__all__ = ["Threads"]


class Threads:
    """Groups flows into threads. It keeps no flow alive: one that is gone loses its texts, until `remove` is called for it.

    `update` reads one flow, whose time grows with its bodies. All else is fast: the JSON of a thread is made on demand, and again
    only after one of its calls has changed.
    """

    def __init__(self, prices: Callable[[], PriceFile | None] = lambda: None) -> None:
        self.revision = 0
        """Increases with each change."""
        self._groups = Groups()
        self._singles: dict[str, Call] = {}
        self._sockets: dict[str, sockets.Socket] = {}  # by the id of the flow
        self._flows: weakref.WeakValueDictionary[str, http.HTTPFlow] = weakref.WeakValueDictionary()
        self._known: dict[str, Json] = {}  # threads as JSON
        self._prices, self._price_file = Prices(), prices
        self._priced: PriceFile | None = None

    # Changes

    def load(self, flows: Iterable[Flow]) -> Iterator[str]:
        """Read new flows in the order of their start, and yield the id of each one's thread or single call after it was read."""
        chosen = [flow for flow in flows if isinstance(flow, http.HTTPFlow)]
        for flow in sorted(chosen, key=lambda flow: flow.request.timestamp_start):
            if (changed := self.update(flow)) is not None:
                yield changed

    def update(self, flow: Flow) -> str | None:
        """Read a flow that is new or has changed. Return the id of the thread or single call of its last call; None if it has none."""
        changed = None
        for call in self.read(flow):
            changed = self.add(call, flow)
        return changed

    def read(self, flow: Flow) -> list[Call]:
        """The calls of a flow, such as for `add`: one, or the new and changed responses of a WebSocket."""
        if not isinstance(flow, http.HTTPFlow):
            return []
        if sockets.is_responses(flow):
            socket = self._sockets.get(flow.id)
            if socket is None or socket.flow() is not flow:
                socket = self._sockets[flow.id] = sockets.Socket(flow)
            found = [part for id in socket.read(flow) if (part := socket.part(id))]
            if socket.ids:
                return [call for part in found if (call := read(part))]
        call = read(flow)
        return [call] if call else []

    def add(self, call: Call, flow: Flow) -> str:
        """Add or replace a call that was read from `flow`, such as in a thread. Return the id of its thread or single call."""
        assert isinstance(flow, http.HTTPFlow)
        self.revision += 1
        self._flows[call.id] = flow
        if not call.kind:
            self._singles[call.id] = call
            return call.id
        if call.id != str(flow.id):  # a file may have another type
            self._singles.pop(flow.id, None)  # a WebSocket before its first response
            self._sockets[flow.id].changed.pop(call.id, None)
        thread = self._groups.update(call) if call.id in self._groups else self._groups.add(call)
        previous, _ = self.earlier(call.id)
        stored = call.previous or call.conversation
        keep_new_texts(call, 0 if previous is None or stored else common_prefix(previous.prompt.items, call.prompt.items))
        self._changed(thread)
        return thread.id

    def remove(self, flow_id: str) -> None:
        """Forget a flow that was removed from the list."""
        self.revision += 1
        if socket := self._sockets.pop(flow_id, None):
            for id in socket.ids:
                self.remove(id)
        self._flows.pop(flow_id, None)
        self._singles.pop(flow_id, None)
        member = self._groups.members.get(flow_id)
        if member is None:
            return
        thread = member.thread
        self._changed(thread)
        for child in thread.children:
            self._changed(child)
        self._groups.remove(flow_id)

    def _changed(self, thread: Thread) -> None:
        self._known.pop(thread.id, None)
        if thread.parent:
            self._known.pop(thread.parent.id, None)

    # The JSON

    def report(self) -> Json:
        """`{"threads": [...]}`, and `single_calls` if there are some."""
        found: Json = {"threads": [self.thread(id) for id in self._groups.threads]}
        if self._singles:
            found["single_calls"] = self.single_calls()
        return found

    def thread(self, id: str) -> Json:
        """One thread with its calls, as in `report`. Do not change it.

        Raises:
            KeyError: there is no such thread.
        """
        if self._price_file() is not self._priced:
            self._priced = self._price_file()
            self._known.clear()
        if id not in self._known:
            thread = self._groups.threads[id]
            calls = [self._call(thread, place) for place in range(len(thread.calls))]
            self._known[id] = report.thread(thread, calls)
        return self._known[id]

    def single_calls(self) -> list[Json]:
        """Calls that belong to no thread, by their start."""
        return [report.single(call, self._cost) for call in sorted(self._singles.values(), key=lambda call: call.started)]

    def _call(self, thread: Thread, place: int) -> Json:
        call = thread.calls[place]
        member = self._groups.members[call.id]
        earlier = cache.before(thread.calls, place, member.continues)
        before = cache.known(thread.calls, place)
        return report.call(call, earlier, before, self._cost, retry=member.retry or call.retried)

    def _cost(self, call: Call) -> float | None:
        return self._prices.cost(
            call.tokens,
            response_model=call.response_model,
            model=call.model,
            deployment=call.deployment,
            served_deployment=call.served,
            tier=call.tier,
            zone=call.zone,
            file=self._priced,
        )

    # Look-ups

    @property
    def thread_ids(self) -> list[str]:
        """The ids of all threads, by their start."""
        return list(self._groups.threads)

    def thread_of(self, call_id: str) -> str | None:
        """The id of the thread of a call."""
        member = self._groups.members.get(call_id)
        return member.thread.id if member else None

    def threads_of(self, flow_id: str) -> list[str]:
        """The ids of the threads of a flow; a WebSocket may have several."""
        return list(dict.fromkeys(thread for id in self.calls_of(flow_id) if (thread := self.thread_of(id)) is not None))

    def calls_of(self, flow_id: str) -> list[str]:
        """The ids of the calls of a flow; those of a WebSocket have one for each response."""
        socket = self._sockets.get(flow_id)
        return socket.ids if socket and socket.ids else [flow_id]

    def find(self, text: str) -> str | None:
        """The id of the thread whose id begins with `text`, or which has the call whose id does; None unless exactly one does."""
        if text in self._groups.threads:
            return text
        found = {id for id in self._groups.threads if id.startswith(text)} if text else set()
        if not found and text:
            found = {member.thread.id for id, member in self._groups.members.items() if id.startswith(text)}
        return found.pop() if len(found) == 1 else None

    def flow(self, call_id: str) -> http.HTTPFlow | None:
        """The flow of a call, if it still exists; of a response of a WebSocket, one with its request and response."""
        found = self._flows.get(call_id)
        if found is None or str(found.id) == call_id:
            return found
        socket = self._sockets.get(found.id)
        return socket.part(call_id) if socket else None

    def flow_id(self, call_id: str) -> str:
        """The id of the flow in mitmproxy's list that has a call."""
        found = self._flows.get(call_id)
        return call_id if found is None else str(found.id)

    def calls(self, thread_id: str) -> list[Call]:
        """The calls of a thread as they were read.

        Raises:
            KeyError: there is no such thread.
        """
        return list(self._groups.threads[thread_id].calls)

    def call(self, call_id: str) -> Call:
        """A call as it was read.

        Raises:
            KeyError: there is no such call.
        """
        if call_id in self._singles:
            return self._singles[call_id]
        return self._groups.members[call_id].call

    def earlier(self, call_id: str) -> tuple[Call | None, Call | None]:
        """The call before one in its thread, and the last one before it whose prompt may be cached.

        Raises:
            KeyError: there is no such call in a thread.
        """
        member = self._groups.members[call_id]
        calls = member.thread.calls
        place = calls.index(member.call)
        return (calls[place - 1] if place else None), cache.before(calls, place, member.continues)

    def known_before(self, call_id: str) -> list[Call]:
        """The calls before one whose messages it may repeat, the latest last.

        Raises:
            KeyError: there is no such call in a thread.
        """
        member = self._groups.members[call_id]
        return cache.known(member.thread.calls, member.thread.calls.index(member.call))

    def search_text(self, call_id: str) -> str:
        """The last 200,000 characters of a call's new messages and answer, as plain text."""
        return self.call(call_id).said
