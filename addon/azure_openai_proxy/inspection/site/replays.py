"""Replay of a call with changes: its request as fields that a person edits, the new flow, and its answer while it arrives."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from mitmproxy import ctx, hooks, http
from mitmproxy.addons.clientplayback import ReplayHandler

from azure_openai_proxy.formats import compression
from azure_openai_proxy.inspection import flow_metadata, request_replay
from azure_openai_proxy.inspection import text as readable_text
from azure_openai_proxy.inspection.body_store import Tap
from azure_openai_proxy.inspection.threads import blocks, bodies

from .server import BadRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from azure_openai_proxy.config.settings import Settings

    from .index import Index

__all__ = ["Replays", "fields"]

NO_KEY = "A replay needs an endpoint with a key (`azure_openai_endpoint`, `azure_openai_token`): flows contain no keys."
LONGEST_ANSWER = 200_000
"""Characters of an answer that are shown while it arrives."""
GLANCE = 0.1
"""Seconds between two looks at an answer that arrives."""
_MESSAGES = ("messages", "input", "prompt")


def fields(flow: http.HTTPFlow) -> dict[str, Any]:
    """The request of a flow as fields: messages, tools, and the other parameters.

    Raises:
        BadRequest: the request is not JSON.
    """
    value = _request(flow)
    name = _name(value)
    items = value.get(name)
    if not isinstance(items, list):
        items = [] if items is None else [items]
    listed = [_field(item) for item in items]
    if isinstance(value.get("instructions"), str):
        listed.insert(0, {"label": "instructions", "text": value["instructions"]})
    tools: Any = next((value[key] for key in ("tools", "functions") if value.get(key)), [])
    rest = {key: one for key, one in value.items() if key not in (*_MESSAGES, "tools", "functions", "model", "instructions")}
    known = flow_metadata.known(flow)
    return {
        "model": known.get("model") or value.get("model"),
        "deployment": known.get("deployment"),
        "items": listed,
        "tools": tools,
        "parameters": rest,
    }


def _request(flow: http.HTTPFlow) -> dict[str, Any]:
    try:
        value = readable_text.load(compression.content_or_nothing(flow.request))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadRequest("The request is not JSON, or it was not stored, so that it cannot be edited.")
    return value


def _name(value: dict[str, Any]) -> str:
    return next((name for name in _MESSAGES if name in value), "messages")


def _field(item: Any) -> dict[str, Any]:
    """A text if the item is a message of text only, else its JSON."""
    if isinstance(item, str):
        return {"label": "text", "text": item}
    if isinstance(item, dict):
        label = str(item.get("role") or item.get("type") or "item")
        if isinstance(item.get("content"), str) and not item.get("tool_calls"):
            return {"label": label, "text": item["content"]}
        return {"label": label, "json": json.dumps(item, ensure_ascii=False, indent=2)}
    return {"label": "item", "json": json.dumps(item, ensure_ascii=False)}


def edited(flow: http.HTTPFlow, change: dict[str, Any]) -> bytes:
    """The body with a person's changes.

    Raises:
        BadRequest: the changes do not have the form of `fields`.
    """
    value = _request(flow)
    name = _name(value)
    given, tools, rest = change.get("items"), change.get("tools"), change.get("parameters")
    if not (isinstance(given, list) and isinstance(tools, list) and isinstance(rest, dict)):
        raise BadRequest("items and tools must be lists, and parameters an object.")
    if not all(isinstance(item, dict) for item in given):
        raise BadRequest("Each item must be an object with text or json.")
    whole = value.get(name)
    olds = [] if whole is None else whole if isinstance(whole, list) else [whole]
    if isinstance(value.get("instructions"), str) and given:
        value["instructions"] = given[0].get("text", "")
        given = given[1:]
    items = [_item(olds[index] if index < len(olds) else None, one) for index, one in enumerate(given)]
    result = {key: one for key, one in value.items() if key in (*_MESSAGES, "model", "instructions")}
    if items or whole is not None:
        result[name] = items[0] if isinstance(whole, str) and len(items) == 1 else items
    if tools:
        result["functions" if value.get("functions") else "tools"] = tools
    return json.dumps({**result, **rest}, ensure_ascii=False).encode("utf-8", "replace")


def _item(old: Any, new: dict[str, Any]) -> Any:
    if "json" in new:
        return new["json"]
    return {**old, "content": new.get("text", "")} if isinstance(old, dict) else new.get("text", "")


class Replays:
    def __init__(self, index: Index, settings: Callable[[], Settings]) -> None:
        self._index, self._settings = index, settings
        self._running: dict[str, asyncio.Task[None]] = {}

    def missing(self) -> str:
        """Why nothing can be sent; "" if it can."""
        return "" if any(backend.token or backend.entra for backend in self._settings().backends) else NO_KEY

    def start(self, flow: http.HTTPFlow, change: dict[str, Any]) -> http.HTTPFlow:
        """Send a copy of the request with changes. The copy is in mitmweb's list.

        Raises:
            BadRequest: the flow cannot be sent again, or the changes are invalid.
        """
        deployed = flow.metadata.get(f"{flow_metadata.PREFIX}deployment")
        if not isinstance(deployed, str) or flow.request.raw_content is None or flow.websocket or flow.live:
            raise BadRequest("Only a complete request that was sent to a deployment can be replayed.")
        if missing := self.missing():
            raise BadRequest(missing)
        body = edited(flow, change)
        deployment, model = change.get("deployment"), change.get("model")
        if not deployment and isinstance(model, str) and model:
            deployment = self._settings().mapper.deployment(model)
        copy: http.HTTPFlow = flow.copy()
        copy.response = copy.error = None
        copy.is_replay, copy.comment, copy.marked = "request", "", ""
        copy.server_conn.via = None  # a file's proxy must not receive the request
        copy.metadata = {f"{flow_metadata.PREFIX}deployment": deployed}
        if isinstance(deployment, str) and deployment:
            copy.metadata[request_replay.RESEND] = deployment
        copy.request.headers.pop("content-encoding", None)
        copy.request.content = body
        self._index.view.add([copy])
        task = asyncio.create_task(self._send(copy))
        self._running[copy.id] = task
        task.add_done_callback(lambda _: self._running.pop(copy.id, None))
        return copy

    async def _send(self, copy: http.HTTPFlow) -> None:
        await ReplayHandler(copy, ctx.options).replay()
        ctx.master.addons.trigger(hooks.UpdateHook([copy]))

    async def answer(self, flow: http.HTTPFlow) -> AsyncGenerator[dict[str, Any]]:
        """The text of an answer each time it has become longer."""
        shown = None
        while True:
            done = flow.id not in self._running
            text = so_far(flow)[:LONGEST_ANSWER]
            if done or text != shown:
                shown = text
                yield {"text": text, "done": done}
            if done:
                return
            await asyncio.sleep(GLANCE)


def so_far(flow: http.HTTPFlow) -> str:
    """The text of the answer of a flow, of which a stream may still run."""
    response = flow.response
    if response is None:
        return ""
    if isinstance(response.stream, Tap) and (received := response.stream.bodies()):
        partial = flow.copy()
        assert partial.response
        partial.response.stream = False
        partial.response.headers.pop("content-encoding", None)
        partial.response.data.content = received[1]
        return _text(partial)
    return _text(flow)


def _text(flow: http.HTTPFlow) -> str:
    output = blocks.of_items(bodies.answer(flow).output)
    return "\n\n".join(f"{block.name}({block.text})" if block.kind == "tool_call" else block.text for block in output)
