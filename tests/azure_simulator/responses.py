"""The Responses API: POST responses and what belongs to it, as JSON and as typed events."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from . import errors, filters, kinds, texts
from .answers import Answer, json_answer, typed_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .calls import Call
    from .models import Model

__all__ = ["cancel", "compact", "create", "delete", "input_items", "input_tokens", "retrieve"]

type Json = dict[str, Any]


_UNKNOWN_IN_ITEMS = frozenset({"internal_chat_message_metadata_passthrough", "metadata"})
"""Of those that clients are known to send."""


def create(call: Call, model: Model) -> Answer:
    asked = call.asked
    if asked.get("stream_options") is not None and not asked.get("stream"):
        raise errors.invalid(errors.STREAM_OPTIONS, param="stream_options")
    if model.reasoning and asked.get("temperature") not in (None, 1):
        raise errors.unsupported_parameter("temperature", "reasoning")
    if not model.reasoning and "reasoning.encrypted_content" in (asked.get("include") or []):
        raise errors.invalid("Encrypted content is not supported with this model.", param="include")
    given = asked.get("input")
    for index, item in enumerate(given if isinstance(given, list) else []):
        for name in _UNKNOWN_IN_ITEMS & item.keys() if isinstance(item, dict) else ():
            raise errors.unknown_parameter(f"input[{index}].{name}")
    id_ = f"resp_{uuid.uuid4().hex}"
    if asked.get("background"):
        return json_answer(_response(id_, call, model, None, "queued"))
    content = texts.tokens(f"You said: {_said(asked.get('input'))}")
    if asked.get("stream"):
        return typed_answer(_events(id_, call, model, content))
    return json_answer(_response(id_, call, model, _message("".join(content))))


def retrieve(call: Call, model: Model) -> Answer:
    id_, content = call.values["id"], ["hello", " again"]
    if call.received.query.get("stream") == ["true"]:
        return typed_answer(_events(id_, call, model, content))
    return json_answer(_response(id_, call, model, _message("".join(content))))


def cancel(call: Call, model: Model) -> Answer:
    return json_answer(_response(call.values["id"], call, model, None, "cancelled"))


def delete(call: Call, model: Model) -> Answer:
    return json_answer({"deleted": True, "id": call.values["id"], "object": "response.deleted"})


def input_items(call: Call, model: Model) -> Answer:
    data = [{**kinds.ITEM.value, "id": "msg_1"}]
    return json_answer({"data": data, "first_id": "msg_1", "has_more": False, "last_id": "msg_1", "object": "list"})


def input_tokens(call: Call, model: Model) -> Answer:
    return json_answer({"input_tokens": texts.count(call.asked.get("input")), "object": "response.input_tokens"})


def compact(call: Call, model: Model) -> Answer:
    item = {"encrypted_content": "gAAAAA", "id": "cmp_1", "type": "compaction"}
    usage = _usage(texts.count(call.asked.get("input")), 1)
    return json_answer({"created_at": kinds.NOW, "id": "resp_1", "object": "response.compaction", "output": [item], "usage": usage})


def _said(given: Any) -> str:
    return given if isinstance(given, str) else texts.said(given) if isinstance(given, list) else ""


def _filters(source: str, end: int) -> Json:
    """What the filter found, in the shape only this API has."""
    return {
        "blocked": False,
        "content_filter_offsets": {"check_offset": 0, "end_offset": end, "start_offset": 0},
        "content_filter_raw": [],
        "content_filter_results": filters.PROMPT if source == "prompt" else filters.COMPLETION,
        "source_type": source,
    }


def _usage(read: int, written: int) -> Json:
    return {
        "input_tokens": read,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def _message(text: str, status: str = "completed") -> Json:
    content = [_part(text)] if status == "completed" else []
    return {"content": content, "id": "msg_1", "role": "assistant", "status": status, "type": "message"}


def _part(text: str) -> Json:
    return {"annotations": [], "logprobs": [], "text": text, "type": "output_text"}


def _response(id_: str, call: Call, model: Model, message: Json | None, status: str = "completed") -> Json:
    asked, done = call.asked, message is not None
    text = message["content"][0]["text"] if message else ""
    read, written = texts.count(asked.get("input")), texts.count(text)
    return {
        "background": bool(asked.get("background")),
        "content_filters": [_filters("prompt", 0), *([_filters("completion", len(text))] if done else [])],
        "created_at": kinds.NOW,
        "error": None,
        "id": id_,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": asked.get("metadata") or {},
        "model": model.reported or "gpt-4o-2024-11-20",
        "object": "response",
        "output": [message] if message else [],
        "parallel_tool_calls": True,
        "previous_response_id": asked.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "status": status,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": asked.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": _usage(read, written) if done else None,
        "user": asked.get("user"),
    }


def _events(id_: str, call: Call, model: Model, content: list[str]) -> Iterator[Json]:
    """Every event with its number; the filter's verdicts stand in the response that the first two and the last one hold."""
    text = "".join(content)
    place = {"content_index": 0, "item_id": "msg_1", "output_index": 0}
    started = _response(id_, call, model, None, "in_progress")
    events: list[Json] = [
        {"response": started, "type": "response.created"},
        {"response": started, "type": "response.in_progress"},
        {"item": _message("", "in_progress"), "output_index": 0, "type": "response.output_item.added"},
        {**place, "part": _part(""), "type": "response.content_part.added"},
        *({**place, "delta": token, "logprobs": [], "type": "response.output_text.delta"} for token in content),
        {**place, "logprobs": [], "text": text, "type": "response.output_text.done"},
        {**place, "part": _part(text), "type": "response.content_part.done"},
        {"item": _message(text), "output_index": 0, "type": "response.output_item.done"},
        {"response": _response(id_, call, model, _message(text)), "type": "response.completed"},
    ]
    for number, event in enumerate(events):
        yield {"type": event["type"], "sequence_number": number, **event}
