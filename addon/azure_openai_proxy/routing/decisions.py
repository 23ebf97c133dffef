"""One attempt of a request, and what follows after a failed one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.api.request import ClientRequest, Target
    from azure_openai_proxy.errors import Failure

    from .repair_changes import Change

__all__ = ["GIVE_UP", "Attempt", "Decision", "GiveUp", "Plan", "Respond", "Retry"]


class Attempt(NamedTuple):
    """The report of an attempt, for logs, metrics and headers."""

    backend: str
    cause: str = ""  # why it failed; "" while it is the last one
    repaired: tuple[str, ...] = ()
    reason: str = ""  # why this backend


class Plan(NamedTuple):
    """One attempt: the client's request with the repairs that were applied to it, and where it goes."""

    client_request: ClientRequest
    target: Target
    renamed: str | None  # replaces the deployment of every model that the request names
    applied: tuple[Change, ...]
    add_usage: bool = False  # the usage of the stream is requested, which the client did not do


class Retry(NamedTuple):
    """Send the request again."""

    plan: Plan


class Respond(NamedTuple):
    """Give the client another failure, which is more informative than the last one."""

    response: http.Response | Failure


class GiveUp(NamedTuple):
    """Give the client the failure itself."""


type Decision = Retry | Respond | GiveUp
"""The decision after a failed attempt."""
GIVE_UP = GiveUp()
