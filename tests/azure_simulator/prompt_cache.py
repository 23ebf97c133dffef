"""Azure's prompt cache: which tokens at the start of a prompt an earlier call has left behind.

A prompt of 1,024 tokens and more is kept for each deployment and `prompt_cache_key`, in steps of 128 tokens, until it has not been used for
the time of its options, or for 24 hours. The tokens are those of the prompt in a fixed order: model, tools, response format, system prompt,
messages; so a prompt that goes on begins with all tokens of the one before.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from . import texts
from .account import reporting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .answers import Answer
    from .calls import Call

__all__ = ["PromptCache", "prompt"]

SHORTEST = 1024
STEP = 128
LIFETIME = 24 * 3600.0
_TTL = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

type Json = dict[str, Any]


def prompt(asked: Mapping[str, Any], model: str) -> list[str]:
    """The tokens of a request in the order in which the model reads them, without what an earlier response has left at Azure."""
    messages = asked.get("messages", asked.get("input"))
    if isinstance(messages, str):
        messages = [{"content": messages, "role": "user"}]
    given = messages if isinstance(messages, list) else []
    leading = next((index for index, one in enumerate(given) if _role(one) not in ("system", "developer")), len(given))
    formats = asked.get("response_format") or (asked.get("text") or {}).get("format")
    parts = [model, asked.get("tools"), formats, asked.get("instructions"), *given[:leading], *given[leading:]]
    return [
        token for part in parts if part for token in texts.tokens(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False))
    ]


def _role(message: Any) -> str:
    return str(message.get("role")) if isinstance(message, dict) else ""


class PromptCache:
    """The caches of one resource. `clock` gives the time, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._until: dict[tuple[str, str, int], float] = {}  # until when a prefix is kept, by deployment, key and its hash
        self._stored: dict[str, list[str]] = {}  # the tokens of responses, by id

    def read(self, deployment: str, asked: Mapping[str, Any], tokens: Sequence[str]) -> int:
        """How many tokens of a prompt are cached. The prompt is cached from now on."""
        now, key = self.clock(), str(asked.get("prompt_cache_key") or "")
        match = _TTL.fullmatch(str((asked.get("prompt_cache_options") or {}).get("ttl")))
        until = now + (int(match[1]) * _SECONDS[match[2]] if match else LIFETIME)
        found, chain = 0, 0
        for end in range(STEP, len(tokens) + 1, STEP):
            chain = hash((chain, *tokens[end - STEP : end]))
            if end >= SHORTEST:
                place = deployment, key, chain
                if self._until.get(place, -1.0) >= now and found in (0, end - STEP):
                    found = end
                self._until[place] = until
        return found

    def __call__(self, answer: Answer, call: Call) -> Answer:
        """The answer with the tokens that the cache has."""
        if answer.status != 200 or call.operation is None or call.operation.path not in ("chat/completions", "responses"):
            return answer
        asked = call.asked
        before = self._stored.get(str(asked.get("previous_response_id")), [])
        tokens = [*before, *prompt(asked, str(call.deployment))]
        cached = self.read(str(call.deployment), asked, tokens)
        documents = [part.partition(b"data: ")[2] if b"data: " in part else part for part in answer.parts if isinstance(part, bytes)]
        for document in map(_loaded, documents):
            whole = document.get("response") or document
            if isinstance(whole.get("output"), list) and whole.get("id"):
                self._stored[whole["id"]] = [*tokens, *texts.tokens(json.dumps(whole["output"]))]
        names = ("prompt_tokens", "prompt_tokens_details") if "messages" in asked else ("input_tokens", "input_tokens_details")
        return reporting({names[0]: len(tokens), names[1]: {"cached_tokens": cached}})(answer, call)


def _loaded(document: bytes) -> Json:
    try:
        value = json.loads(document)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
