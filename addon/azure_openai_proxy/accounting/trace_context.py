"""W3C Trace Context: the headers `traceparent` and `tracestate` of a request, and those of its attempts at Azure.

A header that is not valid is ignored, as the recommendation says, and the request starts a trace of its own.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mitmproxy import http

    type Fields = tuple[tuple[bytes, bytes], ...]

__all__ = ["NONE", "PARENT", "TraceContext", "attempt_span_id", "begin", "new", "new_ids", "set_headers"]

PARENT, STATE = b"traceparent", b"tracestate"
SAMPLED, RANDOM = 0x01, 0x02
STATE_LENGTH = 4096
"""Bytes of `tracestate` that are passed on. The recommendation requires 512."""
STATE_MEMBERS = 32

# Later versions may append fields, each after a hyphen; version ff is forbidden.
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_KEY = rb"[a-z0-9][a-z0-9_\-*/]{0,240}(?:@[a-z][a-z0-9_\-*/]{0,13})?"
_MEMBER = re.compile(rb"[ \t]*+(?:" + _KEY + rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])?[ \t]*")
_STEP = 0x9E3779B97F4A7C15


class TraceContext(NamedTuple):
    """The position of one request in a trace."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16 hexadecimal digits, of this request
    parent_span_id: str = ""  # of the client; "" without a valid `traceparent`
    sampled: bool = True
    random: bool = False  # the client says that the last 56 bits of the trace id are random
    state: bytes = b""  # `tracestate`


NONE = TraceContext("", "")
"""No context yet."""


def begin(fields: Fields) -> TraceContext:
    """The context of a new request: the client's trace, or a new one."""
    parents = [value for name, value in fields if len(name) == len(PARENT) and name.lower() == PARENT]
    found = _PARENT.fullmatch(parents[0].strip(b" \t")) if len(parents) == 1 else None
    if found is None or (found[1] == b"00" and found[5] is not None):
        return new()
    flags = int(found[4], 16)
    return TraceContext(
        found[2].decode(),
        new_ids()[1],
        found[3].decode(),
        sampled=bool(flags & SAMPLED),
        random=bool(flags & RANDOM),
        state=_state([value for name, value in fields if name.lower() == STATE]),
    )


def new() -> TraceContext:
    """The context of a request that starts a trace."""
    return TraceContext(*new_ids())


def attempt_span_id(span_id: str, number: int) -> str:
    """The id of the span of an attempt, from 1. It follows from the request's id, so that nothing has to keep it."""
    return f"{(int(span_id, 16) + number * _STEP) % 2**64 or _STEP:016x}"


def set_headers(headers: http.Headers, context: TraceContext, attempt: int) -> None:
    """Replace the client's trace headers by those of an attempt at Azure."""
    flags = (SAMPLED if context.sampled else 0) | (RANDOM if context.random else 0)
    kept = [field for field in headers.fields if field[0].lower() not in (PARENT, STATE)]
    kept.append((PARENT, f"00-{context.trace_id}-{attempt_span_id(context.span_id, attempt)}-{flags:02x}".encode()))
    if context.state:
        kept.append((STATE, context.state))
    headers.fields = tuple(kept)


def _state(values: list[bytes]) -> bytes:
    """The members of all `tracestate` headers; nothing if one is invalid or there are too many."""
    joined = b",".join(values)
    members = joined.split(b",") if len(joined) <= STATE_LENGTH else []
    if not members or not all(map(_MEMBER.fullmatch, members)):
        return b""
    given = [member.strip(b" \t") for member in members if member.strip(b" \t")]
    return b",".join(given) if len(given) <= STATE_MEMBERS else b""


_IDS = 64
"""Pairs of ids that are made at once: a system call takes longer than all else that an id needs."""
_ZERO = "0" * 16
_made: list[tuple[str, str]] = []


def new_ids() -> tuple[str, str]:
    """A random id of a trace and one of a span, in hexadecimal. An id of zeros is invalid."""
    if not _made:
        digits = os.urandom(24 * _IDS).hex()
        pairs = [(digits[at : at + 32], digits[at + 32 : at + 48]) for at in range(0, len(digits), 48)]
        _made.extend(pair for pair in pairs if _ZERO not in pair and pair[0] != 2 * _ZERO)
    return _made.pop() if _made else new_ids()
