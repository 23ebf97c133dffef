"""Faults of the shape: the same answer, put on the wire in another of the ways that clients and proxies meet."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import replace
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Literal

from . import errors, filters
from .answers import DONE, Answer, Part, dumps, event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .answers import Step
    from .calls import Call
    from .faults import Fault

__all__ = [
    "async_filter",
    "comments",
    "compressed",
    "crlf",
    "double_done",
    "empty_chunks",
    "error_event",
    "late_failure",
    "no_content_type",
    "no_done",
    "no_filter",
    "null_content",
    "null_message",
    "spilled",
    "split",
    "tier",
    "typed_error",
    "unfinished_done",
]


def _each(change: Callable[[bytes], Sequence[bytes]], answer: Answer) -> Answer:
    """Every chunk replaced by others, the steps between them left where they are."""
    parts: list[Part] = []
    for part in answer.parts:
        parts += change(part) if isinstance(part, bytes) else [part]
    return replace(answer, parts=tuple(parts))


def _json(chunk: bytes) -> Any:
    """The value an event carries; None for anything else."""
    text = chunk.removeprefix(b"data: ")
    return json.loads(text) if text != chunk and text.startswith(b"{") else None


# -- how a stream ends ----------------------------------------------------------------------------------------------------------------


def no_done(answer: Answer, call: Call) -> Answer:
    """The stream ends without `data: [DONE]`."""
    return _each(lambda chunk: [] if chunk == DONE else [chunk], answer)


def double_done(answer: Answer, call: Call) -> Answer:
    return _each(lambda chunk: [DONE, DONE] if chunk == DONE else [chunk], answer)


def unfinished_done(answer: Answer, call: Call) -> Answer:
    """The blank line after `data: [DONE]` is missing."""
    return _each(lambda chunk: [DONE[:-1]] if chunk == DONE else [chunk], answer)


def error_event(after: int = 0, *, status: int | None = None, done: bool = False) -> Fault:
    """A 200 stream whose chunk `after` (0: the first) is an error, the last thing that is said; `status=429` for that error's body.

    That Azure does this is reported; the exact shape is unverified.
    """

    def fault(answer: Answer, call: Call) -> Answer:
        if not answer.stream:
            return answer
        error: Any = {"message": "The server had an error while processing your request. Sorry about that!", "type": "server_error"}
        error |= {"param": None, "code": None}
        if status == 429:
            name = call.operation.name if call.operation else "Unknown"
            error = errors.too_many_requests(name, call.version or None, str(call.deployment), 10).error
        kept: list[Part] = []
        chunks = 0
        for part in answer.parts:
            if isinstance(part, bytes):
                if chunks == after:
                    break
                chunks += 1
            kept.append(part)
        return replace(answer, parts=(*kept, event({"error": error}), *([DONE] if done else [])))

    return fault


def typed_error(after: int = 2) -> Fault:
    """A stream of typed events whose event `after` (0: the first) is an error, the last thing that is said, as the responses API has it."""

    def fault(answer: Answer, call: Call) -> Answer:
        error = {"type": "too_many_requests", "code": "rate_limit_exceeded", "message": "slow down"}
        value = {"type": "error", "sequence_number": after, "error": error}
        kept = [part for part in answer.parts if isinstance(part, bytes)][:after]
        return replace(answer, parts=(*kept, b"event: error\n" + event(value))) if answer.stream else answer

    return fault


def late_failure(
    how: Literal["failed", "nested", "flat", "null"], *steps: Step, code: str = "rate_limit_exceeded", comment: bool = False, **headers: str
) -> Fault:
    """A 200 stream that fails before its first output: after `response.created`, or after the chunk with the role.

    `failed`: `response.failed` with the error (in a chat: an object with `error`); `null`: `response.failed` without it, then an `error`
    event; `nested`, `flat`: an `error` event alone. `steps` happen before the failure, after a comment if there is one; without them all
    is written at once.
    """

    def fault(answer: Answer, call: Call) -> Answer:
        if not answer.stream:
            return answer
        begun = b"".join(part for part in answer.parts[:2] if isinstance(part, bytes)) + (b": keep-alive\n\n" if comment else b"")
        error = {"code": code, "message": "The model is overloaded.", "type": code, "param": None}
        typed = begun.startswith(b"event: ")
        failed = {
            "type": "response.failed",
            "sequence_number": 2,
            "response": {"id": "resp_1", "status": "failed", "output": [], "error": None if how == "null" else error},
        }
        said = {"type": "error", "sequence_number": 3, **(error | {"type": "error"} if how == "flat" else {"error": error})}
        if not typed:
            ended = b"event: error\n" + event(error) if how == "flat" else event({"error": error})
        else:
            ended = b"event: response.failed\n" + event(failed) if how in ("failed", "null") else b""
            ended += b"" if how == "failed" else b"event: error\n" + event(said)
        parts: tuple[Part, ...] = (begun, *steps, ended) if steps else (begun + ended,)
        return replace(answer, parts=parts).with_headers(**headers)

    return fault


# -- chunks that break clients --------------------------------------------------------------------------------------------------------

_EMPTY = {"id": "", "object": "", "created": 0, "model": "", "choices": []}


def empty_chunks(answer: Answer, call: Call) -> Answer:
    """A chunk without choices and without a word of the filter's before every chunk, as some deployments and the model router send."""
    return _each(lambda chunk: [event(_EMPTY), chunk], answer) if answer.stream else answer


