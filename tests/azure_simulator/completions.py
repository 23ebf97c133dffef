"""POST completions."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from . import errors, filters, texts
from .answers import Answer, json_answer, stream_answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .calls import Call
    from .models import Model

__all__ = ["answer"]

type Json = dict[str, Any]


def answer(call: Call, model: Model) -> Answer:
    asked = call.asked
    if asked.get("stream_options") is not None and not asked.get("stream"):
        raise errors.invalid(errors.STREAM_OPTIONS, param="stream_options")
    prompts = _prompts(asked["prompt"])
    n = asked.get("n") or 1
    texts_of = [_completion(prompt, asked) for prompt in prompts for _ in range(n)]
    head = {"created": int(time.time()), "id": f"cmpl-{uuid.uuid4().hex[:29]}", "model": model.reported, "object": "text_completion"}
    written = sum(len(content) for content, _ in texts_of)
    read = sum(map(texts.count, prompts))
    usage = {"completion_tokens": written, "prompt_tokens": read, "total_tokens": read + written}
    if asked.get("stream"):
        wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        return stream_answer(_chunks(head, texts_of, len(prompts), usage if wants_usage else None))
    choices = [_choice(index, "".join(content), finish) for index, (content, finish) in enumerate(texts_of)]
    return json_answer({"choices": choices, **head, "prompt_filter_results": filters.prompt_results(len(prompts)), "usage": usage})


def _prompts(prompt: Any) -> list[str]:
    """A prompt is a string, a list of strings, or tokens; tokens are said back as numbers."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [" ".join(map(str, prompt))]
    for item in prompt:
        if not isinstance(item, str) and not (isinstance(item, list) and all(isinstance(token, int) for token in item)):
            raise errors.invalid(f"{item!r} is not of type 'string' - 'prompt'")
    return [item if isinstance(item, str) else " ".join(map(str, item)) for item in prompt]


def _completion(prompt: str, asked: Mapping[str, Any]) -> tuple[list[str], str]:
    content = texts.tokens(f"You said: {prompt}")
    limit = asked.get("max_tokens") or 16  # the default of this API, not of chat
    start = texts.tokens(prompt) if asked.get("echo") else []
    return start + content[:limit], "length" if limit < len(content) else "stop"


def _choice(index: int, text: str, finish: str | None) -> Json:
    verdict = filters.COMPLETION if text else {}
    return {"content_filter_results": verdict, "finish_reason": finish, "index": index, "logprobs": None, "text": text}


def _chunks(head: Json, texts_of: list[tuple[list[str], str]], prompts: int, usage: Json | None) -> Iterator[Json]:
    def chunk(choices: list[Json], usage_now: Json | None) -> Json:
        return {"choices": choices, **head, **({} if usage is None else {"usage": usage_now})}

    yield {**filters.FIRST_CHUNK, "prompt_filter_results": filters.prompt_results(prompts)}
    for index, (content, finish) in enumerate(texts_of):
        for token in content:
            yield chunk([_choice(index, token, None)], None)
        yield chunk([_choice(index, "", finish)], None)
    if usage is not None:
        yield chunk([], usage)
