"""The content filter's verdicts, and what only they bring into an answer."""

from __future__ import annotations

from typing import Any

__all__ = ["COMPLETION", "FIRST_CHUNK", "PROMPT", "prompt_results"]

Verdict = dict[str, dict[str, Any]]

_SAFE = {"filtered": False, "severity": "safe"}
_UNSEEN = {"detected": False, "filtered": False}

PROMPT: Verdict = {"hate": _SAFE, "jailbreak": _UNSEEN, "self_harm": _SAFE, "sexual": _SAFE, "violence": _SAFE}
COMPLETION: Verdict = {
    "hate": _SAFE,
    "protected_material_code": _UNSEEN,
    "protected_material_text": _UNSEEN,
    "self_harm": _SAFE,
    "sexual": _SAFE,
    "violence": _SAFE,
}


def prompt_results(prompts: int = 1) -> list[dict[str, Any]]:
    return [{"prompt_index": index, "content_filter_results": PROMPT} for index in range(prompts)]


FIRST_CHUNK = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": prompt_results()}
"""A stream begins with it whenever the deployment has a filter; its keys are there and empty."""
