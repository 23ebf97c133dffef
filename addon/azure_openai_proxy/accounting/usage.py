"""Reading what Azure reports about a call: tokens, model, service tier, status and timing, from a JSON body or from events.

Cached and cache-write tokens are parts of the input, and reasoning tokens are a part of the output. A part that is larger than its whole is
unknown, so the difference of the two is never negative. All values are untrusted: anything but a bounded integer is an unknown count.

A document of more than `LARGE` bytes is not parsed as a whole. Its first members are read until the first one that is too long, and its
last members are found from the end, where Azure and OpenAI have the usage.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.formats.json_scan import LARGE

from . import model_selection
from .record import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from azure_openai_proxy.api.operation import Call

    type Kept = tuple[Any, ...]  # reasons to finish (of a single choice as it was sent), code of an error, and the values of `_KEPT`

__all__ = [
    "NOTHING",
    "Events",
    "Reported",
    "in_other_unit",
    "is_whole",
    "kept",
    "latencies",
    "members",
    "read",
    "reports",
    "tokens",
    "valid_name",
]

MOST = 10**12 - 1
"""Greatest number of tokens that is believed: a batch may have billions."""
LONGEST_NAME = 256
"""Greatest length of a model, an id or another name."""
MOST_CHOICES = 128
MOST_LATENCIES = 16
HEAD = 64 << 10
"""Bytes at the start of a large document in which its first members are read."""
TAIL = 128 << 10
"""Bytes at the end of a large document in which its last members are searched.

The client's `metadata` follow the usage of a response, and have up to 60 kB.
"""
MOST_TRIES, MOST_TRIED = 24, 512 << 10
"""Maximum number of members at the end of a large document that are tried, and of the bytes that are parsed for that."""
DENSE = 8 << 10
"""Size in bytes from which embeddings count as large, because a list of numbers takes long to parse."""
FIRST_EVENTS = 4
"""Number of events of a chat in which its id and model are searched."""

_TERMINAL = frozenset(
    {
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.done",  # realtime
        "image_generation.completed",
        "image_edit.completed",
        "transcript.text.done",
        "speech.audio.done",
    }
)
"""Types of the events that end a response and have its usage."""
_CREATED = b'"response.created"'
_TERMINAL_BYTES = tuple(f'"{name}"'.encode() for name in sorted(_TERMINAL))
_UNFINISHED = (b'"finish_reason":null', b'"finish_reason": null')
_NAME = re.compile(r'[ \t\r\n]*+"([a-z_0-9]{1,64}+)"[ \t\r\n]*+:[ \t\r\n]*+')
_COMMA = re.compile(r"[ \t\r\n]*+,")
_OBJECT = re.compile(r"[ \t\r\n\ufeff]*+\{")
_MEMBER = re.compile(
    rb'"(?:background|error|id|latency_checkpoint|model|model_selection_details|service_tier|status|system_fingerprint|type|usage)"'
    rb"[ \t\r\n]*+:"
)
_SELECTION = f'"{model_selection.MEMBER}"'.encode()
_REASON = re.compile(r"[a-z_]{1,64}")
_LATENCY = re.compile(r"[a-z_0-9]{1,40}")
_decode, _decode_all = json.JSONDecoder().raw_decode, json.JSONDecoder().decode
_NOTHING: Mapping[str, Any] = MappingProxyType({})
# Realtime and audio write `token_details`.
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")

_OTHER_UNITS = frozenset({"seconds", "characters"})
_ALL_DETAILS = frozenset({*_INPUT_DETAILS, *_OUTPUT_DETAILS})
_WITH_CODES = frozenset({"code", "error", "status_details"})
_KEPT = (
    *("usage", "model", "id", "service_tier", "system_fingerprint", "status", "background", "latency_checkpoint", "incomplete_details"),
    model_selection.MEMBER,
)


class Reported(NamedTuple):
    """The upstream's report about one response. None: not reported, or not valid."""

    tokens: Tokens | None = None
    metered: bool = False  # a usage was reported, perhaps in another unit than tokens, such as seconds
    model: str | None = None
    service_tier: str | None = None
    id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    system_fingerprint: str | None = None
    latency: Mapping[str, float] | None = None  # Azure's `latency_checkpoint`, in milliseconds
    status: str | None = None  # of a response or a batch
    background: bool = False
    error_code: str | None = None
    model_selection: Mapping[str, Any] | None = None  # of the model router


