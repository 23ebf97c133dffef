"""The transcriptions of a realtime session: what the transcriber made of the client's audio, with a usage of its own.

A session for transcription has no responses, and in a conversation the usage of a response does not include that of the transcriber, which
is another model. Azure reports it with the completed transcription, in tokens, or in seconds by models that have no tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import usage

if TYPE_CHECKING:
    from .usage import Reported

__all__ = ["Transcription", "Transcriptions"]

MOST = 64
"""Number of transcriptions that may run at the same time."""
LONGEST = 256
"""Characters of a model's name or an item's id."""

_WORD = b"transcription"
_DELTA, _COMPLETED = (f'"conversation.item.input_audio_transcription.{kind}"'.encode() for kind in ("delta", "completed"))
_PLACES = (("audio", "input", "transcription", "model"), ("input_audio_transcription", "model"))


class Transcription(NamedTuple):
    """A transcription that is over. The times are those that the caller passed."""

    started: float
    first: float | None  # the first part of its text
    ended: float
    reported: Reported
    model: str | None  # as the client names the transcriber
    deployment: str | None


class Transcriptions:
    def __init__(self) -> None:
        self._model: str | None = None
        self._deployment: str | None = None
        self._first: dict[str, float] = {}  # by the item

    def sent(self, content: bytes) -> None:
        """A message of the client: it may name the transcriber."""
        if _WORD in content:
            self._model = _transcriber(content) or self._model

    def received(self, content: bytes, now: float) -> Transcription | None:
        """A message of the upstream. Return the transcription that it ends."""
        if _WORD not in content:
            return None
        if _DELTA in content:
            if (id := _name(usage.members(content, inner=True).get("item_id"))) and len(self._first) < MOST:
                self._first.setdefault(id, now)
            return None
        if _COMPLETED not in content:
            self._deployment = _transcriber(content) or self._deployment
            return None
        event = usage.members(content, inner=True)
        id, given = _name(event.get("item_id")), event.get("usage")
        counts = given if isinstance(given, dict) else {}
        first = self._first.pop(id or "", None)
        tokens = usage.tokens(counts)
        reported = usage.NOTHING._replace(
            tokens=tokens,
            metered=tokens is not None or usage.in_other_unit(counts),
            id=id,
            model=self._deployment or self._model,
            status="completed",
        )
        return Transcription(now if first is None else first, first, now, reported, self._model, self._deployment)


def _transcriber(content: bytes) -> str | None:
    """Return the transcriber that a message about the session names."""
    for place in _PLACES:
        value: Any = usage.members(content, inner=True).get("session")
        for part in place:
            value = value.get(part) if isinstance(value, dict) else None
        if name := _name(value):
            return name
    return None


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST else None
