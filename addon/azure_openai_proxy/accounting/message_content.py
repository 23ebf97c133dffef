"""The messages of a request and its response in the form of the GenAI conventions, for spans. Only with `azure_openai_otlp_content`.

The conventions have JSON schemas for `gen_ai.input.messages`, `gen_ai.output.messages` and `gen_ai.system_instructions`: messages with a
role and parts. Texts are cut off, the oldest messages are left out, and images, audio and files are named without their content.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.api import redaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["LARGEST", "OPERATIONS", "Content", "KeptEvents", "attributes"]

OPERATIONS = frozenset({"chat.completions", "completions", "responses"})
"""The operations whose messages are exported."""
LARGEST = 256 << 10
"""Bytes of a body that is parsed. The messages of a larger one are left out."""
MOST_EVENTS = 1 << 20
"""Bytes of the events that are kept of a stream."""
TEXT = 8 << 10
"""Characters of one text."""
WHOLE = 32 << 10
"""Characters of an attribute, approximately."""
MOST_PARTS = 128
DEEPEST = 32
"""Levels of a body. Messages have fewer."""

type _Part = dict[str, Any]
type _Message = dict[str, Any]

_FINAL = re.compile(rb'"type" ?: ?"response\.(?:completed|incomplete|failed)"')
_MODALITIES = {"image_url": "image", "input_image": "image", "input_audio": "audio", "file": "document", "input_file": "document"}


class Content(NamedTuple):
    """The bodies of one call."""

    operation: str
    request: bytes
    response: bytes = b""
    events: Sequence[bytes] = ()  # the data of the events of a stream
    secrets: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.request) + len(self.response) + sum(map(len, self.events))


class KeptEvents:
    """The data of the events of a stream, up to `MOST_EVENTS` bytes. An event with the whole response replaces those before it."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        if _FINAL.search(data, 0, 200):
            self.events = [data]
            self._size = MOST_EVENTS
        elif (size := self._size + len(data)) <= MOST_EVENTS:
            self.events.append(data)
            self._size = size


def attributes(content: Content) -> dict[str, str]:
    """The attributes with messages, as JSON. Bodies in another form give none."""
    asked, answer = (_masked(_object(body), content.secrets) for body in (content.request, content.response))
    events = [event for data in content.events if (event := _object(data))]
    if content.operation == "responses":
        found = {
            "gen_ai.system_instructions": _texts(asked.get("instructions")),
            "gen_ai.input.messages": _fitting(_items(asked.get("input"))),
            "gen_ai.output.messages": _fitting(_response_output(answer, events, content.secrets)),
        }
    else:
        messages = _prompt(asked.get("prompt")) if content.operation == "completions" else map(_message, _objects(asked.get("messages")))
        found = {
            "gen_ai.input.messages": _fitting(messages),
            "gen_ai.output.messages": _fitting(map(_choice, _objects(answer.get("choices")) or _masked(_joined(events), content.secrets))),
        }
    return {name: redaction.mask(_json(value), content.secrets) for name, value in found.items() if value}


def _masked(value: Any, secrets: Sequence[str], depth: int = DEEPEST) -> Any:
    """Mask the keys in all texts, before a text is cut off within a key."""
    if isinstance(value, str):
        return redaction.mask(value, secrets)
    if isinstance(value, dict):
        return {name: _masked(item, secrets, depth - 1) for name, item in value.items()} if depth else None
    if isinstance(value, list):
        return [_masked(item, secrets, depth - 1) for item in value] if depth else None
    return value


