"""The request and the response of a chat or of the Responses API as values, whether JSON or streamed.

Bodies are untrusted and may be truncated, large or invalid. All functions accept any bytes; an unreadable part is absent.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.formats import compression, sse
from azure_openai_proxy.inspection import flow_metadata, response_text
from azure_openai_proxy.inspection import text as readable_text

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.inspection.flow_metadata import SavedExchange

__all__ = ["Answer", "answer", "client_request", "items"]

MOST_ITEMS = 20_000
"""Items of a request or a response. Further ones are not read."""
MOST_PARTS = 10_000
"""Tool calls, or output items, of one stream."""

type Json = dict[str, Any]


class Answer:
    """A response. `output` has messages of a chat or items of a response; a value of another API has none."""

    __slots__ = ("complete", "error", "finish", "id", "latency", "model", "output", "tier", "usage")

    def __init__(self) -> None:
        self.output: list[Json] = []
        self.usage: Json | None = None
        self.latency: Json | None = None
        self.model: str | None = None
        self.id: str | None = None
        self.tier: str | None = None
        self.finish: str | None = None
        self.error: Any = None
        self.complete = False

    def take(self, value: Json) -> None:
        """Take the members that a whole response and a chunk have in common."""
        for name, attribute in (("model", "model"), ("id", "id"), ("service_tier", "tier")):
            if isinstance(value.get(name), str) and value[name]:
                setattr(self, attribute, value[name])
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        if isinstance(value.get("latency_checkpoint"), dict):
            self.latency = value["latency_checkpoint"]
        if value.get("error"):
            self.error = value["error"]


def client_body(flow: http.HTTPFlow, saved: SavedExchange) -> bytes:
    """The body as the client sent it, after content decoding."""
    content = compression.content_or_nothing(flow.request)
    return saved.client_request.body(content) if saved.client_request else content


def client_request(flow: http.HTTPFlow, saved: SavedExchange) -> Json:
    """The client's JSON request; {} if it is none or is not parsed."""
    try:
        value = _load(client_body(flow, saved))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _load(body: bytes) -> Any:
    """Parse JSON. Bytes that are not UTF-8 are replaced.

    Raises:
        ValueError: see `readable_text.load`.
    """
    try:
        return readable_text.load(body)
    except UnicodeDecodeError:
        return readable_text.load(body.decode("utf-8", "replace").encode())


def items(request: Json) -> list[Any]:
    """The messages of a chat or the input items of a response, as the request has them. A string counts as one item of the user."""
    value = request.get("messages", request.get("input"))
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return value[:MOST_ITEMS] if isinstance(value, list) else []


def answer(flow: http.HTTPFlow, saved: SavedExchange = flow_metadata.NOTHING) -> Answer:
    """The response as the client received it, with the usage that the proxy may have removed from it."""
    found = Answer()
    response = flow.response
    if response is None:
        return found
    kind = response.headers.get("content-type", "")
    _read(compression.content_or_nothing(response), kind, found)
    if saved.azure_body is not None and (found.usage is None or found.latency is None):
        in_azure_body = Answer()
        _read(saved.azure_body, kind, in_azure_body)
        found.usage = found.usage or in_azure_body.usage
        found.latency = found.latency or in_azure_body.latency
        found.output = found.output or in_azure_body.output
    return found


def _read(body: bytes, content_type: str, into: Answer) -> None:
    if response_text.is_stream(body, content_type):
        _read_stream(body, into)
        return
    try:
        value = _load(body)
    except ValueError:
        return
    if isinstance(value, dict):
        _read_document(value, into)


def _read_document(value: Json, into: Answer) -> None:
    into.take(value)
    into.complete = True
    choices = readable_text.dicts(value.get("choices"))
    for choice in choices[:MOST_ITEMS]:
        if isinstance(choice.get("message"), dict):
            into.output.append({"role": "assistant", **choice["message"]})
        if isinstance(choice.get("finish_reason"), str):
            into.finish = choice["finish_reason"]
    if isinstance(value.get("output"), list):
        into.output += readable_text.dicts(value["output"][:MOST_ITEMS])
        into.finish = value["status"] if isinstance(value.get("status"), str) else None


