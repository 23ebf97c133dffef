"""Recognition of a client's request: the OpenAI operation, the model, and whether the client asked for a stream."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

from azure_openai_proxy.errors import BadRequest
from azure_openai_proxy.formats import json_edit, multipart

from . import endpoints, realtime, request_syntax, response_items, session, stream_usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .endpoints import Endpoint
    from .large_bodies import LargeBody

__all__ = ["TIERS", "Call", "Details", "Wanted", "hides_model", "is_unmetered", "may_stream_upload", "reaches_azure", "recognise", "row"]


class Details(NamedTuple):
    """Members of the body that only usage records need."""

    prompt_cache_key: str | None = None
    previous_response_id: str | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    background: bool = False


class Wanted(NamedTuple):
    """What routing among several backends needs to know of a request."""

    fields: session.Fields  # of the headers
    sessions: bool = True


_NO_DETAILS = Details()
_LONGEST = 256  # characters of a detail
_LONGEST_MODEL = 1024  # characters. Deployments have at most 64, names of fine-tuned models somewhat more
_MEMBERS = ("model", "stream", "stream_options", "service_tier")  # read of each body
TIERS = frozenset({"flex", "priority", "fast", "scale", "ultrafast"})
"""Values of `service_tier` with a price or speed of their own."""
_DETAILS = ("prompt_cache_key", "previous_response_id", "service_tier", "reasoning_effort", "reasoning", "background")
_DETAIL_MEMBERS = frozenset(_DETAILS)


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
    asks_usage: bool = False  # the client asks for the usage of its stream
    beta: bool = False  # the client uses the preview protocol of realtime
    details: Details | None = None  # None: not requested
    tier: str = ""  # one of `TIERS`; "": the deployment's own
    session: bytes | None = None  # identity for routing; None: not requested, or nothing identifies it
    items: tuple[response_items.Item, ...] | None = None  # of earlier responses; None: not requested, or the operation has none

    @property
    def operation(self) -> str:
        """Return the name for messages: `POST /v1/chat/completions`."""
        return f"{self.method} /v1{self.path}"

    def naming(
        self,
        model: str | None,
        *,
        stream: bool,
        asks_usage: bool,
        details: Details | None,
        session: bytes | None = None,
        tier: str = "",
        items: tuple[response_items.Item, ...] | None = None,
    ) -> Call:
        """As `replace(self, model=model, ...)`, in a third of the time."""
        return Call(
            method=self.method,
            endpoint=self.endpoint,
            path=self.path,
            values=self.values,
            native=self.native,
            deployed=self.deployed,
            model=model,
            stream=stream,
            asks_usage=asks_usage,
            beta=self.beta,
            details=details,
            session=session,
            tier=tier,
            items=items,
        )


def recognise(
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    query: str = "",
    large: LargeBody | None = None,
    *,
    details: bool = False,
    wanted: Wanted | None = None,
) -> Call | None:
    """Recognise a request. `method` is WS for a WebSocket upgrade; `path` has no query; `large` is the scanned large body; `details` says
    whether to read the details too, and `wanted` what to read for routing.

    Returns:
        None if the path is outside the API.

    Raises:
        BadRequest: the operation needs a model and the request names no valid one, or the path could be read as another path.
    """
    by_path = _known_by_path if len(path) <= _LONGEST_KNOWN else _by_path
    found = by_path(method, path, details)
    if isinstance(found, str):
        raise BadRequest(found)
    if found is None:
        return None
    call, deployment = found
    endpoint, values, native = call.endpoint, call.values, call.native
    if not endpoint.sessions:
        wanted = None
    if endpoint.handled_by not in ("azure", "models", "engines"):
        return call
    if deployment:
        return _with_model(replace(call, deployed=True), unquote(deployment), headers, body, large, wanted)
    match endpoint.model_in:
        case "path":
            return _with_model(call, unquote(next(iter(values.values()))) if values else None, headers, body, large, wanted)
        case "query":
            parameters = {name.lower(): value for name, value in parse_qsl(query)}  # Azure compares names without case
            beta = bool(endpoint.beta and not native and realtime.speaks_beta(headers))
            return _with_model(replace(call, beta=beta), parameters.get("model") or parameters.get("deployment"))
        case "form" if headers.get("content-type", "").lower().startswith("multipart/") and not json_edit.is_object(body):
            return _with_model(call, _in_form(body, headers["content-type"]))
        case "frames":
            return call if wanted is None or not wanted.sessions else replace(call, session=session.of_routing(wanted.fields, {}))
    return _in_body(call, headers, body, large, wanted)


def _in_form(body: bytes, content_type: str) -> str | None:
    """Return the model of a form.

    Raises:
        BadRequest: parsers may find different ones.
    """
    names, certain = multipart.values(body, content_type, "model")
    if not certain or len(set(names)) > 1:
        raise BadRequest("The form must have one `model`, and at most 1,000 parts with one name each.", param="model")
    return names[0] if names else None


def _by_path(method: str, path: str, details: bool) -> tuple[Call, str] | str | None:  # noqa: FBT001 - a keyword costs time in the cache
    """Return what method and path say about a call, and the deployment in the path; the fault of an invalid path; None outside the API."""
    if fault := request_syntax.path_fault(path):
        return fault
    segments = endpoints.segments(path)
    native, parts, deployment = _split_path(segments)
    if len(parts) > 2 and parts[0] == "models" and method != "POST":
        parts = ("models", "%2F".join(parts[1:]))  # ORG/NAME, which some clients send without percent-encoding
    endpoint = endpoints.find(method, parts)
    if not parts or not _in_api(endpoint, native, segments):
        return None
    values = endpoints.values(endpoint, parts)
    none = _NO_DETAILS if details else None
    return Call(method=method, endpoint=endpoint, path="/" + "/".join(parts), values=values, native=native, details=none), deployment


_known_by_path = lru_cache(maxsize=256)(_by_path)  # clients use few paths; saves 9 µs per request
_LONGEST_KNOWN = 255


def may_stream_upload(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Return whether the proxy can forward a large body before it is complete. A body that may be JSON cannot be, because the model is read
    from it.
    """
    if headers.get("content-encoding", "identity") != "identity":
        return False  # the body is decompressed first
    endpoint = row(method, path)
    kind = headers.get("content-type", "").lower()
    if endpoint.handled_by != "azure" or endpoint.needs_model or "json" in kind or not kind:
        return False
    return not kind.startswith(("text/", "application/x-www-form-urlencoded"))  # fetch() and curl -d send JSON with these


