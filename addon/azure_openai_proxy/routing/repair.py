"""Repair of requests that Azure rejects: maps the message of a 400, 404 or 422 to changes of the request, which is then retried.

`TABLE` has the messages. The client receives Azure's error if a change would alter the meaning of the request (tools, response format,
reasoning effort) or its price (`service_tier`). A repair that worked is remembered for the backend's deployment and applied to later
requests before they are sent.

Azure repeats a client's values and names in its error messages. Three rules keep a client from steering repairs: a message has to match
as a whole, the parameter that it names has to exist in the rejected request, and only a repair that does not depend on the client's own
values or names is remembered (`lasts`).
"""

# ruff: noqa: ARG001 - the functions of the table share one signature
from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.api.endpoints import NEWEST_GA
from azure_openai_proxy.api.model_mapping import family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import ClientRequest

__all__ = [
    "MOST",
    "OPTIONAL",
    "TABLE",
    "Case",
    "Change",
    "Drop",
    "Key",
    "Learned",
    "Moved",
    "Rename",
    "Role",
    "Route",
    "Version",
    "find",
    "lasts",
    "route",
    "said",
]

MOST = 4
"""Greatest number of changes of one request."""
_LONGEST_REFUSAL, _LONGEST_SENTENCE = 65536, 4096

_FOREIGN = frozenset(
    """
    apiMode cache client_metadata litellm_session_id reasoningSummary
    """.split()  # noqa: SIM905 - a list of words reads best as one
)
"""Members that clients and gateways add, and no version of the API has: lobehub/lobehub#10567, gethnet/litellm-connector-copilot#117,
openai/codex, cline/cline#4761, anomalyco/opencode#27716."""

OPTIONAL = _FOREIGN | frozenset(
    """
    frequency_penalty metadata parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
    prompt_cache_retention safety_identifier seed service_tier store stream_options temperature top_p user user_security_context
    """.split()  # noqa: SIM905
)
"""Optional members: a request without them gets the same kind of response."""

_NESTED = frozenset(
    """
    input[].internal_chat_message_metadata_passthrough input[].metadata input[].status input[].action.sources
    input[].content[].cache_control messages[].cache_control messages[].content[].cache_control tools[].cache_control
    input[].content[].prompt_cache_breakpoint messages[].content[].prompt_cache_breakpoint
    messages[].annotations messages[].audio messages[].function_call messages[].parsed messages[].refusal
    reasoning.summary stream_options.include_obfuscation stream_options.include_usage
    """.split()  # noqa: SIM905
)
"""Optional members below the top level: openai/codex#30161, openai/codex#29469, microsoft/agent-framework#2203,
pydantic/pydantic-ai#3653 (members of earlier output that a client sends back), CherryHQ/cherry-studio#11652 (`include_usage` in the
Responses API), microsoft/azurechat#503 (an SDK's own members of a message)."""

_ONLY: dict[str, tuple[object, ...]] = {
    "service_tier": ("auto",),  # any other value changes the price
    "store": (False,),
    "messages[].annotations": ([],),
    "messages[].audio": (),
    "messages[].function_call": (),
    "messages[].refusal": (),
}
"""Members that may be dropped with these values only, or with null."""

_BY_EFFORT = frozenset({"frequency_penalty", "presence_penalty", "temperature", "top_p"})
"""Members that some models accept with one reasoning effort and reject with another."""
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})

_MOVABLE = OPTIONAL | frozenset(
    """
    audio function_call functions logit_bias logprobs max_completion_tokens modalities n reasoning_effort response_format stop
    tool_choice tools top_logprobs verbosity web_search_options
    """.split()  # noqa: SIM905
)
"""OpenAI's fields for which `Moved` is remembered. A client's own fields are not: all clients share the learned repairs."""

RENAMED = {
    ("max_tokens", "max_completion_tokens"),
    ("max_completion_tokens", "max_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoningEffort", "reasoning_effort"),  # anomalyco/opencode#1742
}
ROLES = {"developer": "system", "system": "developer"}