class _Stream:
    """The output of a stream so far."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, str], list[str]] = {}  # by choice and member
        self.calls: dict[tuple[str, str], Json] = {}  # tool calls of a chat, by choice and index
        self.items: dict[str, Json] = {}  # of a response
        self.deltas: dict[tuple[str, str], list[str]] = {}  # by item and member


def _read_stream(body: bytes, into: Answer) -> None:
    first, last = response_text.READ_FIRST, response_text.READ_LAST
    pieces = [body] if len(body) <= first + last else [body[:first], b"\n\n", body[-last:]]
    decoder, stream = sse.Decoder(), _Stream()
    for event in itertools.chain(*map(decoder.feed, pieces), decoder.flush()):
        if event.data is None:
            continue
        if event.data.strip() == b"[DONE]":
            into.complete = True
            continue
        try:
            value = _load(event.data)
        except ValueError:
            continue
        if isinstance(value, dict):
            _read_event(value, stream, into)
    if not into.output:
        into.output = _put_together(stream)


def _read_event(value: Json, stream: _Stream, into: Answer) -> None:
    kind = value.get("type")
    if "choices" in value:
        into.take(value)
        for choice in readable_text.dicts(value["choices"]):
            _read_choice(choice, stream, into)
    elif isinstance(kind, str):
        response = value.get("response")
        if isinstance(response, dict):
            into.take(response)
            if kind in ("response.completed", "response.incomplete", "response.failed"):
                _read_document(response, into)
        elif value.get("error") or kind == "error":
            into.error = value.get("error") or value
        else:
            _read_typed(value, kind, stream)
    elif value.get("error"):
        into.error = value["error"]


def _read_choice(choice: Json, stream: _Stream, into: Answer) -> None:
    at = str(choice.get("index") or 0)
    if isinstance(choice.get("finish_reason"), str):
        into.finish = choice["finish_reason"]
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return
    for name in ("reasoning_content", "reasoning", "content", "refusal"):
        if isinstance(delta.get(name), str) and len(stream.texts) < MOST_PARTS:
            stream.texts.setdefault((at, name), []).append(delta[name])
    for call in readable_text.dicts(delta.get("tool_calls")):
        key = at, str(call.get("index", 0))
        if key not in stream.calls and len(stream.calls) >= MOST_PARTS:
            return
        known = stream.calls.setdefault(key, {"id": None, "type": "function", "name": "", "arguments": []})
        known["id"] = call.get("id") or known["id"]
        function = call.get("function")
        if isinstance(function, dict):
            known["name"] = function.get("name") or known["name"]
            if isinstance(function.get("arguments"), str):
                known["arguments"].append(function["arguments"])


def _read_typed(value: Json, kind: str, stream: _Stream) -> None:
    item = value.get("item")
    if isinstance(item, dict):
        id = str(item.get("id") or value.get("output_index"))
        if id in stream.items or len(stream.items) < MOST_PARTS:
            stream.items[id] = item
    elif kind.endswith(".delta") and isinstance(value.get("delta"), str):
        id = str(value.get("item_id") or value.get("output_index"))
        if len(stream.deltas) < MOST_PARTS:
            stream.deltas.setdefault((id, kind.removeprefix("response.").removesuffix(".delta")), []).append(value["delta"])


def _put_together(stream: _Stream) -> list[Json]:
    """The output of a chat, or of a response whose last event is missing."""
    choices: dict[str, Json] = {}
    for (at, name), pieces in stream.texts.items():
        choices.setdefault(at, {"role": "assistant", "content": None})[name] = "".join(pieces)
    for (at, _), call in stream.calls.items():
        function = {"name": call["name"], "arguments": "".join(call["arguments"])}
        message = choices.setdefault(at, {"role": "assistant", "content": None})
        message.setdefault("tool_calls", []).append({"id": call["id"], "type": "function", "function": function})
    output: list[Json] = list(choices.values())
    for id, item in stream.items.items():
        whole = dict(item)
        if text := "".join(stream.deltas.get((id, "output_text"), ())):
            whole["content"] = [{"type": "output_text", "text": text}]
        if arguments := "".join(stream.deltas.get((id, "function_call_arguments"), ())):
            whole["arguments"] = arguments
        output.append(whole)
    return output
