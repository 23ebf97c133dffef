"""A moderation that has not looked: only where the owner of the proxy asked for it by `azure_openai_moderations_unflagged`."""

from __future__ import annotations

import json
import uuid

from mitmproxy import http

from .errors import BadRequest

__all__ = ["unflagged"]

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


def unflagged(content: bytes) -> http.Response:
    """One result for each text; one for the whole of an input of several kinds. The id says that nobody looked.

    Raises:
        BadRequest: there is no input.
    """
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError):
        asked = None
    given = asked.get("input") if isinstance(asked, dict) else None
    if not given or not isinstance(given, str | list):
        raise BadRequest("`input` is required: a text, or a list of inputs.", param="input")
    assert isinstance(asked, dict)
    count = len(given) if isinstance(given, list) and isinstance(given[0], str) else 1
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {category: [] for category in _CATEGORIES},
    }
    answer = {"id": f"modr-unchecked-{uuid.uuid4().hex}", "model": asked.get("model") or "unchecked", "results": [result] * count}
    return http.Response.make(200, json.dumps(answer), {"content-type": "application/json"})
