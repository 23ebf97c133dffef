"""Text of a response body for the view "Answer": the joined output of a stream or the JSON, and the members that the proxy dropped.

The functions are pure and accept any bytes, like those of `request_text`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.accounting import usage
from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.formats import sse

from . import request_text
from . import text as readable_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .text import Section

__all__ = ["READ_FIRST", "READ_LAST", "Chunk", "dropped", "gaps", "hides_usage", "is_stream", "render", "usage"]

READ_FIRST = 4 << 20  # bytes of a stream that are parsed: a view must not block the event loop
READ_LAST = 256 << 10
COMPARED = 2 << 20
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # characters


class Chunk(NamedTuple):
    """One chunk of a streamed body, as sent to the client."""

    at: float  # seconds after the request was sent
    size: int


def render(body: bytes, content_type: str = "", *, chunks: Sequence[Chunk] = (), azure_body: bytes | None = None) -> str:
    """The text of the view. `azure_body` is Azure's body, if it differs from `body`; `chunks` are the times and sizes of a stream."""
    hidden = hides_usage(body, azure_body)
    try:
        shown = _events(body, azure_body if hidden else b"") if is_stream(body, content_type) else _whole(body, content_type)
        removed = dropped(azure_body, content_type, hides_usage=hidden) if azure_body else ()
        return readable_text.page(itertools.chain(shown, gaps(chunks), removed))
    except RecursionError:
        return "This nests too deeply to be shown."


def hides_usage(body: bytes, azure_body: bytes | None) -> bool:
    """Whether the proxy has removed the usage from a stream, for which the client had not asked."""
    return azure_body is not None and b'"usage"' in azure_body and b'"usage"' not in body


def is_stream(body: bytes, content_type: str = "") -> bool:
    return content_type.lower().startswith("text/event-stream") or body[:16].lstrip().startswith((b"data:", b"event:"))


# Streams


class _Output:
    """The output of a stream so far."""

    def __init__(self) -> None:
        self.texts: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)  # in the order of their first delta
        self.names: dict[tuple[str, ...], str] = {}  # of tool calls
        self.end: dict[str, object] = {}
        self.final: Any = None  # the last event of the Responses API repeats the whole output
        self.errors: list[object] = []

    def sections(self) -> Iterator[Section]:
        whole = self.final if isinstance(self.final, dict) and self.final.get("output") else None
        if whole:
            yield from _response(whole)
        else:
            for key, pieces in self.texts.items():
                yield self.names.get(key, " ".join(key[:-1])).rstrip(), readable_text.text("".join(pieces))
            yield from _end(self.end)
        for error in self.errors:
            yield from _error(error)


def _events(body: bytes, azure_body: bytes | None = None) -> Iterator[Section]:
    """The sections of a stream. `azure_body`: Azure's stream, if it has a usage that the client's lacks."""
    pieces = [body] if len(body) <= READ_FIRST + READ_LAST else [body[:READ_FIRST], b"\n\n", body[-READ_LAST:]]
    decoder, output = sse.Decoder(), _Output()
    unread = 0
    for event in itertools.chain(*map(decoder.feed, pieces), decoder.flush()):
        if event.data is None or event.data.strip() in (b"[DONE]", b""):
            continue
        try:
            value = readable_text.load(event.data)
        except ValueError:
            unread += 1
            continue
        if isinstance(value, dict):
            _take(output, value, (event.event or b"").decode("utf-8", "replace"))
    if azure_body:
        output.end["usage"] = _last_usage(azure_body)
    yield from output.sections()
    if len(pieces) > 1:
        yield "", f"… {readable_text.size(len(body) - READ_FIRST - READ_LAST)} in the middle of this stream are not shown"
    if unread:
        yield "", f"… {unread} event{'s are' if unread > 1 else ' is'} not JSON, or not all of it"


def _last_usage(stream: bytes) -> object:
    for event in reversed(sse.Decoder().feed(stream[-READ_LAST:])):
        if event.data and b'"usage"' in event.data:
            with contextlib.suppress(ValueError):
                value = readable_text.load(event.data)
                return value.get("usage") if isinstance(value, dict) else None
    return None


def _take(output: _Output, value: dict[str, Any], name: str) -> None:
    kind = value.get("type") if isinstance(value.get("type"), str) else name
    if value.get("error") or kind == "error":
        output.errors.append(value.get("error") or value)
    elif "choices" in value:
        _chunk(output, value)
    elif kind:
        _typed(output, value, str(kind))


