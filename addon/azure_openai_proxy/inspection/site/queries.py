"""The values that the page shows, read from the threads of the index."""

from __future__ import annotations

import asyncio
import bisect
import datetime as dt
import itertools
import time
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.threads import blocks, details, diff

from .index import SLICE, is_large
from .replays import fields
from .server import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mitmproxy import http

    from azure_openai_proxy.inspection.threads.calls import Call

    from .index import Index
    from .server import Query

__all__ = ["Queries"]

GONE = "There is no such call. It may have been removed from the list of flows."
MOST_ROWS = 200
MOST_CALLS = 50
MOST_BARS = 400
MOST_TOOLS = 50
"""Tool calls of one answer on the time axis."""
MOST_CHOICES = 300
LONGEST_CALL = 2_000_000
"""Characters of the texts, and of the media, of one call in a reply. The event loop writes replies as JSON."""
LONGEST_THREAD = 4_000_000
"""Characters after which a reply has no further calls. The page asks for them."""
LONGEST_PARAMETERS = 20_000
MOST_SORTED = 3_000
MOST_HITS = 100
EXCERPT = 120


class Queries:
    def __init__(self, index: Index) -> None:
        self.index = index
        self.store = index.store

    # Lists

    async def threads(self, query: Query) -> dict[str, Any]:
        """A part of the list of threads, or of single calls."""
        await self.index.ready(seconds=0.3)
        began = time.perf_counter()
        try:
            return self._part(query)
        finally:
            self.index.spent += time.perf_counter() - began

    def _part(self, query: Query) -> dict[str, Any]:
        offset, limit = query.number("offset", 0, 10**9), query.number("limit", MOST_ROWS, MOST_ROWS)
        if query.get("kind") == "single":
            singles = self.store.single_calls()[::-1]
            rows = [_single_row(one) for one in singles[offset : offset + limit]]
            return {"version": self.index.version, "total": len(singles), "threads": rows}
        found = self.index.rows()
        return {
            "version": self.index.version,
            "total": len(found),
            "threads": [{**self.summary(id), "depth": depth} for id, depth in found[offset : offset + limit]],
        }

    def summary(self, id: str) -> dict[str, Any]:
        one = self.store.thread(id)
        return {
            **{name: value for name, value in one.items() if name not in ("calls", "children")},
            "call_count": len(one["calls"]),
            "child_count": len(one["children"]),
            "running": any(call.running for call in self.store.calls(id)),
        }

    async def calls(self, query: Query) -> dict[str, Any]:
        """Calls for a choice: the newest, and one that must be among them."""
        await self.index.ready()
        found: list[dict[str, Any]] = []
        for id, _ in self.index.rows():
            title = self.store.thread(id)["title"][:80]
            found += [{**_identity(one), "title": title} for one in self.store.thread(id)["calls"]]
            if len(found) >= MOST_SORTED:
                break
        found.sort(key=lambda one: str(one["started"]), reverse=True)
        chosen = found[:MOST_CHOICES]
        if (wanted := query.get("include")) and all(one["id"] != wanted for one in chosen) and (thread := self.store.thread_of(wanted)):
            chosen += [{**_identity(one), "title": self.store.thread(thread)["title"][:80]} for one in self._of(thread, wanted)]
        return {"calls": chosen}

    def _of(self, thread: str, call: str) -> Iterator[dict[str, Any]]:
        return (one for one in self.store.thread(thread)["calls"] if one["id"] == call)

    # One thread, one call

    async def thread(self, query: Query) -> dict[str, Any]:
        """A thread: its facts, its time axis, and a part of its calls with what each one added."""
        await self.index.ready(query.get("id", ""))
        id = query.get("id", "")
        offset, limit = query.number("offset", 0, 10**9), query.number("limit", MOST_CALLS, MOST_CALLS)
        if single := next((one for one in self.store.single_calls() if one["id"] == id), None):
            return {
                "version": self.index.version,
                "thread": _single_row(single),
                "parent": None,
                "children": [],
                "total": 1,
                "timeline": [],
                "calls": [await self.detail(single, 1, None)] if not offset else [],
            }
        if id not in self.store.thread_ids:
            raise BadRequest("There is no such thread. It may have been removed from the list of flows.", 404)
        one = self.store.thread(id)
        listed = one["calls"]
        parent = self.store.thread(one["parent"]) if one["parent"] else None
        return {
            "version": self.index.version,
            "thread": self.summary(id),
            "parent": {"id": parent["id"], "title": parent["title"]} if parent else None,
            "children": [self.summary(child) for child in one["children"][:MOST_CHOICES]],
            "total": len(listed),
            "timeline": list(_timeline(self.store.calls(id)[: MOST_BARS + 1])),
            "calls": await self._details(listed, offset, limit),
        }

    async def _details(self, listed: list[dict[str, Any]], offset: int, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        length = 0
        for number, json in list(enumerate(listed))[offset : offset + limit]:
            found.append(await self.detail(json, number + 1, listed[number - 1]["id"] if number else None))
            length += _length(found[-1])
            if length > LONGEST_THREAD:
                break
        return found

    async def call(self, query: Query) -> dict[str, Any]:
        await self.index.ready(query.get("id", ""))
        return await self.known(query.get("id", ""))

    async def known(self, id: str) -> dict[str, Any]:
        """One call of a thread, or a single call, with its answer."""
        return await self.detail(*self._json(id))

    def _json(self, id: str) -> tuple[dict[str, Any], int, str | None]:
        """A call in the stable form, its number in its thread, and the id of the call before it.

        Raises:
            BadRequest: there is no such call.
        """
        if thread := self.store.thread_of(id):
            listed = self.store.thread(thread)["calls"]
            place = next(place for place, one in enumerate(listed) if one["id"] == id)
            return listed[place], place + 1, listed[place - 1]["id"] if place else None
        if single := next((one for one in self.store.single_calls() if one["id"] == id), None):
            return single, 1, None
        raise BadRequest(GONE, 404)

    async def detail(self, json: dict[str, Any], number: int, previous: str | None) -> dict[str, Any]:
        """A call as the page shows it: the stable form and the texts."""
        id = json["id"]
        call, flow = self.store.call(id), self.index.flow(id)
        if not call.kind:
            shown = {**json, "new": [], "answer": [], "latency": details.latency_split(call)}
        elif flow is not None and is_large(flow):
            shown = await asyncio.to_thread(details.call, self.store, id)
        else:
            await asyncio.sleep(0)  # a page has many calls
            shown = details.call(self.store, id)
        _cut(shown)
        return {
            **shown,
            "number": number,
            "previous": previous,
            "running": call.running,
            "texts": flow is not None,
            "flow": self.store.flow_id(id),
            "is_replay": flow is not None and flow.is_replay == "request",
            "held": ("answer" if flow.response else "request") if flow is not None and flow.intercepted else None,
            "attempt_list": _attempts(flow) if flow is not None else [],
        }

    async def diff(self, query: Query) -> dict[str, Any]:
        """The differences of any two calls."""
        a, b = query.get("a", ""), query.get("b", "")
        await self.index.ready(a, b)
        changes = await asyncio.to_thread(diff.compare, self._flow(a), self._flow(b))
        return {"a": self._side(a), "b": self._side(b), "blocks": changes}

    def _side(self, id: str) -> dict[str, Any]:
        return {**_identity(self._json(id)[0]), "thread": self.store.thread_of(id) or id}

    def _flow(self, id: str) -> http.HTTPFlow:
        if (flow := self.index.flow(id)) is None:
            raise BadRequest(GONE, 404)
        return flow

    async def cache(self, query: Query) -> dict[str, Any]:
        """The block of a call that broke the cache, compared with the call whose prompt could have been cached."""
        id = query.get("id", "")
        await self.index.ready(id)
        _, earlier = self.store.earlier(id) if self.store.thread_of(id) else (None, None)
        if earlier is None:
            raise BadRequest("No call before this one is known.", 404)
        changes = await asyncio.to_thread(diff.compare, self._flow(earlier.id), self._flow(id))
        broken = self._json(id)[0]["cache"]["broken_by"] or {"block": None, "index": None}
        name = {"prompt_cache_key": "parameters"}.get(broken["block"], broken["block"])
        return {
            "earlier": earlier.id,
            "blocks": [
                one for one in changes if one["block"] == name and broken["index"] in (None, one["index"]) and one["change"] != "equal"
            ],
        }

    async def replay(self, query: Query) -> dict[str, Any]:
        """A call as a form in which it can be changed."""
        id = query.get("id", "")
        await self.index.ready(id)
        return {**fields(self._flow(id)), "call": await self.known(id), "thread": self.store.thread_of(id) or id}

    # Search

    async def search(self, query: Query) -> dict[str, Any]:
        """Calls whose texts contain the words of the query, and that pass all filters, the newest first."""
        await self.index.ready()
        words = query.get("q", "").casefold().strip()[:1000]
        accepts = _filters(query)
        threads = [self.store.thread(id) for id, _ in self.index.rows()]
        found = [
            (thread, json, self.store.search_text(json["id"]))
            for thread in threads
            for json in reversed(thread["calls"])
            if all(accept(thread, json) for accept in accepts)
        ]
        hits: list[dict[str, Any]] = []
        until = time.perf_counter() + SLICE
        for thread, json, said in found:
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + SLICE
            if (found_at := _place(said, words)) is None:
                continue
            if len(hits) == MOST_HITS:
                return {"hits": hits, "more": True}
            place, end = found_at
            parts = [said[max(0, place - EXCERPT) : place], said[place:end], said[end : end + EXCERPT]] if words else None
            hits.append({**_identity(json), "thread": thread["id"], "title": thread["title"], "parts": parts})
        return {"hits": hits, "more": False}


def _place(said: str, words: str) -> tuple[int, int] | None:
    """Where words without case begin and end in a text. `casefold` makes some letters longer, such as "ß"."""
    folded = said.casefold()
    begin = folded.find(words)
    if begin < 0 or len(folded) == len(said):
        return None if begin < 0 else (begin, begin + len(words))
    limits = list(itertools.accumulate(len(sign.casefold()) for sign in said))
    return bisect.bisect_right(limits, begin), bisect.bisect_left(limits, begin + len(words)) + 1 if words else 0


def _cut(shown: dict[str, Any]) -> None:
    """Shorten the texts of a call, and leave out media and parameters, beyond the limits of a reply."""
    texts = media = LONGEST_CALL
    for block in (*shown["new"], *shown["answer"]):
        if (more := len(block["text"]) - texts) > 0:
            block |= {"text": block["text"][:texts], "more_characters": block.get("more_characters", 0) + more}
        texts -= len(block["text"])
        for one in block.get("media", ()):
            if len(one["data"]) > media:
                one["data"] = ""
            media -= len(one["data"])
    if len(blocks.dumped(shown.get("parameters"))) > LONGEST_PARAMETERS:
        shown["parameters"] = {}


def _length(shown: dict[str, Any]) -> int:
    """The characters of the texts and media of a call."""
    return sum(len(block["text"]) + sum(len(one["data"]) for one in block.get("media", ())) for block in (*shown["new"], *shown["answer"]))


def _identity(json: dict[str, Any]) -> dict[str, Any]:
    return {name: json[name] for name in ("id", "started", "model", "deployment", "backend", "status")}


def _single_row(json: dict[str, Any]) -> dict[str, Any]:
    """A single call in the form of a thread."""
    return {
        **json,
        "title": json["operation"],
        "client": "",
        "depth": 0,
        "call_count": 1,
        "child_count": 0,
        "duration_ms": json["latency_ms"]["total"],
        "errors": int(bool(json["error"])),
        "running": False,
        "incomplete": False,
    }


def _timeline(calls: list[Call]) -> Iterator[dict[str, Any]]:
    """When each call ran, and the tools between its end and the call with their results. One call more than shown is needed."""
    first = calls[0].started

    def after(seconds: float) -> int:
        return max(0, round((seconds - first) * 1000))

    for number, call in enumerate(calls[:MOST_BARS]):
        following = calls[number + 1] if number + 1 < len(calls) else None
        tools = []
        if call.tool_calls and following and call.ended is not None and following.started >= call.ended:
            length = max(0, round((following.started - call.ended) * 1000))
            tools = [{"name": name, "start_ms": after(call.ended), "duration_ms": length} for name in call.tool_calls[:MOST_TOOLS]]
        yield {
            "id": call.id,
            "number": number + 1,
            "model": call.model,
            "status": call.status,
            "start_ms": after(call.started),
            "duration_ms": None if call.ended is None else max(0, round((call.ended - call.started) * 1000)),
            "tools": tools,
        }


def _attempts(flow: http.HTTPFlow) -> list[dict[str, str]]:
    record = flow_metadata.known(flow).get("record")
    listed = record.get("attempts") if isinstance(record, dict) else None
    return [
        {"backend": str(one.get("backend", ""))[:100], "outcome": str(one.get("outcome", ""))[:100]}
        for one in (listed if isinstance(listed, list) else [])[:50]
        if isinstance(one, dict)
    ]


def _filters(query: Query) -> list[Any]:
    """The conditions on a thread and a call.

    Raises:
        BadRequest: a number or a date is invalid.
    """
    found: list[Any] = []
    if model := query.get("model", "").strip().casefold():
        found.append(lambda _, call: model in str(call["model"] or "").casefold())
    if deployment := query.get("deployment", "").strip().casefold():
        found.append(lambda _, call: deployment in str(call["deployment"] or "").casefold())
    if client := query.get("client", "").strip().casefold():
        found.append(lambda thread, _: client in str(thread["client"]).casefold())
    if status := query.get("status", "").strip():
        found.append(lambda _, call: status == str(call["status"]) or (status[1:] == "xx" and str(call["status"])[:1] == status[0]))
    if repaired := query.get("repaired", ""):
        found.append(lambda _, call: bool(call["repairs"]) == (repaired == "yes"))
    if cost := query.get("cost_over", "").strip():
        least = _number(cost, "cost_over")
        found.append(lambda _, call: (call["cost_usd"] or 0) > least)
    if tokens := query.get("tokens_over", "").strip():
        fewest = _number(tokens, "tokens_over")
        found.append(lambda _, call: (call["input_tokens"] or 0) + (call["output_tokens"] or 0) > fewest)
    if since := query.get("since", "").strip():
        try:
            begin = dt.datetime.fromisoformat(since).astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
        except (ValueError, OverflowError):
            raise BadRequest("since must be a date, such as 2026-11-28T10:00.") from None
        found.append(lambda _, call: call["started"] >= begin)
    return found


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"{name} must be a number.") from None
