"""Recognition of a client's request: the OpenAI operation, the model, and whether the client asked for a stream."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, unquote

from azure_openai_proxy.errors import BadRequest
from azure_openai_proxy.formats import json_edit, multipart

from . import endpoints, realtime, request_syntax

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .endpoints import Endpoint
    from .large_bodies import LargeBody

__all__ = ["Call", "may_stream_upload", "reaches_azure", "recognise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A recognised request, before routing."""

    method: str  # WS for a WebSocket's upgrade
    endpoint: Endpoint
    path: str  # without /v1 and other parts of a base URL: `/chat/completions`
    values: Mapping[str, str]  # values of the row's `{...}`
    native: Literal["", "v1", "dated"] = ""  # the client uses Azure's own API, in this form
    deployed: bool = False  # the path names a deployment, as in Azure's API
    model: str | None = None  # as the client wrote it; None: the request names none
    stream: bool = False
    beta: bool = False  # the client uses the preview protocol of realtime

    @property
    def operation(self) -> str:
        """Return the name for messages: `POST /v1/chat/completions`."""
        return f"{self.method} /v1{self.path}"


def recognise(
    method: str, path: str, headers: Mapping[str, str], body: bytes = b"", query: str = "", large: LargeBody | None = None
) -> Call | None:
    """Recognise a request. `method` is WS for a WebSocket upgrade; `path` has no query; `large` is the scanned large body.

    Returns:
        None if the path is outside the API.

    Raises:
        BadRequest: the operation needs a model and the request names no valid one, or the path could be read as another path.
    """
    if fault := request_syntax.path_fault(path):
        raise BadRequest(fault)
    native, parts, deployment = _split_path(endpoints.segments(path))
    if len(parts) > 2 and parts[0] == "models" and method != "POST":
        parts = ("models", "%2F".join(parts[1:]))  # ORG/NAME, which some clients send without percent-encoding
    endpoint = endpoints.find(method, parts)
    if not parts or not _in_api(endpoint, native, endpoints.segments(path)):
        return None
    values = endpoints.values(endpoint, parts)
    call = Call(method=method, endpoint=endpoint, path="/" + "/".join(parts), values=values, native=native)
    if endpoint.by not in ("azure", "models", "engines"):
        return call
    if deployment:
        return _with_model(replace(call, deployed=True), unquote(deployment), headers, body, large)
    match endpoint.model_in:
        case "path":
            return _with_model(call, unquote(next(iter(values.values()))) if values else None, headers, body, large)
        case "query":
            asked = dict(parse_qsl(query))
            beta = bool(endpoint.beta and not native and realtime.speaks_beta(headers))
            return _with_model(replace(call, beta=beta), asked.get("model") or asked.get("deployment"))
        case "form" if headers.get("content-type", "").lower().startswith("multipart/") and not json_edit.is_object(body):
            return _with_model(call, multipart.field(body, headers["content-type"], "model"))
        case "frames":
            return call
    return _in_body(call, headers, body, large)