def _chunk(output: _Output, value: dict[str, Any]) -> None:
    """Add a chunk of a chat or a completion."""
    for choice in readable_text.dicts(value["choices"]):
        at = str(choice.get("index") or "")
        if isinstance(choice.get("text"), str):
            output.texts["text", at, ""].append(choice["text"])
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for name, heading in _DELTAS.items():
                if isinstance(delta.get(name), str) and delta[name]:
                    output.texts[heading, at, ""].append(delta[name])
            for call in [*readable_text.dicts(delta.get("tool_calls")), *readable_text.dicts([delta.get("function_call")])]:
                _call_delta(output, call, at)
        if choice.get("finish_reason"):
            output.end["finish"] = choice["finish_reason"]
    if isinstance(value.get("usage"), dict):
        output.end["usage"] = value["usage"]
    output.end["model"] = output.end.get("model") or value.get("model")


_DELTAS = {"reasoning_content": "reasoning", "reasoning": "reasoning", "content": "assistant", "refusal": "assistant refuses"}


def _call_delta(output: _Output, call: Mapping[str, Any], at: str) -> None:
    function: Mapping[str, Any] = call["function"] if isinstance(call.get("function"), dict) else call
    key = ("tool call", at, str(call.get("index", 0)))
    if function.get("name"):
        output.names[key] = " ".join(str(part) for part in ("tool call", function["name"], call.get("id")) if part)
    arguments = function.get("arguments")
    output.texts[key].append(arguments if isinstance(arguments, str) else "")


def _typed(output: _Output, value: dict[str, Any], kind: str) -> None:
    """Add a typed event (`response.output_text.delta`) of the Responses API, images, transcriptions, threads or realtime."""
    what = kind.removeprefix("response.").removeprefix("thread.")
    item = value.get("item")
    id = str(value.get("item_id") or (item.get("id") if isinstance(item, dict) else "") or value.get("output_index") or "")
    if isinstance(item, dict) and item.get("name"):
        output.names["function_call_arguments", id] = " ".join(
            str(part) for part in ("tool call", item["name"], item.get("call_id")) if part
        )
    delta = value.get("delta")
    if what.endswith(".delta") and isinstance(delta, str):
        base = what.removesuffix(".delta")
        output.texts[base, id].append(
            f"[{readable_text.encoded(delta, 'base64')}]\n" if "audio" in base and "transcript" not in base else delta
        )
    elif what.endswith(".delta") and isinstance(delta, dict):
        output.texts["assistant", id].append(_delta_text(delta))
    for name, medium in (("b64_json", "image"), ("partial_image_b64", "image"), ("audio", "audio")):
        if isinstance(value.get(name), str):
            output.texts[what.removesuffix(".delta"), id].append(f"[{readable_text.encoded(value[name], medium)}]\n")
    if isinstance(value.get("response"), dict):
        output.final = value["response"]
        output.end["model"] = output.final.get("model")
    if isinstance(value.get("usage"), dict):
        output.end["usage"] = value["usage"]
    if (how := what.removeprefix("run.")) in _ENDS:
        output.end["finish"] = how
        output.end["model"] = output.end.get("model") or value.get("model")


_ENDS = frozenset({"cancelled", "completed", "done", "expired", "failed", "incomplete", "requires_action"})


def _delta_text(delta: dict[str, Any]) -> str:
    """The text of a delta of a thread's message."""
    texts = [part.get("text") for part in readable_text.dicts(delta.get("content"))]
    return "".join(str(one.get("value", "")) for one in readable_text.dicts(texts))


# JSON


def _whole(body: bytes, content_type: str) -> Iterator[Section]:
    try:
        value = readable_text.load(body)
    except ValueError as error:
        start = body[:200_000].decode("utf-8", "replace")
        if content_type.lower().startswith(("text/", "application/json")) or not content_type:
            json = not content_type.lower().startswith("text/")
            yield "", f"This is not JSON, or not all of it ({error}):" if json else ""
            yield "", readable_text.text(start)
        else:
            yield "", f"[{content_type}, {readable_text.size(len(body))}]"
        return
    if not isinstance(value, dict):
        yield "", readable_text.text(readable_text.indented(value))
        return
    yield from next(shown for test, shown in _KINDS if test(value))(value)


def _is(**types: type) -> Callable[[dict[str, Any]], bool]:
    return lambda value: all(isinstance(value.get(name), type) for name, type in types.items())


