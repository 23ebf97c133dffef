"""The threads of mitmweb's flows, kept up to date while a page is open.

Flows are read in short slices between other work of the event loop. Without an open page nothing is read.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.threads import sockets
from azure_openai_proxy.inspection.threads.store import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from mitmproxy.addons.view import View
    from mitmproxy.flow import Flow

    from azure_openai_proxy.config.prices import PriceFile

__all__ = ["SLICE", "Index", "is_large"]

SLICE = 0.02
"""Seconds for which flows are read at a time."""
DELAY = 0.15
"""Seconds after a change before it is read, so that a short call is read once."""
REST = 14.0
"""Pause after each slice, as a multiple of the time that it and the page's requests took. The first reading of all flows has no pauses."""
LARGE = 256 << 10
"""Bytes of bodies that are read on the event loop."""
HEARTBEAT = 15.0
"""Seconds after which a page without news gets a comment, by which a closed connection is noticed."""


class Index:
    def __init__(self, view: View, prices: Callable[[], PriceFile | None]) -> None:
        self.view = view
        self.store = Threads(prices)
        self.version = 0
        """Increases when a page may have to show something else."""
        self.complete = False  # all flows have been read
        self.spent = 0.0
        """Seconds that the page's requests took since the last slice."""
        self._stamps: dict[str, object] = {}
        self._dirty: dict[str, None] = {}
        self._pages = 0
        self._news = asyncio.Event()
        self._changed = asyncio.Condition()
        self._reading = asyncio.Lock()
        self._rounds: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._rows: tuple[int, list[tuple[str, int]]] = (-1, [])

    # Pages

    async def follow(self, state: Callable[[], dict[str, Any]]) -> AsyncGenerator[dict[str, Any] | None]:
        """`state()` now and after each change; None from time to time if nothing changes. Flows are read while this runs."""
        self.open()
        try:
            while True:
                known = state()
                yield known
                while state() == known:
                    try:
                        async with asyncio.timeout(HEARTBEAT), self._changed:
                            await self._changed.wait_for(partial(_differs, state, known))
                    except TimeoutError:
                        yield None
        finally:
            self.close()

    def open(self) -> None:
        """Start to read, for one more page."""
        self._pages += 1
        if self._pages == 1:
            self.view.sig_view_add.connect(self._add)
            self.view.sig_view_update.connect(self._add)
            self.view.sig_view_remove.connect(self._remove)
            self.view.sig_view_refresh.connect(self._refresh)
            self._refresh()
            self._reader = asyncio.create_task(self._read())

    def close(self) -> None:
        self._pages -= 1
        if self._pages == 0 and self._reader:
            for signal in (self.view.sig_view_add, self.view.sig_view_update):
                signal.disconnect(self._add)
            self.view.sig_view_remove.disconnect(self._remove)
            self.view.sig_view_refresh.disconnect(self._refresh)
            self._reader.cancel()
            self._reader = None

    async def ready(self, *ids: str, seconds: float = 30.0) -> None:
        """Read the flows of these ids; without an open page all changes. Wait for some seconds at most; reading continues afterwards."""
        if self._pages and self.complete:
            async with self._reading:
                for id in map(self.store.flow_id, ids):
                    self._dirty.pop(id, None)
                    self.version += await self._take(id)
            return
        if not self._pages:
            self._refresh()
        task = asyncio.create_task(self._round())
        self._rounds.add(task)
        task.add_done_callback(self._rounds.discard)
        await asyncio.wait({task}, timeout=seconds)

    async def changed(self) -> None:
        """Send news to the pages after a change outside the flows."""
        async with self._changed:
            self._changed.notify_all()

    # Changes of the view

    def _add(self, flow: Flow) -> None:
        self._dirty[flow.id] = None
        self._news.set()

    def _remove(self, flow: Flow, index: int) -> None:  # noqa: ARG002 - mitmproxy's signature
        self._add(flow)

    def _refresh(self) -> None:
        """Compare all flows with their last known state."""
        for id in self._stamps:
            self._dirty[id] = None
        for flow in sorted(self.view, key=lambda flow: flow.timestamp_start):
            self._dirty[flow.id] = None
        self._news.set()

    async def _read(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await asyncio.sleep(DELAY)
            while self._dirty:
                if not self.complete:
                    await self._round()
                    continue
                began = time.perf_counter()
                async with self._reading:
                    await self._slice()
                await asyncio.sleep(REST * (time.perf_counter() - began + self.spent))
                self.spent = 0.0

    async def _round(self) -> None:
        """Read all changes."""
        async with self._reading:
            more = await self._slice()
            while more:
                await asyncio.sleep(0)
                more = await self._slice()

    async def _slice(self) -> bool:
        """Read changes for a short time. Return whether there are more."""
        until = time.perf_counter() + SLICE
        changed = False
        while self._dirty:
            id = next(iter(self._dirty))
            del self._dirty[id]
            changed |= await self._take(id)
            if time.perf_counter() > until:
                break
        before, self.complete = self.complete, self.complete or not self._dirty
        if changed or not before:
            self.version += 1
            await self.changed()
        return bool(self._dirty)

    async def _take(self, id: str) -> bool:
        """Read a flow that may have changed. Return whether it has."""
        flow = self._viewed(id)
        if flow is None:
            if self._stamps.pop(id, None) is None:
                return False
            self.store.remove(id)
            return True
        stamp = _stamp(flow)
        if self._stamps.get(id) == stamp:
            return False
        self._stamps[id] = stamp
        if is_large(flow):
            try:
                read = await asyncio.to_thread(self.store.read, flow)
                for place, call in enumerate(read):
                    if place:  # a WebSocket may have many
                        await asyncio.sleep(0)
                    self.store.add(call, flow)
            except asyncio.CancelledError:
                del self._stamps[id]
                self._dirty[id] = None
                raise
            return bool(read)
        return self.store.update(flow) is not None

    async def place(self, flow: http.HTTPFlow) -> str | None:
        """The id of the thread of a flow whose request is complete, read at once."""
        if not self._pages:
            self._refresh()
        await self._round()
        return self.store.thread_of(flow.id)

    # Look-ups

    def flow(self, id: str) -> http.HTTPFlow | None:
        """The flow of a call: one of the list, or a response of a WebSocket in the list."""
        listed = self._viewed(self.store.flow_id(id))
        return listed if listed is None or listed.id == id else self.store.flow(id)

    def _viewed(self, id: str) -> http.HTTPFlow | None:
        flow = self.view.get_by_id(id)
        return flow if isinstance(flow, http.HTTPFlow) else None

    def rows(self) -> list[tuple[str, int]]:
        """The ids of all threads with their depth, the newest first and children below their parents."""
        version, rows = self._rows
        if version != self.store.revision:
            tops = [id for id in reversed(self.store.thread_ids) if self.store.thread(id)["parent"] is None]
            rows = [row for id in tops for row in self._below(id)]
            self._rows = self.store.revision, rows
        return rows

    def _below(self, top: str) -> Iterator[tuple[str, int]]:
        waiting = [(top, 0)]
        while waiting:
            id, depth = waiting.pop()
            yield id, depth
            waiting += [(child, depth + 1) for child in reversed(self.store.thread(id)["children"])]


def is_large(flow: http.HTTPFlow) -> bool:
    """Whether reading the flow takes so long that it must not be done on the event loop."""
    sizes = [len(message.data.content or b"") for message in (flow.request, flow.response) if message]
    return sum(sizes) + sockets.size(flow) > LARGE


def _differs(state: Callable[[], object], known: object) -> bool:
    return state() != known


def _stamp(flow: http.HTTPFlow) -> object:
    """A value that differs if the flow has changed for a reader."""
    request, response, error = flow.request, flow.response, flow.error
    content = response.data.content if response else None
    body = request.data.content
    return (
        request.timestamp_end,
        len(body) if body is not None else None,
        (response.status_code, response.timestamp_end, len(content) if content is not None else None) if response else None,
        error.msg if error else None,
        len(flow.metadata),
        sockets.stamp(flow),
        flow.metadata.get(f"{flow_metadata.PREFIX}deployment"),
        flow.comment,
    )
