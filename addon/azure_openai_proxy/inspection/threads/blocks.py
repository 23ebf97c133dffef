"""The parts of a conversation as blocks of text: who said what, tool calls with their ids, and media.

One message may consist of several blocks: an assistant's text and its tool calls. Values are untrusted: any member may have any type.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.inspection import text as readable_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Block", "Media", "dumped", "of_item", "of_items", "plain", "role_of"]

MOST_MEDIA = 50
"""Images, sounds and files of one block."""
LONGEST_DATA = 8 << 20
"""Characters of a data URL that a block keeps."""
_SYSTEM = frozenset({"system", "developer"})
_CALLS = frozenset(
    {"function_call", "custom_tool_call", "mcp_call", "local_shell_call", "shell_call", "web_search_call", "apply_patch_call"}
)

type Kind = str  # system, user, assistant, reasoning, tool_call, tool_result, other


class Media(NamedTuple):
    """An image, a sound or a file. `data` is a data URL, or the address of an image elsewhere."""

    kind: str  # image, audio, file
    data: str
    name: str = ""


class Block(NamedTuple):
    kind: Kind
    text: str
    name: str = ""  # of a tool, or the role of an unusual message
    call_id: str = ""
    media: tuple[Media, ...] = ()


def dumped(value: object) -> str:
    """JSON in one line; "" for a value that nests too deeply."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return ""


def role_of(item: Any) -> str:
    """The role of a message or an input item; "" without one."""
    role = item.get("role") if isinstance(item, dict) else "user"
    return role if isinstance(role, str) else ""


def of_items(items: list[Any]) -> Iterator[Block]:
    for item in items:
        yield from of_item(item)


def of_item(item: Any) -> Iterator[Block]:
    """The blocks of a message of a chat, or of an input or output item of a response."""
    if not isinstance(item, dict):
        yield Block("user", item if isinstance(item, str) else dumped(item))
        return
    kind = item.get("type")
    if isinstance(kind, str) and kind in _CALLS:
        yield _call(item)
    elif isinstance(kind, str) and (kind.endswith("_call_output") or kind == "mcp_approval_response"):
        text, media = plain(item.get("output"))
        yield Block("tool_result", text, "", _string(item.get("call_id")), media)
    elif kind == "reasoning":
        yield Block("reasoning", _reasoning(item))
    elif "role" in item or "content" in item:
        yield from _message(item)
    else:
        yield Block("other", dumped(item), _string(kind))


def _message(message: Mapping[str, Any]) -> Iterator[Block]:
    role = _string(message.get("role"))
    for name in ("reasoning_content", "reasoning"):
        if message.get(name):
            yield Block("reasoning", plain(message[name])[0])
    text, media = plain(message.get("content"))
    if isinstance(audio := message.get("audio"), dict):
        text = "\n".join(filter(None, [text, _string(audio.get("transcript"))]))
        media += _sound(audio)
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        text = "\n".join(filter(None, [text, message["refusal"]]))
    calls = [*readable_text.dicts(message.get("tool_calls")), *readable_text.dicts([message.get("function_call")])]
    if role in ("tool", "function"):
        yield Block("tool_result", text, _string(message.get("name")), _string(message.get("tool_call_id")), media)
    elif text or media or not calls:
        kind = "system" if role in _SYSTEM else role if role in ("user", "assistant") else "other"
        yield Block(kind, text, role if kind == "other" else _string(message.get("name")), "", media)
    yield from map(_call, calls)


def _call(call: Mapping[str, Any]) -> Block:
    inner = next((call[name] for name in ("function", "custom") if isinstance(call.get(name), dict)), call)
    written = next((inner[name] for name in ("arguments", "input", "action", "operation") if inner.get(name) is not None), "")
    name = _string(inner.get("name")) or _string(call.get("type")).removesuffix("_call")
    return Block(
        "tool_call", written if isinstance(written, str) else dumped(written), name, _string(call.get("call_id") or call.get("id"))
    )


def _reasoning(item: Mapping[str, Any]) -> str:
    parts = [part.get("text") for name in ("summary", "content") for part in readable_text.dicts(item.get(name))]
    return "\n\n".join(part for part in parts if isinstance(part, str))


def plain(content: Any) -> tuple[str, tuple[Media, ...]]:
    """The text of a content, and its images, sounds and files."""
    if content is None:
        return "", ()
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, list):
        return dumped(content), ()
    texts: list[str] = []
    media: list[Media] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            said = next((part[name] for name in ("text", "refusal", "transcript") if isinstance(part.get(name), str)), None)
            if said is not None:
                texts.append(said)
            elif len(media) < MOST_MEDIA and (found := _media(part)):
                media.append(found)
            elif not found_media(part):
                texts.append(dumped(part))
    return "\n".join(texts), tuple(media)


def found_media(part: Mapping[str, Any]) -> bool:
    """Whether a part is an image, a sound or a file."""
    return any(name in part for name in ("image_url", "input_audio", "audio", "file", "file_data", "file_id", "file_url", "image"))


def _media(part: Mapping[str, Any]) -> Media | None:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if isinstance(url, str):
        return Media("image", url[:LONGEST_DATA])
    if isinstance(sound := part.get("input_audio") or part.get("audio"), dict):
        return next(iter(_sound(sound)), None)
    inner = part.get("file")
    file = inner if isinstance(inner, dict) else part
    for name in ("file_data", "file_url", "file_id"):
        if isinstance(file.get(name), str):
            return Media("file", file[name][:LONGEST_DATA], _string(file.get("filename")))
    return None


def _sound(audio: Mapping[str, Any]) -> tuple[Media, ...]:
    data, format = audio.get("data"), _string(audio.get("format")) or "wav"
    if not isinstance(data, str):
        return ()
    return (Media("audio", f"data:audio/{format};base64,{data[:LONGEST_DATA]}"),)


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
