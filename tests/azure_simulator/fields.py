"""The body fields of each operation, and in which api-version they are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import errors

__all__ = ["CHAT", "COMPLETIONS", "EMBEDDINGS", "VERSIONS", "Field", "Fields", "check"]

# Versions compare as text: dates sort as dates, and "v1" after all of them.
VERSIONS = (
    "2024-05-01-preview",
    "2024-06-01",
    "2024-07-01-preview",
    "2024-08-01-preview",
    "2024-09-01-preview",
    "2024-10-01-preview",
    "2024-10-21",
    "2024-12-01-preview",
    "2025-01-01-preview",
    "2025-02-01-preview",
    "2025-03-01-preview",
    "2025-04-01-preview",
)
"""The dated versions that are served. Older ones answered too when this was written, with fields that are not recorded here."""


class Field(NamedTuple):
    types: str  # JSON types, as Azure's messages call them; null is accepted besides unless the field is required
    since: str = ""
    until: str = "~"  # the first version that lacks it again
    required: bool = False
    least: float = -math.inf
    most: float = math.inf


type Fields = Mapping[str, Field]

_SEPTEMBER = "2024-09-01-preview"
_DECEMBER = "2024-12-01-preview"
_JANUARY = "2025-01-01-preview"

_SAMPLING: Fields = {
    "frequency_penalty": Field("number", least=-2, most=2),
    "logit_bias": Field("object"),
    "max_tokens": Field("integer", least=1),
    "model": Field("string"),  # ignored where the path names the deployment
    "n": Field("integer", least=1, most=128),
    "presence_penalty": Field("number", least=-2, most=2),
    "seed": Field("integer"),
    "stop": Field("string array"),
    "stream": Field("boolean"),
    "stream_options": Field("object", _SEPTEMBER),
    "temperature": Field("number", least=0, most=2),
    "top_p": Field("number", least=0, most=1),
    "user": Field("string"),
}

CHAT: Fields = {
    **_SAMPLING,
    "messages": Field("array", required=True),
    "audio": Field("object", _JANUARY),
    "data_sources": Field("array", until="v1"),
    "function_call": Field("string object"),
    "functions": Field("array"),
    "logprobs": Field("boolean"),
    "max_completion_tokens": Field("integer", _SEPTEMBER, least=1),
    "metadata": Field("object", _DECEMBER),
    "modalities": Field("array", _JANUARY),
    "parallel_tool_calls": Field("boolean", _SEPTEMBER),
    "prediction": Field("object", _JANUARY),
    "prompt_cache_key": Field("string", "v1"),
    "prompt_cache_retention": Field("string", "v1"),
    "reasoning_effort": Field("string", _DECEMBER),
    "response_format": Field("object"),
    "safety_identifier": Field("string", "v1"),
    "store": Field("boolean", _DECEMBER),
    "tool_choice": Field("string object"),
    "tools": Field("array"),
    "top_logprobs": Field("integer", least=0, most=20),
    "user_security_context": Field("object", _DECEMBER),
    "verbosity": Field("string", "v1"),
}

COMPLETIONS: Fields = {
    **_SAMPLING,
    "best_of": Field("integer"),
    "echo": Field("boolean"),
    "logprobs": Field("integer"),
    "prompt": Field("string array", required=True),
    "suffix": Field("string"),
}

EMBEDDINGS: Fields = {
    "dimensions": Field("integer", least=1),
    "encoding_format": Field("string"),
    "input": Field("string array", required=True),
    "input_type": Field("string", until="v1"),
    "model": Field("string"),
    "user": Field("string"),
}

_PYTHON: dict[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "object": dict,
    "string": str,
}


def _is(value: Any, types: str) -> bool:
    return any(isinstance(value, _PYTHON[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in types.split())


def check(fields: Fields, body: Mapping[str, Any], version: str) -> None:
    """Refuse a body as Azure does: unknown names first, then what is missing, then wrong types. The wording of the last is unverified."""
    known = {name: field for name, field in fields.items() if field.since <= version < field.until}
    if unknown := [name for name in body if name not in known]:
        raise errors.unrecognized(unknown)
    for name, field in known.items():
        if name in body:
            _check_value(name, field, body[name])
        elif field.required:
            raise errors.invalid(f"'{name}' is a required property")


def _check_value(name: str, field: Field, value: Any) -> None:
    if value is None and not field.required:
        return
    if not _is(value, field.types):
        raise errors.invalid(f"{value!r} is not of type {' or '.join(map(repr, field.types.split()))} - '{name}'")
    if field.required and not value:
        raise errors.invalid(f"{value!r} is too short - '{name}'")
    if isinstance(value, int | float):
        if not value >= field.least:
            raise errors.invalid(f"{value} is less than the minimum of {field.least} - '{name}'")
        if not value <= field.most:
            raise errors.invalid(f"{value} is greater than the maximum of {field.most} - '{name}'")
