"""The responses of a WebSocket of the Responses API, each as a flow with a request and a response, as HTTP would have it.

A client sends `response.create` with the members of a request, one at a time. The upstream answers with the events of a stream. mitmproxy
appends messages, and the proxy drops the oldest ones, so messages are read once and not kept alive.
"""

from __future__ import annotations

import json
import threading
import weakref
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mitmproxy import flow as flows
from mitmproxy import http

from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection import text as readable_text

if TYPE_CHECKING:
    from mitmproxy.websocket import WebSocketMessage

__all__ = ["Socket", "is_responses", "size", "stamp"]

MOST = 10_000
"""Responses of one WebSocket that are read."""
MOST_RUNNING = 64
"""Responses that have not ended. Each has all events until its end, so more of them would take memory with their square."""
_CREATE = b'"response.create"'
_ENDS = ("response.completed", "response.failed", "response.incomplete", "response.cancelled", "response.done")
_NAMES = (b'"response.created"', b'"error"', *(f'"{name}"'.encode() for name in _ENDS))
_NOT_OF_HTTP = ("connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol")

type Json = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Part:
    """One response. Messages that were dropped since are missing."""

    id: str
    create: weakref.ref[WebSocketMessage]
    began: float
    first: float | None = None  # `response.created`
    end: weakref.ref[WebSocketMessage] | None = None
    ended: float | None = None
    cut: bool = False  # the WebSocket was closed before its end


class Socket:
    """The responses of one WebSocket so far."""

    def __init__(self, flow: http.HTTPFlow) -> None:
        self.flow = weakref.ref(flow)
        self._parts: dict[str, _Part] = {}
        self._last: weakref.ref[WebSocketMessage] | None = None
        self._running: list[_Part] = []  # in the order of their requests
        self._metadata: Json = {}
        self._lock = threading.Lock()  # a page that was closed may have left a reading in another thread
        self.changed: dict[str, None] = {}
        """The ids of the responses that have begun or changed since they were removed from here."""

    @property
    def ids(self) -> list[str]:
        return list(self._parts)

    def read(self, flow: http.HTTPFlow) -> list[str]:
        """Read new messages. Return the ids of the responses that have changed."""
        with self._lock:
            for message in self._new(flow):
                if message.is_text and (part := self._read(flow, message)):
                    self.changed[part.id] = None
            if flow.websocket and flow.websocket.timestamp_end is not None:
                for part in self._running:
                    part.cut, part.ended = True, flow.websocket.timestamp_end
                    self.changed[part.id] = None
                self._running = []
            if self._metadata != (known := _metadata(flow)):  # the client is known when the WebSocket ends
                self._metadata = known
                self.changed |= dict.fromkeys(self._parts)
            return list(self.changed)

    def _new(self, flow: http.HTTPFlow) -> list[WebSocketMessage]:
        """The messages since the last reading. If the last one was dropped, so were all before it."""
        messages = flow.websocket.messages if flow.websocket else []
        last = self._last() if self._last else None
        place = next((place for place in range(len(messages) - 1, -1, -1) if messages[place] is last), -1)
        if messages:
            self._last = weakref.ref(messages[-1])
        return messages[place + 1 :]

    def _read(self, flow: http.HTTPFlow, message: WebSocketMessage) -> _Part | None:
        content = message.content
        if message.from_client:
            if (
                _CREATE in content
                and len(self._parts) < MOST
                and len(self._running) < MOST_RUNNING
                and _event(content).get("type") == "response.create"
            ):
                part = _Part(f"{flow.id}.{len(self._parts) + 1}", weakref.ref(message), message.timestamp)
                self._parts[part.id] = part
                self._running.append(part)
                return part
            return None
        if not self._running or not any(name in content for name in _NAMES):
            return None
        kind = _event(content).get("type")
        part = self._running[0]
        if kind == "response.created":
            part.first = message.timestamp
        elif kind in _ENDS or kind == "error":
            part.end, part.ended = weakref.ref(message), message.timestamp
            return self._running.pop(0)
        return None

    def part(self, id: str) -> http.HTTPFlow | None:
        """One response as a flow; None if it is not known. A message that was dropped counts as empty."""
        part, flow = self._parts.get(id), self.flow()
        if part is None or flow is None:
            return None
        made = http.HTTPFlow(flow.client_conn, flow.server_conn, live=False)
        made.id, made.metadata = id, _metadata(flow)
        request = flow.request.copy()
        request.method = "POST"
        for name in _NOT_OF_HTTP:
            request.headers.pop(name, None)
        request.headers["content-type"] = "application/json"
        create = part.create()
        request.data.content = json.dumps(_request(create.content)).encode() if create else b""
        request.timestamp_start = request.timestamp_end = part.began
        made.request = request
        if part.ended is None:
            return made
        end = part.end() if part.end else None
        status, kind, body = self._response(flow, part, end)
        made.response = http.Response.make(status, body, {"content-type": kind})
        made.response.timestamp_start = part.ended if part.first is None else part.first
        made.response.timestamp_end = part.ended
        if part.cut:
            made.error = flows.Error("the WebSocket was closed", part.ended)
        return made

    def _response(self, flow: http.HTTPFlow, part: _Part, end: WebSocketMessage | None) -> tuple[int, str, bytes]:
        """Status, type and body: of an error, of the whole response, or of the events as far as they are stored."""
        event = _event(end.content) if end else {}
        if event.get("type") == "error":
            status = event.get("status")
            return status if type(status) is int and 400 <= status < 600 else 500, "application/json", json.dumps(event).encode()
        response = event.get("response")
        if isinstance(response, dict) and response.get("output"):
            return 200, "application/json", json.dumps(response).encode()
        messages = flow.websocket.messages if flow.websocket else []
        begin, stop = bisect_left(messages, part.began, key=_time), bisect_right(messages, part.ended or 0, key=_time)
        events = [one.content for one in messages[begin:stop] if not one.from_client and one.is_text and b"\n" not in one.content]
        return 200, "text/event-stream", b"".join(b"data: " + one + b"\n\n" for one in events)


