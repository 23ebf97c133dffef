"""Translation of Azure's streams and JSON bodies into OpenAI's shape. For errors see `error_translation`, for headers `response_headers`.

Azure adds content filter results and its own measurements to OpenAI's responses. Strict clients refuse chunks without a delta, or index
into a chunk without choices. The additions are removed. A chunk or body without additions is recognised by its bytes; it is forwarded byte
for byte and is not parsed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal

from azure_openai_proxy.formats import compression, sse
from azure_openai_proxy.formats.json_scan import LARGE

from . import filter_stripping, stream_usage
from .error_translation import error_body, in_event, mask, shape
from .response_headers import headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .large_bodies import LargeBody

__all__ = [
    "ResponseStream",
    "error_body",
    "frame",
    "headers",
    "json_body",
    "large_frame",
    "large_json_body",
    "mask",
    "read_json_body",
    "suspect",
]

# Members that Azure adds at the top level, in each item of `choices` and `data`, and in an event's `response`. At deeper levels such names
# only occur in strings of the user or the model. `obfuscation` stays, because OpenAI sends it too.
_AZURE_MEMBERS = frozenset(
    {
        "content_filter_offsets",
        "content_filter_raw",
        "content_filter_result",  # an error of the filter itself
        "content_filter_results",
        "content_filters",
        "latency_checkpoint",
        "prompt_annotations",  # in 2023-07-01-preview
        "prompt_filter_results",
    }
)
_TRACES = (b"_filter", b"latency_checkpoint", b"prompt_annotations", b"gpt-35-turbo")

# Members of OpenAI's chunks without choices. A chunk with only these is dropped: LangChain, simonw/llm and others index its choices[0].
# OpenAI also sends usage and moderation results in chunks without choices, and Azure's model router may report its choice in one.
_PLAIN_MEMBERS = frozenset({"choices", "created", "id", "model", "object", "obfuscation", "service_tier", "system_fingerprint"})

# Null is treated as absent where OpenAI always sends a value. One expression takes a tenth of the time of six searches.
_NO_CONTENT = {"delta": re.compile(rb'"delta"\s*+:\s*+null'), "text": re.compile(rb'"text"\s*+:\s*+null')}
_NO_MESSAGE = re.compile(rb'"(?:message|choices|text)"\s*+:\s*+null')
_EMPTY_CHOICES: dict[str, dict[str, Any]] = {
    "chat.completion": {
        "index": 0,
        "message": {"role": "assistant", "content": "", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    },
    "text_completion": {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"},
}
"""The choice of a response without any, by the response's `object`."""
_MESSAGE = {"role": "assistant", "content": None, "refusal": None}

MANY = 2048
"""Bytes of a read from which on it probably contains several events."""

_DONE = b"data: [DONE]\n\n"
_FINISHED = (b'"finish_reason":"', b'"finish_reason": "')  # in a string of the model's output the quotes would be escaped

_NUMBER = re.compile(rb'"sequence_number": ?([0-9]{1,15})')

