"""Translation of errors from Azure and from gateways in front of it into OpenAI's error shape.

Every SDK reads `message`, `type`, `param` and `code`. It chooses its exception and whether to retry by them and by the status. Azure omits
or nulls most of the four and writes the status as the code. Gateways answer in shapes of their own, in HTML, or with an empty body.
"""

from __future__ import annotations

import html
import http
import json
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy import errors

from .redaction import mask

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["error_body", "in_event", "mask", "shape"]

_JSON_AT_MOST = 256 << 10  # larger bodies are read as text
_READ_AT_MOST = 16384  # bytes of a text body that are read
_TEXT_AT_MOST = 500  # characters of a text body in the message
_LONGEST_MESSAGE = 16384  # characters of the message in a JSON body
_LONGEST_NAME = 256  # characters of its type, param and code
_LARGEST = 65536  # bytes of an error with additional members

_HIDDEN = re.compile(r"<(?:(script|style)\b|!--)", re.IGNORECASE)
_HIDDEN_ENDS = {
    "script": re.compile(r"</script\s*+>", re.IGNORECASE),
    "style": re.compile(r"</style\s*+>", re.IGNORECASE),
    "": re.compile("-->"),
}


class _Kind(NamedTuple):
    type: str
    code: str | None = None


_BY_STATUS = {
    401: _Kind("invalid_request_error", "invalid_api_key"),
    403: _Kind("invalid_request_error", "insufficient_permissions"),
    408: _Kind("server_error"),
    429: _Kind("requests", "rate_limit_exceeded"),
}

# Azure's codes, in lower case, and OpenAI's codes for the same errors.
_CODES = {
    "contentfilter": "content_filter",
    "responsibleaipolicyviolation": "content_filter",
    "deploymentnotfound": "model_not_found",
    "unknown_model": "model_not_found",
}
_QUOTA = "insufficient_quota"  # the only 429 that a retry does not help
_LIMITS = frozenset({"requests", "tokens", _QUOTA})


def error_body(
    status: int,
    body: bytes,
    *,
    requested: str | None,
    models: Sequence[str],
    secrets: Sequence[str],
    deployment: str | None = None,
) -> bytes:
    """Translate the body of an error response into OpenAI's shape.

    For an unknown deployment the message names the `requested` model, the `deployment` that the model maps to, and the
    configured `models`. The `secrets` are masked even if Azure repeats them.
    """
    try:
        error = shape(_parsed_error(status, body, secrets), status, secrets)
    except RecursionError:
        error = shape(_text(status, body, secrets), status, secrets)
    if error["code"] == "model_not_found":
        error["message"] = _no_such_model(error["message"], requested, deployment, models)
    elif status == 404 and error["message"].rstrip(".").lower() == "resource not found":
        error["message"] = (
            "Azure has no such path, or not in this api-version: check the client's base URL, which ends in /v1, "
            "and the endpoint and the api-version in the proxy's configuration."
        )
        error["code"] = "unknown_url"
    error["message"] = mask(error["message"], secrets)  # again, because the model's name may contain a secret
    shaped = errors.body(**error)
    return shaped if len(shaped) <= _LARGEST else errors.body(*(error[name] for name in ("message", "type", "param", "code")))


