"""Audio: speech as bytes or events, transcriptions and translations in every format."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from . import errors, usage
from .answers import DONE, Answer, event, json_answer

if TYPE_CHECKING:
    from .calls import Call
    from .models import Model

__all__ = ["speech", "transcription", "translation"]

_TYPES = {"aac": "audio/aac", "flac": "audio/flac", "mp3": "audio/mpeg", "opus": "audio/opus", "pcm": "audio/pcm", "wav": "audio/wav"}


def speech(call: Call, model: Model) -> Answer:
    """Not a sound, but bytes of every value: code that decodes them as text changes them."""
    audio = bytes(range(256)) * 8 + str(call.asked["input"]).encode()
    if call.asked.get("stream_format") == "sse":
        half = len(audio) // 2
        deltas = [{"audio": base64.b64encode(part).decode(), "type": "speech.audio.delta"} for part in (audio[:half], audio[half:])]
        return _events(*deltas, {"type": "speech.audio.done", "usage": usage.speech(call.asked, audio)})
    kind = _TYPES.get(call.asked.get("response_format") or "mp3")
    if kind is None:
        raise errors.invalid(f"'{call.asked['response_format']}' is not one of {sorted(_TYPES)} - 'response_format'")
    parts = tuple(audio[start : start + 512] for start in range(0, len(audio), 512))
    return Answer(200, parts, {"content-type": kind}, stream=True)


def transcription(call: Call, model: Model) -> Answer:
    return _heard(call, model, "transcribe")


def translation(call: Call, model: Model) -> Answer:
    return _heard(call, model, "translate")


def _heard(call: Call, model: Model, task: str) -> Answer:
    """The text is the file's name and size, which tells that the upload came whole."""
    upload = call.uploaded.upload("file")
    if upload is None:
        raise errors.invalid("'file' is a required property")
    text = f"{upload.filename} has {len(upload.content)} bytes"
    stream = call.asked.get("stream") == "true"
    used = usage.transcription(upload.content, text, seconds=not stream and not model.name.startswith("gpt"))
    if stream:
        words = [{"delta": word, "type": "transcript.text.delta"} for word in (text[:5], text[5:])]
        return _events(*words, {"text": text, "type": "transcript.text.done", "usage": used})
    match call.asked.get("response_format") or "json":
        case "json":
            return json_answer({"text": text, "usage": used})
        case "verbose_json":
            segment = {
                "avg_logprob": -0.1,
                "compression_ratio": 1.0,
                "end": 2.0,
                "id": 0,
                "no_speech_prob": 0.1,
                "seek": 0,
                "start": 0.0,
                "temperature": 0.0,
                "text": text,
                "tokens": [1],
            }
            return json_answer({"duration": 2.0, "language": "english", "segments": [segment], "task": task, "text": text})
        case "srt":
            return _plain(f"1\n00:00:00,000 --> 00:00:02,000\n{text}\n\n")
        case "vtt":
            return _plain(f"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n{text}\n\n")
        case "text":
            return _plain(f"{text}\n")
        case other:
            raise errors.invalid(f"'{other}' is not one of ['json', 'text', 'srt', 'verbose_json', 'vtt'] - 'response_format'")


def _plain(text: str) -> Answer:
    return Answer(200, (text.encode(),), {"content-type": "text/plain; charset=utf-8"})


def _events(*values: dict[str, Any]) -> Answer:
    """Typed events whose names are in their data only; Azure ends them as it ends chats."""
    return Answer(200, (*map(event, values), DONE), {"content-type": "text/event-stream"}, stream=True)
