"""A moderation response without a check, only with the option `azure_openai_moderations_unflagged`."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy.errors import BadRequest

if TYPE_CHECKING:
    from .large_bodies import LargeBody

__all__ = ["ITEMS", "MOST", "unflagged"]

_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


MOST = 2048
"""Maximum number of texts in one request. The response has a result for each, which is many times longer than the shortest text."""
ITEMS = "input.*"
"""The place of the inputs in a large body."""


def unflagged(content: bytes, large: LargeBody | None = None) -> http.Response:
    """Return one result for each text, or one for a list of inputs of several types. The id says that nothing was checked.

    Raises:
        BadRequest: the input is missing, or has more than `MOST` texts.
    """
    count, model = _of_large(large) if large else _of(content)
    if not count:
        raise BadRequest("`input` is required: a text, or a list of inputs.", param="input")
    if count > MOST:
        raise BadRequest(f"`input` has more than {MOST} texts.", param="input")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {category: [] for category in _CATEGORIES},
    }
    answer = {"id": f"modr-unchecked-{uuid.uuid4().hex}", "model": model or "unchecked", "results": [result] * count}
    return http.Response.make(200, json.dumps(answer), {"content-type": "application/json"})


def _of(content: bytes) -> tuple[int, Any]:
    """Return the number of requested results, and the model."""
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError):
        return 0, None
    given = asked.get("input") if isinstance(asked, dict) else None
    if not given or not isinstance(given, str | list):
        return 0, None
    return len(given) if isinstance(given, list) and isinstance(given[0], str) else 1, asked.get("model")


def _of_large(large: LargeBody) -> tuple[int, Any]:
    member = large.outline.get("input") if large.outline else None
    kind = large.content[member.value] if member else 0
    items = large.outline.at(ITEMS) if large.outline and kind == ord("[") else []
    texts = bool(items) and large.content[items[0].value] == ord('"')
    text = kind == ord('"') and member and member.end - member.value > 2
    return len(items) if texts else int(bool(items) or bool(text)), large.value("model")
