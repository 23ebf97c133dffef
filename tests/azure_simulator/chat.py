"""POST chat/completions."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from . import errors, filters, texts, usage
from .answers import Answer, json_answer, stream_answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .calls import Call
    from .models import Model

__all__ = ["LATENCY", "answer"]

LATENCY = {
    "engine_tbt_ms": 3,
    "engine_ttft_ms": 28,
    "engine_ttlt_ms": 56,
    "pre_inference_ms": 73,
    "service_tbt_ms": 4,
    "service_ttft_ms": 320,
    "service_ttlt_ms": 362,
    "total_duration_ms": 293,
    "user_visible_ttft_ms": 248,
}

type Json = dict[str, Any]


def answer(call: Call, model: Model) -> Answer:
    asked = call.asked
    _check(asked, model)
    if (reply := call.scripted) is not None:
        tools = [{"function": {"arguments": one.arguments, "name": one.name}, "id": one.id, "type": "function"} for one in reply.tools]
        content, finish = texts.tokens(reply.text), "tool_calls" if tools else "stop"
    else:
        tool = _tool(asked)
        tools = [tool] if tool else []
        content, finish = ([], _tool_finish(asked)) if tool else _content(asked)
    n = asked.get("n") or 1
    used = usage.chat(asked, n * (len(content) + sum(map(texts.count, tools))))
    head = {"created": int(time.time()), "id": f"chatcmpl-{uuid.uuid4().hex[:29]}", "model": model.reported}
    if asked.get("stream"):
        deltas = list(_tool_deltas(tools) if tools else _text_deltas(content))
        wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        return stream_answer(_chunks(model, head, deltas, finish=finish, n=n, used=used if wants_usage else None))
    message: Json = {"annotations": [], "content": "".join(content) if not tools else None, "refusal": None, "role": "assistant"}
    if tools:
        message["tool_calls"] = tools
    choices = [
        {
            "content_filter_results": filters.COMPLETION if not tools else {},
            "finish_reason": finish,
            "index": index,
            "logprobs": None,
            "message": message,
        }
        for index in range(n)
    ]
    return json_answer(
        {
            "choices": choices,
            **head,
            "object": "chat.completion",
            "prompt_filter_results": filters.prompt_results(),
            **({"service_tier": "default"} if model.reasoning else {}),
            "system_fingerprint": _fingerprint(model),
            "usage": used,
        }
    )


def _check(asked: Mapping[str, Any], model: Model) -> None:
    for index, message in enumerate(asked["messages"]):
        if not isinstance(message, dict):
            raise errors.invalid(f"{message!r} is not of type 'object' - 'messages.{index}'")
        if "role" not in message:
            raise errors.invalid(f"'role' is a required property - 'messages.{index}'")
    if asked.get("stream_options") is not None and not asked.get("stream"):
        raise errors.invalid(errors.STREAM_OPTIONS, param="stream_options")
    if asked.get("data_sources") and asked.get("stream_options") is not None:
        raise errors.invalid("Validation error at #/stream_options: Extra inputs are not permitted")
    if asked.get("tool_choice") is not None and not asked.get("tools"):
        raise errors.invalid("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if model.reasoning:
        if asked.get("max_tokens") is not None:
            raise errors.unsupported_parameter("max_tokens", "max_completion_tokens")
        if asked.get("temperature") not in (None, 1):
            raise errors.unsupported_value("temperature", asked["temperature"], 1)


def _content(asked: Mapping[str, Any]) -> tuple[list[str], str]:
    """The answer's tokens, and why they end."""
    text = texts.said(asked["messages"])
    if (asked.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        content = texts.tokens(json.dumps({"you_said": text}, ensure_ascii=False))
    else:
        content = texts.tokens(f"You said: {text}")
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or len(content)
    return content[:limit], "length" if limit < len(content) else "stop"


def _tool(asked: Mapping[str, Any]) -> Json | None:
    """A call of the tool that must be called, if one must."""
    choice = asked.get("tool_choice")
    names = [_function(tool) for tool in asked.get("tools") or []]
    if isinstance(choice, dict):
        name = _function(choice)
        if name not in names:
            raise errors.invalid(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
    elif choice == "required":
        name = names[0]
    else:
        return None
    arguments = json.dumps({"text": texts.said(asked["messages"])}, ensure_ascii=False)
    return {"function": {"arguments": arguments, "name": name}, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}


def _function(tool: Any) -> str:
    """The name of a tool that is a function: there is no other kind here."""
    try:
        name = tool["function"]["name"]
    except (KeyError, TypeError):
        name = None
    if not isinstance(name, str):
        raise errors.invalid("Missing required parameter: 'tools[].function.name'.", param="tools")
    return name


def _tool_finish(asked: Mapping[str, Any]) -> str:
    return "tool_calls" if asked["tool_choice"] == "required" else "stop"


def _text_deltas(content: list[str]) -> Iterator[Json]:
    yield {"content": "", "refusal": None, "role": "assistant"}
    for token in content:
        yield {"content": token}


def _tool_deltas(tools: list[Json]) -> Iterator[Json]:
    for index, tool in enumerate(tools):
        start = {"function": {**tool["function"], "arguments": ""}, "id": tool["id"], "index": index, "type": "function"}
        role = {"content": None, "refusal": None, "role": "assistant"} if not index else {}
        yield {**role, "tool_calls": [start]}
        for token in texts.tokens(tool["function"]["arguments"]):
            yield {"tool_calls": [{"function": {"arguments": token}, "index": index}]}


def _chunks(model: Model, head: Json, deltas: list[Json], *, finish: str, n: int, used: Json | None) -> Iterator[Json]:
    newer = model.reasoning  # what only the newer models' streams carry
    tier = {"service_tier": "default"} if newer else {}
    base = {"object": "chat.completion.chunk", **tier, "system_fingerprint": _fingerprint(model)}

    def chunk(choices: list[Json], extra: Json, used_now: Json | None) -> Json:
        body = {"choices": choices, **head, **extra, **({"obfuscation": uuid.uuid4().hex[:11]} if newer else {}), **base}
        if used is not None:
            body["usage"] = used_now
        return dict(sorted(body.items()))

    yield filters.FIRST_CHUNK
    for position, delta in enumerate([*deltas, {}]):
        ends = position == len(deltas)
        verdict = filters.COMPLETION if delta.get("content") else {}
        for index in range(n):
            choice = {
                "content_filter_results": verdict,
                "delta": delta,
                "finish_reason": finish if ends else None,
                "index": index,
                "logprobs": None,
            }
            yield chunk([choice], {}, None)
    if used is not None:
        yield chunk([], {"latency_checkpoint": LATENCY}, used)


def _fingerprint(model: Model) -> str | None:
    return None if model.reasoning else "fp_ee1d74bde0"