_decode = json.JSONDecoder().decode
_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_dump_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class ResponseStream:
    """Translates one streamed response; the value for `flow.response.stream`.

    mitmproxy calls it with the bytes of each read, and with `b""` at a regular end only. A truncated stream gets no end from here.

    `normalize`: translate events; without it the bytes are forwarded unchanged. `encoding`: the response's content-encoding; the stream is
    decompressed. `done`: the stream ends with `data: [DONE]`; streams of typed events (the responses API) do not, and their `error` events
    keep the members around the error. `secrets` are masked in error events. `items` is called with the data of each event; without
    `every`, events that differ from an earlier one in their text only may be left out.

    `hide_usage`: the usage was not requested by the client. The stream is as it would be without it, also without `normalize`.
    """

    def __init__(
        self,
        *,
        normalize: bool,
        encoding: str | None,
        done: bool = True,
        secrets: Sequence[str] = (),
        items: Callable[[bytes], None] | None = None,
        every: bool = False,
        hide_usage: bool = False,
    ) -> None:
        self._normalize = normalize
        self._decompressor = compression.decompressor(encoding)
        self._done = done
        self._secrets = secrets
        self._items = items
        self._every = every
        self._hide_usage = hide_usage
        self._events = sse.Decoder()
        self._content: Literal["delta", "text"] | None = None  # the member of this stream's choices that has the content, once known
        self._pattern: filter_stripping.Pattern | None = None  # of its events with text, once one was received
        self._finished = False  # a finish_reason was received
        self._failed = False  # an error was received
        self._errors = False  # so was anything that may contain one
        self._over = False  # all further input is dropped
        self.broken = False  # the compressed body cannot be read
        self._last = b""  # data of the last typed event

    def __call__(self, data: bytes) -> list[bytes]:
        if self._over:
            return []
        at_end = not data
        broken = None
        if self._decompressor:
            try:
                data = self._decompressor.feed(data)
                if at_end:
                    self._decompressor.end()
            except compression.BrokenError as error:
                broken = error
                data = b""
        if self._normalize:
            out = self._normalized(data, at_end=at_end and not broken)
        elif self._hide_usage:
            out = self._without_usage(data, at_end=at_end or broken is not None)
        else:
            out = data
            for event in self._events.feed(data) if self._items else ():
                self._report(event)
        if broken and not self._over:
            self._over = self.broken = True
            said = {"message": f"Azure's compressed response cannot be read: {broken}.", "type": "server_error", "code": "upstream_error"}
            # The blank line ends an event of which the client may have received a part.
            out += (b"" if self._normalize else b"\n\n") + self.failure(shape(said))
        if out == data:
            out = data
        return [out] if out else []

    def failure(self, error: dict[str, Any]) -> bytes:
        """Return the event that ends this stream after an interruption. The official SDKs raise for both shapes; other clients check the
        type.
        """
        if self._done:
            return b"data: %b\n\n" % _json({"error": error})
        number = _NUMBER.search(self._last)
        numbered = {"sequence_number": int(number[1]) + 1} if number else {}
        return b"event: error\ndata: %b\n\n" % _json({"type": "error", **numbered, "error": error})

    @property
    def clean(self) -> bool:
        """Return whether every event was examined and none has an error: Azure repeats keys in errors only."""
        return self._normalize and not self._errors and not self._events.passed

    def _normalized(self, data: bytes, *, at_end: bool) -> bytes:
        if self._pattern and not at_end and self._events.idle and (event := self._pattern.cut(data)) is not None:
            return event
        out: list[bytes] = []
        many = self._pattern or len(data) > MANY  # with a pattern, a single event of it has been returned above
        rest = self._fast_part(data, out) if many and b"\r" not in data else data
        out += [self._event(event) for event in self._events.feed(rest)]
        if at_end:
            out.append(self._end())
        return out[0] if len(out) == 1 else b"".join(out)

    def _without_usage(self, data: bytes, *, at_end: bool) -> bytes:
        out = []
        for event in self._events.feed(data) + (self._events.flush() if at_end else []):
            self._report(event)
            hidden = stream_usage.without_usage(event) if event.data and stream_usage.MEMBER in event.data else event
            out += [hidden.raw] if hidden else []
        return b"".join(out)

    def _report(self, event: sse.Event) -> None:
        if self._items:
            self._items(event.data or b"")

    def _fast_part(self, data: bytes, out: list[bytes]) -> bytes:
        """Translate runs of events that match the pattern at once. Return the rest of `data` for the decoder."""
        at = 0
        while not self._over and (end := data.find(b"\n\n", at) + 2) > 1:
            if self._pattern and self._events.idle and data.startswith(self._pattern.before, at):
                if not (run := self._pattern.cut_all(data, at)):
                    break
                out.append(run[0])
                at = run[1]
            else:
                out += [self._event(event) for event in self._events.feed(data[at:end])]
                at = end
        return data[at:]

    def _end(self) -> bytes:
        """Return the output for the regular end of the body.

        Clients discard an event without its blank line. If Azure's last event is complete apart from that, the blank line is added. An
        incomplete event is forwarded unchanged, except before [DONE], which the client would read as a part of it.
        """
        out = b""
        for event in self._events.flush():
            if event.data is not None and (_is_done(event.data) or _object(event.data) is not None):
                out = self._event(sse.finish(event))
            elif not self._over and not self._ends_well:
                out = event.raw
        if not self._over and self._ends_well:
            out += _DONE
        self._over = True
        self._last = b""  # release it: the flow may be kept
        return out

    @property
    def _ends_well(self) -> bool:
        return self._done and self._finished and not self._failed

    def _event(self, event: sse.Event) -> bytes:
        """Translate an event. Return b"" to drop it."""
        data = event.data
        if self._over:
            return b""
        if data is None:
            return event.raw
        if self._items:
            self._items(data)
        if self._done and _is_done(data):
            self._over = True
            return b"" if self._failed else _DONE
        if not self._done:
            self._last = data
        elif not self._finished:
            self._finished = _FINISHED[0] in data or _FINISHED[1] in data
        received = event.raw
        if self._hide_usage and stream_usage.MEMBER in data:
            hidden = stream_usage.without_usage(event)
            if hidden is None:
                self._errors |= b'"error"' in data
                return b""
            event, data = hidden, hidden.data or b""
        if self._content == "delta" and (chunk := filter_stripping.without_filter(data)) and not self._suspect(event, chunk.content):
            if chunk.pattern and not self._every:
                self._pattern = chunk.pattern.of(received, event.raw) or self._pattern
            return event.raw if chunk.content is data else sse.encode(chunk.content, of=event)
        if not self._suspect(event, data):
            return event.raw
        try:
            return self._changed(event, data)
        except (ValueError, RecursionError):  # it was parsed but cannot be serialized; forward it unchanged
            return event.raw

    def _suspect(self, event: sse.Event, data: bytes) -> bool:
        """Return whether the bytes require parsing the event."""
        if b'"error"' in data or event.event == b"error":
            self._errors = True
            return True
        for trace in _TRACES:
            if trace in data:
                return True
        if not self._done:
            return False
        if not self._content or (b'"delta"' not in data and b'"text"' not in data):
            return True
        return bool(_NO_CONTENT[self._content].search(data))

    def _changed(self, event: sse.Event, data: bytes) -> bytes:
        chunk = _object(data)
        said = chunk if chunk is not None else data.decode("utf-8", "replace")
        failed = in_event(said, named=event.event == b"error", typed=not self._done, secrets=self._secrets)
        if failed is not None:
            self._failed = True
            return event.raw if failed == chunk else sse.encode(_json(failed), of=event)
        if chunk is None:
            return event.raw
        self._content = self._content or _content(chunk)
        changed = _chunk(chunk, self._content or "delta") if self._done else _without_azure_members(chunk)
        if changed is chunk:
            return event.raw
        return b"" if changed is None else sse.encode(_json(changed), of=event)


