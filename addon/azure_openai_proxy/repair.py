"""What Azure says → what to change. A request that Azure refuses for its form is sent again in the form that Azure asks for.

`TABLE` has the sentences. What changes the meaning of a request (tools, response format, reasoning effort) is never left out: the
client sees Azure's error. What helped is remembered for the backend's deployment, so that the next request is right at once.
"""

# ruff: noqa: ARG001 - the functions of the table share one signature
from __future__ import annotations

import dataclasses
import json
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from .endpoints import NEWEST_GA
from .models import family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .backends import Backend
    from .calls import Call
    from .to_azure import Asked

__all__ = ["MOST", "OPTIONAL", "TABLE", "Case", "Change", "Drop", "Learned", "Moved", "Rename", "Role", "Route", "find", "route"]

MOST = 4
"""Changes of one request."""

OPTIONAL = frozenset(
    """
    frequency_penalty metadata parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_retention safety_identifier
    seed service_tier store stream_options temperature top_p user user_security_context
    """.split()  # noqa: SIM905 - a list of words reads best as one
)
"""What may be left out: without it the answer is of the same kind."""

RENAMED = {("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")}
ROLES = {"developer": "system", "system": "developer"}

# The changes. Each is a value, applied to a later request as to the one that taught it.


class Drop(NamedTuple):
    name: str

    def body(self, body: dict[str, Any]) -> bool:
        return body.pop(self.name, ...) is not ...

    def __str__(self) -> str:
        return f"{self.name} left out"


class Unstreamed(NamedTuple):
    """`stream_options` of a request that does not stream."""

    def body(self, body: dict[str, Any]) -> bool:
        return body.get("stream") is not True and body.pop("stream_options", ...) is not ...

    def __str__(self) -> str:
        return "stream_options left out"


class Rename(NamedTuple):
    old: str
    new: str

    def body(self, body: dict[str, Any]) -> bool:
        if self.old not in body:
            return False
        value = body.pop(self.old)
        body.setdefault(self.new, value)
        return True

    def __str__(self) -> str:
        return f"{self.old} -> {self.new}"


class Role(NamedTuple):
    old: str
    new: str

    def body(self, body: dict[str, Any]) -> bool:
        messages: list[Any] = next((body[name] for name in ("messages", "input") if isinstance(body.get(name), list)), [])
        found = [message for message in messages if isinstance(message, dict) and message.get("role") == self.old]
        for message in found:
            message["role"] = self.new
        return bool(found)

    def __str__(self) -> str:
        return f"role {self.old} -> {self.new}"


class Moved(NamedTuple):
    """To the v1 form, for a field that the dated version lacks."""

    field: str

    def __str__(self) -> str:
        return f"v1 for {self.field}"


class Version(NamedTuple):
    version: str

    def __str__(self) -> str:
        return f"api-version {self.version}"


class Renamed(NamedTuple):
    """The deployment of a dated model: its family's."""

    deployment: str

    def __str__(self) -> str:
        return f"deployment {self.deployment}"


type Change = Drop | Unstreamed | Rename | Role | Moved | Version | Renamed


class Case(NamedTuple):
    """A refusal, and what is known of the request it is for."""

    call: Call
    body: dict[str, Any]  # as it was sent; empty where it is no JSON object
    dated: bool  # the form it was sent in
    deployment: str | None
    mapped: bool  # somebody gave this model its deployment


# What the rows do: a match of the sentence → the changes that answer it, none where the client should see Azure's error.


def _refused(match: re.Match[str], case: Case) -> list[Change]:
    name = match["name"]
    return [Drop(name)] if name in OPTIONAL else []


def _other_name(match: re.Match[str], case: Case) -> list[Change]:
    pair = match["name"], match["new"]
    return [Rename(*pair)] if pair in RENAMED else _refused(match, case)


def _unknown(match: re.Match[str], case: Case) -> list[Change]:
    """Fields of one sentence: every one must find its answer."""
    changes: list[Change] = []
    for name in re.findall(r"[a-z_]+", match["names"]):
        if name == "max_completion_tokens":
            changes.append(Rename(name, "max_tokens"))
        elif case.dated and not case.call.native and case.call.endpoint.v1:
            changes.append(Moved(name))
        elif name in OPTIONAL:
            changes.append(Drop(name))
        else:
            return []
    return changes


def _role(match: re.Match[str], case: Case) -> list[Change]:
    role = match["role"]
    return [Role(role, ROLES[role])] if role in ROLES else []


def _unstreamed(match: re.Match[str], case: Case) -> list[Change]:
    return [Unstreamed()]