def _json(value: object) -> str:
    """JSON that can be encoded: half characters are replaced."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace").decode()


def _fitting(messages: Iterable[_Message]) -> list[_Message]:
    """The latest messages that fit. Of a message that does not fit alone, the first parts."""
    kept: list[_Message] = []
    free = WHOLE
    for message in reversed(list(messages)):
        size = _size(message)
        if size > free and kept:
            break
        if size > free:
            parts, left = message["parts"], size
            while parts and left > free:
                left -= _size(parts.pop())
        kept.append(message)
        free -= size
    return kept[::-1]


def _size(message: _Message) -> int:
    return len(json.dumps(message, ensure_ascii=False))


# Chat completions and completions


def _prompt(prompt: object) -> Iterator[_Message]:
    texts = [prompt] if isinstance(prompt, str) else prompt if isinstance(prompt, list) else []
    for text in texts:
        if isinstance(text, str):
            yield {"role": "user", "parts": _texts(text)}


def _message(message: dict[str, Any]) -> _Message:
    role = _text(message.get("role")) or "user"
    if role == "tool":
        response = _joined_text(message.get("content"))
        return {"role": role, "parts": [{"type": "tool_call_response", "id": _text(message.get("tool_call_id")), "response": response}]}
    parts = [*_reasoning(message.get("reasoning_content")), *_texts(message.get("content")), *_texts(message.get("refusal"))]
    for call in _objects(message.get("tool_calls"))[:MOST_PARTS]:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        parts.append(_tool_call(call.get("id"), function.get("name"), function.get("arguments")))
    return {"role": role, "parts": parts}


def _choice(choice: dict[str, Any]) -> _Message:
    message = choice.get("message")
    parts = _message(message)["parts"] if isinstance(message, dict) else _texts(choice.get("text"))
    return {"role": "assistant", "parts": parts, "finish_reason": _text(choice.get("finish_reason"))}


def _joined(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream, with its deltas joined."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in _objects(event.get("choices")):
            index = part.get("index")
            if not isinstance(index, int) or (index not in choices and len(choices) >= MOST_PARTS):
                continue
            choice = choices.setdefault(index, {"message": {"role": "assistant", "tool_calls": []}})
            if isinstance(text := part.get("text"), str):
                choice["message"]["content"] = choice["message"].get("content", "") + text
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
            delta = part.get("delta")
            if isinstance(delta, dict):
                _add(choice["message"], delta)
    return [choices[index] for index in sorted(choices)]


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("content", "refusal", "reasoning_content"):
        if isinstance(text := delta.get(name), str):
            message[name] = message.get(name, "") + text
    for part in _objects(delta.get("tool_calls")):
        function = part.get("function")
        calls: list[dict[str, Any]] = message["tool_calls"]
        if part.get("id") and len(calls) < MOST_PARTS:
            calls.append({"id": part["id"], "function": {}})
        if calls and isinstance(function, dict):
            for name in ("name", "arguments"):
                if isinstance(text := function.get(name), str):
                    calls[-1]["function"][name] = calls[-1]["function"].get(name, "") + text


# Responses


def _items(items: object) -> Iterator[_Message]:
    """Messages of the input or output of the Responses API."""
    if isinstance(items, str):
        yield {"role": "user", "parts": _texts(items)}
        return
    for item in _objects(items):
        kind = _text(item.get("type")) or "message"
        if kind == "message":
            yield {"role": _text(item.get("role")) or "user", "parts": _texts(item.get("content"))}
        elif kind == "function_call":
            yield {"role": "assistant", "parts": [_tool_call(item.get("call_id"), item.get("name"), item.get("arguments"))]}
        elif kind == "function_call_output":
            output = _joined_text(item.get("output"))
            yield {"role": "tool", "parts": [{"type": "tool_call_response", "id": _text(item.get("call_id")), "response": output}]}
        elif kind == "reasoning":
            yield {"role": "assistant", "parts": _reasoning(_joined_text(item.get("summary")))}
        else:
            yield {"role": "assistant", "parts": [{"type": kind}]}


def _response_output(answer: dict[str, Any], events: Sequence[dict[str, Any]], secrets: Sequence[str]) -> Iterator[_Message]:
    found = next((found for event in reversed(events) if isinstance(found := event.get("response"), dict)), None)
    response = answer if found is None else _masked(found, secrets)
    reason = _text(response.get("status"))
    if items := _objects(response.get("output")):
        yield from (message | {"finish_reason": reason} for message in _items(items))
    elif text := "".join(_text(event.get("delta")) for event in events if event.get("type") == "response.output_text.delta"):
        yield {"role": "assistant", "parts": _texts(redaction.mask(text, secrets)), "finish_reason": reason}


# Parts


def _texts(content: object) -> list[_Part]:
    """The parts of a content: a text, or a list of parts."""
    if isinstance(content, str):
        return [{"type": "text", "content": content[:TEXT]}] if content else []
    return [_part(part) for part in _objects(content)[:MOST_PARTS]]


def _part(part: dict[str, Any]) -> _Part:
    kind = _text(part.get("type"))
    if isinstance(text := part.get("text", part.get("refusal")), str):
        return {"type": "text", "content": text[:TEXT]}
    if kind not in _MODALITIES:
        return {"type": kind or "unknown"}
    link = part.get("image_url")
    url = link.get("url") if isinstance(link, dict) else link
    if isinstance(url, str) and not url.startswith("data:"):
        return {"type": "uri", "modality": _MODALITIES[kind], "uri": url[:TEXT]}
    return {"type": "blob", "modality": _MODALITIES[kind]}


def _reasoning(text: object) -> list[_Part]:
    return [{"type": "reasoning", "content": text[:TEXT]}] if isinstance(text, str) and text else []


def _tool_call(id: object, name: object, arguments: object) -> _Part:
    return {"type": "tool_call", "id": _text(id), "name": _text(name), "arguments": _text(arguments)}


def _joined_text(content: object) -> str:
    return "\n".join(part["content"] for part in _texts(content) if "content" in part)[:TEXT]


def _text(value: object) -> str:
    return value[:TEXT] if isinstance(value, str) else ""


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(data: bytes) -> dict[str, Any]:
    if not data or len(data) > LARGEST:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