def shape(error: object, status: int | None = None, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """Return the members of OpenAI's error object: the four in OpenAI's order, then the other members of `error`.

    An error inside a stream has no status. Then the status is taken from the code that Azure writes.
    """
    said = {"message": error} if isinstance(error, str) else dict(error) if isinstance(error, dict) else {}
    code = said.pop("code", None)
    code = str(code) if isinstance(code, int | str) and not isinstance(code, bool) and code != "" else None
    if code and code.isascii() and code.isdigit():
        status = status or (int(code) if len(code) == 3 and code >= "400" else None)
        code = None
    message = said.pop("message", None)
    if isinstance(message, dict | list):
        message = json.dumps(message)
    if not isinstance(message, str) or not message.strip():
        message = f"Azure answered {_phrase(status)} and gave no reason." if status else "Azure ended the answer with an error."
    kind = said.pop("type", None)
    param = said.pop("param", None)
    known = _kind(status, code, message, said.get("innererror"))
    keep = isinstance(kind, str) and kind and status != 401 and (status != 429 or kind in _LIMITS)
    four = {
        "message": message,
        "type": kind if keep else known.type,
        "param": param if isinstance(param, str) else "prompt" if known.code == "content_filter" else None,
        "code": known.code,
    }
    shaped: dict[str, Any] = {name: _masked(value, secrets) for name, value in (four | said).items()}
    for name, longest in (("message", _LONGEST_MESSAGE), ("type", _LONGEST_NAME), ("param", _LONGEST_NAME), ("code", _LONGEST_NAME)):
        if (text := shaped[name]) and len(text) > longest:  # after masking: a part of a secret would not be recognised
            shaped[name] = text[:longest].rstrip() + " …"
    return shaped


def in_event(said: object, *, named: bool, typed: bool, secrets: Sequence[str] = (), status: int | None = None) -> dict[str, Any] | None:
    """Translate the value of a stream's event, or of a WebSocket frame, that reports an error. Return None if it reports none.

    `named`: the event's name is `error`. In a chat's stream the event consists of the error alone. In a `typed` stream the other members of
    the event stay. There the error may also be the event itself (assistants, and OpenAI's reference of the responses API), or belong to its
    response.
    """
    event = said if isinstance(said, dict) else {}
    error = event.get("error")
    if not typed:
        return {"error": shape(error or said or " ", secrets=secrets)} if error or named else None
    if error or (named and not event):
        return {"type": "error"} | event | {"error": shape(error or said or " ", status, secrets)}
    if event.get("type") == "error" or (named and "sequence_number" in event):
        return shape({name: item for name, item in event.items() if name != "type"}, status, secrets) | {"type": "error"}
    if named:
        return shape(event, status, secrets)
    response = event.get("response")
    error = response.get("error") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not error:
        return None
    shaped = shape(error, status, secrets)
    shaped["code"] = shaped["code"] or "server_error"  # required in OpenAI's schema
    members = ("code", "message", *(error if isinstance(error, dict) else ()))
    return event | {"response": response | {"error": {name: shaped[name] for name in members}}}


def _masked(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return mask(value, secrets)
    if isinstance(value, list):
        return [_masked(item, secrets) for item in value]
    if isinstance(value, dict):
        return {mask(name, secrets): _masked(item, secrets) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None  # Python's JSON parser accepts NaN, those of other clients do not
    return value


def _kind(status: int | None, code: str | None, message: str, inner: object) -> _Kind:
    if isinstance(inner, dict) and str(inner.get("code")).lower() in _CODES:
        code = _CODES[str(inner["code"]).lower()]
    elif code:
        code = _CODES.get(code.lower(), code)
    if status == 401:
        return _BY_STATUS[401]
    if status == 429 or (status is None and code == "rate_limit_exceeded"):
        if code == _QUOTA:
            return _Kind(_QUOTA, _QUOTA)
        return _Kind("tokens" if "token" in message.lower() else "requests", "rate_limit_exceeded")
    known = _BY_STATUS.get(status or 0) or _Kind("server_error" if status is None or status >= 500 else "invalid_request_error")
    if code in ("content_filter", "model_not_found"):
        known = _Kind("invalid_request_error")
    return known._replace(code=code or known.code)


def _no_such_model(said: str, requested: str | None, deployment: str | None, models: Sequence[str]) -> str:
    model = f"The model `{requested}`" if requested else "The model"
    named = f"no deployment `{deployment}`" if deployment else "no deployment for it"
    listed = f" Configured models: {', '.join(models)}." if models else ""
    return f"{model} does not exist: Azure has {named}.{listed} Azure said: {said}"


def _parsed_error(status: int, body: bytes, secrets: Sequence[str]) -> object:
    """Return the error in `body`: an object that may have a `code` and a `message`, or a text."""
    if len(body) > _JSON_AT_MOST:
        return _text(status, body, secrets)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _text(status, body, secrets)
    if not isinstance(value, dict):
        return value if isinstance(value, str) else _text(status, body if value else b"", secrets)
    error = value.get("error")
    if isinstance(error, dict) or (isinstance(error, str) and error.strip()):
        return error
    # API Management and other gateways: {"statusCode": 401, "message": ...}
    names = {name.lower(): item for name, item in value.items()}
    message = next((names[name] for name in ("message", "detail", "title") if names.get(name)), None)
    return {"message": message, "code": names.get("code")}


def _text(status: int, body: bytes, secrets: Sequence[str]) -> str:
    """Return a message from a body that is not JSON. HTML tags are removed."""
    text = body[:_READ_AT_MOST].decode("utf-8", "replace")
    if len(body) > _READ_AT_MOST:
        text = text[: text.rfind(" ") + 1]  # a part of a secret would not be recognised
    text = mask(text, secrets)
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        text = html.unescape(re.sub(r"<[^<>]*>", " ", _visible(text)))
    text = mask(" ".join(text.split()), secrets)
    if len(text) > _TEXT_AT_MOST:
        text = text[:_TEXT_AT_MOST].rstrip() + " …"
    return f"Azure answered {_phrase(status)}: {text}" if text else ""


def _visible(text: str) -> str:
    """Return HTML without scripts, styles and comments. A missing end tag is searched for once, so the work is linear."""
    pieces, start, at = [], 0, 0
    endless: set[str] = set()
    while match := _HIDDEN.search(text, at):
        kind, at = (match[1] or "").lower(), match.end()
        if kind in endless:
            continue
        if end := _HIDDEN_ENDS[kind].search(text, at):
            pieces.append(text[start : match.start()])
            start = at = end.end()
        else:
            endless.add(kind)
    return " ".join([*pieces, text[start:]])


def _phrase(status: int | None) -> str:
    try:
        return f"{status} {http.HTTPStatus(status or 0).phrase}"
    except ValueError:
        return str(status)
