"""One thread in full: the conversation once, each call with its new blocks, its answer, and the tool results beside their calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure_openai_proxy.inspection import flow_metadata

from . import blocks, bodies
from .calls import links

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .blocks import Block
    from .calls import Call
    from .report import Json
    from .store import Threads

__all__ = ["LONGEST_TEXT", "MOST_BLOCKS", "call", "context", "latency_split", "thread"]

LONGEST_TEXT = 100_000
"""Characters of one block that are included."""
MOST_BLOCKS = 2_000
"""Blocks of one call that are included."""
LONGEST_ERROR = 2_000
"""Characters of the message of an error."""
LONGEST_MEDIA = 2 << 20
"""Characters of an image or a sound that are included."""


def thread(threads: Threads, id: str, *, longest: int = LONGEST_TEXT) -> Json:
    """A thread as in the report, each call with the members that `call` adds. Bodies of all its calls are parsed.

    Raises:
        KeyError: there is no such thread.
    """
    found = dict(threads.thread(id))
    calls = [call(threads, one["id"], longest=longest) for one in found["calls"]]
    results: dict[str, Json] = {}
    for one in calls:
        results.update({block["call_id"]: block for block in one["new"] if block["kind"] == "tool_result" and block["call_id"]})
    seen: set[str] = set()
    for one in calls:
        for block in (*one["answer"], *one["new"]):
            if block["kind"] == "tool_call" and (result := results.get(block["call_id"])) and block["call_id"] not in seen:
                seen.add(block["call_id"])
                block["result"] = result
                result["beside_call"] = True
    found["calls"] = calls
    return found


def call(threads: Threads, id: str, *, longest: int = LONGEST_TEXT) -> Json:
    """A call as in the report, with `new`, `answer`, `context`, `latency` and the parameters of the request.

    Raises:
        KeyError: there is no such call in a thread.
    """
    one = threads.call(id)
    thread_id = threads.thread_of(id)
    if thread_id is None:
        raise KeyError(id)
    found = dict(next(known for known in threads.thread(thread_id)["calls"] if known["id"] == id))
    flow = threads.flow(id)
    found |= {"thread": thread_id, "texts": flow is not None, "context": context(threads, id), "latency": latency_split(one)}
    found |= {
        "finish": one.finish,
        "response_model": one.response_model,
        "stream": one.stream,
        "client_address": f"{one.address} {one.agent}",
    }
    found |= {"new": [], "answer": [], "parameters": {}, "tools": [], "more_blocks": 0, "error_message": ""}
    if flow is None:
        return found
    saved = flow_metadata.parse(flow)
    request = bodies.client_request(flow, saved)
    new = list(_new(threads, one, request))
    answered = bodies.answer(flow, saved)
    answer = list(blocks.of_items(answered.output))
    found["new"] = [_json(block, longest, index) for index, block in new[:MOST_BLOCKS]]
    found["answer"] = [_json(block, longest) for block in answer[:MOST_BLOCKS]]
    found["more_blocks"] = max(0, len(new) - MOST_BLOCKS) + max(0, len(answer) - MOST_BLOCKS)
    found["parameters"] = {name: value for name, value in request.items() if name not in _SHOWN}
    found["tools"] = _tools(request)
    if one.error and isinstance(answered.error, dict):
        found["error_message"] = str(answered.error.get("message") or "")[:LONGEST_ERROR]
    return found


_SHOWN = frozenset({"messages", "input", "instructions", "tools", "functions", "model"})


def _new(threads: Threads, one: Call, request: Json) -> Iterator[tuple[int | None, Block]]:
    """The blocks that the call before did not have, neither in its request nor in its answer, with the index of their message."""
    known = threads.known_before(one.id)
    previous = known[-1] if known else None
    items = bodies.items(request)
    instructions = request.get("instructions")
    if isinstance(instructions, str) and (previous is None or previous.prompt.instructions != one.prompt.instructions):
        yield None, blocks.Block("system", instructions)
    rest: dict[int, int] = {}
    for item in (item for before in known for item in before.prompt.items):
        rest[item] = rest.get(item, 0) + 1
    answered = {key for before in known for key in before.answers}
    for index, (item, hashed) in enumerate(zip(items, one.prompt.items, strict=False)):
        if rest.get(hashed, 0):
            rest[hashed] -= 1
            continue
        role = blocks.role_of(item)
        for block in blocks.of_item(item):
            repeated = block.kind in ("assistant", "tool_call", "reasoning") and _is_answer(block, role, answered)
            if not repeated:
                yield index, block


def _is_answer(block: Block, role: str, answered: set[int]) -> bool:
    return block.kind == "reasoning" or any(key in answered for key in links([block], role or "assistant"))


def _json(block: Block, longest: int, index: int | None = None) -> Json:
    found: Json = {"kind": block.kind, "text": block.text[:longest], "name": block.name, "call_id": block.call_id, "message": index}
    if (more := len(block.text) - longest) > 0:
        found["more_characters"] = more
    if block.media:
        found["media"] = [
            {"kind": media.kind, "name": media.name, "data": media.data if len(media.data) <= LONGEST_MEDIA else ""}
            for media in block.media
        ]
    return found


def _tools(request: Json) -> list[str]:
    tools = [tool for name in ("tools", "functions") if isinstance(request.get(name), list) for tool in request[name]]
    names = []
    for tool in tools[:MOST_BLOCKS]:
        inner = tool.get("function") if isinstance(tool, dict) else None
        named = inner if isinstance(inner, dict) else tool
        name = named.get("name") or named.get("type") if isinstance(named, dict) else None
        names.append(name[:200] if isinstance(name, str) else "")
    return names


def context(threads: Threads, id: str) -> Json:
    """How the input of a call divides into system, tools, history and new messages, in tokens, estimated from the characters.

    None: the tokens are unknown; then the characters are given.
    """
    one = threads.call(id)
    known = threads.known_before(id)
    previous = known[-1] if known else None
    prompt = one.prompt
    old: dict[int, int] = {}
    for item in (item for before in known for item in before.prompt.items):
        old[item] = old.get(item, 0) + 1
    history = new = 0
    for item, size in list(zip(prompt.items, prompt.sizes, strict=True))[prompt.system_items :]:
        if old.get(item, 0):
            old[item] -= 1
            history += size
        else:
            new += size
    sizes = {"system": prompt.system_size, "tools": prompt.tools_size, "history": history, "new": new}
    total = sum(sizes.values())
    tokens = one.tokens.input
    if tokens is None or not total:
        return {"unit": "characters", **sizes}
    stored = one.previous or one.conversation
    found = {name: round(tokens * size / total) for name, size in sizes.items()}
    if stored:  # the history is at Azure, so its size follows from the tokens of the call before
        before = previous.tokens if previous else None
        history = min(tokens, (before.input or 0) + (before.output or 0)) if before else 0
        found = {name: round((tokens - history) * size / total) for name, size in sizes.items()}
        found["history"] = history
    return {"unit": "tokens", **found}


def latency_split(one: Call) -> Json:
    """The parts of the time of a call in milliseconds; null: unknown."""
    azure = one.latency
    streaming = None if one.ended is None or one.first_byte is None else max(0.0, one.ended - one.first_byte)
    seconds = {"proxy": one.overhead, "connect": one.connect, "streaming": streaming}
    return {
        **{name: None if value is None else round(value * 1000, 1) for name, value in seconds.items()},
        "azure_pre_inference": azure.get("pre_inference_ms"),
        "azure_engine_first_token": azure.get("engine_ttft_ms"),
        "azure_service_first_token": azure.get("service_ttft_ms"),
        "azure_total": azure.get("total_duration_ms"),
    }
