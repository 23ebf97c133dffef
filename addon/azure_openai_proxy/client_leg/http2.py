"""Events and errors of an HTTP/2 connection, as h2 has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from h2.events import DataReceived, Event, RequestReceived, StreamReset

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["reset_at_once", "unquoted"]

MAX_MESSAGE = 1000
"""Maximum characters of an error message, which must fit into one frame."""

_QUOTED = re.compile(r":? \(?b['\"]")


def unquoted(message: str) -> str:
    """An error message of h2 without the header that it quotes, which may be a key."""
    return _QUOTED.split(message, maxsplit=1)[0][:MAX_MESSAGE]


def reset_at_once(events: Sequence[Event]) -> tuple[list[Event], list[DataReceived]]:
    """The events without those of requests that are started and reset in them, and the data of these requests."""
    if not any(type(event) is StreamReset for event in events):
        return list(events), []
    begun = {event.stream_id for event in events if isinstance(event, RequestReceived)}
    dropped = begun & {event.stream_id for event in events if isinstance(event, StreamReset)}
    data = [event for event in events if isinstance(event, DataReceived) and event.stream_id in dropped]
    return [event for event in events if getattr(event, "stream_id", None) not in dropped], data