NOTHING = Reported()


def reports(call: Call) -> bool:
    """Return whether responses of the operation can have a usage: also those that show a stored response or a batch."""
    row = call.endpoint
    return row.usage or row.by_model or row.path.startswith("/batches")


def kept(content: bytes, parsed: Mapping[str, Any] | None, call: Call) -> Kept | None:
    """Return the few members of a complete JSON body that `read` needs. `parsed`: the object in it, if that is known.

    Bodies of operations that report no usage are not read, because they may be a user's own data.
    """
    if not reports(call):
        return None
    if parsed is None:
        dense = call.endpoint.path.endswith("/embeddings")
        parsed = members(content, inner=False, limit=DENSE if dense else LARGE)
    return _kept(parsed)


class Events:
    """Reads the events of a stream, or the text frames that a WebSocket receives. `reported` is about the last response."""

    def __init__(self, call: Call) -> None:
        self.reported = NOTHING
        self._chat = call.endpoint.response_kind == "chat"
        self._first = FIRST_EVENTS
        self._reasons: dict[int, str] = {}

    def event(self, data: bytes) -> bool:
        """Read the data of an event. Return whether it ends a response; a WebSocket may have another one after it."""
        return self._chunk(data) if self._chat else self._typed(data)

    def _typed(self, data: bytes) -> bool:
        # A response always has both members. In a text of the model the quotes would be escaped.
        if b'"usage"' not in data and b'"error"' not in data:
            return False
        if any(name in data for name in _TERMINAL_BYTES):
            event = members(data, inner=True)
            if event.get("type") in _TERMINAL:
                response = event.get("response")
                self.reported = _of_object(response if isinstance(response, dict) else event)
                return True
        elif _CREATED in data:
            self._begin(members(data, inner=True))
        elif b'"error"' in data and b'"response"' not in data:
            self.reported = self.reported._replace(error_code=_error_code(members(data, inner=True)))
        return False

    def _begin(self, event: Mapping[str, Any]) -> None:
        """Note which response a stream is about: its client may leave before the end."""
        response = event.get("response")
        if event.get("type") == "response.created" and isinstance(response, dict):
            begun = _of_object(response)
            self.reported = NOTHING._replace(id=begun.id, model=begun.model, background=begun.background)

    def _chunk(self, data: bytes) -> bool:
        unfinished = _UNFINISHED[0] in data or _UNFINISHED[1] in data
        if unfinished and not self._first:  # most chunks
            return False
        usage = b'"prompt_tokens"' in data and not unfinished  # some models report what they have used so far
        if usage or self._first or b'"finish_reason"' in data or b'"error"' in data or _SELECTION in data:
            self._first = max(0, self._first - 1)
            self._read_chunk(members(data, inner=False), unfinished=unfinished)
        return usage

    def _read_chunk(self, chunk: dict[str, Any], *, unfinished: bool) -> None:
        for index, reason in _finish_reasons(chunk.get("choices")):
            self._reasons[index] = reason
        found = _of_object(chunk)
        if unfinished:
            found = found._replace(tokens=None, metered=False)
        before = self.reported
        if found.id and not before.id:
            self._first = 0
        self.reported = Reported(
            tokens=found.tokens or before.tokens,
            metered=before.metered or found.metered,
            model=found.model or before.model,
            service_tier=found.service_tier or before.service_tier,
            id=found.id or before.id,
            finish_reasons=tuple(self._reasons[index] for index in sorted(self._reasons)),
            system_fingerprint=found.system_fingerprint or before.system_fingerprint,
            latency=found.latency or before.latency,
            error_code=found.error_code or before.error_code,
            model_selection=found.model_selection or before.model_selection,
        )


