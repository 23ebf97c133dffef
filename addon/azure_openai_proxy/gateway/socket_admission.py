"""The responses of one WebSocket of a known client: each has a reservation of its own, at the limits that hold when it begins.

A response begins with the client's `response.create`, or with Azure's `response.created` where turn detection has started it. The key, the
models, the limits and the budget of the client are looked up again for each response, because they may have changed since the opening.

Audio is checked too, because a session may have transcriptions without any response: their tokens are known only afterwards.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy import errors
from azure_openai_proxy.accounting import estimate, limits, usage
from azure_openai_proxy.accounting.limits import Refused
from azure_openai_proxy.accounting.socket_responses import response_id
from azure_openai_proxy.api import realtime

from . import client_keys
from .admission import Held

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from azure_openai_proxy.accounting.estimate import Estimate
    from azure_openai_proxy.accounting.record import CallRecord

    from .admission import Admission

__all__ = ["SocketAdmission", "cancellation", "error_event"]

_CREATE, _ITEM = realtime.Literal("response.create"), realtime.Literal("conversation.item.create")
_APPEND, _COMMIT = realtime.Literal("input_audio_buffer.append"), realtime.Literal("input_audio_buffer.commit")
_BUSY = "conversation_already_has_active_response"
MOST = 64
"""Responses of a WebSocket that may run or be requested at the same time."""


class _Requested(NamedTuple):
    """A response that the client has requested, and that Azure has not created yet."""

    held: Held
    event_id: str | None  # of the client's message, which an error names


class SocketAdmission:
    """What the responses of a WebSocket hold."""

    def __init__(self, admission: Admission) -> None:
        self.own: list[bytes] = []  # messages of the proxy for the client
        self._admission = admission
        self._running: dict[str, Held] = {}  # responses by their ids
        self._requested: list[_Requested] = []
        self._admitted_as = ""  # of the last response that the client requested
        self._inputs = 0  # estimated tokens of the input since the last response
        self._refused: str | None = None  # code of the error for the audio that was refused last

    def is_own(self, content: bytes) -> bool:
        """Whether a message was injected by the proxy. It is forgotten then."""
        if content not in self.own:
            return False
        self.own.remove(content)
        return True

    def requests(self, content: bytes) -> bool:
        """Whether a text message of the client requests a response. The client's present rights and limits are used from here on.

        Raises:
            Refused: its key was revoked or has expired.
        """
        if not _CREATE.is_in(content):
            return False
        self._admission.renew()
        return True

    def from_client(self, content: bytes, model: str | None, *, requests: bool) -> Awaitable[None] | None:
        """A text message of the client: reserve the response that it requests. Other messages may have input for the next one.

        Raises:
            ProxyError: the client may not have this response.
        """
        admission = self._admission
        if not requests:
            if _APPEND.is_in(content) or _COMMIT.is_in(content):
                self._check_audio()
            if admission.counts_tokens and _ITEM.is_in(content):
                self._inputs += estimate.of_request(content, "").input
            return None
        admission.check_budget()
        admission.check_model(model)
        admitted_as = admission.price_of(model, native=False)
        self._admitted_as = admitted_as or self._admitted_as
        self._check_number(len(self._running) + len(self._requested) + 1)
        event_id = usage.members(content, inner=False).get("event_id")
        tokens = self._next_response(content)
        return admission.hold(tokens, admitted_as, lambda held: self._requested.append(_Requested(held, event_id)))

    def _check_audio(self) -> None:
        """Refuse audio of a client whose key, budget or tokens of a minute do not allow another response or transcription.

        Raises:
            Refused: they do not.
        """
        admission = self._admission
        admission.renew()
        admission.check_budget()
        if not (self._running or self._requested):  # a response has reserved its tokens
            found = [claim for claim in limits.claims(admission.client, admission.group, 1) if claim.kind == "tokens_per_minute"]
            uses = admission.teams.limits.look(found)
            for claim, use in zip(found, uses, strict=True):
                if not use.remaining(claim.limit):
                    raise client_keys.over_limit(Refused(claim, use.reset, found, uses))
        self._refused = None

    @staticmethod
    def _check_number(number: int) -> None:
        """Refuse a response while too many run.

        Raises:
            Refused: there are too many.
        """
        if number > MOST:
            message = f"A WebSocket can have {MOST} responses at the same time. Wait for the end of one."
            raise errors.Refused(429, "requests", "rate_limit_exceeded", message)

    def sends_refusal(self, content: bytes, error: errors.ProxyError) -> bool:
        """Whether the client gets an event for the refusal of a message. Audio comes many times a second: the first refusal is enough."""
        if not _APPEND.is_in(content):
            return True
        before, self._refused = self._refused, error.code or error.message
        return before != self._refused

    @property
    def waiting(self) -> int:
        """The number of responses that were requested, and not created yet."""
        return len(self._requested)

    def from_azure(self, content: bytes, model: str | None) -> Awaitable[None] | None:
        """A text message of Azure: count its text, and reserve a response that it has started on its own.

        Raises:
            ProxyError: the client may not have this response.
        """
        admission = self._admission
        if b'"response.created"' in content and (id := response_id(content)):
            if self._requested:
                self._running[id] = self._requested.pop(0).held
                return None
            tokens = self._next_response(b"{}")
            self._running[id] = Held(
                admission.teams, admission.client, tokens, None, self._admitted_as
            )  # its usage is charged even if it is cancelled
            admission.renew()
            admission.check_budget()
            admission.check_model(model)
            self._check_number(len(self._running))
            return admission.hold(tokens, self._admitted_as, lambda held: self._running.update({id: held}))
        if self._requested and b'"error"' in content and b'"type":"error"' in content.replace(b" ", b""):
            self._failed(usage.members(content, inner=False).get("error"))
        elif self._running and admission.counts_tokens and (size := estimate.delivered(content, chat=False)):
            next(iter(self._running.values())).text += size
        return None

    def _failed(self, error: object) -> None:
        """Azure reports an error, perhaps about a response that was requested. If it names no message, it may be about a running one."""
        about, code = (error.get("event_id"), error.get("code")) if isinstance(error, dict) else (None, None)
        if about is not None:
            found = next((index for index, one in enumerate(self._requested) if one.event_id == about), None)
        elif code == _BUSY:
            found = len(self._requested) - 1
        else:
            found = None if self._running else 0
        if found is not None:
            self._requested.pop(found).held.settle(0)

    def _next_response(self, content: bytes) -> Estimate:
        """The estimate of a response: of the message that requests it, and of the input before it."""
        if not self._admission.counts_tokens:
            return estimate.NOTHING
        found = estimate.of_request(content, "")
        inputs, self._inputs = self._inputs, 0
        return found._replace(input=found.input + inputs)

    def recorded(self, record: CallRecord) -> None:
        """The usage record of a response."""
        held = self._running.pop(record.response_id or "", None)
        if held is None and self._running:
            held = self._running.pop(next(iter(self._running)))
        elif held is None and self._requested and record.usage_state == "unknown":  # the client has left before it was created
            held = self._requested.pop(0).held
        if held is not None:
            held.end(record, unknown=record.usage_state == "unknown")

    def end_all(self) -> None:
        """The WebSocket was closed."""
        for held in (*self._running.values(), *[one.held for one in self._requested]):
            held.settle(None)
        self._running.clear()
        self._requested.clear()


def error_event(error: errors.ProxyError, event_id: str | None = None) -> bytes:
    """An error as a message of a WebSocket, in the form of realtime and of the Responses API."""
    shown = {"type": error.type, "code": error.code, "message": error.message, "param": error.param, "event_id": event_id}
    return json.dumps({"type": "error", "event_id": errors.request_id(), "status": error.status, "error": shown}).encode()


def cancellation(id: str | None) -> bytes:
    """The message that cancels a response at Azure."""
    return json.dumps({"type": "response.cancel", **({"response_id": id} if id else {})}).encode()
