"""The transcriptions of a realtime session."""

from __future__ import annotations

import json
from typing import Any

import pytest

from azure_openai_proxy.accounting.record import Tokens
from azure_openai_proxy.accounting.transcriptions import LONGEST, MOST, Transcriptions

EVENT = "conversation.item.input_audio_transcription"
USAGE = {
    "type": "tokens",
    "total_tokens": 22,
    "input_tokens": 13,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 13},
    "output_tokens": 9,
}
GA = {"audio": {"input": {"transcription": {"model": "heard"}}}}
BETA = {"input_audio_transcription": {"model": "heard"}}


def message(type: str, **members: Any) -> bytes:
    return json.dumps({"type": type, **members}).encode()


@pytest.mark.parametrize("session", [GA, BETA])
def test_a_transcription(session: dict[str, Any]) -> None:
    """It begins with its first part and ends with its usage; its model is that of the session's configuration."""
    made = Transcriptions()
    made.sent(message("session.update", session=session))
    made.sent(message("input_audio_buffer.append", audio="AAAA"))
    assert made.received(message("session.updated", session=json.loads(json.dumps(session).replace("heard", "deployment"))), 0.5) is None
    assert made.received(message(f"{EVENT}.delta", item_id="i", delta="Hey"), 1.0) is None
    assert made.received(message(f"{EVENT}.delta", item_id="i", delta=" you"), 2.0) is None
    assert made.received(message("response.created", response={"id": "r"}), 2.5) is None
    ended = made.received(message(f"{EVENT}.completed", item_id="i", transcript="Hey you", usage=USAGE), 3.0)
    assert ended
    assert (1.0, 1.0, 3.0, "heard", "deployment") == (ended.started, ended.first, ended.ended, ended.model, ended.deployment)
    assert (Tokens(input=13, output=9, audio_input=13), True) == (ended.reported.tokens, ended.reported.metered)
    assert ("i", "deployment") == (ended.reported.id, ended.reported.model)


@pytest.mark.parametrize(
    "usage, metered",
    [({"type": "duration", "seconds": 3.5}, True), (None, False), ("x", False)],
)
def test_a_transcription_without_tokens(usage: object, metered: bool) -> None:
    """A model that counts seconds reports no tokens; a usage that is missing is unknown."""
    ended = Transcriptions().received(message(f"{EVENT}.completed", item_id=7, usage=usage), 3.0)
    assert ended
    assert (None, metered, None, None, None) == (ended.reported.tokens, ended.reported.metered, ended.reported.id, ended.model, ended.first)


@pytest.mark.parametrize(
    "session",
    [None, [], {"audio": 1}, {"audio": {"input": {"transcription": None}}}, {"input_audio_transcription": {"model": "x" * (LONGEST + 1)}}],
)
def test_a_session_that_names_no_transcriber(session: object) -> None:
    """A name that is too long, or no text, is ignored."""
    made = Transcriptions()
    made.sent(message("session.update", session=session, about="transcription"))
    made.received(message("session.updated", session=session, about="transcription"), 1.0)
    ended = made.received(message(f"{EVENT}.completed", item_id="i", usage=USAGE), 2.0)
    assert ended
    assert (None, None) == (ended.model, ended.deployment)


def test_the_number_of_running_transcriptions_is_bounded() -> None:
    """A session that begins more of them than that loses their starts only."""
    made = Transcriptions()
    for number in range(MOST + 1):
        made.received(message(f"{EVENT}.delta", item_id=str(number)), 1.0)
    last, other = (made.received(message(f"{EVENT}.completed", item_id=str(id), usage=USAGE), 2.0) for id in (MOST, 0))
    assert last
    assert other
    assert (2.0, 1.0) == (last.started, other.started)
