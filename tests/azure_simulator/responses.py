"""The Responses API: POST responses and its related operations, as JSON and as typed events."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from . import errors, filters, kinds, texts, usage
from .answers import Answer, json_answer, typed_answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .calls import Call
    from .made_items import MadeItems
    from .models import Model
    from .scripts import ToolCall

__all__ = ["cancel", "compact", "create", "delete", "input_items", "input_tokens", "reasoned", "retrieve"]

type Json = dict[str, Any]

BACKGROUND = "resp_background"
"""How the id of a response in the background begins: at its first GET it is completed."""

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
    call.made.check(asked)
    reasons = model.reasoning and _encrypts(asked)
    id_ = call.made.id("resp") if reasons else f"resp_{uuid.uuid4().hex}"
    if asked.get("background"):
        return json_answer(_response(f"{BACKGROUND}{uuid.uuid4().hex}", call, model, None, "queued"))
    if (reply := call.scripted) is not None and reply.tools:
        items = [_function_call(one, place) for place, one in enumerate(reply.tools)]
        if asked.get("stream"):
            return typed_answer(_tool_events(id_, call, model, items))
        return json_answer(_calling(id_, call, model, items))
    content = texts.tokens(reply.text if reply else f"You said: {_said(asked.get('input'))}")
    before = reasoned(asked, call.made) if reasons else []
    if asked.get("stream"):
        return typed_answer(_events(id_, call, model, content, before))
    message = _message("".join(content), id_=call.made.id("msg") if reasons else "msg_1")
    return json_answer(_response(id_, call, model, message, before=before))


def _encrypts(asked: Mapping[str, Any]) -> bool:
    return "reasoning.encrypted_content" in (asked.get("include") or [])


def reasoned(asked: Mapping[str, Any], made: MadeItems) -> list[Json]:
    """The items before the message: encrypted reasoning, if it is asked for, and a call of the first tool."""
    if not _encrypts(asked):
        return []
    items: list[Json] = [{"encrypted_content": made.encrypted(), "id": made.id("rs"), "summary": [], "type": "reasoning"}]
    name = next((tool["name"] for tool in asked.get("tools") or [] if tool.get("type") == "function"), None)
    if name is not None:
        call_id = made.id("call")
        items.append(
            {"arguments": "{}", "call_id": call_id, "id": made.id("fc"), "name": name, "status": "completed", "type": "function_call"}
        )
    return items


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
    used = usage.responses(call.asked, 1)
    return json_answer({"created_at": kinds.NOW, "id": "resp_1", "object": "response.compaction", "output": [item], "usage": used})


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


def _message(text: str, status: str = "completed", id_: str = "msg_1") -> Json:
    content = [_part(text)] if status == "completed" else []
    return {"content": content, "id": id_, "role": "assistant", "status": status, "type": "message"}


def _function_call(tool: ToolCall, place: int) -> Json:
    return {
        "arguments": tool.arguments,
        "call_id": tool.id,
        "id": f"fc_{place}",
        "name": tool.name,
        "status": "completed",
        "type": "function_call",
    }


def _calling(id_: str, call: Call, model: Model, items: list[Json]) -> Json:
    """A completed response with tool calls."""
    used = usage.responses(call.asked, texts.count([item["arguments"] for item in items]))
    return {**_response(id_, call, model, _message("")), "output": items, "usage": used}


def _tool_events(id_: str, call: Call, model: Model, items: list[Json]) -> Iterator[Json]:
    started = _response(id_, call, model, None, "in_progress")
    events: list[Json] = [{"response": started, "type": "response.created"}, {"response": started, "type": "response.in_progress"}]
    for place, item in enumerate(items):
        where = {"item_id": item["id"], "output_index": place}
        events += [
            {"item": {**item, "arguments": "", "status": "in_progress"}, "output_index": place, "type": "response.output_item.added"},
            {**where, "delta": item["arguments"], "type": "response.function_call_arguments.delta"},
            {**where, "arguments": item["arguments"], "name": item["name"], "type": "response.function_call_arguments.done"},
            {"item": item, "output_index": place, "type": "response.output_item.done"},
        ]
    events.append({"response": _calling(id_, call, model, items), "type": "response.completed"})
    for number, event in enumerate(events):
        yield {"type": event["type"], "sequence_number": number, **event}


def _part(text: str) -> Json:
    return {"annotations": [], "logprobs": [], "text": text, "type": "output_text"}


def _response(id_: str, call: Call, model: Model, message: Json | None, status: str = "completed", before: Sequence[Json] = ()) -> Json:
    asked, done = call.asked, message is not None
    text = message["content"][0]["text"] if message else ""
    return {
        "background": bool(asked.get("background")) or id_.startswith(BACKGROUND),
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
        "output": [*before, message] if message else [],
        "parallel_tool_calls": True,
        "previous_response_id": asked.get("previous_response_id"),
        "reasoning": {"effort": (asked.get("reasoning") or {}).get("effort"), "summary": None},
        "service_tier": "default",
        "status": status,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": asked.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage.responses(asked, texts.count(text)) if done else None,
        "user": asked.get("user"),
    }


def _events(id_: str, call: Call, model: Model, content: list[str], before: Sequence[Json] = ()) -> Iterator[Json]:
    """Every event with its number; the filter's verdicts stand in the response that the first two and the last one hold."""
    text = "".join(content)
    message_id, index = call.made.id("msg") if before else "msg_1", len(before)
    place = {"content_index": 0, "item_id": message_id, "output_index": index}
    message = _message(text, id_=message_id)
    started = _response(id_, call, model, None, "in_progress")
    events: list[Json] = [
        {"response": started, "type": "response.created"},
        {"response": started, "type": "response.in_progress"},
        *({"item": item, "output_index": at, "type": "response.output_item.done"} for at, item in enumerate(before)),
        {"item": _message("", "in_progress", message_id), "output_index": index, "type": "response.output_item.added"},
        {**place, "part": _part(""), "type": "response.content_part.added"},
        *({**place, "delta": token, "logprobs": [], "type": "response.output_text.delta"} for token in content),
        {**place, "logprobs": [], "text": text, "type": "response.output_text.done"},
        {**place, "part": _part(text), "type": "response.content_part.done"},
        {"item": message, "output_index": index, "type": "response.output_item.done"},
        {"response": _response(id_, call, model, message, before=before), "type": "response.completed"},
    ]
    for number, event in enumerate(events):
        yield {"type": event["type"], "sequence_number": number, **event}
