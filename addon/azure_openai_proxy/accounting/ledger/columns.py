"""The columns of the ledger, and the conversion of a usage record into a row.

A row contains no key and no text of a message. Texts are bounded, and free of NUL, which PostgreSQL rejects, and of lone surrogates, which
no database can encode. Numbers beyond any real value are unknown, because one of them would overflow every sum.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from azure_openai_proxy.accounting.record import COMMON, batch_of, lengths, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from azure_openai_proxy.accounting.record import CallKind, CallRecord

__all__ = ["COLUMNS", "GROUPS", "NAMES", "SHARED", "USAGE", "Column", "Row", "Rows", "row", "storable"]

type Row = dict[str, Any]

MAX_NUMBER = 10**12
MOST_KINDS = 2048
"""Kinds of calls whose part of a row is remembered."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Column(NamedTuple):
    """One column. A value of None is unknown or does not apply."""

    name: str
    type: Literal["text", "integer", "number", "boolean", "time", "day"]
    attribute: str  # of `CallRecord`, with dots
    description: str
    limit: int = 200  # of a text, in characters
    convert: Callable[[Sequence[Any]], Sequence[Any]] | None = None


@functools.lru_cache(maxsize=8)
def _date(days: float) -> dt.date:
    return dt.date(1970, 1, 1) + dt.timedelta(days)


def _joined(lists: Sequence[Sequence[str]]) -> list[str]:
    return list(map(",".join, lists))


