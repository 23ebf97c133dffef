"""What Azure says → what to change. A request that Azure refuses for its form is sent again in the form that Azure asks for.

`TABLE` has the sentences. What changes the meaning of a request (tools, response format, reasoning effort) or its price
(`service_tier`) is never left out: the client sees Azure's error. What helped is remembered for the backend's deployment, so that the
next request is right at once.

Azure repeats a client's values and names in its errors. A sentence is therefore compared as a whole; what it names must stand where it
says in the request that was refused; and only what any client would be refused for is remembered (`lasts`).
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
    from azure_openai_proxy.api.request import Asked

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
"""Changes of one request."""
_LONGEST_REFUSAL, _LONGEST_SENTENCE = 65536, 4096

_FOREIGN = frozenset(
    """
    apiMode cache client_metadata litellm_session_id reasoningSummary
    """.split()  # noqa: SIM905 - a list of words reads best as one
)
"""Members of clients and gateways that no version of the API has: lobehub/lobehub#10567, gethnet/litellm-connector-copilot#117,
openai/codex, cline/cline#4761, anomalyco/opencode#27716."""

OPTIONAL = _FOREIGN | frozenset(
    """
    frequency_penalty metadata parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
    prompt_cache_retention safety_identifier seed service_tier store stream_options temperature top_p user user_security_context
    """.split()  # noqa: SIM905
)
"""What may be left out: without it the answer is of the same kind."""

_NESTED = frozenset(
    """
    input[].internal_chat_message_metadata_passthrough input[].metadata input[].status input[].action.sources
    input[].content[].cache_control messages[].cache_control messages[].content[].cache_control tools[].cache_control
    input[].content[].prompt_cache_breakpoint messages[].content[].prompt_cache_breakpoint
    messages[].annotations messages[].audio messages[].function_call messages[].parsed messages[].refusal
    reasoning.summary stream_options.include_obfuscation stream_options.include_usage
    """.split()  # noqa: SIM905
)
"""The same, below the top: openai/codex#30161, openai/codex#29469, microsoft/agent-framework#2203, pydantic/pydantic-ai#3653 (what a
client echoes of earlier output), CherryHQ/cherry-studio#11652 (`include_usage` in the Responses API), microsoft/azurechat#503 (an SDK's
own members of a message)."""

_ONLY: dict[str, tuple[object, ...]] = {
    "service_tier": ("auto",),  # any other is a price
    "store": (False,),
    "messages[].annotations": ([],),
    "messages[].audio": (),
    "messages[].function_call": (),
    "messages[].refusal": (),
}
"""Of what may be left out, the values that may; null always."""

_BY_EFFORT = frozenset({"frequency_penalty", "presence_penalty", "temperature", "top_p"})
"""Some models take these with one reasoning effort and refuse them with another."""
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})

_MOVABLE = OPTIONAL | frozenset(
    """
    audio function_call functions logit_bias logprobs max_completion_tokens modalities n reasoning_effort response_format stop
    tool_choice tools top_logprobs verbosity web_search_options
    """.split()  # noqa: SIM905
)
"""Fields of OpenAI's for which it is remembered that only v1 has them. What a client made up is not: the memory is everybody's."""

RENAMED = {
    ("max_tokens", "max_completion_tokens"),
    ("max_completion_tokens", "max_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoningEffort", "reasoning_effort"),  # anomalyco/opencode#1742
}
ROLES = {"developer": "system", "system": "developer"}

# The changes. Each is a value, applied to a later request as to the one that taught it. `mark` stands in the body of every request
# that the change has to do with.


class Drop(NamedTuple):
    path: str  # an index is `[]`
    effort: str = "*"  # only where the request has this reasoning effort, "" for none
    value: str | float | None = None  # only this one

    @property
    def mark(self) -> bytes:
        return _parts(self.path)[-1].encode()

    def body(self, body: dict[str, Any]) -> bool:
        return self.effort in ("*", _effort(body)) and self._drop(body, _parts(self.path))

    def _drop(self, value: Any, parts: list[str]) -> bool:
        first, *rest = parts
        if first == "[]":
            return isinstance(value, list) and sum(self._drop(item, rest) for item in value) > 0  # all of them
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
    """`stream_options` of a request that does not stream."""

    @property
    def mark(self) -> bytes:
        return b"stream_options"

    def body(self, body: dict[str, Any]) -> bool:
        return body.get("stream") is not True and body.pop("stream_options", ...) is not ...

    def __str__(self) -> str:
        return "stream_options left out"


class Unstored(NamedTuple):
    """`metadata` of a completion that is not stored."""

    @property
    def mark(self) -> bytes:
        return b"metadata"

    def body(self, body: dict[str, Any]) -> bool:
        return body.get("store") is not True and body.pop("metadata", ...) is not ...

    def __str__(self) -> str:
        return "metadata left out"