def is_responses(flow: http.HTTPFlow) -> bool:
    """Whether a flow is a WebSocket of the Responses API."""
    if flow.websocket is None:
        return False
    known = flow.metadata.get(f"{flow_metadata.PREFIX}operation")
    path = known.partition(" ")[2] if isinstance(known, str) else flow.request.path
    return path.partition("?")[0].rstrip("/").endswith("/responses")


def size(flow: http.HTTPFlow) -> int:
    """Bytes of all messages."""
    return sum(len(message.content) for message in flow.websocket.messages) if flow.websocket else 0


def stamp(flow: http.HTTPFlow) -> object:
    """A value that differs if there are other messages."""
    if flow.websocket is None:
        return None
    messages = flow.websocket.messages
    return len(messages), messages[-1].timestamp if messages else None, flow.websocket.timestamp_end


def _time(message: WebSocketMessage) -> float:
    return message.timestamp


def _event(content: bytes) -> Json:
    try:
        value = readable_text.load(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _request(content: bytes) -> Json:
    """The members of a request in `response.create`, beside its type or in `response`."""
    event = _event(content)
    inner = event.get("response")
    return inner if isinstance(inner, dict) else {name: value for name, value in event.items() if name not in ("type", "event_id")}


def _metadata(flow: http.HTTPFlow) -> Json:
    """What the proxy knows about all responses of the WebSocket. Its tokens are those of all of them."""
    prefix = flow_metadata.PREFIX
    known = flow_metadata.known(flow)
    record = known["record"] if isinstance(known.get("record"), dict) else {}
    found: Json = {f"{prefix}operation": "POST /v1/responses"} if flow_metadata.is_ours(flow) else {}
    found |= {prefix + name: known[name] for name in ("backend", "asked") if name in known}
    kept = {name: record[name] for name in ("client", "session", "zone", "deployment") if name in record}
    return {**found, f"{prefix}record": {"deployment": known.get("deployment"), **kept}}