def may_stream_upload(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Return whether the proxy can forward a large body before it is complete. A body that may be JSON cannot be, because the model is read
    from it.
    """
    if headers.get("content-encoding", "identity") != "identity":
        return False  # the body is decompressed first
    endpoint = row(method, path)
    kind = headers.get("content-type", "").lower()
    if endpoint.by != "azure" or endpoint.needs_model or "json" in kind or not kind:
        return False
    return not kind.startswith(("text/", "application/x-www-form-urlencoded"))  # fetch() and curl -d send JSON with these


def reaches_azure(method: str, path: str) -> bool:
    """Return whether a backend serves the request. The proxy itself answers preflights, health checks, unknown paths and operations that
    Azure lacks.
    """
    parts = endpoints.segments(path)
    native, operation, _ = _split_path(parts)
    endpoint = endpoints.find(method, operation)
    return method != "OPTIONS" and endpoint.by == "azure" and bool(operation) and _in_api(endpoint, native, parts)


def row(method: str, path: str) -> Endpoint:
    """Return the table's row for a request."""
    return endpoints.find(method, _split_path(endpoints.segments(path))[1])


def _in_api(endpoint: Endpoint, native: str, parts: tuple[str, ...]) -> bool:
    """Return whether a path without a row of its own is below a base URL of the API."""
    return endpoint is not endpoints.RULE or bool(native) or parts[0] == "v1" or parts[:2] == ("api", "v1")


def _split_path(parts: tuple[str, ...]) -> tuple[Literal["", "v1", "dated"], tuple[str, ...], str]:
    """Return the API that the client uses, the operation's segments, and the deployment in the path.

    If a client repeats a prefix (`/v1/v1`) or has an operation in its base URL, the last one is used.
    """
    native: Literal["", "v1", "dated"] = ""
    deployment = ""
    while parts:
        match parts:
            case ("openai", "v1", *rest):
                native = "v1"
            case ("openai", "deployments", name, *rest) if rest:
                native, deployment = "dated", name
            case ("openai", "openai", *more):
                rest = ["openai", *more]
            case ("openai", *rest):
                native = "dated"
            case ("v1", *rest) | ("api", "v1", *rest):
                pass
            case ("chat", "completions", *rest) | (("completions" | "responses" | "embeddings"), *rest) if _is_base(rest):
                pass
            case _:
                break
        parts = tuple(rest)
    return native, parts, deployment


# The first segments of operations that may follow a base URL with an operation in it. No id looks like them.
_FIRST = frozenset({"v1", "openai", "chat", "completions", "responses", "embeddings", "models", "images", "audio", "files", "moderations"})


def _is_base(rest: Sequence[str]) -> bool:
    """Return whether another operation follows. A client whose base URL includes an operation requests `/chat/completions/models`."""
    return bool(rest) and rest[0] in _FIRST


def _with_model(
    call: Call, model: str | None, headers: Mapping[str, str] | None = None, body: bytes = b"", large: LargeBody | None = None
) -> Call:
    """Return `call` with a model that is not from its JSON body. The body only says whether to stream."""
    stream = False
    if b'"stream"' in body and call.endpoint.answer in ("chat", "typed"):
        with contextlib.suppress(BadRequest):  # Azure's message is better, because Azure knows the other required members
            stream = _json_object(headers or {}, body, call, large).get("stream") is True
    return replace(call, model=_checked(model), stream=stream)


def _in_body(call: Call, headers: Mapping[str, str], body: bytes, large: LargeBody | None) -> Call:
    needed = call.endpoint.needs_model and call.native != "dated"
    declared = bool(body) and "json" in headers.get("content-type", "").lower()
    if not needed and not declared and not json_edit.is_object(body):
        return call
    try:
        members = _json_object(headers, body, call, large)
    except BadRequest:
        if needed or declared:
            raise
        return call  # neither its content type nor its content is JSON
    model = _checked(members.get("model")) if "model" in call.endpoint.models else None
    if needed and model is None:
        raise BadRequest("you must provide a model parameter", param="model")  # OpenAI's own sentence: clients search for it
    if model is None and call.endpoint.models != ("model",):
        for place in call.endpoint.models:  # the session's own model has precedence over the one for transcription
            spans = large.strings(place) if large else json_edit.json_strings(body, (place,))
            if model := next((span.text for span in spans), None):
                model = _checked(model)
                break
    return replace(call, model=model, stream=members.get("stream") is True)


def _json_object(headers: Mapping[str, str], body: bytes, call: Call, large: LargeBody | None) -> Mapping[str, Any]:
    """Return the members of the body; of a large body only `model` and `stream`.

    Raises:
        BadRequest: the body is compressed, empty, or not a JSON object.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise BadRequest(f"The body is compressed ({headers['content-encoding']}): send it without content-encoding.")
    if not body:
        raise BadRequest(f"The body is empty: {call.operation} needs a JSON object with a `model`.")
    if large:
        if large.error:
            raise BadRequest(f"The body is not valid JSON: {large.error}.")
        members = {name: large.value(name) for name in ("model", "stream")} if large.outline and large.outline.is_object else None
    else:
        members = _loaded(body)
    if not isinstance(members, dict):
        raise BadRequest(f"The body is JSON, but not an object: {call.operation} needs an object with a `model`.")
    return members


def _loaded(body: bytes) -> Any:
    try:
        return json.loads(body.removeprefix(json_edit.BOM).decode())
    except json.JSONDecodeError as e:
        raise BadRequest(f"The body is not valid JSON: {e}") from e
    except (ValueError, RecursionError) as e:  # not UTF-8, a number too long or a nesting too deep for Python
        raise BadRequest("The body is not valid JSON.") from e


def _checked(model: object) -> str | None:
    if model is None:
        return None
    if not isinstance(model, str):
        raise BadRequest(f"`model` must be a string, not {type(model).__name__}.", param="model")
    if not model.isprintable():  # a lone surrogate or a line end is valid in neither a header nor a path
        raise BadRequest("`model` contains characters that are not printable.", param="model")
    # "", blanks, "." and "..", also between slashes: in a path they would refer to other resources
    if not model.strip(". ") or any(part and not part.strip(". ") for part in re.split(r"[/\\]", model)):
        raise BadRequest(f"`model` is {model!r}: name a model or a deployment.", param="model")
    return model
