"""A scripted model, for sessions of agents: which tools it calls, and what it says.

`planned` reads its script from the first message of the user that has one: `{look count:three} {transfer_to_writer}` are two turns, the
first with two tool calls, the second with one. `count:three` fills each text in the arguments of `count` with `three`. After the last turn,
or if a tool is not offered, the model answers with words.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from . import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Reply", "Script", "ToolCall", "planned"]

type Json = dict[str, Any]


class ToolCall(NamedTuple):
    name: str
    arguments: str
    id: str


class Reply(NamedTuple):
    text: str = ""
    tools: tuple[ToolCall, ...] = ()


type Script = Callable[[Mapping[str, Any]], Reply | None]
"""The reply to a request; None: the usual one."""

_TURN = re.compile(r"\{([a-z_][^{}]*)\}")
_TOOL = re.compile(r"([A-Za-z_][\w-]*)(?::([^ ]+))?")


def planned(asked: Mapping[str, Any]) -> Reply | None:
    items = _items(asked)
    said = [texts.said([item]) for item in items if isinstance(item, dict) and item.get("role") == "user"]
    plan = next((turns for text in said if (turns := _TURN.findall(text))), None)
    if plan is None:
        return None
    done = sum(_is_turn(items, place) for place in range(len(items)))
    if done < len(plan):
        offered = {name: schema for name, schema in map(_tool, asked.get("tools") or []) if name}
        wanted = [(name, text.replace("_", " ")) for name, text in _TOOL.findall(plan[done])]
        if wanted and all(name in offered for name, _ in wanted):
            return Reply(
                "", tuple(ToolCall(name, _arguments(offered[name], text), f"call_{uuid.uuid4().hex[:24]}") for name, text in wanted)
            )
    return Reply(f"After {done} turn{'' if done == 1 else 's'} with tools the work is done: {said[-1][:60]}")


def _items(asked: Mapping[str, Any]) -> list[Any]:
    value = asked.get("messages", asked.get("input"))
    return [{"role": "user", "content": value}] if isinstance(value, str) else value if isinstance(value, list) else []


def _is_turn(items: list[Any], place: int) -> bool:
    """Whether an item is the first one of a turn with tool calls. A turn of a response has an item for each call."""
    item, before = items[place], items[place - 1] if place else {}
    if not isinstance(item, dict):
        return False
    first = item.get("type") == "function_call" and not (isinstance(before, dict) and before.get("type") == "function_call")
    return bool(item.get("tool_calls")) or first


def _tool(tool: Any) -> tuple[str, Json]:
    inner = tool.get("function", tool) if isinstance(tool, dict) else {}
    return str(inner.get("name") or ""), inner.get("parameters") or {}


def _arguments(schema: Json, text: str) -> str:
    properties = schema.get("properties") or {}
    required = schema.get("required") or list(properties)[:1]
    return json.dumps({name: value for name in required for value in _value(properties.get(name) or {}, text or "ls")})


def _value(schema: Json, text: str) -> Iterator[Any]:
    kind = schema.get("type")
    kind = next((one for one in kind if one != "null"), "null") if isinstance(kind, list) else kind
    match kind:
        case "integer" | "number":
            yield 1
        case "boolean":
            yield True
        case "array":
            yield [text]
        case "object":
            yield {}
        case _:
            yield schema["enum"][0] if schema.get("enum") else text