# The changes are values. A learned change is applied to later requests exactly as to the request that was rejected. A change can only
# apply to a request whose body contains its `mark`.


class Drop(NamedTuple):
    path: str  # an index is `[]`
    effort: str = "*"  # only for requests with this reasoning effort, "" for none
    value: str | float | None = None  # only if the member has this value

    @property
    def mark(self) -> bytes:
        return _parts(self.path)[-1].encode()

    def body(self, body: dict[str, Any]) -> bool:
        return self.effort in ("*", _effort(body)) and self._drop(body, _parts(self.path))

    def _drop(self, value: Any, parts: list[str]) -> bool:
        first, *rest = parts
        if first == "[]":
            return isinstance(value, list) and sum(self._drop(item, rest) for item in value) > 0  # of all elements
        if not isinstance(value, dict) or first not in value:
            return False
        if rest:
            return self._drop(value[first], rest)
        if not _may_go(self.path, value[first]) or (self.value is not None and value[first] != self.value):
            return False
        del value[first]
        return True

    def __str__(self) -> str:
        return f"{self.path} left out"


class Unstreamed(NamedTuple):
    """Drops `stream_options` from a request that does not stream."""

    @property
    def mark(self) -> bytes:
        return b"stream_options"

    def body(self, body: dict[str, Any]) -> bool:
        return body.get("stream") is not True and body.pop("stream_options", ...) is not ...

    def __str__(self) -> str:
        return "stream_options left out"


class Unstored(NamedTuple):
    """Drops `metadata` from a completion that is not stored."""

    @property
    def mark(self) -> bytes:
        return b"metadata"

    def body(self, body: dict[str, Any]) -> bool:
        return body.get("store") is not True and body.pop("metadata", ...) is not ...

    def __str__(self) -> str:
        return "metadata left out"


class Unencrypted(NamedTuple):
    """Drops the request for encrypted reasoning, which the model does not support."""

    @property
    def mark(self) -> bytes:
        return b"reasoning.encrypted_content"

    def body(self, body: dict[str, Any]) -> bool:
        include = body.get("include")
        if not isinstance(include, list) or "reasoning.encrypted_content" not in include:
            return False
        body["include"] = [item for item in include if item != "reasoning.encrypted_content"]
        return True

    def __str__(self) -> str:
        return "reasoning.encrypted_content left out"


class Rename(NamedTuple):
    old: str
    new: str

    @property
    def mark(self) -> bytes:
        return self.old.encode()

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

    @property
    def mark(self) -> bytes:
        return self.old.encode()

    def body(self, body: dict[str, Any]) -> bool:
        messages: list[Any] = next((body[name] for name in ("messages", "input") if isinstance(body.get(name), list)), [])
        found = [message for message in messages if isinstance(message, dict) and message.get("role") == self.old]
        for message in found:
            message["role"] = self.new
        return bool(found)

    def __str__(self) -> str:
        return f"role {self.old} -> {self.new}"


class Moved(NamedTuple):
    """Sends the request in the v1 form, for a field that the dated api-version lacks."""

    field: str

    @property
    def mark(self) -> bytes:
        return self.field.encode()

    def __str__(self) -> str:
        return f"v1 for {self.field}"


class Version(NamedTuple):
    version: str

    @property
    def mark(self) -> bytes:
        return b""

    def __str__(self) -> str:
        return f"api-version {self.version}"


class Renamed(NamedTuple):
    """Sends the request for a dated model to the deployment of its family."""

    deployment: str

    @property
    def mark(self) -> bytes:
        return b""

    def __str__(self) -> str:
        return f"deployment {self.deployment}"


type Change = Drop | Unstreamed | Unstored | Unencrypted | Rename | Role | Moved | Version | Renamed


