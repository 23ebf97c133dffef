"""The table of span attributes: of a request's span and of the spans of its attempts, by generation of the GenAI conventions.

The proxy's own attributes begin with `azure_openai_proxy.`. docs/observability.md is generated from the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from azure_openai_proxy.config.settings import Semconv

    from .record import AttemptRecord, CallRecord

__all__ = ["ATTEMPT_SPAN", "CALL_SPAN", "PROVIDER", "SpanAttribute", "attempt_attributes", "call_attributes", "span_name"]

PROVIDER = "azure.ai.openai"
LONGEST = 1024
"""Characters of a text in an attribute; the rest is cut off."""
MOST = 32
"""Items of a list in an attribute."""

type Value = str | int | float | bool | Sequence[str]


class SpanAttribute[Source](NamedTuple):
    """An attribute of a span. None as a value: the span does not have it."""

    name: str  # in the conventions of 1.41, and in all generations without a name of its own in `names`
    value: Callable[[Source], Value | None]
    help: str
    names: dict[Semconv, str | None] = {}  # noqa: RUF012 - a table, which nothing changes; None: not in this generation

    def name_in(self, generation: Semconv) -> str | None:
        return self.names.get(generation, self.name)


def _attempt_error(attempt: AttemptRecord) -> str | None:
    return None if attempt.outcome == "ok" else attempt.outcome


def _attempt_status(attempt: AttemptRecord) -> int | None:
    return int(attempt.outcome) if attempt.outcome.isdecimal() else None


CALL_SPAN: tuple[SpanAttribute[CallRecord], ...] = (
    SpanAttribute("gen_ai.operation.name", lambda call: call.gen_ai_operation or call.operation or None, "chat, embeddings, ..."),
    SpanAttribute("gen_ai.provider.name", lambda _: PROVIDER, f"always `{PROVIDER}`"),
    SpanAttribute("gen_ai.request.model", lambda call: call.model, "the model in the client's request"),
    SpanAttribute("gen_ai.request.stream", lambda call: call.stream if call.by_model else None, "whether the client asked for a stream"),
    SpanAttribute(
        "gen_ai.request.previous_response.id",
        lambda call: call.previous_response_id,
        "`previous_response_id` of the request",
        {"1.41": None},
    ),
    SpanAttribute("gen_ai.request.reasoning.level", lambda call: call.reasoning_effort, "the reasoning effort requested", {"1.41": None}),
    SpanAttribute("openai.request.service_tier", lambda call: call.service_tier_requested, "the service tier requested"),
    SpanAttribute("gen_ai.response.id", lambda call: call.response_id, "the id in the response"),
    SpanAttribute("gen_ai.response.model", lambda call: call.response_model, "the model that answered"),
    SpanAttribute("gen_ai.response.finish_reasons", lambda call: call.finish_reasons or None, "why the model stopped, for each choice"),
    SpanAttribute(
        "gen_ai.response.time_to_first_chunk",
        lambda call: call.first_byte if call.stream else None,
        "seconds from the request to the first byte of a stream",
    ),
    SpanAttribute("openai.response.service_tier", lambda call: call.service_tier, "the service tier that served the request"),
    SpanAttribute("openai.response.system_fingerprint", lambda call: call.system_fingerprint, "`system_fingerprint` of the response"),
    SpanAttribute("gen_ai.usage.input_tokens", lambda call: call.tokens.input, "input tokens, cached ones included"),
    SpanAttribute("gen_ai.usage.output_tokens", lambda call: call.tokens.output, "output tokens, reasoning included"),
    SpanAttribute("gen_ai.usage.cache_read.input_tokens", lambda call: call.tokens.cached_input, "input tokens read from the cache"),
    SpanAttribute(
        "gen_ai.usage.cache_creation.input_tokens",
        lambda call: call.tokens.cache_write_input,
        "input tokens written to the cache",
        {"genai-0.1": "gen_ai.usage.cache_write.input_tokens"},
    ),
    SpanAttribute("gen_ai.usage.reasoning.output_tokens", lambda call: call.tokens.reasoning_output, "output tokens of reasoning"),
    SpanAttribute(
        "azure_openai_proxy.usage.audio.input_tokens",
        lambda call: call.tokens.audio_input,
        "input tokens of audio",
        {"genai-0.1": "gen_ai.usage.audio.input_tokens"},
    ),
    SpanAttribute(
        "azure_openai_proxy.usage.audio.output_tokens",
        lambda call: call.tokens.audio_output,
        "output tokens of audio",
        {"genai-0.1": "gen_ai.usage.audio.output_tokens"},
    ),
    SpanAttribute("error.type", lambda call: call.error_type, "of a failed request: the code of the error, else the status"),
    SpanAttribute("server.address", lambda call: call.host, "host of the backend"),
    SpanAttribute("server.port", lambda call: call.port if call.host else None, "port of the backend"),
    SpanAttribute("http.request.method", lambda call: call.method or None, "method of the client's request"),
    SpanAttribute("url.path", lambda call: call.path or None, "path of the client's request, without the query"),
    SpanAttribute("http.response.status_code", lambda call: call.status, "status of the client's response"),
    SpanAttribute("client.address", lambda call: call.client_ip or None, "address of the client"),
    SpanAttribute("user_agent.original", lambda call: call.user_agent, "User-Agent of the client"),
    SpanAttribute("session.id", lambda call: call.session, "session, as in the access log"),
    SpanAttribute("azure_openai_proxy.request_id", lambda call: call.request_id, "request id, as in the access log"),
    SpanAttribute("azure_openai_proxy.operation", lambda call: call.operation or None, "chat.completions, responses, ..."),
    SpanAttribute("azure_openai_proxy.client", lambda call: call.client or None, "name of the client key"),
    SpanAttribute("azure_openai_proxy.backend", lambda call: call.backend, "name of the backend that answered"),
    SpanAttribute("azure_openai_proxy.deployment", lambda call: call.deployment, "deployment requested at Azure"),
    SpanAttribute("azure_openai_proxy.served_deployment", lambda call: call.served_deployment, "deployment named by Azure's headers"),
    SpanAttribute("azure_openai_proxy.spillover", lambda call: call.spillover, "whether Azure spilled the request over"),
    SpanAttribute("azure_openai_proxy.attempts", lambda call: len(call.attempts) or None, "number of attempts"),
    SpanAttribute("azure_openai_proxy.repairs", lambda call: call.repairs or None, "corrections of the request after an error of Azure"),
    SpanAttribute("azure_openai_proxy.incomplete", lambda call: call.incomplete, "who ended the response early: client or upstream"),
    SpanAttribute("azure_openai_proxy.in_websocket", lambda call: call.in_websocket, "whether the span is one response of a WebSocket"),
    SpanAttribute("azure_openai_proxy.usage_state", lambda call: call.usage_state, "known, unknown or none"),
    SpanAttribute("azure_openai_proxy.cost_usd", lambda call: call.cost_usd, "cost in US dollars"),
    SpanAttribute("azure_openai_proxy.overhead", lambda call: call.overhead, "seconds that the proxy added"),
)

ATTEMPT_SPAN: tuple[SpanAttribute[AttemptRecord], ...] = (
    SpanAttribute("server.address", lambda attempt: attempt.host or None, "host of the backend"),
    SpanAttribute("server.port", lambda attempt: attempt.port if attempt.host else None, "port of the backend"),
    SpanAttribute("azure_openai_proxy.backend", lambda attempt: attempt.backend, "name of the backend"),
    SpanAttribute("azure_openai_proxy.deployment", lambda attempt: attempt.deployment or None, "deployment requested at Azure"),
    SpanAttribute("azure_openai_proxy.outcome", lambda attempt: attempt.outcome, "ok, a status, or the code of a failure"),
    SpanAttribute("http.response.status_code", _attempt_status, "status of a failed attempt"),
    SpanAttribute("error.type", _attempt_error, "of a failed attempt: its outcome"),
)


def span_name(call: CallRecord) -> str:
    """`{operation} {model}`, or the operation alone."""
    operation = call.gen_ai_operation or call.operation or "request"
    return _clean_text(f"{operation} {call.model}" if call.model else operation)


def call_attributes(call: CallRecord, generation: Semconv) -> dict[str, Value]:
    return _attributes(_CALL_ROWS[generation], call)


def attempt_attributes(attempt: AttemptRecord, generation: Semconv) -> dict[str, Value]:
    return _attributes(_ATTEMPT_ROWS[generation], attempt)


type _Rows[Source] = list[tuple[str, Callable[[Source], Value | None]]]


def _rows[Source](table: Iterable[SpanAttribute[Source]], generation: Semconv) -> _Rows[Source]:
    return [(name, row.value) for row in table if (name := row.name_in(generation)) is not None]


_CALL_ROWS: dict[Semconv, _Rows[CallRecord]] = {"1.41": _rows(CALL_SPAN, "1.41"), "genai-0.1": _rows(CALL_SPAN, "genai-0.1")}
_ATTEMPT_ROWS: dict[Semconv, _Rows[AttemptRecord]] = {"1.41": _rows(ATTEMPT_SPAN, "1.41"), "genai-0.1": _rows(ATTEMPT_SPAN, "genai-0.1")}


def _attributes[Source](rows: _Rows[Source], source: Source) -> dict[str, Value]:
    """The values that can be encoded: one that cannot would lose all spans of its batch."""
    found: dict[str, Value] = {}
    for name, value_of in rows:
        value = value_of(source)
        if value is None:
            continue
        if isinstance(value, str):
            found[name] = value if value.isascii() and len(value) <= LONGEST else _clean_text(value)
        elif isinstance(value, bool | float):
            found[name] = value
        elif not isinstance(value, int):
            found[name] = tuple(map(_clean_text, list(value)[:MOST]))
        elif -(2**63) <= value < 2**63:
            found[name] = value
    return found


def _clean_text(text: str) -> str:
    return text[:LONGEST].encode(errors="replace").decode()
