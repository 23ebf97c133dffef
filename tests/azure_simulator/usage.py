"""What a call used, in the form of each operation. All numbers follow from the request, so that a test can predict them.

A prompt of 1024 tokens or more is cached in steps of 128, as Azure documents; with a longer retention the rest is written to the cache. The
effort says how much a model reasons. A part of audio has ten tokens, and each spoken token has two of audio beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import texts

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BATCH", "REASONING", "cached", "chat", "image", "realtime", "responses", "speech", "transcription"]

type Json = dict[str, Any]

REASONING: Mapping[Any, int] = {"minimal": 8, "low": 16, "medium": 64, "high": 256, "xhigh": 1024}
PART = 10
SESSION = 5
IMAGE = 272

BATCH = {
    "input_tokens": 100_000,
    "input_tokens_details": {"cached_tokens": 25_600},
    "output_tokens": 20_000,
    "output_tokens_details": {"reasoning_tokens": 5_000},
    "total_tokens": 120_000,
}
"""Of a batch that is completed."""


def cached(read: int) -> int:
    return read // 128 * 128 if read >= 1024 else 0


def _written_to_cache(asked: Mapping[str, Any], read: int) -> dict[str, int]:
    return {"cache_write_tokens": read - cached(read)} if asked.get("prompt_cache_retention") == "24h" else {}


def _sounds(value: Any) -> int:
    """Parts of audio in the input."""
    if isinstance(value, dict):
        return (value.get("type") == "input_audio") + sum(map(_sounds, value.values()))
    return sum(map(_sounds, value)) if isinstance(value, list) else 0


def chat(asked: Mapping[str, Any], written: int) -> Json:
    sounds = PART * _sounds(asked["messages"])
    read = texts.count(asked["messages"]) + sounds
    spoken = 2 * written if "audio" in (asked.get("modalities") or []) else 0
    reasoning = REASONING.get(asked.get("reasoning_effort"), 0)
    written += spoken + reasoning
    return {
        "completion_tokens": written,
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": spoken,
            "reasoning_tokens": reasoning,
            "rejected_prediction_tokens": 0,
        },
        "prompt_tokens": read,
        "prompt_tokens_details": {"audio_tokens": sounds, **_written_to_cache(asked, read), "cached_tokens": cached(read)},
        "total_tokens": read + written,
    }


def responses(asked: Mapping[str, Any], written: int) -> Json:
    read = texts.count(asked.get("instructions")) + texts.count(asked.get("input"))
    reasoning = REASONING.get((asked.get("reasoning") or {}).get("effort"), 0)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cache_write_tokens": 0, **_written_to_cache(asked, read), "cached_tokens": cached(read)},
        "output_tokens": written + reasoning,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": read + written + reasoning,
    }


def realtime(asked: Mapping[str, Any], written: int) -> Json:
    """The session has a text and a sound already, of which a part is cached. The answer is spoken if audio is asked for."""
    sounds = SESSION + PART * _sounds(asked.get("input"))
    read = 3 * SESSION + texts.count(asked.get("instructions")) + texts.count(asked.get("input"))
    spoken = 2 * written if "audio" in (asked.get("output_modalities") or []) else 0
    kept, heard = cached(read) or SESSION, sounds // 2
    return {
        "total_tokens": read + sounds + written + spoken,
        "input_tokens": read + sounds,
        "output_tokens": written + spoken,
        "input_token_details": {
            "text_tokens": read,
            "audio_tokens": sounds,
            "image_tokens": 0,
            "cached_tokens": kept + heard,
            "cached_tokens_details": {"text_tokens": kept, "audio_tokens": heard, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": written, "audio_tokens": spoken},
    }


def image(asked: Mapping[str, Any], images: int) -> Json:
    """`images` were sent to be edited."""
    read, made = texts.count(asked.get("prompt")), IMAGE * int(asked.get("n") or 1)
    return {
        "input_tokens": read + PART * images,
        "input_tokens_details": {"image_tokens": PART * images, "text_tokens": read},
        "output_tokens": made,
        "total_tokens": read + PART * images + made,
    }


def speech(asked: Mapping[str, Any], audio: bytes) -> Json:
    read, made = texts.count(asked["input"]), len(audio) // 100
    return {"input_tokens": read, "output_tokens": made, "total_tokens": read + made}


def transcription(upload: bytes, text: str, *, seconds: bool) -> Json:
    """An older model counts seconds."""
    if seconds:
        return {"seconds": 2, "type": "duration"}
    heard, written = PART + len(upload) // 100, texts.count(text)
    details = {"audio_tokens": heard, "text_tokens": 0}
    return {
        "input_token_details": details,
        "input_tokens": heard,
        "output_tokens": written,
        "total_tokens": heard + written,
        "type": "tokens",
    }
