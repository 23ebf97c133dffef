"""The changes that repair a rejected request, as values: each one is applied to a later request exactly as to the one that was rejected.

A change can only apply to a request whose body contains its `mark`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BY_EFFORT",
    "FOREIGN",
    "NESTED",
    "OPTIONAL",
    "Change",
    "Drop",
    "DropUnless",
    "Moved",
    "Rename",
    "Renamed",
    "Role",
    "TierDropped",
    "Unencrypted",
    "Version",
    "effort_of",
    "lasts",
    "may_drop",
    "packed",
    "unpacked",
]

FOREIGN = frozenset(
    """
    apiMode cache client_metadata litellm_session_id reasoningSummary
    """.split()  # noqa: SIM905 - a list of words reads best as one
)
"""Members that clients and gateways add, and no version of the API has: lobehub/lobehub#10567, gethnet/litellm-connector-copilot#117,
openai/codex, cline/cline#4761, anomalyco/opencode#27716."""

OPTIONAL = FOREIGN | frozenset(
    """
    frequency_penalty metadata parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
    prompt_cache_retention safety_identifier seed service_tier store stream_options temperature top_p user user_security_context
    """.split()  # noqa: SIM905
)
"""Optional members: a request without them gets the same kind of response."""

NESTED = frozenset(
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

BY_EFFORT = frozenset({"frequency_penalty", "presence_penalty", "temperature", "top_p"})
"""Members that some models accept with one reasoning effort and reject with another."""
_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})

_MOVABLE = OPTIONAL | frozenset(
    """
    audio function_call functions logit_bias logprobs max_completion_tokens modalities n reasoning_effort response_format stop
    tool_choice tools top_logprobs verbosity web_search_options
    """.split()  # noqa: SIM905
)
"""OpenAI's fields for which `Moved` is remembered. A client's own fields are not: all clients share the learned repairs."""


class Drop(NamedTuple):
    path: str  # an index is `[]`
    effort: str = "*"  # only for requests with this reasoning effort, "" for none
    value: str | float | None = None  # only if the member has this value

    @property
    def mark(self) -> bytes:
        return _parts(self.path)[-1].encode()

    def body(self, body: dict[str, Any]) -> bool:
        return self.effort in ("*", effort_of(body)) and self._drop(body, _parts(self.path))

    def _drop(self, value: Any, parts: list[str]) -> bool:
        first, *rest = parts
        if first == "[]":
            return isinstance(value, list) and sum(self._drop(item, rest) for item in value) > 0  # of all elements
        if not isinstance(value, dict) or first not in value:
            return False
        if rest:
            return self._drop(value[first], rest)
        if not may_drop(self.path, value[first]) or (self.value is not None and value[first] != self.value):
            return False
        del value[first]
        return True

    def __str__(self) -> str:
        return f"{self.path} left out"


class DropUnless(NamedTuple):
    """Drops a member that is only allowed while the member `needs` is true: `stream_options` needs `stream`, `metadata` needs `store`."""

    member: str
    needs: str

    @property
    def mark(self) -> bytes:
        return self.member.encode()

    def body(self, body: dict[str, Any]) -> bool:
        return body.get(self.needs) is not True and body.pop(self.member, ...) is not ...

    def __str__(self) -> str:
        return f"{self.member} left out"


class TierDropped(NamedTuple):
    """Drops the service tier. Never a repair: only for the last attempt that the configuration allows."""

    tier: str

    @property
    def mark(self) -> bytes:
        return b"service_tier"

    def body(self, body: dict[str, Any]) -> bool:
        return body.pop("service_tier", ...) is not ...

    def __str__(self) -> str:
        return f"service_tier {self.tier} left out"


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


type Change = Drop | DropUnless | TierDropped | Unencrypted | Rename | Role | Moved | Version | Renamed


_KINDS: dict[str, Callable[..., Change]] = {
    kind.__name__: kind for kind in (Drop, DropUnless, Unencrypted, Rename, Role, Moved, Version, Renamed)
}


def packed(change: Change) -> list[Any]:
    """Return a change as JSON: the name of its kind, and its fields."""
    return [type(change).__name__, *change]


def unpacked(value: object) -> Change | None:
    """Return the change that `packed` made; None for anything else, and for a change that may not be learned for all clients."""
    match value:
        case [str(kind), *fields] if kind in _KINDS and all(
            (isinstance(field, str) and 0 <= len(field) <= 200) or field is None for field in fields
        ):
            try:
                change = _KINDS[kind](*fields)
            except TypeError:
                return None
            return change if lasts(change) else None
    return None


def lasts(change: Change) -> bool:
    """Whether a change may be learned for all clients: not if it depends on a value or a name that one client chose."""
    match change:
        case Drop(value=value):
            return value is None
        case Moved(name):
            return name in _MOVABLE
    return True


def _parts(path: str) -> list[str]:
    return path.replace("[]", ".[]").split(".")


def effort_of(body: dict[str, Any]) -> str:
    """The reasoning effort that a body requests; "" for none or an unknown one."""
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else body.get("reasoning_effort")
    return effort if isinstance(effort, str) and effort in _EFFORTS else ""


def may_drop(path: str, value: object) -> bool:
    """Whether a member with this value may be dropped."""
    only = _ONLY.get(path)
    return only is None or value is None or any(type(value) is type(one) and value == one for one in only)