def _is_done(data: bytes) -> bool:
    return data.strip() == b"[DONE]"


def _content(chunk: dict[str, Any]) -> Literal["delta", "text"] | None:
    choices = _dicts(chunk.get("choices"))
    if any("text" in choice for choice in choices) or chunk.get("object") == "text_completion":
        return "text"
    return "delta" if any("delta" in choice for choice in choices) else None


def _chunk(chunk: dict[str, Any], content: Literal["delta", "text"]) -> dict[str, Any] | None:
    """Remove Azure's additions from `chunk` and add OpenAI's required members. Return `chunk` itself if nothing changes, and None to drop
    it.
    """
    clean = _without_azure_members(chunk)
    choices: Any = clean.get("choices")
    if choices is None and ("choices" in clean or clean.get("usage") is not None):
        choices = []
    if not isinstance(choices, list):
        return clean
    kept = [choice for choice in (_choice(choice, content) for choice in choices) if choice is not None]
    if not kept and not _has_information(clean, pruned=clean is not chunk or bool(choices)):
        return None
    same = len(kept) == len(choices) and all(new is old for new, old in zip(kept, choices, strict=True))
    return clean if same and choices is clean.get("choices") else {**clean, "choices": kept}


def _has_information(chunk: dict[str, Any], *, pruned: bool) -> bool:
    """Return whether a chunk without choices has information for the client. `pruned`: Azure's members were removed from it."""
    if any(chunk.get(name) is not None for name in ("usage", "moderation", "model_selection_details")):
        return True
    return not pruned and any(value is not None and name not in _PLAIN_MEMBERS for name, value in chunk.items())


def _choice(choice: Any, content: Literal["delta", "text"]) -> Any:
    """Return a choice with content. Azure's asynchronous filter sends choices without it, on which autogen and LangChain fail: they are
    dropped unless they have a finish_reason.
    """
    if not isinstance(choice, dict):
        return choice
    if choice.get("delta") is not None or choice.get("text") is not None:
        return choice
    if choice.get("finish_reason") is None:
        return None
    return {**choice, content: {} if content == "delta" else ""}