def null_content(answer: Answer, call: Call) -> Answer:
    """The chunk that ends a choice has null where its delta or text should be."""

    def change(chunk: bytes) -> Sequence[bytes]:
        value = _json(chunk)
        ended = [choice for choice in (value or {}).get("choices", ()) if choice["finish_reason"]]
        for choice in ended:
            choice["text" if "text" in choice else "delta"] = None
        return [event(value)] if ended else [chunk]

    return _each(change, answer) if answer.stream else answer


def null_message(answer: Answer, call: Call) -> Answer:
    """As for an answer that the filter took away: its choices have null where the message or the text should be."""
    if answer.stream:
        return answer
    value = json.loads(answer.body)
    for choice in value["choices"]:
        choice |= {"finish_reason": "content_filter", "text" if "text" in choice else "message": None}
    return replace(answer, parts=(dumps(value),))


# -- bytes and headers ----------------------------------------------------------------------------------------------------------------


def no_content_type(answer: Answer, call: Call) -> Answer:
    """As some front ends of Azure answer a stream."""
    return answer.with_headers(content_type=None)


def crlf(answer: Answer, call: Call) -> Answer:
    return _each(lambda chunk: [chunk.replace(b"\n", b"\r\n")], answer)


def comments(answer: Answer, call: Call) -> Answer:
    """A keep-alive before every chunk."""
    return _each(lambda chunk: [b": keep-alive\n\n", chunk], answer) if answer.stream else answer


def split(*sizes: int) -> Fault:
    """Writes of these sizes in bytes, the last of them repeated, wherever that cuts events, lines or characters."""

    def fault(answer: Answer, call: Call) -> Answer:
        wanted = chain(sizes, repeat(sizes[-1]))
        size = next(wanted)
        held = b""
        parts: list[Part] = []
        for part in answer.parts:
            if not isinstance(part, bytes):  # the parts before a step are written before it
                parts += [held, part] if held else [part]
                held = b""
                continue
            held += part
            while len(held) >= size:
                parts.append(held[:size])
                held = held[size:]
                size = next(wanted)
        return replace(answer, parts=(*parts, held) if held else tuple(parts))

    return fault


_WINDOW_BITS = {"gzip": 31, "deflate": 15}


