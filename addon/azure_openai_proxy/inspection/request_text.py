"""Text of a request body for the view "Conversation": messages, tools and parameters.

The functions are pure and accept any bytes, because bodies may be truncated, huge or invalid, which is often why a user inspects them.
Unknown members are shown as short JSON, not omitted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.formats import multipart

from . import text as readable_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .text import Section

__all__ = ["conversation", "item"]

_DISPOSITION = re.compile(rb'[;\s](name|filename)="?([^";\r\n]*)"?', re.IGNORECASE)
_PART_TYPE = re.compile(rb"content-type:[ \t]*([^\r\n;]*)", re.IGNORECASE)


def conversation(body: bytes, content_type: str = "") -> str:
    """The text of the view. `body` is the body after content decoding."""
    if content_type.lower().startswith("multipart/"):
        return readable_text.page(_form(body, content_type))
    try:
        value = readable_text.load(body)
    except ValueError as error:
        return readable_text.page(
            [("", f"This is not JSON, or not all of it ({error}):"), ("", readable_text.text(body[:200_000].decode("utf-8", "replace")))]
        )
    try:
        return readable_text.page(
            _request(value) if value and isinstance(value, dict) else [("", readable_text.text(readable_text.indented(value)))]
        )
    except RecursionError:
        return "This nests too deeply to be shown."


def _request(members: dict[str, Any]) -> Iterator[Section]:
    """The sections of a JSON request: parameters, tools, then the messages or input in order."""
    instructions = {name: members[name] for name in _SAID if members.get(name) is not None}
    rest = {name: value for name, value in members.items() if name not in _SAID and name not in _TOOLS}
    first = [str(rest.pop(name)) for name in ("type", "model") if isinstance(rest.get(name), str)]
    yield "", " · ".join(filter(None, [*first, readable_text.parameters(rest)]))
    for name in _TOOLS:
        if members.get(name):
            yield name, readable_text.text("\n".join(_tool(tool) for tool in _list(members[name])))
    for name, value in instructions.items():
        yield from _SAID[name](value)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _tool(tool: Any) -> str:
    """`get_weather(city, unit): the weather somewhere`."""
    if not isinstance(tool, dict):
        return readable_text.compact(tool)
    function = tool["function"] if isinstance(tool.get("function"), dict) else tool
    if not isinstance(function.get("name"), str):
        return readable_text.parameters(tool)
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    names = ", ".join(map(str, properties)) if isinstance(properties, dict) else ""
    description = f": {function['description']}" if function.get("description") else ""
    return f"{function['name']}({names}){description}"


# Messages and input


def _messages(messages: Any) -> Iterator[Section]:
    for message in _list(messages):
        yield from item(message)


def item(value: Any) -> Iterator[Section]:
    """One message of a chat, or one input or output item of a response: message, call, result, reasoning or an unknown type."""
    if not isinstance(value, dict):
        yield "user", readable_text.text(value)
        return
    kind = value.get("type")
    if isinstance(kind, str) and (shown := _ITEMS.get(kind)):
        yield from shown(value)
    elif "role" in value or "content" in value:
        yield from _message(value)
    else:
        yield (
            str(kind or "item"),
            readable_text.text(readable_text.parameters({name: part for name, part in value.items() if name != "type"})),
        )


def _message(message: Mapping[str, Any]) -> Iterator[Section]:
    role = str(message["role"]) if "role" in message else "message"
    role = f"{role} {message['name']}" if message.get("name") else role
    if role in ("tool", "function") or "tool_call_id" in message:
        role = f"tool result {message.get('tool_call_id', '')}".rstrip()
    for name in ("reasoning_content", "reasoning"):
        if message.get(name):
            yield "reasoning", readable_text.text(message[name])
    said = _content(message.get("content"))
    calls = [*readable_text.dicts(message.get("tool_calls")), *readable_text.dicts([message.get("function_call")])]
    if said or not (calls or message.get("refusal") or message.get("audio")):
        yield role, said
    if message.get("refusal"):
        yield f"{role} refuses", readable_text.text(message["refusal"])
    if isinstance(message.get("audio"), dict):
        yield f"{role} (audio)", readable_text.text(_audio(message["audio"]))
    for call in calls:
        yield from _call(call)


def _call(call: Mapping[str, Any]) -> Iterator[Section]:
    """A tool call of a chat (with its function in `function` or `custom`) or of a response (all members in one object)."""
    inner = next((call[name] for name in ("function", "custom") if isinstance(call.get(name), dict)), call)
    name, id = inner.get("name") or call.get("type"), call.get("call_id") or call.get("id")
    yield (
        " ".join(str(part) for part in ("tool call", name, id) if part),
        readable_text.text(inner.get("arguments") or inner.get("input") or ""),
    )


def _result(value: Mapping[str, Any]) -> Iterator[Section]:
    yield f"tool result {value.get('call_id', '')}".rstrip(), _content(value.get("output"))


def _reasoning(value: Mapping[str, Any]) -> Iterator[Section]:
    parts = [part.get("text") for name in ("summary", "content") for part in readable_text.dicts(value.get(name))]
    said = "\n\n".join(str(part) for part in parts if part)
    hidden = value.get("encrypted_content")
    yield (
        "reasoning",
        readable_text.text(
            said or (f"[encrypted, {readable_text.size(len(hidden))}]" if isinstance(hidden, str) else "[not shown by Azure]")
        ),
    )


def _content(content: Any) -> str:
    """A string, or a list of parts of any type."""
    if content is None:
        return ""
    if isinstance(content, list):
        return readable_text.text("\n".join(_part(part) for part in content))
    return readable_text.text(content)


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return readable_text.text(part)
    for name in ("text", "refusal", "transcript"):
        if isinstance(part.get(name), str):
            return readable_text.text(part[name])
    kind = str(part.get("type", "part"))
    for name, shown in _MEDIA.items():
        if part.get(name):
            return f"[{kind.removeprefix('input_')}: {shown(part[name])}]"
    return readable_text.compact(part)


def _image(image: Any) -> str:
    """The type and size of an image in the body, or the URL of another image."""
    detail = f", detail {image['detail']}" if isinstance(image, dict) and image.get("detail") else ""
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        return readable_text.compact(image)
    return (readable_text.encoded(url) or url[:500]) + detail


def _audio(audio: Any) -> str:
    if not isinstance(audio, dict):
        return readable_text.encoded(audio, "audio") if isinstance(audio, str) else readable_text.compact(audio)
    said = [f"{audio['transcript']}"] if audio.get("transcript") else []
    data = [readable_text.encoded(audio["data"], f"audio/{audio.get('format', 'unknown')}")] if isinstance(audio.get("data"), str) else []
    return " · ".join([*said, *data]) or readable_text.compact(audio)


def _file(file: Any) -> str:
    if isinstance(file, str):
        return readable_text.encoded(file) or file[:500]
    if not isinstance(file, dict):
        return readable_text.compact(file)
    data = file.get("file_data")
    return ", ".join(str(part) for part in (file.get("filename"), file.get("file_id"), _file(data) if data else None) if part)


_MEDIA: dict[str, Callable[[Any], str]] = {
    "image_url": _image,
    "image": _image,
    "input_audio": _audio,
    "audio": _audio,
    "file": _file,
    "file_data": _file,
    "file_url": _file,
    "file_id": _file,
}

_ITEMS: dict[str, Callable[[Mapping[str, Any]], Iterator[Section]]] = {
    "message": _message,
    "function_call": _call,
    "custom_tool_call": _call,
    "mcp_call": _call,
    "function_call_output": _result,
    "custom_tool_call_output": _result,
    "reasoning": _reasoning,
}


def _prompt(prompt: Any) -> Iterator[Section]:
    """The prompt of a completion, an image or a video: one or more strings, or lists of token numbers."""
    for number, one in enumerate(prompts := _texts(prompt), 1):
        yield f"prompt {number} of {len(prompts)}" if len(prompts) > 1 else "prompt", readable_text.text(one)


def _input(value: Any) -> Iterator[Section]:
    """The input of embeddings (strings), of a response (a string or a list of items) or of speech (a string)."""
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        yield from _messages(value)
        return
    for number, one in enumerate(inputs := _texts(value), 1):
        if number > 200:
            yield "", f"… and {len(inputs) - 200:,} more"
            return
        yield f"input {number} of {len(inputs)}" if len(inputs) > 1 else "input", readable_text.text(one)


def _texts(value: Any) -> list[Any]:
    if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
        return [f"[{len(value):,} tokens]"]
    if isinstance(value, list):
        return [f"[{len(one):,} tokens]" if isinstance(one, list) else one for one in value]
    return [value]


def _named(name: str) -> Callable[[Any], Iterator[Section]]:
    def shown(value: Any) -> Iterator[Section]:
        yield name, readable_text.text(value)

    return shown


def _session(session: Any) -> Iterator[Section]:
    """A realtime session, or a response requested in it; both have the members of a request."""
    if isinstance(session, dict):
        yield from _request(session)
    else:
        yield "session", readable_text.text(session)


def _sound(audio: Any) -> Iterator[Section]:
    yield "audio", _audio(audio)


_TOOLS = ("tools", "functions")
_SAID: dict[str, Callable[[Any], Iterator[Section]]] = {
    "instructions": _named("instructions"),
    "prompt": _prompt,
    "suffix": _named("suffix"),
    "messages": _messages,
    "input": _input,
    "session": _session,
    "response": _session,
    "item": item,
    "audio": _sound,
}


# Forms


def _form(body: bytes, content_type: str) -> Iterator[Section]:
    """The fields of a form with their values, and its files with name, type and size."""
    boundary = multipart.boundary(content_type)
    if not boundary:
        yield "", f"A form without a boundary, {readable_text.size(len(body))}"
        return
    delimiter = b"--" + boundary
    parts = body.split(delimiter, 1001)[1:1001]
    for part in parts:
        head, blank, value = part.partition(b"\r\n\r\n")
        if not blank:
            continue
        names = {match[1].lower(): match[2].decode("utf-8", "replace") for match in _DISPOSITION.finditer(head)}
        value = value.removesuffix(b"\r\n")
        kind = _PART_TYPE.search(head)
        if b"filename" in names or (kind and not kind[1].startswith((b"text/", b"application/json"))):
            described = ", ".join(
                filter(None, [names.get(b"filename"), kind[1].decode("latin-1") if kind else "", readable_text.size(len(value))])
            )
            yield names.get(b"name", "part"), f"[{described}]"
        else:
            yield names.get(b"name", "part"), readable_text.text(value[:200_000].decode("utf-8", "replace"))
    if not body.rstrip().endswith(delimiter + b"--"):
        yield "", "… the form breaks off here"