def _chat(value: dict[str, Any]) -> Iterator[Section]:
    choices = readable_text.dicts(value["choices"])
    for choice in choices:
        if isinstance(choice.get("message"), dict):
            yield from request_text.item({"role": "assistant", **choice["message"]})
        elif "text" in choice:
            yield "text", readable_text.text(choice["text"])
    finish = [str(choice["finish_reason"]) for choice in choices if choice.get("finish_reason")]
    yield from _end({"finish": ", ".join(dict.fromkeys(finish)) or None, "usage": value.get("usage"), "model": value.get("model")})


def _response(value: dict[str, Any]) -> Iterator[Section]:
    for item in value["output"] if isinstance(value["output"], list) else []:
        yield from request_text.item(item)
    if value.get("error"):
        yield from _error(value["error"])
    yield from _end({"finish": value.get("status"), "usage": value.get("usage"), "model": value.get("model")})


def _error(error: object) -> Iterator[Section]:
    if not isinstance(error, dict):
        yield "error", readable_text.text(error)
        return
    rest = {name: value for name, value in error.items() if name != "message"}
    yield (
        "error",
        "\n".join(filter(None, [readable_text.text(error.get("message") or ""), readable_text.text(readable_text.parameters(rest))])),
    )


def _embeddings(value: dict[str, Any]) -> Iterator[Section]:
    items = readable_text.dicts(value["data"])
    for item in items[:20]:
        vector = item.get("embedding")
        if isinstance(vector, list):
            yield f"embedding {item.get('index', '')}", f"{len(vector):,} numbers: {', '.join(map(str, vector[:5]))}, …"
        else:
            yield f"embedding {item.get('index', '')}", f"[{readable_text.encoded(str(vector), 'base64')}]"
    if len(items) > 20:
        yield "", f"… and {len(items) - 20:,} more"
    yield from _end({"usage": value.get("usage"), "model": value.get("model")})


def _images(value: dict[str, Any]) -> Iterator[Section]:
    for item in readable_text.dicts(value["data"]):
        image = item.get("b64_json")
        described = f"[{readable_text.encoded(image, 'image')}]" if isinstance(image, str) else str(item.get("url"))[:500]
        yield "image", "\n".join(filter(None, [described, str(item.get("revised_prompt") or "")]))
    yield from _end({"usage": value.get("usage")})


def _is_image(item: dict[str, Any]) -> bool:
    return "b64_json" in item or ("url" in item and "object" not in item)


def _frame(value: dict[str, Any]) -> Iterator[Section]:
    """One message of a realtime session, shown without the other messages."""
    output = _Output()
    _take(output, value, "")
    said = list(output.sections())
    rest = {name: part for name, part in value.items() if name not in ("type", "delta", "item", "response", "error", "event_id")}
    yield "", " · ".join(filter(None, [value["type"], readable_text.parameters(rest)]))
    yield from said or (request_text.item(value["item"]) if isinstance(value.get("item"), dict) else ())


def _text(value: dict[str, Any]) -> Iterator[Section]:
    yield "transcript", readable_text.text(value["text"])
    yield from _end({"usage": value.get("usage")})


def _any(value: dict[str, Any]) -> Iterator[Section]:
    yield "", readable_text.text(readable_text.indented(value))


_KINDS: tuple[tuple[Callable[[dict[str, Any]], bool], Callable[[dict[str, Any]], Iterator[Section]]], ...] = (
    (lambda value: bool(value.get("error")) and {"type", "output", "object"}.isdisjoint(value), lambda value: _error(value["error"])),
    (_is(choices=list), _chat),
    (_is(output=list), _response),
    (lambda value: any("embedding" in item for item in readable_text.dicts(value.get("data"))[:1]), _embeddings),
    (lambda value: any(_is_image(item) for item in readable_text.dicts(value.get("data"))[:1]), _images),
    (lambda value: "." in str(value.get("type")) or value.get("type") == "error", _frame),
    (lambda value: isinstance(value.get("type"), str) and "object" not in value, request_text.item),
    (_is(text=str), _text),
    (lambda _: True, _any),
)


def _end(end: Mapping[str, object]) -> Iterator[Section]:
    """`stop · 23 + 11 tokens (reasoning 5) · gpt-4o-2024-08-06`."""
    parts = [end.get("finish"), _tokens(end.get("usage")), end.get("model")]
    if any(parts):
        yield "end", " · ".join(str(part) for part in parts if part)