COLUMNS = (
    Column("time", "time", "time", "when the request arrived (UTC)"),
    Column("day", "day", "time", "the day of `time` (UTC)", convert=lambda times: [_date(seconds // 86400) for seconds in times]),
    Column("request_id", "text", "request_id", "the `x-request-id` of the response"),
    Column("trace_id", "text", "trace_id", "trace id of the client's `traceparent`, or a new one"),
    Column("client", "text", "client", "configured name of the client key; empty without one", 100),
    Column("client_ip", "text", "client_ip", "the client's address"),
    Column("session", "text", "session", "the conversation, if the client names one"),
    Column("method", "text", "method", "HTTP method"),
    Column("path", "text", "path", "the client's path, without query"),
    Column("user_agent", "text", "user_agent", "the client's `user-agent`"),
    Column("operation", "text", "operation", "OpenAI's path family, such as `chat.completions`"),
    Column("model", "text", "model", "the model that the client named"),
    Column("backend", "text", "backend", "the backend of the last attempt", 100),
    Column("deployment", "text", "deployment", "the deployment requested at Azure"),
    Column("served_deployment", "text", "served_deployment", "the deployment that answered, as Azure's headers say"),
    Column("spillover", "boolean", "spillover", "whether Azure used the spillover deployment"),
    Column("attempts", "integer", "attempts", "number of attempts", convert=lengths),
    Column("repairs", "text", "repairs", "the repairs of the request, separated by commas", convert=_joined),
    Column("response_id", "text", "response_id", "id of the response object"),
    Column("response_model", "text", "response_model", "the model that answered"),
    Column("service_tier_requested", "text", "service_tier_requested", "the service tier in the request"),
    Column("service_tier", "text", "service_tier", "the service tier that was served"),
    Column("status", "integer", "status", "HTTP status; null if the client disconnected before any response"),
    Column("error_code", "text", "error_code", "code of the error"),
    Column("failed", "boolean", "failed", "status 400 and above, or ended early by Azure"),
    Column("stream", "boolean", "stream", "whether the client requested a stream"),
    Column("incomplete", "text", "incomplete", "who ended the response early: `client` or `upstream`"),
    Column("in_websocket", "boolean", "in_websocket", "one response of a WebSocket, not a request of its own"),
    Column("usage_state", "text", "usage_state", "`known`, `unknown`, or `none` if the operation has no usage"),
    Column("input_tokens", "integer", "tokens.input", "input tokens, cached and written to the cache included"),
    Column("cached_input_tokens", "integer", "tokens.cached_input", "input tokens read from the cache"),
    Column("cache_write_input_tokens", "integer", "tokens.cache_write_input", "input tokens written to the cache"),
    Column("output_tokens", "integer", "tokens.output", "output tokens, reasoning included"),
    Column("reasoning_output_tokens", "integer", "tokens.reasoning_output", "output tokens of the reasoning"),
    Column("audio_input_tokens", "integer", "tokens.audio_input", "input tokens of audio"),
    Column("audio_output_tokens", "integer", "tokens.audio_output", "output tokens of audio"),
    Column("cached_audio_input_tokens", "integer", "tokens.cached_audio_input", "cached input tokens of audio"),
    Column("cost_usd", "number", "cost_usd", "cost in USD; null without a price"),
    Column(
        "estimated_cost_usd",
        "number",
        "estimated_cost_usd",
        "charge of a budget while the usage is unknown; negative if the usage replaces it",
    ),
    Column("price_tier", "text", "price_tier", "the tier of the price, if it is not `service_tier`: `batch`"),
    Column("duration_ms", "number", "duration", "milliseconds from the request's arrival to the end", convert=milliseconds),
    Column("first_byte_ms", "number", "first_byte", "milliseconds to the first byte of the response body", convert=milliseconds),
    Column("overhead_ms", "number", "overhead", "milliseconds that the proxy added", convert=milliseconds),
    Column("request_bytes", "integer", "request_bytes", "size of the request body"),
    Column("response_bytes", "integer", "response_bytes", "size of the response body, as sent to the client"),
)
"""The columns of a call, in the order of the table."""

USAGE = (
    *("input_tokens", "cached_input_tokens", "cache_write_input_tokens", "output_tokens", "reasoning_output_tokens"),
    *("audio_input_tokens", "audio_output_tokens", "cached_audio_input_tokens", "cost_usd", "estimated_cost_usd"),
)
"""The columns that are null in a row whose usage another row has."""


GROUPS = ("model", "client", "day", "backend", "session")
"""The columns by which a report can be grouped."""


_SHARED = [column for column in COLUMNS if column.attribute in (*COMMON, "failed")]
_OWN = [column for column in COLUMNS if column not in _SHARED]
_read_shared = attrgetter(*(column.attribute for column in _SHARED))
SHARED = tuple(column.name for column in _SHARED)
"""The columns that the calls of a kind have in common."""
NAMES = (*SHARED, *(column.name for column in _OWN))
"""The columns in the order of a row."""


def row(call: CallRecord) -> Row:
    """Return the row of a record, by the names of the columns. `time` is Unix time."""
    return {name: values[0] for name, values in zip(NAMES, Rows().columns([call]), strict=True)}


class Rows:
    """Makes rows of records, one column after the other: many at once take less time than one after the other."""

    def __init__(self) -> None:
        self._shared: dict[CallKind | None, tuple[Any, ...]] = {}

    def columns(self, calls: Sequence[CallRecord]) -> list[Sequence[Any]]:
        """Return the columns of at least one record, in the order of `NAMES`. `time` is Unix time; each database has its own form."""
        batch = batch_of(calls)
        if batch.one_kind:
            shared: Iterable[Sequence[Any]] = [(value,) * len(batch) for value in self._common(batch.samples[0])]
        else:
            shared = zip(*map(self._common, batch.samples), strict=True)
        return [*shared, *[_storable(column, batch.column(column.attribute, column.convert)) for column in _OWN]]

    def _common(self, call: CallRecord) -> tuple[Any, ...]:
        found = self._shared.get(call.kind)
        if found is None:
            found = tuple([_shared_value(column, value) for column, value in zip(_SHARED, _read_shared(call), strict=True)])
            if call.kind:
                if len(self._shared) >= MOST_KINDS:
                    self._shared.clear()
                self._shared[call.kind] = found
        return found


def _shared_value(column: Column, value: object) -> Any:
    values: Sequence[object] = (value,)
    return _storable(column, column.convert(values) if column.convert else values)[0]


def _storable(column: Column, values: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a column in the form of the database."""
    first = values[0]
    try:
        if first is None:
            if values.count(None) == len(values):
                return values
        elif column.type == "text":
            joined = "".join(values)
            if joined.isascii() and "\0" not in joined and max(map(len, values)) <= column.limit:
                return values
        elif column.type in ("integer", "number") and sum(values) < MAX_NUMBER and min(values) >= 0:  # false with NaN
            return values
    except (TypeError, OverflowError):  # some are unknown
        pass
    if column.type == "text":
        return [text if text is None else storable(text, column.limit) for text in values]
    if column.type in ("integer", "number"):
        # A comparison with NaN is false.
        return [number if number is None or -MAX_NUMBER < number < MAX_NUMBER else None for number in values]
    return values


def storable(text: str, limit: int = 200) -> str:
    """Return at most `limit` characters of a text, in a form that every database accepts."""
    if len(text) > limit:
        text = text[:limit]
    return text if text.isascii() and "\0" not in text else _UNSTORABLE.sub("\ufffd", text)
