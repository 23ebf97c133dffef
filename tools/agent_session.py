"""A session of a coding agent against the simulator, for the inspector's page: parallel tools, a subagent, a break of the prompt cache."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flows import IMAGE

from azure_simulator import PromptCache
from azure_simulator.scripts import Reply, ToolCall

if TYPE_CHECKING:
    from collections.abc import Mapping

    import openai

    from azure_simulator import Simulator

__all__ = ["TASK", "run"]

TASK = "The test of the CSV parser fails since this morning. Please find out why, and correct it."
SEARCH = "Find all callers of parse()"
RULES = (
    "You are a coding agent in the user's repository. Read a file before you change it, change as little as possible, and run the tests "
    "after each change. Ask the user only if the task cannot be understood. "
) * 30
RESULTS = {
    "read_file": "def parse(line: str) -> list[str]:\n    return line.split(',')\n",
    "agent": "parse() has one caller: import_rows() in rows.py. It passes lines with semicolons.",
    "search": "rows.py:14:    return [parse(line) for line in lines]",
    "edit_file": "1 file changed",
    "run_tests": "12 passed in 0.31s",
}
TURNS: tuple[tuple[Any, ...], ...] = (
    ("I look at the parser and at its test.", ("read_file", {"path": "parser.py"}), ("read_file", {"path": "test_parser.py"})),
    ("Who passes lines to it?", ("agent", {"task": SEARCH})),
    ("The delimiter is wrong.", ("edit_file", {"path": "parser.py", "old": "split(',')", "new": "split(';')"})),
    ("Now the tests.", ("run_tests", {})),
    ("The parser split lines at commas, but its one caller passes lines with semicolons. I changed the delimiter; all 12 tests pass.",),
)
SEARCH_TURNS = (
    ("", ("search", {"pattern": "parse("})),
    ("parse() has one caller: import_rows() in rows.py. It passes lines with semicolons.",),
)


def tool(name: str, *arguments: str) -> Any:
    properties = {argument: {"type": "string"} for argument in arguments}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


TOOLS = [tool("read_file", "path"), tool("edit_file", "path", "old", "new"), tool("run_tests"), tool("agent", "task")]


def script(asked: Mapping[str, Any]) -> Reply | None:
    """The model: its next turn follows from the number of its earlier ones."""
    messages = [one for one in asked.get("messages", ()) if isinstance(one, dict)]
    said = json.dumps(messages)
    turns = TURNS if TASK in said else SEARCH_TURNS if SEARCH in said else ()
    done = sum(one.get("role") == "assistant" for one in messages)
    if done >= len(turns):
        return None
    text, *called = turns[done]
    calls = (ToolCall(name, json.dumps(arguments), f"call_{done}{place}") for place, (name, arguments) in enumerate(called))
    return Reply(str(text), tuple(calls))


def run(client: openai.OpenAI, azure: Simulator) -> None:
    """The whole session. Afterwards the simulator answers as before."""
    azure.faults.clear()
    azure.script, azure.prompt_cache = script, PromptCache()
    content = [{"type": "text", "text": TASK}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    agent(client, f"{RULES}\nToday is 2026-11-28, 10:00.", content, TOOLS, len(TURNS))
    azure.script = azure.prompt_cache = None


def agent(client: openai.OpenAI, system: str, task: Any, tools: list[Any], turns: int) -> None:
    """The loop of an agent: it calls the model, runs its tools, and sends their results back."""
    messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": task}]
    for turn in range(turns):
        if turn == 3:  # a clock in the system prompt: the cached prompt cannot be used any more
            messages[0] = {"role": "system", "content": system.replace("10:00", "10:01")}
        answer = client.chat.completions.create(model="gpt-4o", messages=messages, tools=tools).choices[0].message
        messages.append(answer.model_dump(exclude_none=True))
        for call in answer.tool_calls or ():
            assert call.type == "function"
            if call.function.name == "agent":
                agent(client, "You search the repository.", SEARCH, [tool("search", "pattern")], len(SEARCH_TURNS))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": RESULTS[call.function.name]})
