"""Flows of conversations for the tests of threads: chats and responses with their answers, as a saved file has them."""

from __future__ import annotations

import itertools
import json
from typing import Any

from mitmproxy import http
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.inspection import flow_metadata

__all__ = ["Json", "assistant", "chat", "failed", "flow", "responses", "stream", "tool_call", "usage", "user", "websocket"]

type Json = dict[str, Any]

START = 1_795_860_000.0  # 2026-11-28T10:00:00Z
_ids = itertools.count(1)


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: Json) -> Json:
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}


def tool_call(id: str, name: str = "look", arguments: str = "{}") -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def flow(
    path: str,
    body: object,
    answer: object,
    *,
    at: float = 0,
    took: float = 1,
    status: int = 200,
    headers: dict[str, str] | None = None,
    metadata: Json | None = None,
) -> http.HTTPFlow:
    """A flow that began `at` seconds after the first one. `answer` None: it still runs. Bytes are used as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = http.Request.make("POST", f"http://proxy{path}", content, http.Headers(content_type="application/json"))
    request.headers.update(headers or {})
    made = tflow.tflow(req=request)
    made.id = f"flow-{next(_ids):06}"
    made.server_conn.timestamp_start = None
    request.timestamp_start = request.timestamp_end = START + at
    if answer is not None:
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        kind = "text/event-stream" if text.startswith((b"data:", b"event:")) else "application/json"
        made.response = http.Response.make(status, text, {"content-type": kind})
        made.response.timestamp_start = START + at + took / 2
        made.response.timestamp_end = START + at + took
    made.metadata = {f"{flow_metadata.PREFIX}{name}": value for name, value in (metadata or {}).items()}
    return made


def usage(read: int | None, cached: int = 0, written: int = 5) -> Json:
    if read is None:
        return {}
    details = {"cached_tokens": cached}
    return {"usage": {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": details}}


def chat(
    messages: object, answer: Json | None = None, *, model: str = "gpt-4o", read: int | None = 10, cached: int = 0, **more: Any
) -> http.HTTPFlow:
    """A chat with its answer (a message). Other keywords are those of `flow`, or members of the request in `extra`."""
    extra = more.pop("extra", {})
    message = answer if answer is not None else assistant("fine")
    body = {"id": f"chatcmpl-{next(_ids)}", "model": f"{model}-2024-11-20", "choices": [{"index": 0, "message": message}]}
    running = more.pop("running", False)
    return flow(
        more.pop("path", "/v1/chat/completions"),
        {"model": model, "messages": messages, **extra},
        None if running else more.pop("body", {**body, **usage(read, cached)}),
        **more,
    )


def responses(given: object, output: list[Json], *, id: str = "", read: int | None = 10, cached: int = 0, **more: Any) -> http.HTTPFlow:
    """A request of the Responses API with its output items."""
    extra = more.pop("extra", {})
    body: Json = {"id": id or f"resp_{next(_ids)}", "object": "response", "model": "gpt-4o", "status": "completed", "output": output}
    if read is not None:
        body["usage"] = {"input_tokens": read, "output_tokens": 5, "input_tokens_details": {"cached_tokens": cached}}
    return flow(
        more.pop("path", "/v1/responses"),
        {"model": "gpt-4o", "input": given, **extra},
        more.pop("body", body),
        **more,
    )


def failed(messages: object, status: int = 429, **more: Any) -> http.HTTPFlow:
    """A chat that the upstream refused."""
    return chat(messages, status=status, body={"error": {"code": str(status), "message": "no"}}, **more)


def stream(*events: object, done: bool = True) -> bytes:
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def websocket(*turns: tuple[object, str]) -> http.HTTPFlow:
    """A WebSocket of the Responses API: what each response was asked, and its answer. It is open."""
    made = tflow.twebsocketflow()
    made.request.path = "/v1/responses"
    assert made.websocket
    made.websocket.timestamp_end, made.websocket.messages = None, []
    for number, (given, text) in enumerate(turns):
        id = f"resp_socket_{number}"
        item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
        events: list[Json] = [
            {"type": "response.create", "model": "gpt-4o", "input": given},
            {"type": "response.created", "response": {"id": id}},
            {"type": "response.completed", "response": {"id": id, "output": [item], "usage": {"input_tokens": 10, "output_tokens": 5}}},
        ]
        made.websocket.messages += [
            WebSocketMessage(Opcode.TEXT, place == 0, json.dumps(event).encode(), START + 10 * number + place)
            for place, event in enumerate(events)
        ]
    return made