def reaches_azure(method: str, path: str) -> bool:
    """Return whether a backend serves the request. The proxy itself answers preflights, health checks, unknown paths and operations that
    Azure lacks.
    """
    parts = endpoints.segments(path)
    native, operation, _ = _split_path(parts)
    endpoint = endpoints.find(method, operation)
    return method != "OPTIONS" and endpoint.handled_by == "azure" and bool(operation) and _in_api(endpoint, native, parts)


def is_unmetered(method: str, path: str) -> bool:
    """Return whether a request starts work whose tokens the proxy does not see in time."""
    return endpoints.is_unmetered(method, _split_path(endpoints.segments(path))[1])


def hides_model(method: str, path: str) -> bool:
    """Return whether a request names models where the proxy does not see them."""
    return endpoints.hides_model(method, _split_path(endpoints.segments(path))[1])


def row(method: str, path: str) -> Endpoint:
    """Return the table's row for a request."""
    return endpoints.find(method, _split_path(endpoints.segments(path))[1])


def _in_api(endpoint: Endpoint, native: str, parts: tuple[str, ...]) -> bool:
    """Return whether a path without a row of its own is below a base URL of the API."""
    return endpoint is not endpoints.DEFAULT or bool(native) or parts[0] == "v1" or parts[:2] == ("api", "v1")


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
    call: Call,
    model: str | None,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    large: LargeBody | None = None,
    wanted: Wanted | None = None,
) -> Call:
    """Return `call` with a model that is not from its JSON body. The body only says whether to stream."""
    members: Mapping[str, Any] = {}
    named = b'"stream"' in body or b'"service_tier"' in body
    to_read = named or ((call.details is not None or wanted is not None) and json_edit.is_object(body))
    if to_read and call.endpoint.response_kind in ("chat", "typed"):
        with contextlib.suppress(BadRequest):  # Azure's message is better, because Azure knows the other required members
            members = _json_object(headers or {}, body, call, large)
    return _with_members(call, _checked(model), members, large, wanted)


