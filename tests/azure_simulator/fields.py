"""The body fields of each operation, and in which api-version they are known."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from . import errors

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "EDITS",
    "EMBEDDINGS",
    "IMAGES",
    "RESPONSES",
    "SPEECH",
    "TRANSCRIPTIONS",
    "TRANSLATIONS",
    "VERSIONS",
    "VIDEOS",
    "Field",
    "Fields",
    "check",
    "check_names",
]

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
    "prompt_cache_options": Field("object", "v1"),
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

_TEXT, _NUMBER, _LIST, _FLAG = Field("string"), Field("number"), Field("array"), Field("boolean")
_APRIL = "2025-04-01-preview"

SPEECH: Fields = {
    "input": Field("string", required=True),
    "instructions": Field("string", _APRIL),
    "model": _TEXT,
    "response_format": _TEXT,
    "speed": Field("number", least=0.25, most=4),
    "stream_format": Field("string", "v1"),
    "voice": Field("string object", required=True),
}

TRANSLATIONS: Fields = {
    "file": Field("string", required=True),
    "model": _TEXT,
    "prompt": _TEXT,
    "response_format": _TEXT,
    "temperature": _NUMBER,
}

TRANSCRIPTIONS: Fields = {
    **TRANSLATIONS,
    "chunking_strategy": Field("string object", "v1"),
    "include": Field("array", _APRIL),
    "language": _TEXT,
    "stream": Field("boolean", _APRIL),
    "timestamp_granularities": _LIST,
}

_DRAWN: Fields = {
    "background": Field("string", _APRIL),
    "model": _TEXT,
    "n": Field("integer", least=1, most=10),
    "output_compression": Field("integer", _APRIL),
    "output_format": Field("string", _APRIL),
    "partial_images": Field("integer", _APRIL),
    "prompt": Field("string", required=True),
    "quality": _TEXT,
    "response_format": _TEXT,
    "size": _TEXT,
    "stream": Field("boolean", _APRIL),
    "user": _TEXT,
}
IMAGES: Fields = {**_DRAWN, "moderation": Field("string", _APRIL), "style": _TEXT}
EDITS: Fields = {
    **_DRAWN,
    "image": Field("string array", required=True),
    "images": Field("array", "v1"),
    "input_fidelity": _TEXT,
    "mask": Field("string object"),
}

VIDEOS: Fields = {
    "input_reference": Field("string object"),
    "model": _TEXT,
    "prompt": Field("string", required=True),
    "seconds": _TEXT,
    "size": _TEXT,
}

RESPONSES: Fields = {
    "background": _FLAG,
    "conversation": Field("string object"),
    "include": _LIST,
    "input": Field("string array"),
    "instructions": Field("string array"),
    "max_output_tokens": Field("integer", least=1),
    "max_tool_calls": Field("integer"),
    "metadata": Field("object"),
    "model": _TEXT,
    "parallel_tool_calls": _FLAG,
    "previous_response_id": _TEXT,
    "prompt": Field("object"),
    "prompt_cache_key": _TEXT,
    "prompt_cache_options": Field("object"),
    "prompt_cache_retention": _TEXT,
    "reasoning": Field("object"),
    "safety_identifier": _TEXT,
    "store": _FLAG,
    "stream": _FLAG,
    "stream_options": Field("object"),
    "temperature": Field("number", least=0, most=2),
    "text": Field("object"),
    "tool_choice": Field("string object"),
    "tools": _LIST,
    "top_logprobs": Field("integer"),
    "top_p": Field("number", least=0, most=1),
    "truncation": _TEXT,
    "user": _TEXT,
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
    """Refuse a body as Azure does: unknown names first, then missing ones, then wrong types. The wording of the last is unverified."""
    known = _known(fields, body, version)
    for name, field in known.items():
        if name in body:
            _check_value(name, field, body[name])
        elif field.required:
            raise errors.invalid(f"'{name}' is a required property")


def check_names(fields: Fields, names: Collection[str], version: str) -> None:
    """As `check`, for a form: there all values are text, or files."""
    for name, field in _known(fields, names, version).items():
        if field.required and name not in names:
            raise errors.invalid(f"'{name}' is a required property")


def _known(fields: Fields, names: Collection[str], version: str) -> Fields:
    known = {name: field for name, field in fields.items() if field.since <= version < field.until}
    if unknown := [name for name in names if name not in known]:
        raise errors.unknown_parameter(unknown[0]) if fields is RESPONSES else errors.unrecognized(unknown)
    return known


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
