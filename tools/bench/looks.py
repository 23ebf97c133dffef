"""The time that each content view of the addon needs for a body of 20 MB, called as in mitmweb."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from .targets import ROOT

sys.path.insert(0, str(ROOT / "addon"))

from mitmproxy import contentviews, http
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.inspection import contentviews as contentviews_module
from azure_openai_proxy.inspection import flow_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .session import Row

__all__ = ["BOUND", "rows"]

BOUND = 1.0
"""Seconds that a view may take."""
SIZE = 20 << 20
TURNS = 3
_FILTER = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}
_WORDS = "A sentence of a long talk, which somebody reads.\n"


def rows(size: int = SIZE) -> list[Row]:
    with taddons.context() as context:
        contentviews_module.register(context.options)
        return [row for name, flow, message in _flows(size) for row in _looks(name, flow, message)]


def _looks(name: str, flow: http.HTTPFlow, message: http.Message) -> Iterator[Row]:
    ours = (
        contentviews_module.VIEWS[:1] + contentviews_module.VIEWS[2:3]
        if message is flow.request
        else contentviews_module.VIEWS[1:2] + contentviews_module.VIEWS[3:]
    )
    for view in ours:
        times = []
        for _ in range(TURNS):
            begun = time.perf_counter()
            shown = contentviews.prettify_message(message, flow, view.name)
            times.append(time.perf_counter() - begun)
        assert shown.view_name == view.name, f"{view.name} of {name}: {shown.description}"
        took = statistics.median(times)
        size = len(message.raw_content or b"") / (1 << 20)
        yield {"a large body": name, "MB": size, "view": view.name, "seconds": took, "bound": BOUND, "characters shown": len(shown.text)}


def _flows(size: int) -> Iterator[tuple[str, http.HTTPFlow, http.Message]]:
    said = [{"role": "user", "content": _WORDS * 20}] * (size // (len(_WORDS) * 20 + 40))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}}
    requests = {"request: a long talk": said, "request: an image": [{"role": "user", "content": [{"type": "text", "text": "?"}, image]}]}
    for name, messages in requests.items():
        flow = _flow(json.dumps({"model": "gpt-4o", "messages": messages}).encode(), b"{}", "application/json")
        yield name, flow, flow.request
    message = {"role": "assistant", "content": _WORDS * (size // len(_WORDS))}
    whole = _chunk({"message": message, "finish_reason": "stop"}) | {"usage": {"prompt_tokens": 9, "completion_tokens": 10}}
    numbers = [0.0123456789] * 1536
    vectors = {"object": "list", "data": [{"index": 0, "embedding": numbers}] * (size // len(json.dumps(numbers))), "model": "m"}
    event = b"data: " + json.dumps(_chunk({"delta": {"content": "word "}})).encode() + b"\n\n"
    answers = {
        "answer: a stream": (event * (size // len(event)) + b"data: [DONE]\n\n", "text/event-stream"),
        "answer: a long text": (json.dumps(whole).encode(), "application/json"),
        "answer: embeddings": (json.dumps(vectors).encode(), "application/json"),
    }
    for name, (body, kind) in answers.items():
        flow = _flow(b"{}", body, kind)
        assert flow.response
        yield name, flow, flow.response


def _chunk(choice: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "content_filter_results": _FILTER, **choice}], "id": "c", "model": "gpt-4o", "object": "chat"}


def _flow(asked: bytes, answered: bytes, kind: str) -> http.HTTPFlow:
    """A flow with the addon's metadata: both bodies, and the times of 100,000 chunks."""
    headers = http.Headers(content_type="application/json")
    flow = tflow.tflow(req=http.Request.make("POST", "https://r.openai.azure.com/openai/x", asked, headers), resp=True)
    flow.response = http.Response.make(200, answered, {"content-type": kind})
    flow.metadata = {
        f"{flow_metadata.PREFIX}operation": "POST /v1/chat/completions",
        f"{flow_metadata.PREFIX}asked": flow_metadata.pack_head("POST", "/v1/chat/completions", headers.fields),
        f"{flow_metadata.PREFIX}answered": ["200 OK", [["content-type", kind]]],
        f"{flow_metadata.PREFIX}chunks": [value for number in range(100_000) for value in (number / 1e3, 200)],
        f"{flow_metadata.PREFIX}azures": answered,
    }
    return flow