def compressed(coding: Literal["gzip", "deflate"] = "gzip") -> Fault:
    """The body compressed as one, flushed after each chunk so that each can be read when it comes; whatever the client accepts."""

    def fault(answer: Answer, call: Call) -> Answer:
        packer = zlib.compressobj(wbits=_WINDOW_BITS[coding])
        packed = _each(lambda chunk: [packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH)], answer)
        return replace(packed, parts=(*packed.parts, packer.flush())).with_headers(content_encoding=coding)

    return fault


# -- the content filter ---------------------------------------------------------------------------------------------------------------


def no_filter(answer: Answer, call: Call) -> Answer:
    """As from a deployment whose filter is off: no first chunk, no verdict anywhere."""
    if not answer.stream:
        return replace(answer, parts=tuple(_unfiltered_body(part) if isinstance(part, bytes) else part for part in answer.parts))

    def change(chunk: bytes) -> Sequence[bytes]:
        value = _json(chunk)
        if value is None:
            return [chunk]
        return [] if "prompt_filter_results" in value else [event(_without_verdicts(value))]

    return _each(change, answer)


def _unfiltered_body(body: bytes) -> bytes:
    return event(_without_verdicts(json.loads(body))).removeprefix(b"data: ").rstrip(b"\n")


def _without_verdicts(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("prompt_filter_results", None)
    for choice in value.get("choices", ()):
        choice.pop("content_filter_results", None)
    return value


def async_filter(*, filtered: bool = False) -> Fault:
    """The asynchronous filter: content comes without verdicts, and chunks without a delta bring them behind it, the last after the finish.

    `filtered`: the last of them ends the answer with finish_reason "content_filter", in the place of the chunk that would have.
    """

    def fault(answer: Answer, call: Call) -> Answer:
        offsets: Counter[int] = Counter()

        def change(chunk: bytes) -> Sequence[bytes]:
            value = _json(chunk)
            if value is None or not value.get("choices"):
                return [chunk]
            choice = value["choices"][0]
            choice["content_filter_results"] = {}
            start = offsets[choice["index"]]
            end = start + len(choice.get("delta", {}).get("content") or choice.get("text") or "")
            offsets[choice["index"]] = end
            if choice["finish_reason"] is not None:
                last = event(_verdict(choice["index"], end, end, filtered))
                return [last] if filtered else [event(value), last]
            return [event(value)] if start == end else [event(value), event(_verdict(choice["index"], start, end, False))]

        return _each(change, answer) if answer.stream else answer

    return fault


def _verdict(index: int, start: int, end: int, filtered: bool) -> dict[str, Any]:
    results: dict[str, Any] = filters.COMPLETION if not filtered else {**filters.COMPLETION, "hate": {"filtered": True, "severity": "high"}}
    choice = {
        "index": index,
        "finish_reason": "content_filter" if filtered else None,
        "content_filter_results": results,
        "content_filter_offsets": {"check_offset": end, "start_offset": start, "end_offset": end},
    }
    return {"id": "", "object": "", "created": 0, "model": "", "choices": [choice], "usage": None}


# -- what answered --------------------------------------------------------------------------------------------------------------------


def tier(name: str) -> Fault:
    """The answer came from that service tier: said in the answer, in each chunk that says one, or in an event's response."""

    def named(value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("response"), dict):
            return {**value, "response": named(value["response"])}
        return {**value, "service_tier": name} if isinstance(value, dict) and value.get("id") else value

    def fault(answer: Answer, call: Call) -> Answer:
        def change(part: bytes) -> Sequence[bytes]:
            head, data, text = part.rpartition(b"data: ")
            return [head + data + dumps(named(json.loads(text))) + (b"\n\n" if data else b"")] if text.startswith(b"{") else [part]

        return _each(change, answer)

    return fault


def spilled(to: str) -> Fault:
    """The deployment had no capacity, and another one served the request, as the headers say."""

    def fault(answer: Answer, call: Call) -> Answer:
        headers = {**answer.headers, "x-ms-deployment-name": to, f"x-ms-spillover-from-{call.deployment}": str(call.deployment)}
        return replace(answer, headers=headers)

    return fault