def _without_azure_members(value: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a response or a chunk without Azure's members; the same object if there are none."""
    clean = {name: item for name, item in value.items() if name not in _AZURE_MEMBERS}
    changed = len(clean) < len(value)
    for name in ("choices", "data"):
        items = clean.get(name)
        if isinstance(items, list) and any(not _AZURE_MEMBERS.isdisjoint(item) for item in _dicts(items)):
            clean[name] = [_pruned(item) for item in items]
            changed = True
    inner = clean.get("response")  # an event's complete response
    if isinstance(inner, dict) and not _AZURE_MEMBERS.isdisjoint(inner):
        clean["response"] = _pruned(inner)
        changed = True
    model = clean.get("model")
    if isinstance(model, str) and model.startswith("gpt-35-turbo"):
        clean["model"] = "gpt-3.5-turbo" + model.removeprefix("gpt-35-turbo")
        changed = True
    return clean if changed else value


def _dicts(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _pruned(item: Any) -> Any:
    return {name: value for name, value in item.items() if name not in _AZURE_MEMBERS} if isinstance(item, dict) else item


def json_body(body: bytes) -> bytes:
    """Remove Azure's additions from a complete JSON response. Return `body` itself if there are none, or if it is not valid."""
    return read_json_body(body)[0]


def read_json_body(body: bytes) -> tuple[bytes, Mapping[str, Any] | None]:
    """As `json_body`. Also return the object that `body` contains, if that had to be parsed."""
    value = _object(body) if suspect(body) else None
    return _clean(value) or body, value


def large_json_body(body: LargeBody) -> LargeBody:
    """The same for a large body."""
    clean = _clean(body.parse()) if suspect(body.content) else None
    return body.changed(clean) if clean else body


def suspect(body: bytes) -> bool:
    """Return whether the bytes of a complete response require parsing it."""
    if any(trace in body for trace in _TRACES):
        return True
    # For tens of megabytes the regular expression takes longer than parsing the body in its short form.
    if b'"choices":[]' in body or b'"choices": []' in body:
        return True
    return b"null" in body and (len(body) > LARGE or bool(_NO_MESSAGE.search(body)))


def _clean(value: dict[str, Any] | None) -> bytes | None:
    """Return a response without Azure's additions; None if there are none, or if it cannot be serialized."""
    if not value:
        return None
    clean = _with_messages(_without_azure_members(value))
    try:
        return None if clean is value else _json(clean)
    except (ValueError, RecursionError):
        return None


def frame(text: bytes, secrets: Sequence[str] = ()) -> bytes:
    """Remove Azure's additions from a text frame of a WebSocket and translate an error in it. Return `text` itself if nothing changes."""
    if b'"error"' not in text:
        return json_body(text)
    return _clean_frame(_object(text), secrets) or text


def large_frame(text: LargeBody, secrets: Sequence[str] = ()) -> LargeBody:
    """The same for a large frame."""
    if b'"error"' not in text.content:
        return large_json_body(text)
    clean = _clean_frame(text.parse() or None, secrets)
    return text.changed(clean) if clean else text


def _clean_frame(value: dict[str, Any] | None, secrets: Sequence[str]) -> bytes | None:
    status = value.get("status") if value else None
    failed = in_event(value, named=False, typed=True, secrets=secrets, status=status if isinstance(status, int) else None)
    changed = _without_azure_members(failed or value or {})
    try:
        return None if not changed or changed == value else _json(changed)
    except (ValueError, RecursionError):
        return None


def _with_messages(document: dict[str, Any]) -> dict[str, Any]:
    """Add the missing message to each choice of a chat's response, or the missing text to each of a completion's.

    Return `document` itself if none is missing.
    """
    if "choices" not in document:
        return document
    choices = document["choices"]
    kind = document.get("object")
    if choices == [] and isinstance(kind, str) and kind in _EMPTY_CHOICES:  # gpt-oss sends none, and clients read the first one
        return {**document, "choices": [_EMPTY_CHOICES[kind]]}
    if choices is None:
        return {**document, "choices": []}
    text = document.get("object") == "text_completion" or any("text" in choice for choice in _dicts(choices))
    name, value = ("text", "") if text else ("message", _MESSAGE)
    if not any(_lacks(choice, name) for choice in _dicts(choices)):
        return document
    return {**document, "choices": [{**choice, name: value} if _lacks(choice, name) else choice for choice in choices]}


def _lacks(choice: Any, name: str) -> bool:
    if not isinstance(choice, dict) or choice.get(name) is not None:
        return False
    return name in choice or choice.get("finish_reason") is not None


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        # What `json.loads` takes for UTF-8, without its search for other encodings.
        value = _decode(data.decode("utf-8", "surrogatepass")) if data[:1] == b"{" and data[1:2] != b"\0" else json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _json(value: object) -> bytes:
    try:
        return _dump(value).encode()
    except UnicodeEncodeError:  # a lone surrogate: the next chunk has the other half
        return _dump_ascii(value).encode()
