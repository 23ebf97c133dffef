"""POST embeddings: vectors that follow from the input, so that equal inputs have equal ones."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import TYPE_CHECKING, Any

from . import errors, texts
from .answers import Answer, dumps, json_answer

if TYPE_CHECKING:
    from .calls import Call
    from .models import Model

__all__ = ["answer", "vector"]

LONGEST = 2048  # inputs a request


def answer(call: Call, model: Model) -> Answer:
    asked = call.asked
    inputs = _inputs(asked["input"])
    size = asked.get("dimensions") or model.dimensions
    encode = _FORMATS.get(asked.get("encoding_format") or "float")
    if encode is None:
        raise errors.invalid(f"'{asked['encoding_format']}' is not one of ['float', 'base64'] - 'encoding_format'")
    if size > model.dimensions:
        raise errors.invalid(f"Invalid value for 'dimensions' = {size}. Must be less than or equal to {model.dimensions}.")
    if asked.get("dimensions") is not None and "-3-" not in model.name:
        raise errors.invalid("This model does not support specifying dimensions.")
    used = sum(len(item) if isinstance(item, list) else texts.count(item) for item in inputs)
    data = [{"embedding": encode(vector(item, size)), "index": index, "object": "embedding"} for index, item in enumerate(inputs)]
    return json_answer({"data": data, "model": model.reported, "object": "list", "usage": {"prompt_tokens": used, "total_tokens": used}})


def _inputs(value: Any) -> list[Any]:
    """Each input is a string or a list of token numbers."""
    inputs = [value] if isinstance(value, str) or isinstance(value[0], int) else value
    if len(inputs) > LONGEST:
        raise errors.invalid(f"{len(inputs)} inputs are too long - 'input'")
    for item in inputs:
        tokens = isinstance(item, list) and all(isinstance(token, int) for token in item)
        if not item or not (isinstance(item, str) or tokens):
            raise errors.invalid("'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference.")
    return list(inputs)


def vector(item: Any, size: int) -> list[float]:
    """A unit vector made of the input's hash; its floats are exact in 32 bits."""
    noise = hashlib.shake_256(dumps(item)).digest(4 * size)
    values = [number / 2**31 for number in struct.unpack(f"<{size}i", noise)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    packed = struct.pack(f"<{size}f", *(value / length for value in values))
    return list(struct.unpack(f"<{size}f", packed))


def _base64(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


_FORMATS: dict[Any, Any] = {"float": list, "base64": _base64}