def _of_object(value: Mapping[str, Any]) -> Reported:
    """Read a response's object, or a chunk of it."""
    return read(_kept(value))


def _kept(value: Mapping[str, Any]) -> Kept:
    reasons, choices = None, value.get("choices")
    if choices:
        one = type(choices) is list and len(choices) == 1 and type(choices[0]) is dict  # nearly always
        reasons = choices[0].get("finish_reason") if one else tuple([reason for _, reason in _finish_reasons(choices)])
    return reasons, None if _WITH_CODES.isdisjoint(value) else _error_code(value), *map(value.get, _KEPT)


def read(kept: Kept) -> Reported:
    """Read the members that `kept` has returned."""
    reasons, code, usage, model, id, tier, fingerprint, status, background, latency, details, selection = kept
    if type(reasons) is not tuple:
        reasons = (reasons,) if _reason(reasons) else ()
    if not reasons and isinstance(details, dict) and (reason := _reason(details.get("reason"))):
        reasons = (reason,)
    counted = tokens(usage) if isinstance(usage, dict) else None
    return Reported(
        counted,
        counted is not None or in_other_unit(usage),
        _word(model, spaces=True) if model else None,
        _word(tier) if tier else None,
        valid_name(id),
        reasons,
        _word(fingerprint) if fingerprint else None,
        latencies(latency) if latency else None,
        valid_name(status) if status else None,
        background is True,
        code,
        model_selection.bounded(selection) if selection is not None else None,
    )


def tokens(usage: Mapping[str, Any]) -> Tokens | None:
    """Read a usage in the form of any operation; None if it has no count of tokens."""
    input_, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(input_) is int and type(output) is int and 0 <= input_ <= MOST and 0 <= output <= MOST and _ALL_DETAILS.isdisjoint(usage):
        # Most calls without a cache. The constructor of a named tuple takes twice as long.
        return tuple.__new__(Tokens, (input_, None, None, output, None, None, None, None))
    input_, output = _part(input_, MOST), _part(output, MOST)
    if input_ is None:
        input_ = _part(usage.get("input_tokens"), MOST)
    if output is None:
        output = _part(usage.get("output_tokens"), MOST)
    if input_ is None and output is None:
        return None
    if _ALL_DETAILS.isdisjoint(usage):
        return Tokens(input_, None, None, output)
    read, written = _details(usage, _INPUT_DETAILS), _details(usage, _OUTPUT_DETAILS)
    cached = _part(read.get("cached_tokens"), input_)
    audio = _part(read.get("audio_tokens"), input_)
    cached_details = read.get("cached_tokens_details")
    cached_audio = cached_details.get("audio_tokens") if isinstance(cached_details, dict) else None
    return Tokens(
        input=input_,
        cached_input=cached,
        cache_write_input=_part(read.get("cache_write_tokens"), None if input_ is None else input_ - (cached or 0)),
        output=output,
        reasoning_output=_part(written.get("reasoning_tokens"), output),
        audio_input=audio,
        audio_output=_part(written.get("audio_tokens"), output),
        cached_audio_input=None if cached is None or audio is None else _part(cached_audio, min(cached, audio)),
    )


def is_whole(tokens: Tokens, operation: str) -> bool:
    """Return whether all counts are known that a call costs. `operation`: its name in the GenAI conventions."""
    return tokens.input is not None and (tokens.output is not None or operation == "embeddings")


def in_other_unit(usage: object) -> bool:
    """Whether a usage is in seconds or characters instead of tokens."""
    return isinstance(usage, dict) and (usage.get("type") == "duration" or not _OTHER_UNITS.isdisjoint(usage))


