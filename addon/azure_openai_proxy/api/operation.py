"""recognise: request → Call. Which OpenAI operation this is, which model the client named, whether it asked to stream."""

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

__all__ = ["Call", "goes_on", "reaches_azure", "recognise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a client asked for, before anyone decided where it goes."""

    method: str  # WS for a WebSocket's upgrade
    endpoint: Endpoint
    path: str  # without /v1 and what else a base URL brings: `/chat/completions`
    values: Mapping[str, str]  # what stands for the row's `{...}`
    native: Literal["", "v1", "dated"] = ""  # the client speaks Azure's own API, in this form
    deployed: bool = False  # in Azure's own way, with the deployment in the path
    model: str | None = None  # as the client wrote it; None: it named none
    stream: bool = False
    beta: bool = False  # it speaks the protocol of realtime's previews

    @property
    def operation(self) -> str:
        """How a message names it: `POST /v1/chat/completions`."""
        return f"{self.method} /v1{self.path}"


def recognise(
    method: str, path: str, headers: Mapping[str, str], body: bytes = b"", query: str = "", large: LargeBody | None = None
) -> Call | None:
    """Read a request. `method` is WS for a WebSocket's upgrade; `path` is without the query; `large` is what was found in a large body.

    Returns:
        None when the path is outside the API.

    Raises:
        BadRequest: the operation needs a model and the request names none that can be read, or the path could lead elsewhere.
    """
    if fault := request_syntax.path_fault(path):
        raise BadRequest(fault)
    native, parts, deployment = _place(endpoints.segments(path))
    if len(parts) > 2 and parts[0] == "models" and method != "POST":
        parts = ("models", "%2F".join(parts[1:]))  # ORG/NAME, which some clients do not encode
    endpoint = endpoints.find(method, parts)
    if not parts or not _in_api(endpoint, native, endpoints.segments(path)):
        return None
    values = endpoints.values(endpoint, parts)
    call = Call(method=method, endpoint=endpoint, path="/" + "/".join(parts), values=values, native=native)
    if endpoint.by not in ("azure", "models", "engines"):
        return call
    if deployment:
        return _named(replace(call, deployed=True), unquote(deployment), headers, body, large)
    match endpoint.model_in:
        case "path":
            return _named(call, unquote(next(iter(values.values()))) if values else None, headers, body, large)
        case "query":
            asked = dict(parse_qsl(query))
            beta = bool(endpoint.beta and not native and realtime.speaks_beta(headers))
            return _named(replace(call, beta=beta), asked.get("model") or asked.get("deployment"))
        case "form" if headers.get("content-type", "").lower().startswith("multipart/") and not json_edit.is_object(body):
            return _named(call, multipart.field(body, headers["content-type"], "model"))
        case "frames":
            return call
    return _in_body(call, headers, body, large)


def goes_on(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Can a request with a large body be sent before all of it has come? Not if it may be JSON, which is read whole for its model."""
    if headers.get("content-encoding", "identity") != "identity":
        return False  # it is decompressed first
    endpoint = row(method, path)
    kind = headers.get("content-type", "").lower()
    if endpoint.by != "azure" or endpoint.needs_model or "json" in kind or not kind:
        return False
    return not kind.startswith(("text/", "application/x-www-form-urlencoded"))  # fetch() and curl -d send JSON with these


def reaches_azure(method: str, path: str) -> bool:
    """Whether a backend is asked, and not the proxy itself: for a preflight, its health, what Azure does not have, an unknown path."""
    parts = endpoints.segments(path)
    native, operation, _ = _place(parts)
    endpoint = endpoints.find(method, operation)
    return method != "OPTIONS" and endpoint.by == "azure" and bool(operation) and _in_api(endpoint, native, parts)


def row(method: str, path: str) -> Endpoint:
    """The table's row for a request."""
    return endpoints.find(method, _place(endpoints.segments(path))[1])


def _in_api(endpoint: Endpoint, native: str, parts: tuple[str, ...]) -> bool:
    """Whether a path that the table does not have is below a base URL of the API."""
    return endpoint is not endpoints.RULE or bool(native) or parts[0] == "v1" or parts[:2] == ("api", "v1")


def _place(parts: tuple[str, ...]) -> tuple[Literal["", "v1", "dated"], tuple[str, ...], str]:
    """Which API the client speaks, the operation's segments, and the deployment it named in Azure's own way.

    A base URL with a prefix that the client adds once more (`/v1/v1`), or with an operation in it, means the one at its end.
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


# The first segments of what follows a base URL that has an operation in it. An id never looks like one.
_FIRST = frozenset({"v1", "openai", "chat", "completions", "responses", "embeddings", "models", "images", "audio", "files", "moderations"})


def _is_base(rest: Sequence[str]) -> bool:
    """Whether another operation follows: `/chat/completions/models` was asked for by a client whose base URL has too much."""
    return bool(rest) and rest[0] in _FIRST


def _named(
    call: Call, model: str | None, headers: Mapping[str, str] | None = None, body: bytes = b"", large: LargeBody | None = None
) -> Call:
    """`call` with a model that does not stand in its JSON body; this says only whether to stream."""
    stream = False
    if b'"stream"' in body and call.endpoint.answer in ("chat", "typed"):
        with contextlib.suppress(BadRequest):  # Azure has the better message: it knows what else the body should hold
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
        return call  # neither its type nor its text is JSON
    model = _checked(members.get("model")) if "model" in call.endpoint.models else None
    if needed and model is None:
        raise BadRequest("you must provide a model parameter", param="model")  # OpenAI's own sentence: clients look for it
    if model is None and call.endpoint.models != ("model",):
        for place in call.endpoint.models:  # the session's own model decides, not the one that transcribes
            spans = large.strings(place) if large else json_edit.json_strings(body, (place,))
            if model := next((span.text for span in spans), None):
                break
    return replace(call, model=model, stream=members.get("stream") is True)


def _json_object(headers: Mapping[str, str], body: bytes, call: Call, large: LargeBody | None) -> Mapping[str, Any]:
    """The body's members; of a large one those that tell what is asked for."""
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
    except (ValueError, RecursionError) as e:  # not UTF-8, a number or a nesting beyond all measure
        raise BadRequest("The body is not valid JSON.") from e


def _checked(model: object) -> str | None:
    if model is None:
        return None
    if not isinstance(model, str):
        raise BadRequest(f"`model` must be a string, not {type(model).__name__}.", param="model")
    if not model.isprintable():  # half an emoji, a line end: no deployment is called that, and neither header nor path can hold it
        raise BadRequest("`model` has characters that no name has.", param="model")
    # "", blanks, "." and "..", between slashes too: in a path they would be other places
    if not model.strip(". ") or any(part and not part.strip(". ") for part in re.split(r"[/\\]", model)):
        raise BadRequest(f"`model` is {model!r}: name a model or a deployment.", param="model")
    return model
