"""The usage record: everything the sinks may know about one call. It contains no key and no text of a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    type Convert = Callable[[Sequence[Any]], Sequence[Any]]
    type OwnValues = tuple[Any, ...]  # the values of `OWN` in its order

__all__ = [
    "COMMON",
    "NO_TOKENS",
    "OWN",
    "AttemptRecord",
    "Batch",
    "CallKind",
    "CallRecord",
    "Tokens",
    "batch_of",
    "lengths",
    "milliseconds",
]


class Tokens(NamedTuple):
    """Tokens of one call. None: unknown, or the model has no such tokens.

    Cached, cache-write and audio input are parts of `input`; reasoning and audio output are parts of `output`; `cached_audio_input` is a
    part of both `cached_input` and `audio_input`.
    """

    input: int | None = None
    cached_input: int | None = None
    cache_write_input: int | None = None
    output: int | None = None
    reasoning_output: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    cached_audio_input: int | None = None

    def plus(self, other: Tokens) -> Tokens:
        """Return the sum. An unknown count adds nothing."""
        pairs = zip(self, other, strict=True)
        return Tokens(*[one if two is None else two if one is None else one + two for one, two in pairs])


NO_TOKENS = Tokens()


class AttemptRecord(NamedTuple):
    """One attempt of a call at a backend."""

    backend: str
    deployment: str
    outcome: str  # "ok", a status ("429"), or the code of a failure ("upstream_unreachable")
    started: float  # Unix time in seconds
    ended: float
    host: str = ""  # of the backend
    port: int = 443


COMMON = (
    *("method", "user_agent", "model", "deployment", "served_deployment", "response_model", "service_tier", "system_fingerprint"),
    *("service_tier_requested", "reasoning_effort", "error_code"),
    *("client", "operation", "gen_ai_operation", "by_model", "stream", "backend", "host", "port", "zone", "spillover", "repairs"),
    *("reason", "status", "incomplete", "finish_reasons", "usage_state", "price_tier", "in_websocket"),
)
"""The members of a record that many calls have in common."""

OWN = (
    *("tokens", "time", "request_id", "trace_id", "span_id", "parent_span_id", "traced", "client_ip", "session", "path"),
    *("previous_response_id", "attempts", "response_id", "request_bytes", "response_bytes", "latency", "model_selection_details"),
    *("cost_usd", "estimated_cost_usd", "once", "duration", "first_byte", "time_per_chunk", "overhead"),
)
"""The other members."""


@dataclass(kw_only=True)
class CallRecord:
    """One call. None means unknown or not applicable; unknown is never 0. "" is used where the name is optional.

    Only the meter of the call may change it, before the sinks get it, and changes members of `COMMON` with `change` alone.

    A WebSocket has one record at its end, with `usage_state` "none", and one record for each of its responses (`in_websocket`).
    """

    # The request
    time: float  # Unix time in seconds at which the request arrived
    request_id: str
    trace_id: str  # 32 hexadecimal digits, of the client's `traceparent` or new
    span_id: str = ""  # 16 hexadecimal digits, of this call
    parent_span_id: str = ""  # of the client's `traceparent`
    traced: bool = True  # the client's `traceparent` does not forbid sampling
    client: str = ""  # configured name of the client key
    client_ip: str = ""
    session: str | None = None
    method: str = ""
    path: str = ""  # the client's, without query
    user_agent: str | None = None
    request_bytes: int | None = None

    # The operation
    operation: str = ""  # OpenAI's path family: chat.completions, responses, images.generations
    gen_ai_operation: str = ""  # name in the GenAI conventions: chat, text_completion, embeddings, fetch_response
    by_model: bool = False  # a model answers this operation, so that it feeds the GenAI metrics
    model: str | None = None  # the client's name
    service_tier_requested: str | None = None
    previous_response_id: str | None = None
    reasoning_effort: str | None = None
    stream: bool = False

    # Where it went
    backend: str | None = None  # of the last attempt
    host: str | None = None  # of that backend
    port: int | None = None
    zone: str | None = None  # data zone of that backend
    deployment: str | None = None  # requested at Azure
    served_deployment: str | None = None  # as the response headers say
    spillover: bool | None = None
    attempts: Sequence[AttemptRecord] = ()
    repairs: Sequence[str] = ()
    reason: str = ""  # why the backend of the last attempt was chosen

    # The response
    status: int | None = None  # None: the client disconnected before any response head
    error_code: str | None = None
    incomplete: Literal["client", "upstream"] | None = None  # who ended the response early
    response_id: str | None = None
    response_model: str | None = None
    service_tier: str | None = None  # served
    system_fingerprint: str | None = None
    finish_reasons: Sequence[str] = ()
    response_bytes: int | None = None  # of the body, as sent to the client
    latency: Mapping[str, float] | None = None  # Azure's `latency_checkpoint`, in milliseconds
    model_selection_details: Mapping[str, Any] | None = None  # of the model router

    # Usage and cost
    usage_state: Literal["known", "unknown", "none"] = "none"  # none: the operation reports no usage, or the call failed
    tokens: Tokens = NO_TOKENS
    cost_usd: float | None = None
    estimated_cost_usd: float | None = None  # charge of the client's budget while the usage is unknown
    price_tier: str | None = None  # overrides `service_tier` for the price: "batch"
    once: str | None = None  # unique id of a usage that several calls can show, such as that of a background response

    # Time, in seconds
    duration: float | None = None
    first_byte: float | None = None  # to the first byte of the response body, from `time`
    time_per_chunk: float | None = None  # mean time between two chunks of a stream
    overhead: float | None = None  # time that the proxy added

    in_websocket: bool = False  # one response of a WebSocket, not a request of its own

    kind: CallKind | None = field(default=None, init=False, repr=False, compare=False)  # None: nothing is remembered for its kind

    def change(self, **members: Any) -> None:
        """Change any members. The record leaves its kind."""
        self.__dict__.update(members, kind=None)

    @property
    def failed(self) -> bool:
        """Whether the call failed: status 400 and above, or ended early by the upstream."""
        return (self.status is not None and self.status >= 400) or self.incomplete == "upstream"

    @property
    def error_type(self) -> str | None:
        """`error.type` of a failed call in the GenAI conventions: the code of the error, else the status."""
        if not self.failed:
            return None
        return self.error_code or (str(self.status) if self.status is not None and self.status >= 400 else "_OTHER")

    @property
    def names_work(self) -> bool:
        """Whether the upstream accepted the names in the request. A client that leaves early, or opens a WebSocket, may name anything."""
        return self.status is not None and self.status != 101 and not self.failed


class CallKind:
    """The calls that agree in all of `COMMON`. A sink converts these members once, and remembers the result by the kind."""

    __slots__ = ("sample",)

    def __init__(self, **members: Any) -> None:
        self.sample = CallRecord(time=0.0, request_id="", trace_id="", **members)
        """A record of this kind, whose other members have their defaults."""
        self.sample.kind = self

    def record(self, own: OwnValues = ()) -> CallRecord:
        """Return a record of this kind, with its own members. The constructor takes eight times as long."""
        record = CallRecord.__new__(CallRecord)
        record.__dict__ = {**vars(self.sample), **dict(zip(OWN, own, strict=False))}
        return record


class Batch(Sequence[CallRecord]):
    """Records that the sinks get together. Each member that is not in `COMMON` is read once, as a column for all sinks.

    Most sinks need only the columns. The records of `rows` are made when one of them is read.
    """

    def __init__(self, kinds: Sequence[CallKind | None], records: Sequence[CallRecord] = (), rows: Sequence[OwnValues] = ()) -> None:
        self._kinds, self._records, self._rows = kinds, records, rows
        self._columns: dict[object, Sequence[Any]] = {}
        first = kinds[0] if kinds else None
        self.one_kind: CallKind | None = first if kinds.count(first) == len(kinds) else None
        """The kind of all records; None if they have several kinds, or one that nothing is remembered for."""

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, index: int) -> CallRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CallRecord]: ...
    def __getitem__(self, index: int | slice) -> CallRecord | Sequence[CallRecord]:
        if not self._records:
            self._records = [kind.record(own) for kind, own in zip(self._kinds, self._rows, strict=True) if kind]
        return self._records[index]

    @property
    def samples(self) -> Sequence[CallRecord]:
        """For each record one that agrees with it in `COMMON`, and in the kind; a single one if all have the same kind."""
        if self.one_kind:
            return (self.one_kind.sample,)
        return self._records or [kind.sample for kind in self._kinds if kind]

    def by_kind(self) -> list[Batch]:
        """The records of each kind. One without a kind is alone."""
        if self.one_kind:
            return [self]
        places: dict[object, list[int]] = {}
        for place, kind in enumerate(self._kinds):
            places.setdefault(kind or place, []).append(place)
        return [self._part(some) for some in places.values()]

    def _part(self, places: list[int]) -> Batch:
        records, rows = ([values[place] for place in places] if values else () for values in (self._records, self._rows))
        return Batch([self._kinds[place] for place in places], cast("Any", records), cast("Any", rows))

    def column(self, attribute: str, convert: Convert | None = None) -> Sequence[Any]:
        """The values of a member of at least one record, with a dot for those of `tokens`, and as `convert` returns them."""
        if not self._columns:
            self._read()
        if convert is None:
            return self._columns[attribute]
        key = attribute, convert
        if key not in self._columns:
            self._columns[key] = convert(self._columns[attribute])
        return self._columns[key]

    def _read(self) -> None:
        tokens, *others = zip(*(self._rows or map(_read_own, self._records)), strict=True)
        self._columns.update(zip((*_COUNTS, *OWN[1:]), (*zip(*tokens, strict=True), *others), strict=True))


_COUNTS = tuple(f"tokens.{name}" for name in Tokens._fields)
_read_own = attrgetter(*OWN)


def batch_of(calls: Sequence[CallRecord]) -> Batch:
    """Return the batch that the records are, or a new one."""
    return calls if isinstance(calls, Batch) else Batch([call.kind for call in calls], list(calls))


def lengths(values: Sequence[Sequence[object]]) -> list[int]:
    return list(map(len, values))


def milliseconds(values: Sequence[float | None]) -> list[float | None]:
    """Return durations in milliseconds with three decimals. `round` with a number of digits takes ten times as long."""
    try:
        return [round(seconds * 1e6) / 1000 for seconds in cast("Sequence[float]", values)]
    except TypeError:  # some are unknown
        return [None if seconds is None else round(seconds * 1e6) / 1000 for seconds in values]