def _details(usage: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    for name in names:
        details = usage.get(name)
        if isinstance(details, dict):
            return details
    return _NOTHING


def _part(value: object, whole: int | None) -> int | None:
    """Return a count that is a part of `whole`; None if it is not one. Gateways may write it as 3.0."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if whole is None or type(value) is not int:  # True is an int as well
        return None
    return value if 0 <= value <= whole else None


def valid_name(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable() else None


_known_name = lru_cache(maxsize=512)(valid_name)
"""The same for a name that probably repeats."""


def _word(value: object, *, spaces: bool = False) -> str | None:
    """A name that probably repeats. A text of several words is none, unless names of its kind can have spaces."""
    name = _known_name(value) if type(value) is str and len(value) <= LONGEST_NAME else None
    return name if name and (spaces or " " not in name) else None


def _reason(value: object) -> str | None:
    return value if isinstance(value, str) and _REASON.fullmatch(value) else None


def _finish_reasons(choices: object) -> Iterator[tuple[int, str]]:
    for place, choice in enumerate(choices[:MOST_CHOICES] if isinstance(choices, list) else ()):
        if isinstance(choice, dict) and (reason := _reason(choice.get("finish_reason"))):
            index = _part(choice.get("index"), MOST_CHOICES - 1)
            yield place if index is None else index, reason


def latencies(value: object) -> dict[str, float] | None:
    if not isinstance(value, dict):
        return None
    found = {
        name: float(number)
        for name, number in list(value.items())[:MOST_LATENCIES]
        if _LATENCY.fullmatch(name) and type(number) in (int, float) and 0 <= number <= MOST
    }
    return found or None


def _error_code(value: Mapping[str, Any]) -> str | None:
    """Return the code of an error, of a failed response, or of a failed response of realtime."""
    error = value.get("error")
    if not isinstance(error, dict):
        details = value.get("status_details")
        error = details.get("error") if isinstance(details, dict) else None
    if not isinstance(error, dict):
        error = value
    code = error.get("code")
    return str(code) if type(code) is int and 0 <= code <= MOST else valid_name(code)


# Documents


def members(content: bytes, *, inner: bool, limit: int = LARGE) -> dict[str, Any]:
    """Return the members of an object; {} if it is not one. With `inner` they may include a `response` with members of its own.

    Of a document of more than `limit` bytes only some members are returned.
    """
    if len(content) > limit:
        return _first_and_last(content, inner=inner)
    try:
        # What `json.loads` takes for UTF-8, without its search for other encodings.
        plain = content[:1] == b"{" and content[1:2] != b"\0"
        value = _decode_all(content.decode("utf-8", "surrogatepass")) if plain else json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _first_and_last(content: bytes, *, inner: bool) -> dict[str, Any]:
    outer: dict[str, Any] = {}
    response: dict[str, Any] = {}
    text = content[:HEAD].decode("utf-8", "replace")
    if start := _OBJECT.match(text):
        _first(text, start.end(), outer, response if inner else None)
    tail = content[-TAIL:]
    left = MOST_TRIED
    for count, member in enumerate(reversed(list(_MEMBER.finditer(tail)))):
        left -= len(tail) - member.start()
        if count == MOST_TRIES or left < 0:
            break
        _last("{" + tail[member.start() :].decode("utf-8", "replace"), outer, response if inner else None)
    if response:
        outer["response"] = response
    return outer


def _first(text: str, at: int, into: dict[str, Any], response: dict[str, Any] | None) -> None:
    """Read members from `at` on, until the first one that does not end in `text`. Those of a `response` are read into `response`."""
    while name := _NAME.match(text, at):
        at = name.end()
        if response is not None and name[1] == "response" and text.startswith("{", at):
            _first(text, at + 1, response, None)
            return
        try:
            into[name[1]], at = _decode(text, at)
        except (ValueError, RecursionError):
            return
        if not (comma := _COMMA.match(text, at)):
            return
        at = comma.end()


def _last(text: str, outer: dict[str, Any], response: dict[str, Any] | None) -> None:
    """Read the last members of a document from `text`, which begins with a brace and one of its members.

    What follows the members shows whose they are: nothing follows the document's own. One brace, perhaps after other members of the
    document, follows those of a `response`.
    """
    try:
        found, end = _decode(text)
        rest = text[end:].strip()
        if not rest:
            outer.update(found)
        elif response is not None:
            outer.update(json.loads('{"":0' + rest))
            response.update(found)
    except (ValueError, RecursionError):
        return