class Unencrypted(NamedTuple):
    """Reasoning in its encrypted form, which the model does not give out."""

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
    """To the v1 form, for a field that the dated version lacks."""

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
    """The deployment of a dated model: its family's."""

    deployment: str

    @property
    def mark(self) -> bytes:
        return b""

    def __str__(self) -> str:
        return f"deployment {self.deployment}"


type Change = Drop | Unstreamed | Unstored | Unencrypted | Rename | Role | Moved | Version | Renamed


def lasts(change: Change) -> bool:
    """Whether it may be made for later requests of other clients too: not what depends on a value or a name that a client chose."""
    match change:
        case Drop(value=value):
            return value is None
        case Moved(name):
            return name in _MOVABLE
    return True


@dataclasses.dataclass(frozen=True)
class Case:
    """A refusal, and what is known of the request it is for."""

    call: Call
    asked: Asked  # as it was sent
    dated: bool  # the form it was sent in
    deployment: str | None
    mapped: bool  # somebody gave this model its deployment

    @functools.cached_property
    def body(self) -> dict[str, Any]:
        """Empty where it is no JSON object."""
        return read(self.asked)

    @property
    def chat(self) -> bool:
        return self.call.endpoint.answer == "chat"


def _parts(path: str) -> list[str]:
    return path.replace("[]", ".[]").split(".")


def _effort(body: dict[str, Any]) -> str:
    """The reasoning effort that a body asks for; "" for none, or one that is unknown here."""
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else body.get("reasoning_effort")
    return effort if isinstance(effort, str) and effort in _EFFORTS else ""


def _may_go(path: str, value: object) -> bool:
    """Whether this value may be left out."""
    only = _ONLY.get(path)
    return only is None or value is None or any(type(value) is type(one) and value == one for one in only)


def _general(place: str) -> str:
    """A place in one request as a path: `input[0].metadata` is `input[].metadata`."""
    return re.sub(r"\[\d+\]", "[]", place)


def _value(body: Any, place: str) -> Any:
    """What stands at a place of the body; `...` if there is nothing."""
    value = body
    for part in re.split(r"\.|(?=\[)", place):
        if part.startswith("["):
            index = int(part[1:-1])
            value = value[index] if isinstance(value, list) and index < len(value) else ...
        else:
            value = value.get(part, ...) if isinstance(value, dict) else ...
    return value


# What the rows do: a match of the sentence → the changes that answer it, none where the client should see Azure's error.


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
    """A value of one client's says nothing of other values, but for a model that takes the default alone."""
    changes = _left_out(match["place"], case)
    value = _value(case.body, match["place"])
    if not changes or match["default"]:
        return changes
    return [Drop(_general(match["place"]), value=value)] if isinstance(value, str | int | float) else []


def _unknown(places: list[str], case: Case) -> list[Change]:
    """Fields of one sentence: every one must find its answer."""
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
    """Names without quotes: none of the client's own may look like several."""
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
    says: str  # a pattern of the whole message; what a client wrote may stand behind the names alone
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
    # (microsoft/sample-app-aoai-chatGPT#1260: with the client's own data)
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
    """Azure's error object; empty where there is none."""
    if len(content) > _LONGEST_REFUSAL:
        return {}
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def find(status: int, content: bytes, case: Case) -> list[Change]:
    """The changes that answer this refusal; none if there are none."""
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
                return []  # the sentence is not about what it seems to be about
            return row.change(match, case)
    return []


class Route(NamedTuple):
    """What a request is made from, the changes applied."""

    asked: Asked
    backend: Backend
    deployment: str | None  # instead of the mapping's
    applied: tuple[Change, ...]


def route(asked: Asked, backend: Backend, changes: Iterable[Change]) -> Route:
    """Apply `changes`, those that have anything to do with the request. The body is read only when there are any."""
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


def read(asked: Asked) -> dict[str, Any]:
    """The body as JSON; empty if it is none. What is long in a large one is replaced."""
    if asked.large:
        return asked.large.parse()
    try:
        body = json.loads(asked.content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _written(asked: Asked, content: bytes) -> Asked:
    if not asked.large:
        return asked._replace(content=content)
    large = asked.large.changed(content)
    return asked._replace(content=large.content, large=large)


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half an emoji
        return json.dumps(body, separators=(",", ":")).encode()


class Key(NamedTuple):
    """What is remembered together: Azure refuses by deployment, operation and version alike."""

    backend: str
    deployment: str
    operation: str = ""
    version: str = ""  # the client's own form and api-version, where it has one
    scope: bytes = b""  # of the client's own key: behind a front it may lead to another resource


class Learned:
    """What helped before. Bounded: the one not used for longest is forgotten."""

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
