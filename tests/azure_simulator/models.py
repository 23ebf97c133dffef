"""The models a deployment can stand for: the name in Azure's answers, their operations, the parameters they refuse."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CATALOGUE", "DEPLOYMENTS", "NONE", "Model", "find"]


class Model(NamedTuple):
    name: str  # as deployed; Azure's messages use it
    reported: str  # `model` of an answer: name and version
    can: frozenset[str]  # operations, by the name OperationNotSupported has for them
    reasoning: bool = False  # refuses max_tokens and any temperature but 1
    dimensions: int = 0


CHAT = frozenset({"chatCompletion", "responses"})
COMPLETION = frozenset({"completion"})
EMBEDDINGS = frozenset({"embeddings"})
SPEECH = frozenset({"audioSpeech"})
HEARING = frozenset({"audioTranscription", "audioTranslation"})
IMAGES = frozenset({"imageGeneration", "imageEdit"})
VIDEO = frozenset({"video"})
REALTIME = frozenset({"realtime"})

_MODELS = {
    model.name: model
    for model in (
        Model("gpt-35-turbo", "gpt-35-turbo", CHAT),
        Model("gpt-35-turbo-16k", "gpt-35-turbo-16k", CHAT),
        Model("gpt-35-turbo-instruct", "gpt-35-turbo-instruct", COMPLETION),
        Model("gpt-4", "gpt-4-0613", CHAT),
        Model("gpt-4o", "gpt-4o-2024-11-20", CHAT),
        Model("gpt-4o-mini", "gpt-4o-mini-2024-07-18", CHAT),
        Model("gpt-4.1", "gpt-4.1-2025-04-14", CHAT),
        Model("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14", CHAT),
        Model("o3-mini", "o3-mini-2025-01-31", CHAT, reasoning=True),
        Model("o4-mini", "o4-mini-2025-04-16", CHAT, reasoning=True),
        Model("gpt-5-mini", "gpt-5-mini-2025-08-07", CHAT, reasoning=True),
        Model("gpt-5.4-mini", "gpt-5.4-mini-2026-03-17", CHAT, reasoning=True),
        Model("text-embedding-3-small", "text-embedding-3-small", EMBEDDINGS, dimensions=1536),
        Model("text-embedding-3-large", "text-embedding-3-large", EMBEDDINGS, dimensions=3072),
        Model("text-embedding-ada-002", "text-embedding-ada-002", EMBEDDINGS, dimensions=1536),
        Model("whisper", "whisper", HEARING),
        Model("gpt-4o-transcribe", "gpt-4o-transcribe", HEARING),
        Model("tts", "tts", SPEECH),
        Model("tts-hd", "tts-hd", SPEECH),
        Model("gpt-4o-mini-tts", "gpt-4o-mini-tts", SPEECH),
        Model("gpt-image-1", "gpt-image-1", IMAGES),
        Model("sora-2", "sora-2", VIDEO),
        Model("gpt-realtime", "gpt-realtime-2025-08-28", REALTIME),
        Model("gpt-live-1", "gpt-live-1", REALTIME),
    )
}

NONE = Model("", "", frozenset())
"""Of an operation that needs none."""

CATALOGUE = tuple(model.reported for model in _MODELS.values())
"""What the region has."""

DEPLOYMENTS = {name: name for name in _MODELS}
"""Deployment → model: by default each under its own name."""


def find(name: str) -> Model:
    """The model of that name; an unknown one can chat, so that a test may deploy anything."""
    return _MODELS.get(name) or Model(name, name, CHAT)
