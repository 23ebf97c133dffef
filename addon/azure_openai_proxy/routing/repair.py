"""Repair of requests that Azure rejects: maps the message of a 400, 404 or 422 to changes of the request, which is then retried.

`TABLE` has the messages, `repair_changes` the changes. The client receives Azure's error if a change would alter the meaning of the request
(tools, response format, reasoning effort) or its price (`service_tier`). A repair that worked is remembered for the backend's deployment
(`learned_repairs`) and applied to later requests before they are sent.

Azure repeats a client's values and names in its error messages. Three rules keep a client from steering repairs: a message has to match
as a whole, the parameter that it names has to exist in the rejected request, and only a repair that does not depend on the client's own
values or names is remembered (`repair_changes.lasts`).
"""

# ruff: noqa: ARG001 - the functions of the table share one signature
from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.api.endpoints import NEWEST_GA
from azure_openai_proxy.api.model_mapping import family

from .repair_changes import (
    BY_EFFORT,
    FOREIGN,
    NESTED,
    OPTIONAL,
    Change,
    Drop,
    DropUnless,
    Moved,
    Rename,
    Renamed,
    Role,
    Unencrypted,
    Version,
    effort_of,
    may_drop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import ClientRequest

__all__ = ["MOST", "TABLE", "Case", "error_object", "find", "read", "route"]

MOST = 4
"""Greatest number of changes of one request."""
_LONGEST_REFUSAL, _LONGEST_SENTENCE = 65536, 4096

RENAMED = {
    ("max_tokens", "max_completion_tokens"),
    ("max_completion_tokens", "max_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoningEffort", "reasoning_effort"),  # anomalyco/opencode#1742
}
ROLES = {"developer": "system", "system": "developer"}


@dataclasses.dataclass(frozen=True)
class Case:
    """The rejected request, as the rows of `TABLE` see it."""

    call: Call
    client_request: ClientRequest  # as sent
    dated: bool  # sent in the dated form, not v1
    deployment: str | None
    mapped: bool  # the configuration maps this model to a deployment

    @functools.cached_property
    def body(self) -> dict[str, Any]:
        """The parsed body; empty if it is not a JSON object."""
        return read(self.client_request)

    @property
    def chat(self) -> bool:
        return self.call.endpoint.response_kind == "chat"


def _general(place: str) -> str:
    """A place in a body without its indices: `input[0].metadata` becomes `input[].metadata`."""
    return re.sub(r"\[\d+\]", "[]", place)


def _value(body: Any, place: str) -> Any:
    """The value at a place of the body; `...` if there is none."""
    value = body
    for part in re.split(r"\.|(?=\[)", place):
        if part.startswith("["):
            index = int(part[1:-1])
            value = value[index] if isinstance(value, list) and index < len(value) else ...
        else:
            value = value.get(part, ...) if isinstance(value, dict) else ...
    return value


# The functions of the rows return the changes for a match. An empty list means that the client receives Azure's error.


def _left_out(place: str, case: Case) -> list[Change]:
    path, value = _general(place), _value(case.body, place)
    if path not in OPTIONAL | NESTED or value is ... or not may_drop(path, value) or (path == "store" and not case.chat):
        return []
    return [Drop(path, effort=effort_of(case.body)) if path in BY_EFFORT else Drop(path)]


def _renamed(old: str, new: str, case: Case) -> list[Change]:
    return [Rename(old, new)] if (old, new) in RENAMED and old in case.body else []


def _refused(match: re.Match[str], case: Case) -> list[Change]:
    return _left_out(match["place"], case)


def _other_name(match: re.Match[str], case: Case) -> list[Change]:
    return _renamed(match["place"], match["new"], case) or _left_out(match["place"], case)


def _value_refused(match: re.Match[str], case: Case) -> list[Change]:
    """Drop the member with the rejected value only, unless the model supports no value but the default."""
    changes = _left_out(match["place"], case)
    value = _value(case.body, match["place"])
    if not changes or match["default"]:
        return changes
    return [Drop(_general(match["place"]), value=value)] if isinstance(value, str | int | float) else []


def _unknown(places: list[str], case: Case) -> list[Change]:
    """The changes for the fields of one message; none unless each field has a change."""
    changes: list[Change] = []
    movable = case.dated and not case.call.native and bool(case.call.endpoint.v1)
    for place in places:
        if place == "max_completion_tokens" and place in case.body and case.chat:
            changes.append(Rename(place, "max_tokens"))
        elif movable and place in case.body and place not in FOREIGN and re.fullmatch(_NAME, place):
            changes.append(Moved(place))
        elif found := _left_out(place, case):
            changes += found
        else:
            return []
    return changes


def _one_unknown(match: re.Match[str], case: Case) -> list[Change]:
    place = match["place"]
    return _renamed(place, match["new"] or "reasoning_effort", case) or _unknown([place], case)


def _listed(match: re.Match[str], case: Case) -> list[Change]:
    """Unquoted names: a client's member may not contain ", ", which would look like several names."""
    names = match["names"].split(", ")
    plain = all(re.fullmatch(_NAME, name) for name in case.body)
    return _unknown(names, case) if plain and (len(names) > 1) == bool(match["several"]) else []


def _unexpected(match: re.Match[str], case: Case) -> list[Change]:
    at = f"messages[{match['index']}]." if match["index"] else ""
    return _unknown([at + name for name in re.findall(_NAME, match["names"])], case)


def _extra(match: re.Match[str], case: Case) -> list[Change]:
    return _unknown(re.findall(rf"#/({_NAME})", match[0]), case)


def _role(match: re.Match[str], case: Case) -> list[Change]:
    role, place = match["role"], f"{match['list']}[{match['index']}].role"
    return [Role(role, ROLES[role])] if role in ROLES and _value(case.body, place) == role else []


def _unstreamed(match: re.Match[str], case: Case) -> list[Change]:
    return [DropUnless("stream_options", "stream")]


def _unstored(match: re.Match[str], case: Case) -> list[Change]:
    return [DropUnless("metadata", "store")] if case.chat else []


def _unencrypted(match: re.Match[str], case: Case) -> list[Change]:
    return [Unencrypted()]


def _version(match: re.Match[str], case: Case) -> list[Change]:
    return [Version(NEWEST_GA if case.dated else "v1")]


def _family(match: re.Match[str], case: Case) -> list[Change]:
    base = family(case.deployment or "")
    return [Renamed(base)] if base and not case.mapped and not case.call.native else []


class Row(NamedTuple):
    says: str  # a pattern of the whole message; only the named groups may match a client's text
    change: Callable[[re.Match[str], Case], list[Change]]


_NAME = r"[A-Za-z_]\w*"
_PLACE = rf"(?P<place>{_NAME}(?:\[\d{{1,9}}\]|\.{_NAME})*)"
_MORE = r"(?: (?:Please|Try|To|For|See|If|\(?[Rr]equest [Ii][Dd])\b[^'\"]*)?"
"""Azure's own advice behind a sentence. Any other text behind it means that the sentence is quoted."""
_DEFAULT = r" with this model\. Only the default \([^()]*\) value is supported\."
_EXTRA = rf"Validation error at #/{_NAME}: Extra inputs are not permitted"

TABLE = (
    # Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.
    Row(rf"Unsupported parameter: '{_PLACE}' is not supported with this model\. Use '(?P<new>\w+)' instead\.?{_MORE}", _other_name),
    # Unsupported parameter: 'max_tokens'. In the Responses API, this parameter has moved to 'max_output_tokens'. Try again with ...
    Row(rf"Unsupported parameter: '{_PLACE}'\. In the Responses API, this parameter has moved to '(?P<new>\w+)'\.{_MORE}", _other_name),
    # Unsupported parameter: 'parallel_tool_calls' is not supported with this model.
    Row(rf"Unsupported parameter: '{_PLACE}' is not supported with this model\.?{_MORE}", _refused),
    # Unsupported value: 'messages[0].role' does not support 'developer' with this model.
    Row(
        r"Unsupported value: '(?P<list>messages|input)\[(?P<index>\d{1,9})\]\.role' does not support '(?P<role>\w+)' with this model\.?"
        + _MORE,
        _role,
    ),
    # Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported.
    Row(
        rf"Unsupported value: '{_PLACE}' does not support .*?(?P<default>{_DEFAULT})?",
        _value_refused,
    ),
    # 'developer' is not one of ['system', 'assistant', 'user', 'function', 'tool'] - 'messages.0.role'
    Row(
        r"'(?P<role>\w+)' is not one of \[(?:'\w+', )*'\w+'\] - '(?P<list>messages)\.(?P<index>\d{1,9})\.role'",
        _role,
    ),
    # Unrecognized request argument supplied: stream_options
    Row(rf"Unrecognized request argument(?P<several>s?) supplied: (?P<names>{_NAME}(?:, {_NAME})*)\.?", _listed),
    # Unknown parameter: 'input[0].metadata'.
    # Unknown parameter: 'reasoningEffort'. Did you mean 'reasoning_effort'?
    Row(rf"Unknown parameter: '{_PLACE}'\.?(?: Did you mean '(?P<new>\w+)'\?\.?)?", _one_unknown),
    # Additional properties are not allowed ('parsed', 'refusal' were unexpected) - 'messages.2'
    Row(
        rf"Additional properties are not allowed \((?P<names>'{_NAME}'(?:, '{_NAME}')*) (?:was|were) unexpected\)"
        r"(?: - 'messages\.(?P<index>\d{1,9})')?",
        _unexpected,
    ),
    # Validation error at #/max_completion_tokens: Extra inputs are not permitted\nValidation error at #/store: Extra inputs ...
    # (microsoft/sample-app-aoai-chatGPT#1260, with "on your data")
    Row(
        rf"{_EXTRA}(?:\n{_EXTRA})*",
        _extra,
    ),
    # prompt_cache_retention is not supported on this model (OpenHands/software-agent-sdk#2295)
    Row(rf"(?P<place>{_NAME}) is not supported on this model\.?", _refused),
    # Encrypted content is not supported with this model. (earendil-works/pi#6228, pydantic/pydantic-ai#2915, microsoft/amplifier#199)
    Row(r"Encrypted content is not supported with this model\.?", _unencrypted),
    # The 'stream_options' parameter is only allowed when 'stream' is enabled.
    Row(r"The 'stream_options' parameter is only allowed when 'stream' is enabled\.?", _unstreamed),
    # The 'metadata' parameter is only allowed when 'store' is enabled.
    Row(r"The 'metadata' parameter is only allowed when 'store' is enabled\.?", _unstored),
    # API version not supported
    Row(r"API version not supported\.?", _version),
    # The API deployment for this resource does not exist. ...
    Row(rf"The API deployment for this resource does not exist\.{_MORE}", _family),
)


def error_object(content: bytes) -> dict[str, Any]:
    """Azure's error object; empty if the response has none."""
    if len(content) > _LONGEST_REFUSAL:
        return {}
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def find(status: int, content: bytes, case: Case) -> list[Change]:
    """The changes for a rejected request; an empty list if there is no repair."""
    if status not in (400, 404, 422):
        return []
    error = error_object(content)
    message, param = error.get("message"), error.get("param")
    if not isinstance(message, str) or len(message) > _LONGEST_SENTENCE:
        return []
    for row in TABLE:
        if match := re.fullmatch(row.says, message.strip()):
            place = match.groupdict().get("place")
            if place and isinstance(param, str) and param and _general(param) != _general(place):
                return []  # Azure's `param` contradicts the message, which therefore contains a client's text
            return row.change(match, case)
    return []


class Route(NamedTuple):
    """The inputs of an upstream request after the changes."""

    client_request: ClientRequest
    backend: Backend
    deployment: str | None  # replaces the mapped deployment
    applied: tuple[Change, ...]


def route(client_request: ClientRequest, backend: Backend, changes: Iterable[Change]) -> Route:
    """Apply those `changes` that concern the request. The body is parsed only if there are any."""
    changes = tuple(change for change in changes if change.mark in client_request.content)
    if not changes:
        return Route(client_request, backend, None, ())
    body, deployment, applied = read(client_request), None, []
    changed = False
    for change in changes:
        match change:
            case Moved(name):
                used = name in body
                backend = dataclasses.replace(backend, apiversion="v1") if used else backend
            case Version(version):
                used = True
                backend = dataclasses.replace(backend, apiversion=version)
                client_request = client_request._replace(query=client_request.query._replace(api_version=""))
            case Renamed(name):
                used, deployment = True, name
            case _:
                used = change.body(body)
                changed |= used
        if used:
            applied.append(change)
    if changed:
        client_request = _written(client_request, _dump(body))
    return Route(client_request, backend, deployment, tuple(applied))


def read(client_request: ClientRequest) -> dict[str, Any]:
    """The body as a JSON object; empty if it is not one. Placeholders replace the long strings of a large body."""
    if client_request.large:
        return client_request.large.parse()
    try:
        body = json.loads(client_request.content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _written(client_request: ClientRequest, content: bytes) -> ClientRequest:
    if not client_request.large:
        return client_request._replace(content=content)
    large = client_request.large.changed(content)
    return client_request._replace(content=large.content, large=large)


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(body, separators=(",", ":")).encode()