def _version(match: re.Match[str], case: Case) -> list[Change]:
    return [Version(NEWEST_GA if case.dated else "v1")]


def _family(match: re.Match[str], case: Case) -> list[Change]:
    base = family(case.deployment or "")
    return [Renamed(base)] if base and not case.mapped and not case.call.native else []


class Row(NamedTuple):
    says: str  # a pattern that the message holds
    change: Callable[[re.Match[str], Case], list[Change]]


TABLE = (
    # Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.
    Row(r"Unsupported parameter: '(?P<name>\w+)' is not supported with this model\. Use '(?P<new>\w+)' instead", _other_name),
    # Unsupported parameter: 'parallel_tool_calls' is not supported with this model.
    Row(r"Unsupported parameter: '(?P<name>\w+)' is not supported", _refused),
    # Unsupported value: 'messages[0].role' does not support 'developer' with this model.
    Row(r"Unsupported value: '(?:messages|input)\[\d+\]\.role' does not support '(?P<role>\w+)'", _role),
    # Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported.
    Row(r"Unsupported value: '(?P<name>\w+)' does not support", _refused),
    # 'developer' is not one of ['system', 'assistant', 'user', 'function', 'tool'] - 'messages.0.role'
    Row(r"'(?P<role>\w+)' is not one of \[.*\] - 'messages\.\d+\.role'", _role),
    # Unrecognized request argument supplied: stream_options
    Row(r"Unrecognized request arguments? supplied: (?P<names>[\w, ]+)", _unknown),
    # Unknown parameter: 'service_tier'.
    Row(r"Unknown parameter: '(?P<names>\w+)'", _unknown),
    # The 'stream_options' parameter is only allowed when 'stream' is enabled.
    Row(r"The 'stream_options' parameter is only allowed when 'stream' is enabled", _unstreamed),
    # API version not supported
    Row(r"API version not supported", _version),
    # The API deployment for this resource does not exist. ...
    Row(r"The API deployment for this resource does not exist", _family),
)


def find(status: int, content: bytes, case: Case) -> list[Change]:
    """The changes that answer this refusal; none if there are none."""
    if status not in (400, 404, 422):
        return []
    try:
        message = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    for row in TABLE:
        if isinstance(message, str) and (match := re.search(row.says, message)):
            return row.change(match, case)
    return []


class Route(NamedTuple):
    """What a request is made from, the changes applied."""

    asked: Asked
    backend: Backend
    deployment: str | None  # instead of the mapping's
    body: dict[str, Any]
    applied: tuple[Change, ...]


def route(asked: Asked, backend: Backend, changes: Iterable[Change]) -> Route:
    """Apply `changes`, those that have anything to do with the request. The body is read only when there are any."""
    changes = tuple(changes)
    if not changes:
        return Route(asked, backend, None, {}, ())
    body, deployment, applied = read(asked), None, []
    changed = False
    for change in changes:
        match change:
            case Moved(name):
                used = name in body
                backend = dataclasses.replace(backend, apiversion="v1") if used else backend
            case Version(version):
                used = True
                backend = dataclasses.replace(backend, apiversion=version)
                asked = asked._replace(query=asked.query._replace(api_version=""))
            case Renamed(name):
                used, deployment = True, name
            case _:
                used = change.body(body)
                changed |= used
        if used:
            applied.append(change)
    if changed:
        asked = asked._replace(content=_dump(body))
    return Route(asked, backend, deployment, body, tuple(applied))


def read(asked: Asked) -> dict[str, Any]:
    """The body as JSON; empty if it is none."""
    try:
        body = json.loads(asked.content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half an emoji
        return json.dumps(body, separators=(",", ":")).encode()


class Learned:
    """What helped before, for each deployment of each backend. Bounded: the one not used for longest is forgotten."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, str], tuple[Change, ...]] = OrderedDict()

    def get(self, backend: str, deployment: str) -> tuple[Change, ...]:
        known = self._known.get((backend, deployment))
        if known is None:
            return ()
        self._known.move_to_end((backend, deployment))
        return known

    def add(self, backend: str, deployment: str, changes: Iterable[Change]) -> None:
        kept = dict.fromkeys([*self._known.get((backend, deployment), ()), *changes])
        self._known[backend, deployment] = tuple(kept)[-32:]
        self._known.move_to_end((backend, deployment))
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def clear(self) -> None:
        self._known.clear()

    def all(self) -> dict[tuple[str, str], tuple[Change, ...]]:
        return dict(self._known)
