"""The responses of one WebSocket: when each of them began and ended, and the usage that it reports.

The messages are those of realtime and of the Responses API. Most of them are audio or parts of a text, so a message is parsed only if it
has the name of one of the few types that matter. In a text of the model the quotes of such a name would be escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.api import endpoints

from . import usage

if TYPE_CHECKING:
    from azure_openai_proxy.api.operation import Call

    from .usage import Reported

__all__ = ["EndedResponse", "SocketResponses", "response_id"]

MOST = 64
"""Number of responses that may run at the same time."""
LONGEST = 256
"""Characters of a response's id."""

_CREATE, _CREATED, _DELTA, _ERROR = b'"response.create"', b'"response.created"', b'.delta"', b'"error"'
_ENDS = (b'"response.completed"', b'"response.done"', b'"response.failed"', b'"response.incomplete"')


class EndedResponse(NamedTuple):
    """A response that is over. The times are those that the caller passed."""

    started: float
    first: float | None  # the first part of its content
    ended: float
    reported: Reported
    status: int = 200


class _Running(NamedTuple):
    started: float
    first: float | None = None


class SocketResponses:
    def __init__(self, call: Call) -> None:
        self._events = usage.Events(call)
        self._errors_end = endpoints.label(call.endpoint, call.path) == "responses"  # a session of realtime goes on after an error
        self._running: dict[str, _Running] = {}
        self._requested: float | None = None  # when the client last requested a response

    def sent(self, content: bytes, now: float) -> None:
        """A message of the client."""
        if _CREATE in content:
            self._requested = now

    def received(self, content: bytes, now: float) -> EndedResponse | None:
        """A message of the upstream. Return the response that it ends."""
        if _CREATED in content:
            if (id := response_id(content)) and len(self._running) < MOST:
                self._running[id] = _Running(self._start(now))
            return None
        if self._running and _DELTA in content:
            for id, one in self._running.items():
                if one.first is None:
                    self._running[id] = one._replace(first=now)
            return None
        if self._events.event(content):
            return self._end(self._events.reported, now)
        if self._running and any(name in content for name in _ENDS):  # without usage
            id = response_id(content)
            return self._end(usage.Reported(id=id), now) if id in self._running else None
        if self._errors_end and _ERROR in content and (event := usage.members(content, inner=True)).get("type") == "error":
            status = event.get("status")
            status = status if isinstance(status, int) and 400 <= status < 600 else 500
            one = self._running.popitem()[1] if self._running else _Running(self._start(now))
            return EndedResponse(one.started, one.first, now, usage.Reported(error_code=self._events.reported.error_code), status)
        return None

    def left(self, now: float) -> list[EndedResponse]:
        """The responses that the end of the WebSocket has cut off."""
        running, self._running = self._running, {}
        return [EndedResponse(one.started, one.first, now, usage.Reported(id=id)) for id, one in running.items()]

    def _start(self, now: float) -> float:
        requested, self._requested = self._requested, None
        return now if requested is None else requested

    def _end(self, reported: Reported, now: float) -> EndedResponse:
        one = self._running.pop(reported.id or "", None) or _Running(self._start(now))
        return EndedResponse(one.started, one.first, now, reported)


def response_id(content: bytes) -> str | None:
    """Return the id of the response that a message is about."""
    response = usage.members(content, inner=True).get("response")
    id = response.get("id") if isinstance(response, dict) else None
    return id if isinstance(id, str) and 0 < len(id) <= LONGEST else None
