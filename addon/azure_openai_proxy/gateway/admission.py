"""One request of a known client: what it may do, what it reserves of the limits, and how its usage settles that.

A request counts once, when it is admitted, whatever attempts it needs. Its tokens are reserved by an estimate, which the usage replaces
before the last byte of the response is sent, or the estimate of a usage that stays unknown. Each response of a WebSocket has a reservation
of its own (`socket_admission`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from azure_openai_proxy import errors
from azure_openai_proxy.accounting import estimate, limits, usage
from azure_openai_proxy.accounting.budgets import has_budget
from azure_openai_proxy.accounting.limits import Refused, Reservation
from azure_openai_proxy.accounting.record import CallRecord, Tokens
from azure_openai_proxy.accounting.teams import Guess
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.config.clients import NO_LIMITS

from . import client_keys
from .request_keys import key_in_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from mitmproxy import http

    from azure_openai_proxy.accounting.estimate import Estimate
    from azure_openai_proxy.accounting.limits import Claim, Outcome
    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.teams import Teams
    from azure_openai_proxy.accounting.usage import Reported
    from azure_openai_proxy.api.endpoints import Endpoint
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.config.clients import Client, Group
    from azure_openai_proxy.config.settings import Settings

    from .socket_admission import SocketAdmission

__all__ = ["Admission", "Held"]

_CREDENTIALS = frozenset({b"api-key", b"authorization"})
"""Headers for Azure that the proxy has written itself."""
_NO_WORD = 16
"""Characters from which on a key is searched everywhere: a shorter one may be a part of other words."""


@dataclass(slots=True)
class Held:
    """A reservation, and the charge that replaces it."""

    teams: Teams
    client: Client
    estimate: Estimate
    reservation: Reservation | None
    admitted_as: str = ""  # name of the model whose price admitted it
    text: int = 0  # bytes of text that were delivered
    charged: float = 0.0
    counted: int = 0  # tokens
    settled: bool = False

    def settle(self, tokens: int | None, *, refund: bool = False) -> None:
        """Replace the reserved tokens, once. None: they stay."""
        if not self.settled:
            self.settled = True
            self.counted = tokens or 0
            if self.reservation:
                self.teams.limits.settle(self.reservation, tokens, refund=refund)

    def charge(self, usd: float | None) -> None:
        """Charge the difference to what was charged before."""
        if usd is not None and usd != self.charged:
            self.teams.charge(self.client, usd - self.charged)
            self.charged = usd

    def end(self, record: CallRecord, *, unknown: bool) -> None:
        """Settle by a usage record. `unknown`: the response used tokens that were not reported."""
        teams = self.teams
        if record.usage_state == "known":
            tokens = record.tokens
            self.settle((tokens.input or 0) + (tokens.output or 0))
            usd = record.cost_usd
            if usd is None:
                usd = record.estimated_cost_usd = teams.cost(record, self.admitted_as)
            self.charge(usd)
        elif unknown:
            guessed = Tokens(input=self.estimate.input, output=estimate.in_tokens(self.text))
            self.settle((guessed.input or 0) + (guessed.output or 0))
            if has_budget(self.client, teams.directory.group(self.client)):
                record.estimated_cost_usd = teams.cost(record, self.admitted_as, guessed)
                self.charge(record.estimated_cost_usd)
        else:
            self.settle(0)


@dataclass(slots=True)
class Admission:
    """The client of a request, and what the request holds."""

    teams: Teams
    client: Client
    settings: Settings
    keys: tuple[str, ...] = field(repr=False)
    group: Group | None = None
    held: Held | None = None  # once it was admitted
    meter: Meter | None = field(default=None, repr=False)
    socket: SocketAdmission | None = field(default=None, repr=False)  # of a WebSocket
    has_budget: bool = field(init=False)
    counts_tokens: bool = field(init=False)
    """Whether a budget or a limit of tokens applies."""
    is_limited: bool = field(init=False)
    """Whether a limit or a budget applies."""
    _has_limit: bool = field(init=False)

    def __post_init__(self) -> None:
        self._note_limits()

    def _note_limits(self) -> None:
        of_group = NO_LIMITS if self.group is None else self.group.limits
        self.has_budget = has_budget(self.client, self.group)
        limits_tokens = self.client.limits.tokens_per_minute is not None or of_group.tokens_per_minute is not None
        self.counts_tokens = self.has_budget or limits_tokens
        self._has_limit = NO_LIMITS != self.client.limits or NO_LIMITS != of_group
        self.is_limited = self._has_limit or self.has_budget

    # What the client may do

    def admit_upload(self, row: Endpoint) -> Awaitable[None] | None:
        """Reserve a large upload before its body.

        Raises:
            Refused: the limits do not allow it.
        """
        return self.hold(estimate.UPLOAD if row.by_model and self.counts_tokens else estimate.NOTHING, "", self._keep)

    def check_operation(self, method: str, path: str) -> None:
        """Refuse work that the proxy cannot count or whose models it does not see, and any work of a client whose budget is spent.

        Raises:
            Refused: it is one of these.
        """
        unseen = ""
        if self.client.unmetered:
            pass
        elif self.counts_tokens and operations.is_unmetered(method, path):
            unseen = f"the tokens of {method} {path} in time, and the key {self.client.name} has a budget or a limit of tokens"
        elif self.client.models and operations.hides_model(method, path):
            unseen = f"the models of {method} {path}, and the key {self.client.name} may not use all models"
        if unseen:
            message = f"The proxy does not see {unseen}: it needs `unmetered: true`."
            raise errors.Refused(403, "invalid_request_error", "unmetered_operation", message)
        self.check_budget()

    def renew(self) -> None:
        """Check the key again, and use the rights and limits that its client has now.

        Raises:
            Refused: it was revoked or has expired.
        """
        client = client_keys.check(self.teams, self.settings, self.keys)
        assert client, "it has keys"
        self.client, self.group = client, self.teams.directory.group(client)
        self._note_limits()
        if self.meter is not None:
            self.meter.client = client.name

    def check_budget(self) -> None:
        """Refuse a request of a client whose budget is spent.

        Raises:
            Refused: it is.
        """
        for state in self.teams.budgets.states(self.client, self.group) if self.has_budget else ():
            if state.gone:
                self._count_refusal("budget_usd")
                raise client_keys.budget_gone(state, self.teams.budgets.now())

    def check_model(self, model: str | None) -> None:
        """Refuse a model that the client may not use.

        Raises:
            Refused: it may not.
        """
        if model is not None and not self.client.may_use(model):
            raise errors.Refused(
                403,
                "invalid_request_error",
                "model_not_found",
                f"The model `{model}` does not exist or the key {self.client.name} may not use it. "
                f"Allowed: {', '.join(self.client.models)}.",
                param="model",
            )

    def check_unnamed(self) -> None:
        """Refuse a request without a model, or a large form that names it after the file, if the client may not use all models.

        Raises:
            Refused: it may not.
        """
        if self.client.models or self.has_budget:
            raise errors.Refused(
                403, "invalid_request_error", "model_not_found", "Name a `model`; in a large form write it before the file.", param="model"
            )

    def price_of(self, model: str | None, *, native: bool) -> str:
        """The name whose price admits a model; "" without a budget, or where models without a price are allowed.

        Raises:
            Refused: there is no price.
        """
        if model is None or not self.has_budget:
            return ""
        name, deployment = self.teams.price_name(self.settings, model, native=native)
        if not name and self.settings.unpriced != "allow":
            raise errors.Refused(
                403,
                "invalid_request_error",
                "model_without_price",
                f"The model `{model}` has no price, and the key {self.client.name} has a budget. "
                f"Add a price for {deployment} to the file of azure_openai_prices, or set azure_openai_unpriced=allow.",
                {"x-should-retry": "false"},
                param="model",
            )
        return name

    # Limits

    def claims(self, tokens: Estimate) -> Sequence[Claim]:
        """The limits that apply, and what a request takes of them.

        Raises:
            BadRequest: its input alone is more than a limit of tokens.
        """
        found = limits.claims(self.client, self.group, tokens.total)
        for claim in found:
            if claim.kind == "tokens_per_minute" and tokens.input > claim.limit:
                raise errors.BadRequest(
                    f"The input has about {tokens.input} tokens, more than the limit of {claim.limit} tokens per minute "
                    f"of the {claim.owner}.",
                    code="tokens_limit_exceeded",
                )
        return found

    def admit(self, call: Call, content: bytes, content_type: str) -> Awaitable[None] | None:
        """Check the limits and the budget, and reserve the request. Return an awaitable if the counters are not known yet.

        Raises:
            Refused: they do not allow the request.
        """
        self.check_budget()
        admitted_as = self.price_of(call.model, native=bool(call.native))
        if call.model is None and call.method == "POST" and call.endpoint.by_model:
            self.check_unnamed()
        if call.method == "WS" and call.endpoint.usage:
            return None  # each of its responses is admitted
        tokens = self.estimate(call, content, content_type)
        if self.held is not None:  # before its body
            self.held.estimate, self.held.admitted_as = tokens, admitted_as
            return None
        return self.hold(tokens, admitted_as, self._keep)

    def _keep(self, held: Held) -> None:
        self.held = held

    def hold(self, tokens: Estimate, admitted_as: str, then: Callable[[Held], None]) -> Awaitable[None] | None:
        """Reserve a request or a response, and pass what it holds to `then`. Return an awaitable if the counters are not known yet.

        Raises:
            Refused: a limit or a budget does not admit it, or the counters cannot be reached.
        """
        outcome = self.reserve(tokens)
        if outcome is None or isinstance(outcome, Reservation | Refused | limits.Unavailable):
            then(self.admitted(outcome, tokens, admitted_as))
            return None

        async def later() -> None:
            then(self.admitted(await outcome, tokens, admitted_as))

        return later()

    def reserve(self, tokens: Estimate) -> Outcome | Awaitable[Outcome | None] | None:
        """Reserve a request; None without limits. The same round trip gets the sums of budgets that are near their end."""
        found = [claim for claim in self.claims(tokens) if claim.take]
        asked = self.teams.budgets.refresh(self.client, self.group, wait=not found) if self.has_budget else None
        return self.teams.limits.reserve(found) if found else asked

    def admitted(self, outcome: Outcome | None, tokens: Estimate, admitted_as: str = "") -> Held:
        """Return what the request holds now.

        Raises:
            Refused: a limit or a budget does not admit it, or the counters cannot be reached.
        """
        if isinstance(outcome, Refused):
            self._count_refusal(outcome.claim.kind)
            raise client_keys.over_limit(outcome)
        if isinstance(outcome, limits.Unavailable):
            raise errors.Refused(503, "server_error", "limits_unavailable", outcome.reason)
        if self.teams.budgets.on_refresh is not None:
            try:
                self.check_budget()  # other replicas may have spent it
            except errors.Refused:
                if outcome is not None:
                    self.teams.limits.settle(outcome, refund=True)
                raise
        return Held(self.teams, self.client, tokens, outcome, admitted_as)

    def _count_refusal(self, limit: str) -> None:
        self.teams.refusals[self.client.name, limit] += 1

    def estimate(self, call: Call | None, content: bytes, content_type: str) -> Estimate:
        """The estimate of a request. Operations that no model answers take no tokens."""
        if call is None or not call.endpoint.by_model or call.endpoint.gen_ai == "fetch_response" or not self.counts_tokens:
            return estimate.NOTHING
        return estimate.of_request(content, content_type)

    def hide_key(self, request: http.Request) -> None:
        """Remove the client's key from a request for Azure, wherever else the client has written it."""
        keys = [key.encode("utf-8", "surrogateescape") for key in self.keys]
        fields = request.headers.fields
        if any(_has_key(value, keys) for _, value in fields):
            request.headers.fields = tuple([field for field in fields if field[0].lower() in _CREDENTIALS or not _has_key(field[1], keys)])
        path, mark, query = request.path.partition("?")
        if mark:
            pairs = query.split("&")
            kept = [pair for pair in pairs if not _has_key(unquote_to_bytes(pair.replace("+", " ").replace("=", " ", 1)), keys)]
            if len(kept) < len(pairs):
                request.path = path + ("?" + "&".join(kept) if kept else "")

    def check_path(self, path: str) -> None:
        """Refuse a path that contains the client's key: the client's own path, and that for Azure, where a model may be in the path.

        Raises:
            BadRequest: it does.
        """
        plain = unquote_to_bytes(path.partition("?")[0])
        if any(len(key) >= _NO_WORD and key.encode("utf-8", "surrogateescape") in plain for key in self.keys):
            raise key_in_path()

    def set_headers(self, headers: http.Headers) -> None:
        """Set the headers about the limits in place of Azure's."""
        if self._has_limit:
            found = limits.claims(self.client, self.group, 0)
            ours = client_keys.limit_headers(found, self.teams.limits.look(found))
            kept = [field for field in headers.fields if not field[0].lower().startswith(b"x-ratelimit-")]
            headers.fields = (*kept, *[(name.encode(), value.encode()) for name, value in ours.items()])  # at once: each change copies all

    # Usage. `recorded`, `response_recorded` and `event` are called by the meter

    def event(self, data: bytes, reported: Reported, *, ended: bool, chat: bool) -> None:
        """An event of a stream, before the client gets it. `ended`: the usage is complete."""
        held = self.held
        if held is None or held.settled or not self.counts_tokens:
            return
        if self.meter is not None and self.meter.row.gen_ai == "fetch_response":
            return  # it shows a response that was, or is, charged for itself
        held.text += estimate.delivered(data, chat=chat)
        if ended and reported.tokens and self.meter and usage.is_whole(reported.tokens, self.meter.row.gen_ai):
            held.settle((reported.tokens.input or 0) + (reported.tokens.output or 0))
            held.charge(self.teams.cost(self.meter.sketch(reported), held.admitted_as))

    def recorded(self, record: CallRecord, *, unknown: bool, body: bytes | None) -> None:
        """The usage record of the request, before it is delivered."""
        self.teams.note_answer(record)
        held = self.held
        if held is None:
            return
        if unknown and body:
            held.text += estimate.delivered(body, chat=True)
        if record.once and record.usage_state == "known":
            self._end_once(record, record.once, held)
            return
        held.end(record, unknown=unknown)
        call = self.meter.call if self.meter else None
        if record.response_id and (unknown or (call and (call.method, call.path) == ("POST", "/batches"))):
            guess = Guess(held.client, held.admitted_as, held.charged, held.counted)
            self.teams.guessed.add(record.response_id, guess)

    def _end_once(self, record: CallRecord, id: str, held: Held) -> None:
        """The usage of work that a request has started, perhaps an earlier one of another client, and was charged by an estimate."""
        teams = self.teams
        held.settle(0)
        guess = teams.guessed.get(id, None) or Guess(held.client, held.admitted_as, held.charged, held.counted)
        if guess.client.name != record.client:
            record.change(client=guess.client.name)
        work = Held(teams, guess.client, estimate.NOTHING, None, guess.admitted_as, charged=guess.usd)
        work.end(record, unknown=False)
        tokens = (record.tokens.input or 0) + (record.tokens.output or 0)
        teams.limits.settle(_counted_later(guess.client, teams.directory.group(guess.client)), max(0, tokens - guess.tokens))
        teams.guessed.add(id, guess._replace(usd=work.charged, tokens=tokens))
        if guess.usd and not held.charged:  # an earlier record has it
            record.estimated_cost_usd = (record.estimated_cost_usd or 0.0) - guess.usd

    def response_recorded(self, record: CallRecord) -> None:
        """The usage record of a response of a WebSocket."""
        assert self.socket
        self.teams.note_answer(record)
        self.socket.recorded(record)

    def transcription_recorded(self, record: CallRecord, text: int) -> None:
        """The usage record of a transcription in a realtime session. Nothing was reserved for it: its tokens and its cost count now."""
        held = Held(self.teams, self.client, estimate.AUDIO, _counted_later(self.client, self.group), text=text)
        held.end(record, unknown=record.usage_state != "known")  # a usage in seconds says nothing of tokens

    @property
    def waiting_responses(self) -> int:
        """Responses of a WebSocket that were requested, and not created yet."""
        return self.socket.waiting if self.socket else 0

    def end_all(self) -> None:
        """The request is over, or its WebSocket was closed. What was not settled stays as it was reserved."""
        if self.held is not None:
            self.held.settle(None)
        if self.socket is not None:
            self.socket.end_all()


def _counted_later(client: Client, group: Group | None) -> Reservation:
    """The counters of tokens of a client, for tokens that were not reserved."""
    claims = [claim for claim in limits.claims(client, group, 0) if claim.kind == "tokens_per_minute"]
    return Reservation(claims)


def _has_key(text: bytes, keys: Iterable[bytes]) -> bool:
    """Whether a text contains one of the keys, or, of a key that may be an ordinary word, ends with it."""
    return any(key in text if len(key) >= _NO_WORD else text.rpartition(b" ")[2] == key for key in keys)
