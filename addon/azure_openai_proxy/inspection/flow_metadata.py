"""The comment and the metadata of a flow: the comment is shown in flow lists; views, commands and filters read the metadata.

A flow contains the request as sent to Azure and the response as sent to the client. The metadata adds the other side of each: the
client's request, as the few bytes that differ, and Azure's response as received. mitmproxy can save all of it to a flow file.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.formats import quoting

from . import text as readable_text
from .response_text import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mitmproxy.flow import Flow

__all__ = [
    "NOTHING",
    "PREFIX",
    "Asked",
    "Facts",
    "Packed",
    "PackedBytes",
    "Seen",
    "Splice",
    "comment",
    "is_ours",
    "known",
    "message",
    "metadata",
    "pack",
    "pack_head",
    "repack",
    "seen",
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
    tokens: tuple[int, int] | None = None  # input, output
    first: float | None = None  # seconds to the first chunk
    total: float | None = None  # seconds to the end
    changed: tuple[str, ...] = ()  # repairs, retries and failures


def comment(facts: Facts) -> str:
    """`gpt-4o → prod · 23+11 tokens · first chunk 0.32 s · max_tokens → max_completion_tokens`."""
    where = [facts.model, facts.deployment if facts.deployment != facts.model else None]
    named = " → ".join(part for part in where if part) or facts.operation
    parts = [
        named,
        f"at {facts.backend}" if facts.backend not in ("", "default") else None,
        str(facts.status) if facts.status and facts.status >= 400 else None,
        f"{facts.tokens[0]}+{facts.tokens[1]} tokens" if facts.tokens else None,
        f"first chunk {facts.first:.2f} s" if facts.stream and facts.first is not None else None,
        f"{facts.total:.2f} s" if not facts.stream and facts.total is not None else None,
        *facts.changed,
    ]
    return quoting.line(" · ".join(part for part in parts if part))


def metadata(facts: Facts) -> dict[str, Any]:
    """The facts as metadata: names to strings, numbers and lists, without the unknown ones."""
    values = {
        "operation": facts.operation or None,
        "model": facts.model,
        "deployment": facts.deployment,
        "backend": facts.backend or None,
        "stream": facts.stream or None,
        "tokens": list(facts.tokens) if facts.tokens else None,
        "first_chunk": round(facts.first, 4) if facts.first is not None else None,
        "changed": [quoting.line(change) for change in facts.changed] or None,
    }
    # Bytes that are not UTF-8 cannot be saved.
    return {PREFIX + name: quoting.line(value) if isinstance(value, str) else value for name, value in values.items() if value is not None}


# The client's request and Azure's response


class Splice(NamedTuple):
    """The difference of two bodies that are equal except for one range: its position and its old bytes."""

    start: int
    tail: int  # equal bytes at the end
    old: bytes

    @classmethod
    def between(cls, old: bytes, new: bytes) -> Splice | None:
        """The difference of two bodies; None if they are equal."""
        if old == new:
            return None
        start = _common(old, new)
        most = min(len(old), len(new)) - start
        tail = _common_end(old, new, most)
        return cls(start, tail, old[start : len(old) - tail])

    def undo(self, new: bytes) -> bytes:
        """Restore the old body. If the user has edited `new` since, the result is an approximation."""
        return new[: self.start] + self.old + new[max(self.start, len(new) - self.tail) :]


def _common(one: bytes, other: bytes) -> int:
    """Length of the common prefix, found by binary search, so that bodies of any length need few comparisons."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(one: bytes, other: bytes, most: int) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]:
            low = middle
        else:
            high = middle - 1
    return low


class Asked(NamedTuple):
    """The client's request, without its body and without keys."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    splice: Splice | None = None

    def body(self, azures: bytes) -> bytes:
        return self.splice.undo(azures) if self.splice else azures


class Seen(NamedTuple):
    """The parsed metadata of a flow."""

    asked: Asked | None = None
    chunks: Sequence[Chunk] = ()
    status: str = ""  # of Azure's response
    headers: Sequence[tuple[str, str]] = ()
    answer: bytes | None = None  # Azure's body, if it differs from the client's


NOTHING = Seen()


class Packed(list[Any]):
    """A list for `seen`, with a short repr: the console prints all metadata, and a megabyte would block mitmproxy for many seconds."""

    def __repr__(self) -> str:
        return "…"


class PackedBytes(bytes):
    """A body for `seen`, with a short repr."""

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


def pack(asked: Asked) -> list[Any]:
    """The client's request as a metadata value."""
    return Packed([asked.method, asked.path, asked.headers, list(asked.splice) if asked.splice else None])


def pack_head(method: str, path: str, fields: tuple[tuple[bytes, bytes], ...]) -> list[Any]:
    """Like `pack`, for a request head with mitmproxy's raw header fields. The body's splice is set later."""
    return Packed((method, path, fields, None))


def unpack(packed: Any) -> Asked:
    method, path, fields, splice = packed
    return Asked(method, path, texts(fields), Splice(*splice) if splice else None)


def texts(fields: Iterable[tuple[bytes | str, bytes | str]]) -> list[tuple[str, str]]:
    """Decode header fields. They are stored undecoded, because most are never read."""
    return [(_text(name), _text(value)) for name, value in fields]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def known(flow: Flow) -> dict[str, Any]:
    """The addon's metadata of a flow, without the prefix."""
    return {str(name).removeprefix(PREFIX): value for name, value in flow.metadata.items() if str(name).startswith(PREFIX)}


def seen(flow: Flow) -> Seen:
    """Parse the metadata. A flow file is untrusted input: invalid metadata counts as absent."""
    values = known(flow)
    try:
        packed = values.get("asked")
        status, headers = values.get("answered", ("", ()))
        return Seen(
            unpack(packed) if packed else None,
            tuple(Chunk(float(at), int(size)) for at, size in itertools.batched(values.get("chunks", ()), 2)),
            status,
            tuple(texts(headers)),
            bytes(values["azures"]) if "azures" in values else None,
        )
    except (ValueError, TypeError):
        return NOTHING


def message(first: str, headers: Iterable[tuple[str, str]], body: bytes) -> str:
    """A request or a response as text."""
    head = "\n".join([*filter(None, [first]), *(f"{name}: {value}" for name, value in headers)])
    return readable_text.clean(f"{head}\n\n{body.decode('utf-8', 'replace')}")
