"""Words and tokens: what the simulated models say, and how it is counted."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["count", "said", "tokens"]

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


def tokens(text: str) -> list[str]:
    """Words and signs, each with the white space before it; joined they are the text again."""
    return _TOKEN.findall(text)


def count(value: Any) -> int:
    """Tokens in all strings of a JSON value."""
    if isinstance(value, str):
        return len(tokens(value))
    if isinstance(value, dict):
        return sum(map(count, value.values()))
    return sum(map(count, value)) if isinstance(value, list) else 0


def said(messages: list[Any]) -> str:
    """The text of the last user message, for the answer to repeat: so no answer can be taken for another's."""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
            return str(content)
    return ""