def lasts(change: Change) -> bool:
    """Whether a change may be learned for all clients: not if it depends on a value or a name that one client chose."""
    match change:
        case Drop(value=value):
            return value is None
        case Moved(name):
            return name in _MOVABLE
    return True


@dataclasses.dataclass(frozen=True)
class Case:
    """The rejected request, as the rows of `TABLE` see it."""

    call: Call
    asked: ClientRequest  # as sent
    dated: bool  # sent in the dated form, not v1
    deployment: str | None
    mapped: bool  # the configuration maps this model to a deployment

    @functools.cached_property
    def body(self) -> dict[str, Any]:
        """The parsed body; empty if it is not a JSON object."""
        return read(self.asked)

    @property
    def chat(self) -> bool:
        return self.call.endpoint.answer == "chat"


def _parts(path: str) -> list[str]:
    return path.replace("[]", ".[]").split(".")


def _effort(body: dict[str, Any]) -> str:
    """The reasoning effort that a body requests; "" for none or an unknown one."""
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else body.get("reasoning_effort")
    return effort if isinstance(effort, str) and effort in _EFFORTS else ""


def _may_go(path: str, value: object) -> bool:
    """Whether a member with this value may be dropped."""
    only = _ONLY.get(path)
    return only is None or value is None or any(type(value) is type(one) and value == one for one in only)


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
    if path not in OPTIONAL | _NESTED or value is ... or not _may_go(path, value) or (path == "store" and not case.chat):
        return []
    return [Drop(path, effort=_effort(case.body)) if path in _BY_EFFORT else Drop(path)]


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
        elif movable and place in case.body and place not in _FOREIGN and re.fullmatch(_NAME, place):
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
    return [Unstreamed()]


def _unstored(match: re.Match[str], case: Case) -> list[Change]:
    return [Unstored()] if case.chat else []


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


def said(content: bytes) -> dict[str, Any]:
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
    error = said(content)
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

    asked: ClientRequest
    backend: Backend
    deployment: str | None  # replaces the mapped deployment
    applied: tuple[Change, ...]


def route(asked: ClientRequest, backend: Backend, changes: Iterable[Change]) -> Route:
    """Apply those `changes` that concern the request. The body is parsed only if there are any."""
    changes = tuple(change for change in changes if change.mark in asked.content)
    if not changes:
        return Route(asked, backend, None, ())
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
        asked = _written(asked, _dump(body))
    return Route(asked, backend, deployment, tuple(applied))


def read(asked: ClientRequest) -> dict[str, Any]:
    """The body as a JSON object; empty if it is not one. Placeholders replace the long strings of a large body."""
    if asked.large:
        return asked.large.parse()
    try:
        body = json.loads(asked.content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _written(asked: ClientRequest, content: bytes) -> ClientRequest:
    if not asked.large:
        return asked._replace(content=content)
    large = asked.large.changed(content)
    return asked._replace(content=large.content, large=large)


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(body, separators=(",", ":")).encode()


class Key(NamedTuple):
    """Scope of a learned repair: Azure rejects parameters per deployment, operation and api-version."""

    backend: str
    deployment: str
    operation: str = ""
    version: str = ""  # the client's own form and api-version, where it has one
    scope: bytes = b""  # of the client's own key: behind a gateway it may select another resource


class Learned:
    """LRU map from a `Key` to the repairs that worked."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._known: OrderedDict[Key, tuple[Change, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key) -> tuple[Change, ...]:
        known = self._known.get(key)
        if known is None:
            return ()
        self._known.move_to_end(key)
        return known

    def add(self, key: Key, changes: Iterable[Change]) -> None:
        kept = dict.fromkeys([*self._known.get(key, ()), *changes])
        if not kept:
            return
        self._known[key] = tuple(kept)[-64:]
        self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def clear(self) -> None:
        self._known.clear()

    def all(self) -> dict[Key, tuple[Change, ...]]:
        return dict(self._known)