def _with_members(
    call: Call, model: str | None, members: Mapping[str, Any], large: LargeBody | None = None, wanted: Wanted | None = None
) -> Call:
    """Return `call` with the model, and with the facts about the response that the members of its body state."""
    stream = members.get("stream") is True
    usage = stream and stream_usage.is_requested(members)
    details = _details(members) if members and call.details is not None else call.details
    tier = members.get("service_tier")
    tier = tier if isinstance(tier, str) and tier in TIERS else ""
    if wanted is None:
        return call.naming(model, stream=stream, asks_usage=usage, details=details, tier=tier)
    identity = session.of_routing(wanted.fields, members, large) if wanted.sessions else None
    made = response_items.found(members, large) if call.path.startswith("/responses") else None
    return call.naming(model, stream=stream, asks_usage=usage, details=details, session=identity, tier=tier, items=made)


def _in_body(call: Call, headers: Mapping[str, str], body: bytes, large: LargeBody | None, wanted: Wanted | None = None) -> Call:
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
    return _with_members(call, model, members, large, wanted)


def _json_object(headers: Mapping[str, str], body: bytes, call: Call, large: LargeBody | None) -> Mapping[str, Any]:
    """Return the members of the body; of a large body only those that are read.

    Raises:
        BadRequest: the body is compressed, empty, or not a JSON object.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise BadRequest(f"The body is compressed ({headers['content-encoding']}): send it without content-encoding.")
    if not body:
        raise BadRequest(f"The body is empty: {call.operation} needs a JSON object with a `model`.")
    if large:
        names = _MEMBERS if call.details is None else (*_MEMBERS, *_DETAILS)
        if large.error:
            raise BadRequest(f"The body is not valid JSON: {large.error}.")
        members = {name: large.value(name) for name in names} if large.outline and large.outline.is_object else None
    else:
        members = _loaded(body)
    if not isinstance(members, dict):
        raise BadRequest(f"The body is JSON, but not an object: {call.operation} needs an object with a `model`.")
    return members


def _details(members: Mapping[str, Any]) -> Details:
    if _DETAIL_MEMBERS.isdisjoint(members):
        return _NO_DETAILS
    reasoning = members.get("reasoning")
    effort = members.get("reasoning_effort") or (reasoning.get("effort") if isinstance(reasoning, dict) else None)
    return Details(
        prompt_cache_key=_short(members.get("prompt_cache_key")),
        previous_response_id=_short(members.get("previous_response_id")),
        service_tier=_short(members.get("service_tier")),
        reasoning_effort=_short(effort),
        background=members.get("background") is True,
    )


def _short(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST else None


def _loaded(body: bytes) -> Any:
    try:
        return json.loads(body.removeprefix(json_edit.BOM).decode())
    except json.JSONDecodeError as e:
        raise BadRequest(f"The body is not valid JSON: {e}") from e
    except (ValueError, RecursionError) as e:  # not UTF-8, a number too long or a nesting too deep for Python
        raise BadRequest("The body is not valid JSON.") from e


_SEPARATOR = re.compile(r"[/\\]")


def _checked(model: object) -> str | None:
    if model is None:
        return None
    if not isinstance(model, str):
        raise BadRequest(f"`model` must be a string, not {type(model).__name__}.", param="model")
    if len(model) > _LONGEST_MODEL:  # the name is copied into paths, errors, tables and records
        raise BadRequest(f"`model` has {len(model):,} characters, more than {_LONGEST_MODEL:,}.", param="model")
    if not model.isprintable():  # a lone surrogate or a line end is valid in neither a header nor a path
        raise BadRequest("`model` contains characters that are not printable.", param="model")
    # "", blanks, "." and "..", also between slashes: in a path they would refer to other resources
    if not model.strip(". ") or (_SEPARATOR.search(model) and any(part and not part.strip(". ") for part in _SEPARATOR.split(model))):
        raise BadRequest(f"`model` is {model!r}: name a model or a deployment.", param="model")
    return model
