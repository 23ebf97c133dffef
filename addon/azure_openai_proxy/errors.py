"""Exceptions and OpenAI's error shape.

    ProxyError                        becomes an error response in OpenAI's shape
    ├── BadRequest          400       the client's request is invalid
    ├── NoKey               401       neither the configuration nor the client has a key for Azure
    ├── Refused             any       a client's key, rights, limits or budget do not allow the request
    ├── NotFound            404       unknown operation or model
    ├── Unavailable         429, 503  no backend can take a request now
    └── Failed              any       a request of a wrong method, coding or size, or one that HTTP cannot carry; no connection upstream

    SettingsError (ValueError)        an invalid setting: names it and a valid value, in one line; logged when the proxy starts

The shape is OpenAI's own: `error` with `message`, `type`, `param`, `code`. So every SDK raises the exception that its users know.
"""

from __future__ import annotations

import json
import math
import uuid
from typing import TYPE_CHECKING, NamedTuple

from mitmproxy import http

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "UNSENT",
    "BadRequest",
    "Failed",
    "Failure",
    "NoKey",
    "NotFound",
    "ProxyError",
    "Refused",
    "SettingsError",
    "Unavailable",
    "body",
    "request_id",
    "response",
    "retry_after",
]


class Failure(NamedTuple):
    """Why a request gets no answer from upstream."""

    status: int
    code: str
    message: str


UNSENT = frozenset({"upstream_unreachable", "upstream_connect_timeout", "proxy_shortage"})
"""Codes of failures before any byte of the request was sent."""


class SettingsError(ValueError):
    """An invalid setting. The text is one line and never contains a secret."""


class ProxyError(Exception):
    """An error that the proxy answers itself, without a response of Azure."""

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


class Refused(ProxyError):
    """A client's key, rights, limits or budget do not allow the request."""

    def __init__(self, status: int, type: str, code: str, message: str, headers: Mapping[str, str] | None = None, **more: str) -> None:
        super().__init__(message, code=code, **more)
        self.status = status
        self.type = type
        self.headers = dict(headers or {})


class NotFound(ProxyError):
    status = 404
    type = "invalid_request_error"


class Unavailable(ProxyError):
    """No backend can take a request now. `wait` is the time in seconds until one can; None if it is unknown."""

    def __init__(self, status: int, code: str, message: str, wait: float | None) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.type = "requests" if status == 429 else "server_error"
        self.wait = wait


class Failed(ProxyError):
    """A failure of HTTP with a status of its own, of the client's request or of the connection upstream."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"


def body(message: str, type: str, param: str | None = None, code: str | None = None, **more: object) -> bytes:
    """Return OpenAI's error object as JSON. `more` adds members to the four that every client reads."""
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code, **more}}).encode()


def response(error: ProxyError) -> http.Response:
    """Return the complete response for `error`. The proxy makes its `x-request-id`, because Azure did not see the request."""
    headers = {"content-type": "application/json", "x-content-type-options": "nosniff", "x-request-id": request_id()}
    if isinstance(error, Unavailable) and error.wait is not None:
        headers |= retry_after(error.wait)
    elif isinstance(error, Refused):
        headers |= error.headers
    return http.Response.make(error.status, body(error.message, error.type, error.param, error.code), headers)


def retry_after(wait: float) -> dict[str, str]:
    """Return the headers that ask a client to retry after `wait` seconds."""
    return {"retry-after": str(max(1, math.ceil(wait))), "retry-after-ms": str(math.ceil(wait * 1000))}


def request_id() -> str:
    """Return an id for a response that has none of Azure's."""
    return f"req_{uuid.uuid4().hex}"