def _tokens(value: object) -> str:
    counted = usage.tokens(value) if isinstance(value, dict) else None
    if counted is None or not isinstance(value, dict):
        return ""
    details = [part for name, part in value.items() if name.endswith("_details") and isinstance(part, dict)]
    named = [
        f"{name.removesuffix('_tokens')} {count}" for part in details for name, count in part.items() if isinstance(count, int) and count
    ]
    counts = [str(count) for count in (counted.input, counted.output) if count is not None]
    return f"{' + '.join(counts)} tokens" + (f" ({', '.join(named)})" if named else "")


# The timing of a stream


def gaps(chunks: Sequence[Chunk]) -> Iterator[Section]:
    """A bar chart of the time before each chunk. For a long stream each bar is the longest of several gaps."""
    if not chunks:
        return
    waits = [later.at - earlier.at for earlier, later in itertools.pairwise(chunks)]
    lines = [f"first after {chunks[0].at:.2f} s"]
    if waits:
        longest = max(waits)
        every = -(-len(waits) // _WIDTH)
        bars = [max(waits[at : at + every]) for at in range(0, len(waits), every)]
        lines[0] += f", {len(waits)} more in {chunks[-1].at - chunks[0].at:.2f} s, the longest gap {longest:.2f} s"
        lines.append("".join(_BARS[round(bar / longest * (len(_BARS) - 1))] if longest > 0 else _BARS[0] for bar in bars))
        if every > 1:
            lines.append(f"each bar: the longest of {every} gaps")
    yield "chunks", "\n".join(lines)


# The members that the proxy dropped


def dropped(azure_body: bytes, content_type: str = "", *, hides_usage: bool = False) -> Iterator[Section]:
    """The members of Azure's response that the client did not receive, found by repeating the translation event by event."""
    found: defaultdict[str, list[object]] = defaultdict(list)
    events = 0
    cut = azure_body[:COMPARED]
    if is_stream(azure_body, content_type):
        done = b"data: [DONE]" in azure_body[-200:]
        decoder, stream = sse.Decoder(), openai_response.ResponseStream(normalize=True, encoding=None, done=done, hide_usage=hides_usage)
        for event in decoder.feed(cut):
            out = b"".join(stream(event.raw))
            if out == event.raw or event.data is None:
                continue
            events += not out
            after = next((one.data for one in sse.Decoder().feed(out) if one.data is not None), b"{}")
            _compare(event.data, after, found)
    else:
        _compare(cut, openai_response.json_body(cut), found)
    lines = [f"{events} whole event{'s' if events > 1 else ''}"] if events else []
    for path, values in found.items():
        count = f" ({len(values)} times)" if len(values) > 1 else ""
        shown = next((value for value in values if value), values[0])
        lines.append(f"{path}{count}: {_verdict(shown) or readable_text.compact(shown)[:2000]}")
    if len(azure_body) > COMPARED:
        lines.append(f"… only the first {readable_text.size(COMPARED)} were compared")
    if lines:
        yield "sent by Azure and dropped by the proxy", "\n".join(lines)


def _verdict(value: object) -> str:
    """A content filter result as text: `hate high (filtered), sexual safe, jailbreak no`."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content_filter_results")
    if not isinstance(value, dict) or not all(isinstance(one, dict) and "filtered" in one for one in value.values()):
        return ""
    parts = (
        f"{name} {one.get('severity') or ('yes' if one.get('detected') else 'no')}{' (filtered)' * bool(one['filtered'])}"
        for name, one in value.items()
    )
    return ", ".join(parts)


def _compare(before: bytes, after: bytes, found: defaultdict[str, list[object]]) -> None:
    try:
        old, new = readable_text.load(before), readable_text.load(after)
        for path, value in _lost(old, new):
            found[path].append(value)
    except (ValueError, RecursionError):
        return  # the proxy does not translate such a body either


def _lost(old: Any, new: Any, path: str = "") -> Iterable[tuple[str, object]]:
    """The members of `old` that `new` lacks, by path. Paths have `[]` for every index of a list."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name, value in old.items():
            below = f"{path}.{name}" if path else str(name)
            if name not in new:
                yield from ((below, value),) if not _empty(value) else ()
            else:
                yield from _lost(value, new[name], below)
    elif isinstance(old, list) and isinstance(new, list):
        for value, other in itertools.zip_longest(old, new):
            yield from _lost(value, other, path + "[]") if other is not None else ((path + "[]", value),)
    elif old != new:
        yield path, old


def _empty(value: object) -> bool:
    """Whether a member of a dropped event has no information: `"id": ""`, `"choices": []`."""
    return value in ("", 0, None, [], {})
