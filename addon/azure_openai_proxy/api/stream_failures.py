"""Errors in the events of a stream, and which events carry no output yet.

Azure reports rate limits and overload of a model in the stream: after `response.created` as an `error` event or `response.failed`, in a
chat as an object with `error`. The error is a member of the event or the event itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["BEFORE_OUTPUT", "FAILED", "error_of", "error_response", "has_output", "is_overload"]

BEFORE_OUTPUT = frozenset({b"response.created", b"response.in_progress", b"response.queued"})
"""Names of the events that come before the output of a response."""
FAILED = "response.failed"
_OVERLOADS = frozenset({"ratelimitexceeded", "toomanyrequests", "serverisoverloaded", "servererror"})
"""`rate_limit_exceeded`, `too_many_requests`, `server_is_overloaded`, `server_error`, in this spelling or in CamelCase."""
_STATUSES = frozenset({"408", "429", "500", "502", "503", "504"})


def error_of(value: dict[str, Any], kind: bytes | None) -> dict[str, Any] | None:
    """Return the error that an event reports; None if it reports none. `kind` is the event's name."""
    error = value.get("error")
    if not error and value.get("type") == FAILED:
        response = value.get("response")
        error = response.get("error") if isinstance(response, dict) else None
        error = error or {name: value[name] for name in ("code", "message", "param") if value.get(name)}
        if not error:
            return None
    elif not error and (kind == b"error" or value.get("type") == "error" or _is_flat(value)):
        # The event itself is the error. A response body has no sequence number, and `type` is then the error's own.
        error = {name: item for name, item in value.items() if name != "sequence_number" and (name, item) != ("type", "error")}
    if not error:
        return None
    return error if isinstance(error, dict) else {"message": str(error)}


def _is_flat(value: dict[str, Any]) -> bool:
    return "message" in value and "choices" not in value and is_overload(value)


def is_overload(error: dict[str, Any]) -> bool:
    """Whether another backend may have capacity for the request."""
    words = [str(error.get(name)).lower() for name in ("code", "type", "status")]
    return any(word.replace("_", "") in _OVERLOADS for word in words) or words[0] in _STATUSES or words[2] in _STATUSES


def has_output(value: dict[str, Any]) -> bool:
    """Whether an event without an error has something that the client waits for. A chunk that only names the role does not."""
    if str(value.get("type")).encode(errors="replace") in BEFORE_OUTPUT:
        return False
    choices = value.get("choices")
    if not isinstance(choices, list) or value.get("usage") is not None:
        return True
    return any(map(_choice_has_output, choices))


def _choice_has_output(choice: Any) -> bool:
    if not isinstance(choice, dict) or choice.get("finish_reason") is not None or choice.get("text"):
        return True
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return "text" not in choice
    return any(item for name, item in delta.items() if name != "role")


def error_response(head: http.Response, error: dict[str, Any]) -> http.Response:
    """Return the error response that corresponds to an error in a stream. `head`: the head of the stream, whose other headers remain."""
    response, content = head.copy(), json.dumps({"error": error}).encode()
    for name in ("content-encoding", "transfer-encoding"):
        response.headers.pop(name, None)
    response.status_code, response.data.content = _status(error), content
    response.headers.update({"content-type": "application/json", "content-length": str(len(content))})
    return response


def _status(error: dict[str, Any]) -> int:
    code = str(error.get("code") or error.get("status") or "")
    if len(code) == 3 and code.isascii() and code.isdigit() and 400 <= int(code) < 600:
        return int(code)
    text = f"{code} {error.get('type')}".lower()
    if "rate" in text or "too_many" in text:
        return 429
    if "overload" in text:
        return 503
    return 400 if "invalid" in text or "filter" in text else 500
