"""The session of a request: which requests belong together, from the client's headers and members of the body.

Each use has its own order of sources. A usage record asks which run of an application sent the request, so the id that the application
itself gives to its session comes first. Routing asks which requests have the beginning of their prompts in common, so the key of the
prompt cache comes before the headers of coding agents, whose subagents share one id. Without an id the beginning itself identifies them.
"""

from __future__ import annotations

import hashlib
import json
import marshal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .large_bodies import LargeBody

__all__ = ["AFFINITY", "HARNESSES", "Fields", "in_header", "of_record", "of_routing"]

type Fields = tuple[tuple[bytes, bytes], ...]

AFFINITY = "x-session-affinity"
HARNESSES = (
    "x-claude-code-session-id",  # Claude Code
    "session_id",  # Codex
    "session-id",
    "x-session-id",
)
"""Headers in which coding agents send the id of their session."""
LONGEST = 255
"""Characters of an id. A longer one is ignored."""
MOST_ITEMS = 32
"""Messages that are searched for the first one of the user."""
SAMPLE = 8 * 1024
"""Bytes at each end of a long beginning that identify it, with its length."""
TOOLS, WINDOW = 128 * 1024, 64 * 1024
"""Bytes of the tools, and of the first messages, that are parsed in a large body. Longer ones are compared by their bytes."""

_HARNESSES = tuple(name.encode() for name in HARNESSES)
_HEADERS = frozenset({AFFINITY.encode(), *_HARNESSES})
_LENGTHS = frozenset(map(len, _HEADERS))
_DECODER = json.JSONDecoder()


def in_header(headers: Mapping[str, str]) -> str | None:
    """Return the session that a header names."""
    for name in (AFFINITY, *HARNESSES):
        if (value := headers.get(name)) and _is_valid(value):
            return value
    return None


def of_record(
    header: str | None, prompt_cache_key: str | None, previous_response_id: str | None, first: Callable[[str, str], str]
) -> str | None:
    """Return the session for a usage record: of a header, else the key of the prompt cache, else the first response of the chain.

    `first` returns the session of an earlier response by its id, and its second argument if it is unknown.
    """
    if header:
        return header
    if prompt_cache_key and _is_valid(prompt_cache_key):
        return prompt_cache_key
    previous = previous_response_id
    return first(previous, previous) if previous and _is_valid(previous) else None


def _is_valid(value: str) -> bool:
    return len(value) <= LONGEST and value.isprintable()


def of_routing(fields: Fields, members: Mapping[str, Any], large: LargeBody | None = None) -> bytes | None:
    """Return the identity of the session for routing, from the headers and the members of the body; None if nothing identifies it.

    `members` is not used for a `large` body.
    """
    named = {lower: value for name, value in fields if len(name) in _LENGTHS and (lower := name.lower()) in _HEADERS}
    if named and (found := _header(named, AFFINITY.encode())):
        return found
    get = members.get if large is None else large.value
    if found := _id(b"prompt", get("prompt_cache_key")) or _id(b"response", get("previous_response_id")):
        return found
    conversation = get("conversation")
    if found := _id(b"conversation", conversation.get("id") if isinstance(conversation, dict) else conversation):
        return found
    for name in _HARNESSES if named else ():
        if found := _header(named, name):
            return found
    beginning = _beginning(members) if large is None else _large_beginning(large)
    if beginning is None:
        return None
    if len(beginning) > 2 * SAMPLE:
        beginning = b"%b%d%b" % (beginning[:SAMPLE], len(beginning), beginning[-SAMPLE:])
    return b"beginning\0" + hashlib.blake2b(beginning, digest_size=16).digest()


def _header(named: Mapping[bytes, bytes], name: bytes) -> bytes | None:
    return _id(name, named.get(name, b"").decode("utf-8", "surrogateescape"))


def _id(source: bytes, value: object) -> bytes | None:
    """Ids of different sources are different sessions."""
    return b"%b\0%b" % (source, value.encode()) if isinstance(value, str) and value and _is_valid(value) else None


def _beginning(members: Mapping[str, Any]) -> bytes | None:
    items = members.get("messages")
    if items is None:
        items = members.get("input")
    system = members.get("instructions")
    if isinstance(items, str):
        return _packed(members.get("tools"), system, items)
    system, user = _first(items[:MOST_ITEMS], system) if isinstance(items, list) else (None, None)
    return None if user is None else _packed(members.get("tools"), system, user)


def _first(items: Sequence[Any], system: object) -> tuple[object, object]:
    """Return the contents of the first system or developer message, unless there are instructions, and of the user's first message."""
    for item in items:
        if not isinstance(item, dict):
            continue
        role = item.get("role")
        if role == "user":
            return system, item.get("content")
        if system is None and role in ("system", "developer"):
            system = item.get("content")
    return system, None


def _packed(*values: Any) -> bytes | None:
    """Return values of a JSON document as bytes, in a tenth of the time of `json.dumps`. The first version has no references."""
    try:
        return marshal.dumps(values, 0)
    except ValueError:  # it nests too deep
        return None


def _large_beginning(large: LargeBody) -> bytes | None:
    """The same for a large body, of which only the beginning is parsed."""
    content, outline = large.content, large.outline
    items = outline and (outline.get("messages") or outline.get("input"))
    if not outline or items is None:
        return None
    system, user = large.value("instructions"), None
    if content[items.value : items.value + 1] == b"[":
        try:
            system, user = _first(_first_items(content[items.value + 1 : min(items.end, items.value + WINDOW)]), system)
        except (ValueError, RecursionError):
            user = None
    if user is None:
        user = content[items.value : min(items.end, items.value + WINDOW)]
    tools = outline.get("tools")
    if tools is None:
        return _packed(None, system, user)
    raw = content[tools.value : tools.end]
    try:
        return _packed(json.loads(raw) if len(raw) <= TOOLS else raw, system, user)
    except RecursionError:
        return None


def _first_items(text: bytes) -> list[Any]:
    """Parse the items of a list until the user's first message.

    Raises:
        ValueError: an item is incomplete.
    """
    found: list[Any] = []
    decoded = text.decode("utf-8", "ignore").lstrip()
    while decoded and decoded[0] != "]" and len(found) < MOST_ITEMS:
        item, end = _DECODER.raw_decode(decoded)
        found.append(item)
        if isinstance(item, dict) and item.get("role") == "user":
            break
        decoded = decoded[end:].lstrip(" \t\r\n,")
    return found
