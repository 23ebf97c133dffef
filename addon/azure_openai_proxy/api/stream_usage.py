"""The usage of a stream whose client did not ask for it.

Azure sends the usage of a chat's or a completion's stream if the request has `stream_options.include_usage`: in one more chunk at the end,
and as `"usage":null` in the chunks before it. Where the proxy needs the usage, the option is added to the request, and both are removed
from the stream. All other bytes of the request and of the stream stay as they are.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import json_scan, sse
from azure_openai_proxy.formats.json_edit import Span
from azure_openai_proxy.formats.json_scan import LARGE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from azure_openai_proxy.formats.sse import Event

    from .large_bodies import LargeBody

__all__ = ["MEMBER", "addition", "beside", "is_requested", "without_usage"]

MEMBER = b'"usage"'
"""The name without which a chunk has no usage. In a text of the model its quotes would be escaped."""
LONGEST_OPTIONS = 4096
"""Maximum size in bytes of the client's own `stream_options`. Longer ones, which must be padded, are replaced."""

_OPTIONS = "stream_options"
_WANTED = '{"include_usage":true}'
_ADDED = f'"stream_options":{_WANTED}'
# How Azure ends a chunk. The last brace is the document's own, so the member is too.
_NULL = b',"usage":null'
_LAST = re.compile(rb',"usage":null(?:,"[a-z_]{1,64}+":(?:"[^"\\\x00-\x1f]*+"|null|true|false|[0-9]{1,15}+))*+\}')
_NO_CHOICES = re.compile(rb"\[[ \t\r\n]*+\]|null")


def is_requested(members: Mapping[str, Any]) -> bool:
    """Return whether the client asks for the usage of its stream."""
    options = members.get(_OPTIONS)
    return isinstance(options, dict) and options.get("include_usage") is True


def addition(content: bytes, large: LargeBody | None = None) -> Span | None:
    """Return the edit of a request's body that asks for the usage; its text is JSON. `content` is a JSON object with members.

    None: the client's own `stream_options` ask for it or are not valid.
    """
    if not large and _OPTIONS.encode() not in content and b"\\u00" not in content:
        start = content.index(b"{") + 1
        return Span(start, start, f"{_ADDED},")
    try:
        outline = large.outline if large else json_scan.outline(content, (_OPTIONS,))
    except json_scan.InvalidError:
        return None
    if not outline or not outline.is_object:
        return None
    member = outline.get(_OPTIONS)
    if member is None:
        return Span(outline.root + 1, outline.root + 1, f"{_ADDED},")
    if member.end - member.value > LONGEST_OPTIONS:
        return Span(member.value, member.end, _WANTED)
    options = json.loads(content[member.value : member.end])
    if not isinstance(options, dict | None) or is_requested({_OPTIONS: options}):
        return None
    return Span(member.value, member.end, json.dumps({**(options or {}), "include_usage": True}))


def beside(added: Span, model: Span) -> Span:
    """Return the edit with a new member behind the model, which is edited too: a flow keeps one range of the client's body."""
    return Span(model.end, model.end, f",{_ADDED}") if added.start == added.end else added


def without_usage(event: Event) -> Event | None:
    """Return the event of a stream as it is without `include_usage`; None if it is only sent for the usage.

    The event itself is returned if it has no usage, or if it is not JSON.
    """
    data = event.data or b""
    start = data.rfind(_NULL)
    if start >= 0 and _LAST.fullmatch(data, start):
        return sse.without(event, start, start + len(_NULL))
    if len(data) > LARGE:  # Azure's chunks are small
        return event
    try:
        outline = json_scan.outline(data, ("usage", "choices"))
    except json_scan.InvalidError:
        return event
    usage, choices = outline.get("usage"), outline.get("choices")
    if usage is None:
        return event
    empty = choices is None or _NO_CHOICES.fullmatch(data, choices.value, choices.end)
    if empty and usage.kind(data) == ord("{"):
        return None
    # The comma before the member goes with it, or the one after it if there is none before.
    return sse.without(event, usage.before, usage.end) if usage.before else sse.without(event, usage.start, usage.next or usage.end)
