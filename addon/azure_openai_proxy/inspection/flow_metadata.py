"""The comment and the metadata of a flow: the comment is shown in flow lists; views, commands and filters read the metadata.

A flow contains the request as sent to Azure and the response as sent to the client. The metadata adds the other side of each: the
client's request, as the few bytes that differ, and Azure's response as received. mitmproxy can save all of it to a flow file.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.formats import quoting

from . import text as readable_text
from . import usage_text
from .body_diff import Splice
from .response_text import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mitmproxy.flow import Flow

    from azure_openai_proxy.accounting.record import CallRecord

__all__ = [
    "NOTHING",
    "PREFIX",
    "ClientRequestHead",
    "Facts",
    "Packed",
    "PackedBytes",
    "SavedExchange",
    "comment",
    "is_ours",
    "known",
    "message",
    "metadata",
    "pack",
    "pack_head",
    "parse",
    "repack",
    "texts",
    "unpack",
]

PREFIX = "azure_openai_"
"""Prefix of every metadata name. The filter `~meta azure_openai_model:.gpt-4o` matches the flows of a model."""


class Facts(NamedTuple):
    """The facts about one request that the comment and the metadata show. None and "" mean unknown."""

    operation: str = ""  # POST /v1/chat/completions
    model: str | None = None  # the client's name for it
    deployment: str | None = None
    backend: str = ""
    stream: bool = False
    status: int | None = None
    first: float | None = None  # seconds to the first chunk
    total: float | None = None  # seconds to the end
    changed: tuple[str, ...] = ()  # repairs, retries and failures
    record: CallRecord | None = None  # of the whole call


def comment(facts: Facts) -> str:
    """`gpt-4o → prod · 1,204+87 tokens (1,024 cached) · $0.0031 · first chunk 0.4 s · max_tokens → max_completion_tokens`."""
    operation, model, deployment, backend, stream, status, first, total, changed, record = facts
    name = model or operation
    if deployment and deployment != model:
        name = f"{model} → {deployment}" if model else deployment
    parts: list[str | None] = [name]
    if backend not in ("", "default"):
        parts.append(f"at {backend}")
    if status and status >= 400:
        parts.append(str(status))
    if record:
        parts += usage_text.tokens(record.tokens), usage_text.cost(record.cost_usd)
    if stream and first is not None:
        parts.append(f"first chunk {_seconds(first)}")
    if not stream and total is not None:
        parts.append(_seconds(total))
    return quoting.line(" · ".join(filter(None, (*parts, *changed))))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 0.1 else f"{seconds:.1f} s"


def metadata(facts: Facts) -> dict[str, Any]:
    """The facts as metadata: names to strings, numbers and lists, without the unknown ones."""
    operation, model, deployment, backend, stream, _, first, _, changed, record = facts
    values: dict[str, Any] = {}
    if operation:
        values[f"{PREFIX}operation"] = quoting.line(operation)  # bytes that are not UTF-8 cannot be saved
    if model is not None:
        values[f"{PREFIX}model"] = quoting.line(model)
    if deployment is not None:
        values[f"{PREFIX}deployment"] = quoting.line(deployment)
    if backend:
        values[f"{PREFIX}backend"] = quoting.line(backend)
    if stream:
        values[f"{PREFIX}stream"] = True
    if first is not None:
        values[f"{PREFIX}first_chunk"] = round(first, 4)
    if changed:
        values[f"{PREFIX}changed"] = list(map(quoting.line, changed))
    if record:
        values.update({PREFIX + name: value for name, value in usage_text.metadata(record).items()})
    return values


# The client's request and Azure's response


class ClientRequestHead(NamedTuple):
    """The client's request, without its body and without keys."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    splice: Splice | None = None

    def body(self, azure_body: bytes) -> bytes:
        return self.splice.undo(azure_body) if self.splice else azure_body


class SavedExchange(NamedTuple):
    """The parsed metadata of a flow."""

    client_request: ClientRequestHead | None = None
    chunks: Sequence[Chunk] = ()
    status: str = ""  # of Azure's response
    headers: Sequence[tuple[str, str]] = ()
    azure_body: bytes | None = None  # Azure's body, if it differs from the client's


NOTHING = SavedExchange()


class Packed(list[Any]):
    """A list for `parse`, with a short repr: the console prints all metadata, and a megabyte would block mitmproxy for many seconds."""

    def __repr__(self) -> str:
        return "…"


class PackedBytes(bytes):
    """A body for `parse`, with a short repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"… {readable_text.size(len(self))}"


def repack(flow: Flow) -> None:
    """Restore the types with a short repr in a flow that was loaded from a file."""
    for name, value in known(flow).items():
        if isinstance(value, bytes):
            flow.metadata[PREFIX + name] = PackedBytes(value)
        elif name in ("asked", "answered", "chunks") and isinstance(value, list):
            flow.metadata[PREFIX + name] = Packed(value)


def is_ours(flow: Flow | None) -> bool:
    return flow is not None and f"{PREFIX}operation" in flow.metadata


def pack(head: ClientRequestHead) -> list[Any]:
    """The client's request as a metadata value."""
    return Packed([head.method, head.path, head.headers, list(head.splice) if head.splice else None])


def pack_head(method: str, path: str, fields: tuple[tuple[bytes, bytes], ...]) -> list[Any]:
    """Like `pack`, for a request head with mitmproxy's raw header fields. The body's splice is set later."""
    return Packed((method, path, fields, None))


def unpack(packed: Any) -> ClientRequestHead:
    method, path, fields, splice = packed
    return ClientRequestHead(method, path, texts(fields), Splice(*splice) if splice else None)


def texts(fields: Iterable[tuple[bytes | str, bytes | str]]) -> list[tuple[str, str]]:
    """Decode header fields. They are stored undecoded, because most are never read."""
    return [(_text(name), _text(value)) for name, value in fields]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def known(flow: Flow) -> dict[str, Any]:
    """The addon's metadata of a flow, without the prefix."""
    return {str(name).removeprefix(PREFIX): value for name, value in flow.metadata.items() if str(name).startswith(PREFIX)}


def parse(flow: Flow) -> SavedExchange:
    """Parse the metadata. A flow file is untrusted input: invalid metadata counts as absent."""
    values = known(flow)
    try:
        packed, azure_body = values.get("asked"), values.get("azures")
        status, headers = values.get("answered", ("", ()))
        return SavedExchange(
            unpack(packed) if packed else None,
            tuple(Chunk(float(at), int(size)) for at, size in itertools.batched(values.get("chunks", ()), 2)),
            status,
            tuple(texts(headers)),
            bytes(azure_body) if isinstance(azure_body, bytes) else None,  # of a number, it would allocate as many bytes
        )
    except (ValueError, TypeError, AttributeError, OverflowError):
        return NOTHING


def message(first: str, headers: Iterable[tuple[str, str]], body: bytes) -> str:
    """A request or a response as text."""
    head = "\n".join([*filter(None, [first]), *(f"{name}: {value}" for name, value in headers)])
    return readable_text.clean(f"{head}\n\n{body.decode('utf-8', 'replace')}")
