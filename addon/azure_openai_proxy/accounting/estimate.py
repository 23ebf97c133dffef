"""Estimates of tokens, where Azure's count is not known yet or never will be.

A text counts its bytes divided by four. Each image, audio or file counts `ATTACHMENT` tokens instead of its bytes. The output counts the
maximum that the client set, or `OUTPUT`, for each answer that it asks for.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.formats import json_edit, multipart
from azure_openai_proxy.formats.json_scan import LARGE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AUDIO", "NOTHING", "UPLOAD", "Estimate", "delivered", "in_tokens", "of_request"]

ATTACHMENT = 1000
"""Tokens of an image, an audio or a file."""
OUTPUT = 500
"""Tokens of an output without a maximum."""
LONG_STRING = 4096
"""Bytes of a string in a large body from which it is an attachment, if it has no space at its start."""
MOST_ANSWERS = 128
"""The greatest `n` and `best_of` that Azure accepts."""
END = 64 << 10
"""Bytes at both ends of a large body in which its maximum of tokens is searched."""
MOST = 10**9
MOST_STRINGS = 50_000
"""Strings of a large body that are examined, which takes some 20 ms."""

_INPUTS = ("messages", "input", "prompt", "instructions", "suffix", "item", "session", "response")
_TOOLS = ("tools", "functions")
_MAXIMA = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_TEXTS = frozenset(
    {"content", "text", "input", "prompt", "instructions", "suffix", "output", "arguments", "transcript", "summary", "refusal"}
)
_ATTACHED = frozenset({"image_url", "input_image", "image_file", "image", "input_audio", "audio", "input_file", "file", "file_data"})
_MAXIMUM = re.compile(rb'"max_(?:completion_|output_)?tokens"[ \t\r\n]*+:[ \t\r\n]*+([0-9]{1,9})')
_STRING = re.compile(
    rb'"(?:content|text|delta|arguments|refusal|reasoning_content|transcript)"[ \t\r\n]*+:[ \t\r\n]*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
)


class Estimate(NamedTuple):
    """Tokens of a request before its answer."""

    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output


NOTHING = Estimate()
AUDIO = Estimate(ATTACHMENT)
"""Of an audio that was transcribed."""
UPLOAD = Estimate(ATTACHMENT, OUTPUT)
"""Of a request whose body is a file."""


def in_tokens(size: int) -> int:
    """The tokens of a text of so many bytes."""
    return -(-size // 4)


def of_request(content: bytes, content_type: str) -> Estimate:
    """Estimate a request from its body, or from the beginning of a streamed one."""
    if content_type.lower().startswith("multipart/") and not json_edit.is_object(content):
        prompt = multipart.field(content, content_type, "prompt") or ""
        return Estimate(in_tokens(len(prompt.encode())) + content.count(b'filename="') * ATTACHMENT, OUTPUT)
    if len(content) > LARGE:
        return _of_large(content)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return Estimate(in_tokens(len(content)), OUTPUT)
    return _of_object(value) if isinstance(value, dict) else Estimate(in_tokens(len(content)), OUTPUT)


def _of_object(value: Mapping[str, Any]) -> Estimate:
    size, attached = 0, 0
    stack: list[tuple[str, Any]] = [(name, value[name]) for name in _INPUTS if name in value]
    inner = value.get("response")
    for members in (value, inner if isinstance(inner, dict) else {}):
        size += sum(len(json.dumps(members[name])) for name in _TOOLS if members.get(name)) + _schema(members)
    while stack:
        name, one = stack.pop()
        if isinstance(one, str):
            size += len(one.encode("utf-8", "surrogatepass")) if name in _TEXTS else 0
        elif isinstance(one, list):
            size += 4 * sum(type(item) is int for item in one)  # tokens, for embeddings and completions
            stack += [(name if name in _TEXTS else "content", item) for item in one if not isinstance(item, int)]
        elif isinstance(one, dict):
            if one.get("type") in _ATTACHED:
                attached += 1
                continue
            attached += sum(key in _ATTACHED for key in one)
            stack += [(key, item) for key, item in one.items() if key not in _ATTACHED and key not in _TOOLS]
    return Estimate(min(MOST, in_tokens(size) + attached * ATTACHMENT), _output(value))


def _schema(members: Mapping[str, Any]) -> int:
    """The bytes of the schema that the answer must have."""
    text = members.get("text")
    form = text.get("format") if isinstance(text, dict) else members.get("response_format")
    return len(json.dumps(form)) if isinstance(form, dict) and form.get("type") == "json_schema" else 0


def _output(value: Mapping[str, Any]) -> int:
    inner = value.get("response")
    answers = [number for name in ("n", "best_of") if type(number := value.get(name)) is int and 1 < number <= MOST_ANSWERS]
    for members in (value, inner if isinstance(inner, dict) else {}):
        for name in _MAXIMA:
            if type(most := members.get(name)) is int and most >= 0:
                return min(MOST, most * max(answers, default=1))
    return OUTPUT * max(answers, default=1)


def _of_large(content: bytes) -> Estimate:
    """Estimate a large body by its long strings, without parsing it."""
    size, attached, position = len(content), 0, 0
    for _ in range(MOST_STRINGS):
        start = content.find(b'"', position) + 1
        end = content.find(b'"', start)
        if not start or end < 0:
            break
        if end - start >= LONG_STRING and b" " not in content[start : start + 256]:
            attached += 1
            size -= end - start
        position = end + 1
    found = [int(number) for part in (content[:END], content[-END:]) for number in _MAXIMUM.findall(part)]
    return Estimate(in_tokens(size) + attached * ATTACHMENT, found[-1] if found else OUTPUT)


def delivered(data: bytes, *, chat: bool) -> int:
    """The bytes of text in an event of a stream, or in a frame; a partial image counts as an attachment. `chat`: of a chat's stream, whose
    events have no types.
    """
    if b'"partial_image_b64"' in data or b'.partial_image"' in data:
        return 4 * ATTACHMENT
    if not chat and (b'.delta"' not in data or b'audio.delta"' in data):
        return 0
    return sum(len(_unescaped(text)) for text in _STRING.findall(data))


def _unescaped(text: bytes) -> bytes:
    if b"\\" not in text:
        return text
    try:
        return str(json.loads(b'"' + text + b'"')).encode("utf-8", "surrogatepass")
    except ValueError:
        return text
