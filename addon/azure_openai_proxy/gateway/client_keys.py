"""Authentication of clients by their keys, and the responses that a key gets: a refusal, its limits, its budget."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy import errors
from azure_openai_proxy.accounting import limits as client_limits
from azure_openai_proxy.accounting.budgets import has_budget
from azure_openai_proxy.api import credentials, realtime
from azure_openai_proxy.api.request import Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from azure_openai_proxy.accounting.budgets import BudgetState
    from azure_openai_proxy.accounting.limits import Claim, Refused, Use
    from azure_openai_proxy.accounting.teams import Teams
    from azure_openai_proxy.config.clients import Client
    from azure_openai_proxy.config.settings import Settings

__all__ = ["authenticate", "budget_gone", "check", "key_page", "limit_headers", "over_limit", "presented", "subscription", "usage"]

_NAMES = {"requests_per_minute": "requests", "tokens_per_minute": "tokens"}
_PER = {"requests_per_minute": "requests per minute", "tokens_per_minute": "tokens per minute", "max_parallel": "parallel requests"}


def authenticate(teams: Teams, settings: Settings, request: http.Request, *, websocket: bool) -> Client | None:
    """Return the client of a request; None if keys are optional and it has none.

    Raises:
        Refused: it has no key, or one that is unknown, disabled or expired, or whose group does not exist.
    """
    return check(teams, settings, presented(request, websocket=websocket))


def check(teams: Teams, settings: Settings, keys: Sequence[str]) -> Client | None:
    """Return the client of these keys, as `authenticate` does. The keys of a WebSocket are checked again for each of its responses.

    Raises:
        Refused: there is no key, or one that is unknown, disabled or expired, or whose group does not exist.
    """
    found = next(filter(None, map(teams.directory.find, keys)), None)
    if teams.directory.waiting and not (found and _works_meanwhile(teams, found)):
        raise errors.Refused(503, "server_error", "client_keys_unavailable", teams.directory.waiting)
    if not keys:
        if teams.auth(settings) == "optional":
            return None
        raise _unauthorized(
            "You didn't provide an API key. Send the key that you got for this proxy as the API key of your client "
            "(Authorization: Bearer ...)."
        )
    if found is None:
        raise _unauthorized("Incorrect API key provided: this proxy does not know it.")
    if found.disabled:
        raise _unauthorized(f"The API key of {found.name} is disabled.")
    now = dt.datetime.now(dt.UTC)
    used = [key for key in found.keys if teams.directory.is_key(key, keys)]
    ends = [end for end in (found.expires, *(key.expires for key in used)) if end]
    if ends and min(ends) <= now:
        raise _unauthorized(f"The API key of {found.name} has expired: it was valid until {_time(min(ends))}.")
    if found.group and teams.directory.group(found) is None:  # of the ledger: the file may not name such a group
        raise errors.Refused(
            403,
            "invalid_request_error",
            "group_not_found",
            f"The API key of {found.name} is in the group {found.group}, whose limits the proxy does not know: "
            "add it to azure_openai_client_groups, or create the key again without it.",
        )
    return found


def presented(request: http.Request, *, websocket: bool) -> tuple[str, ...]:
    """The keys that a request has. In a query, and as a subprotocol, they count for WebSockets only."""
    query = Query.read(request.path.partition("?")[2]).api_key if websocket else ""
    return credentials.of_client(request.headers, protocol_key=realtime.key(request.headers) if websocket else "", query=query)


def _works_meanwhile(teams: Teams, client: Client) -> bool:
    """Whether a key works before the ledger was read: it is in the file, and has no budget."""
    return teams.directory.of_file(client) and not has_budget(client, teams.directory.group(client))


def _unauthorized(message: str) -> errors.Refused:
    return errors.Refused(401, "invalid_request_error", "invalid_api_key", message)


def _time(moment: dt.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


# Refusals


def over_limit(refused: Refused) -> errors.Refused:
    """The 429 of a request that a limit does not admit. It names the client or the group."""
    claim, wait = refused.claim, refused.wait
    owner = f"the {claim.owner}"
    again = f"Please try again in {math.ceil(wait)}s."
    if claim.kind == "max_parallel":
        message = f"Rate limit reached for {owner} on parallel requests: limit {claim.limit}. {again}"
    else:
        used = next(use for one, use in zip(refused.claims, refused.uses, strict=True) if one is claim).used
        message = f"Rate limit reached for {owner} on {_PER[claim.kind]}: limit {claim.limit}, used {used}, requested {claim.take}. {again}"
    kind = "tokens" if claim.kind == "tokens_per_minute" else "requests"
    return errors.Refused(429, kind, "rate_limit_exceeded", message, errors.retry_after(wait))


def budget_gone(state: BudgetState, now: dt.datetime) -> errors.Refused:
    """The 429 of a client whose budget is spent. SDKs do not retry it."""
    headers = {"x-should-retry": "false"}
    renews = "It is not renewed."
    if state.resets_at:
        headers["retry-after"] = str(max(1, math.ceil((state.resets_at - now).total_seconds())))
        renews = f"It is renewed at {_time(state.resets_at)}."
    message = f"The {state.owner} has spent its budget of {state.budget.usd:g} USD ({state.budget.period}). {renews}"
    return errors.Refused(429, "insufficient_quota", "insufficient_quota", message, headers)


# Headers


def limit_headers(claims: Sequence[Claim], uses: Sequence[Use]) -> dict[str, str]:
    """OpenAI's headers about the limits of a client. Of its own limit and its group's the one with less left is reported."""
    headers = {}
    for kind, (limit, use) in tightest(claims, uses).items():
        if name := _NAMES.get(kind):
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(use.remaining(limit))
            headers[f"x-ratelimit-reset-{name}"] = _duration(use.reset)
    return headers


def tightest(claims: Sequence[Claim], uses: Sequence[Use]) -> Mapping[str, tuple[int, Use]]:
    """For each kind, the limit with less left, and its use."""
    found: dict[str, tuple[int, Use]] = {}
    for claim, use in zip(claims, uses, strict=True):
        known = found.get(claim.kind)
        if known is None or use.remaining(claim.limit) < known[1].remaining(known[0]):
            found[claim.kind] = claim.limit, use
    return found


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 12ms, 6s, 1m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


# Self-service


def _budget(teams: Teams, client: Client) -> BudgetState | None:
    """The budget of a client or its group, of two the one with less left."""
    return min(teams.budgets.states(client, teams.directory.group(client)), key=lambda state: state.remaining, default=None)


def key_page(teams: Teams, client: Client) -> http.Response:
    """The name, the rights, the limits and the budget of a key."""
    claims = client_limits.claims(client, teams.directory.group(client), 0)
    shown: dict[str, dict[str, float]] = {}
    for kind, (limit, use) in tightest(claims, teams.limits.look(claims)).items():
        shown[kind] = {"limit": limit, "remaining": use.remaining(limit)}
        if kind != "max_parallel":
            shown[kind]["reset_seconds"] = math.ceil(use.reset)
    state = _budget(teams, client)
    return _json(
        {
            "name": client.name,
            "group": client.group or None,
            "models": list(client.models) or ["*"],
            "expires": _time(client.expires) if client.expires else None,
            "limits": shown,
            "budget": state
            and {
                "limit_usd": state.budget.usd,
                "used_usd": round(state.used, 9),
                "period": state.budget.period,
                "resets_at": _time(state.resets_at) if state.resets_at else None,
            },
        }
    )


def subscription(teams: Teams, client: Client) -> http.Response:
    """The budget, in the form of OpenAI's former billing API."""
    state = _budget(teams, client)
    usd = state.budget.usd if state else 0
    return _json(
        {
            "object": "billing_subscription",
            "has_payment_method": True,
            "soft_limit_usd": usd,
            "hard_limit_usd": usd,
            "system_hard_limit_usd": usd,
            "access_until": int(client.expires.timestamp()) if client.expires else 0,
        }
    )


async def usage(teams: Teams, client: Client, query: str) -> http.Response:
    """What the client spent, in cents: by the ledger for the days of the query, or by its budget."""
    fields = dict(pair.partition("=")[::2] for pair in query.split("&"))
    today = teams.budgets.now().date()
    spent = None
    try:
        first = dt.date.fromisoformat(fields.get("start_date") or today.replace(day=1).isoformat())
        last = dt.date.fromisoformat(fields.get("end_date") or today.isoformat())
    except ValueError:
        return errors.response(errors.BadRequest("`start_date` and `end_date` must be dates, as in 2026-12-31."))
    if teams.spent:
        spent = await teams.spent(client.name, first, last)
    if spent is None:
        spent = next((state.used for state in teams.budgets.states(client, None)), 0.0)
    return _json({"object": "list", "daily_costs": [], "total_usage": round(spent * 100, 6)})


def _json(value: Mapping[str, Any]) -> http.Response:
    return http.Response.make(200, json.dumps(value), {"content-type": "application/json", "cache-control": "no-store"})
