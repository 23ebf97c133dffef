"""All metrics, as one table: name, type, unit, help, labels, buckets, and how the value follows from a usage record.

Prometheus, OTLP and the documents use this table. The metrics of the GenAI conventions exist in two generations of names.
"""

from __future__ import annotations

import platform
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, NamedTuple

from mitmproxy.version import VERSION

from azure_openai_proxy.compatibility import own_version

from .span_attributes import PROVIDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from azure_openai_proxy.config.settings import Semconv

    from .record import Batch, CallRecord
    from .sink import LiveState

    type Label = str | int | None  # None: unknown or not applicable
    type Labels = tuple[Label, ...]

__all__ = [
    "ATTEMPTS",
    "BUILD_INFO",
    "COUNTERS",
    "GAUGES",
    "GENAI",
    "REPAIRS",
    "Gauge",
    "Metric",
    "Rule",
    "measurements",
    "metrics",
    "rules",
    "versions",
]

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(float(4**exponent) for exponent in range(14))
# Reasoning models take longer than the 10 seconds at which the conventions end.
FIRST_CHUNK = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0)
PER_CHUNK = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_UNITS = {"s": "_seconds", "USD": "_usd"}
_INFERENCE = frozenset({"chat", "text_completion"})


class Metric(NamedTuple):
    """A metric. Labels have the names of attributes, and Prometheus replaces the dots."""

    name: str  # in OTLP
    kind: Literal["counter", "gauge", "histogram"]
    unit: str  # UCUM
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name in Prometheus, without the suffixes of samples such as `_total`."""
        return self.name.replace(".", "_") + _UNITS.get(self.unit, "")

    @property
    def prometheus(self) -> str:
        """The name in Prometheus. A histogram has its samples in `_bucket`, `_sum` and `_count`."""
        return self.family + ("_total" if self.kind == "counter" else "")

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        return tuple(label.replace(".", "_") for label in self.labels)


def _always(call: CallRecord) -> bool:  # noqa: ARG001 - of the interface
    return True


class Rule(NamedTuple):
    """How a metric of a generation follows from a record: an amount, or None for no measurement, and the values of the labels."""

    metric: Metric
    amount: str | Callable[[CallRecord], float | None]  # a member of the record, "" to count records, or a function
    labels: Callable[[CallRecord], Labels]  # the same for all calls of a kind
    applies: Callable[[CallRecord], bool] = _always  # likewise

    def amounts(self, calls: Batch) -> Sequence[float | None]:
        """The amounts of several records."""
        if isinstance(self.amount, str):
            return calls.column(self.amount) if self.amount else [1] * len(calls)
        return list(map(self.amount, calls))

    def amount_of(self, call: CallRecord) -> float | None:
        if isinstance(self.amount, str):
            return _member(self.amount)(call) if self.amount else 1
        return self.amount(call)


@cache
def _member(name: str) -> Callable[[CallRecord], float | None]:
    return attrgetter(name)


class Gauge(NamedTuple):
    """How a metric follows from the live state: the values with their labels."""

    metric: Metric
    read: Callable[[LiveState], list[tuple[float, tuple[str, ...]]]]


# The GenAI conventions


def _genai(call: CallRecord) -> Labels:
    return (call.gen_ai_operation, PROVIDER, call.model, call.response_model, call.host, call.port)


def _genai_error(call: CallRecord) -> Labels:
    return (*_genai(call), call.error_type)


def _of_type(kind: str) -> Callable[[CallRecord], Labels]:
    return lambda call: (*_genai(call), kind)


def _is_inference(call: CallRecord) -> bool:
    return call.by_model and call.gen_ai_operation in _INFERENCE


def _is_other(call: CallRecord) -> bool:
    return call.by_model and call.gen_ai_operation not in _INFERENCE


def _by_model(call: CallRecord) -> bool:
    return call.by_model


def _streams(call: CallRecord) -> bool:
    return call.by_model and call.stream


def _tokens(kind: str) -> str:
    return f"tokens.{kind}"


def _modality(whole: str, spoken: str, *, audio: bool) -> Callable[[CallRecord], float | None]:
    """The tokens of audio, if the response has their number, or all others."""
    all_of, of_audio = _TOKEN_FIELDS.index(whole), _TOKEN_FIELDS.index(spoken)

    def amount(call: CallRecord) -> float | None:
        count, audio_tokens = call.tokens[all_of], call.tokens[of_audio] or 0
        if count is None:
            return None
        audio_tokens = min(audio_tokens, count)
        return (audio_tokens or None) if audio else count - audio_tokens

    return amount


_TOKEN_FIELDS = ("input", "cached_input", "cache_write_input", "output", "reasoning_output", "audio_input", "audio_output")
"""The fields of `Tokens`, in its order, that are values of the label `type`."""

_GENAI = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "server.address",
    "server.port",
)
_GENAI_ERROR = (*_GENAI, "error.type")


def _histogram(name: str, unit: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Metric:
    return Metric(name, "histogram", unit, text, labels, buckets)


_TOKEN_USAGE = _histogram(
    "gen_ai.client.token.usage", "{token}", "Input and output tokens of a call.", (*_GENAI, "gen_ai.token.type"), TOKENS
)
_USAGE = "gen_ai.client.inference.usage."
_INPUT = Metric(f"{_USAGE}input_tokens", "counter", "{token}", "Input tokens, cached ones included.", (*_GENAI, "gen_ai.token.modality"))
_OUTPUT = Metric(f"{_USAGE}output_tokens", "counter", "{token}", "Output tokens, reasoning included.", (*_GENAI, "gen_ai.token.modality"))
_DURATION_TEXT = "Duration of a call, from the arrival of the request to the end of the response."
_FIRST_TEXT = "Time from the arrival of a request to the first byte of its streamed response."
_PER_TEXT = "Mean time between two chunks of a streamed response, measured once for each response."


def _part(name: str, kind: str, text: str) -> Rule:
    metric = Metric(_USAGE + name, "counter", "{token}", text, (*_GENAI, "gen_ai.token.modality"))
    return Rule(metric, _tokens(kind), _of_type("unknown"), _by_model)


GENAI: dict[Semconv, tuple[Rule, ...]] = {
    "1.41": (
        Rule(_TOKEN_USAGE, _tokens("input"), _of_type("input"), _by_model),
        Rule(_TOKEN_USAGE, _tokens("output"), _of_type("output"), _by_model),
        Rule(
            _histogram("gen_ai.client.operation.duration", "s", _DURATION_TEXT, _GENAI_ERROR, SECONDS),
            "duration",
            _genai_error,
            _by_model,
        ),
        Rule(
            _histogram("gen_ai.client.operation.time_to_first_chunk", "s", _FIRST_TEXT, _GENAI, FIRST_CHUNK),
            "first_byte",
            _genai,
            _streams,
        ),
        Rule(
            _histogram("gen_ai.client.operation.time_per_output_chunk", "s", _PER_TEXT, _GENAI, PER_CHUNK),
            "time_per_chunk",
            _genai,
            _streams,
        ),
    ),
    "genai-0.1": (
        Rule(_INPUT, _modality("input", "audio_input", audio=False), _of_type("unknown"), _by_model),
        Rule(_INPUT, _modality("input", "audio_input", audio=True), _of_type("audio"), _by_model),
        Rule(_OUTPUT, _modality("output", "audio_output", audio=False), _of_type("unknown"), _by_model),
        Rule(_OUTPUT, _modality("output", "audio_output", audio=True), _of_type("audio"), _by_model),
        _part("cache_read.input_tokens", "cached_input", "Input tokens read from the prompt cache."),
        _part("cache_write.input_tokens", "cache_write_input", "Input tokens written to the prompt cache."),
        _part("reasoning.output_tokens", "reasoning_output", "Output tokens of reasoning."),
        Rule(
            _histogram("gen_ai.client.inference.operation.input_tokens", "{token}", "Input tokens of a call.", _GENAI, TOKENS),
            _tokens("input"),
            _genai,
            _by_model,
        ),
        Rule(
            _histogram("gen_ai.client.inference.operation.output_tokens", "{token}", "Output tokens of a call.", _GENAI, TOKENS),
            _tokens("output"),
            _genai,
            _by_model,
        ),
        Rule(
            _histogram("gen_ai.client.inference.duration", "s", _DURATION_TEXT, _GENAI_ERROR, SECONDS),
            "duration",
            _genai_error,
            _is_inference,
        ),
        Rule(
            _histogram("gen_ai.client.operation.duration", "s", _DURATION_TEXT + " Calls other than inference.", _GENAI_ERROR, SECONDS),
            "duration",
            _genai_error,
            _is_other,
        ),
        Rule(
            _histogram("gen_ai.client.inference.time_to_first_chunk", "s", _FIRST_TEXT, _GENAI, FIRST_CHUNK),
            "first_byte",
            _genai,
            _streams,
        ),
        Rule(
            _histogram("gen_ai.client.inference.time_per_output_chunk", "s", _PER_TEXT, _GENAI, PER_CHUNK),
            "time_per_chunk",
            _genai,
            _streams,
        ),
    ),
}


# The proxy's own

_OWN = "azure_openai_proxy."
_CALL = ("operation", "model", "deployment", "backend", "client")


def _own(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(_OWN + name, "counter", unit, text, labels)


def _call(call: CallRecord) -> Labels:
    return (call.operation, call.model, call.deployment, call.backend, call.client)


def _token_rule(kind: str) -> Rule:
    return Rule(_OWN_TOKENS, _tokens(kind), lambda call: (*_call(call), call.status, kind))


_OWN_TOKENS = _own(
    "tokens",
    "{token}",
    "Tokens. cached_input, cache_write_input and audio_input are parts of input, reasoning_output and audio_output parts of output.",
    *_CALL,
    "status",
    "type",
)
OWN = (
    Rule(
        _own("requests", "{request}", "Requests that ended, and responses of WebSockets.", *_CALL, "status"),
        "",
        lambda call: (*_call(call), call.status),
    ),
    *map(_token_rule, _TOKEN_FIELDS),
    Rule(
        _own("cost", "USD", "Cost in US dollars, of calls with a known price.", "model", "deployment", "backend", "client", "tier"),
        "cost_usd",
        lambda call: (call.model, call.deployment, call.backend, call.client, call.price_tier or call.service_tier),
    ),
    Rule(
        _own("unknown_usage", "{request}", "Successful calls whose tokens are unknown.", *_CALL),
        "",
        _call,
        lambda call: call.usage_state == "unknown",
    ),
    Rule(
        _histogram(_OWN + "overhead", "s", "Time that the proxy added to a call.", (), OVERHEAD),
        "overhead",
        lambda _: (),
    ),
)
ATTEMPTS = _own("attempts", "{attempt}", "Attempts at backends, by result: ok, a status or a code.", "backend", "deployment", "outcome")
REPAIRS = _own("repairs", "{repair}", "Corrections of requests.", "repair")

LOST_ROWS = _own("ledger_lost_rows", "{row}", "Rows that the ledger could not store.")
LIMIT_REFUSALS = _own("limit_refusals", "{request}", "Requests refused by a limit or a budget of the client.", "client", "limit")
BUILD_INFO = Metric(_OWN + "build_info", "gauge", "1", "The versions that run; the value is 1.", ("version", "mitmproxy", "python"))


def versions() -> tuple[str, str, str]:
    """Return the labels of `BUILD_INFO`."""
    return own_version(), VERSION, platform.python_version()


def _state(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(_OWN + name, "gauge", unit, text, labels)


GAUGES = (
    Gauge(
        _state("backend_up", "1", "1 if the deployment at the backend is used, 0 while it is not.", "backend", "deployment"),
        lambda live: [(float(at.up), (at.backend, at.deployment)) for at in live.backends],
    ),
    Gauge(
        _state("backend_remaining_tokens", "{token}", "Tokens left in the rate limit, as Azure reported last.", "backend", "deployment"),
        lambda live: [(at.remaining_tokens, (at.backend, at.deployment)) for at in live.backends if at.remaining_tokens is not None],
    ),
    Gauge(
        _state("backend_remaining_requests", "{request}", "Requests left in the rate limit, likewise.", "backend", "deployment"),
        lambda live: [(at.remaining_requests, (at.backend, at.deployment)) for at in live.backends if at.remaining_requests is not None],
    ),
    Gauge(
        _state("budget_remaining", "USD", "Left of the budget of a client, or of a group by its name `group NAME`.", "client"),
        lambda live: [(at.remaining, (at.owner,)) for at in live.budgets],
    ),
    Gauge(
        _state("budget", "USD", "The budget of a client or a group in its present period.", "client"),
        lambda live: [(at.limit, (at.owner,)) for at in live.budgets],
    ),
    Gauge(_state("active_requests", "{request}", "Requests in progress."), lambda live: [(live.active_requests, ())]),
    Gauge(_state("active_streams", "{request}", "Streamed responses in progress."), lambda live: [(live.active_streams, ())]),
    Gauge(
        _state("shared_state_up", "1", "1 if the Redis server of the shared state can be reached, 0 while it cannot."),
        lambda live: [] if live.shared_state_up is None else [(float(live.shared_state_up), ())],
    ),
    Gauge(_state("client_connections", "{connection}", "Open connections of clients."), lambda live: [(live.client_connections, ())]),
)


COUNTERS = (
    Gauge(LOST_ROWS, lambda live: [(live.ledger_lost_rows, ())]),
    Gauge(LIMIT_REFUSALS, lambda live: [(count, names) for names, count in live.limit_refusals.items()]),
)
"""Counters of the live state."""


def rules(semconv: Semconv) -> tuple[Rule, ...]:
    """The rules that give at most one measurement for each record. `measurements` adds attempts and repairs."""
    return (*OWN, *GENAI[semconv])


def metrics(semconv: Semconv) -> tuple[Metric, ...]:
    """All metrics, each once."""
    fixed = (ATTEMPTS, REPAIRS, LOST_ROWS, LIMIT_REFUSALS, BUILD_INFO, *(gauge.metric for gauge in GAUGES))
    return tuple(dict.fromkeys((*(rule.metric for rule in rules(semconv)), *fixed)))


def measurements(call: CallRecord, semconv: Semconv) -> Iterator[tuple[Metric, Labels, float]]:
    """All measurements of a record, with the values in the order of the metric's labels."""
    for rule in rules(semconv):
        if rule.applies(call) and (amount := rule.amount_of(call)) is not None:
            yield rule.metric, rule.labels(call), amount
    for attempt in call.attempts:
        yield ATTEMPTS, (attempt.backend, attempt.deployment, attempt.outcome), 1
    for repair in call.repairs:
        yield REPAIRS, (repair,), 1
