"""What can go wrong here, and how a client is told.

    ProxyError                        an answer in OpenAI's shape
    ├── BadRequest          400       the client's request cannot be understood
    ├── NoKey               401       nobody gave a key for Azure
    ├── NotFound            404       no such operation or model
    ├── Unavailable         429, 503  no backend can be asked now
    └── Failed              any       below the hooks: a request that HTTP cannot carry, or no way upstream

    SettingsError (ValueError)        what, where, and what would be right: one line, for whoever starts the proxy

The shape is OpenAI's own (`error` with `message`, `type`, `param`, `code`), so that every SDK raises the exception its users know.
"""

from __future__ import annotations

import json
import math
import uuid

from mitmproxy import http

__all__ = [
    "BadRequest",
    "Failed",
    "NoKey",
    "NotFound",
    "ProxyError",
    "SettingsError",
    "Unavailable",
    "body",
    "request_id",
    "response",
    "when",
]


class SettingsError(ValueError):
    """A setting that cannot be used. The text is one line and never holds a secret."""


class ProxyError(Exception):
    """An answer the proxy gives in Azure's place."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code


class BadRequest(ProxyError):
    status = 400
    type = "invalid_request_error"


class NoKey(ProxyError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(ProxyError):
    status = 404
    type = "invalid_request_error"


class Unavailable(ProxyError):
    """Nobody can be asked now; `wait` is the time in seconds after which somebody can."""

    def __init__(self, status: int, code: str, message: str, wait: float | None) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.type = "requests" if status == 429 else "server_error"
        self.wait = wait


class Failed(ProxyError):
    """What went wrong in the HTTP layer, which knows the status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"


def body(message: str, type: str, param: str | None = None, code: str | None = None, **more: object) -> bytes:
    """OpenAI's error object as JSON; `more` joins the four members every client reads."""
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code, **more}}).encode()


def response(error: ProxyError) -> http.Response:
    """The whole answer for `error`. Its `x-request-id` is ours: Azure never saw the request."""
    headers = {"content-type": "application/json", "x-content-type-options": "nosniff", "x-request-id": request_id()}
    if isinstance(error, Unavailable) and error.wait is not None:
        headers |= when(error.wait)
    return http.Response.make(error.status, body(error.message, error.type, error.param, error.code), headers)


def when(wait: float) -> dict[str, str]:
    """The headers that tell a client to come back in so many seconds."""
    return {"retry-after": str(max(1, math.ceil(wait))), "retry-after-ms": str(math.ceil(wait * 1000))}


def request_id() -> str:
    """For an answer that Azure gave no id."""
    return f"req_{uuid.uuid4().hex}"
