"""Clients and groups of clients, as values: the key, the limits, the budget and the rights of each."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

__all__ = ["NO_LIMITS", "PERIODS", "Budget", "Client", "ClientKey", "Group", "Limits", "Period", "digest", "parse_expiry"]

type Period = Literal["day", "week", "month", "total"]

PERIODS: tuple[Period, ...] = ("day", "week", "month", "total")


def digest(key: str) -> bytes:
    """Return the SHA-256 of a key, by which it is looked up. Keys themselves are not kept."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def parse_expiry(text: str) -> dt.datetime:
    """Parse a date, or a date with a time; in UTC if it names no time zone.

    Raises:
        ValueError: it is neither.
        OverflowError: UTC has no such year.
    """
    found = dt.datetime.fromisoformat(text)
    return found.astimezone(dt.UTC) if found.tzinfo else found.replace(tzinfo=dt.UTC)


class Limits(NamedTuple):
    """Limits of a client or a group. None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel: int | None = None


NO_LIMITS = Limits()


class Budget(NamedTuple):
    """The amount for each period. Periods are of the calendar in UTC; weeks begin on Monday."""

    usd: float
    period: Period = "month"


class ClientKey(NamedTuple):
    """A key of a client: its SHA-256, and when it ends (after a rotation the old key may stay valid for a time)."""

    sha256: bytes
    expires: dt.datetime | None = None  # in UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Limits and a budget that several clients share."""

    name: str
    limits: Limits = NO_LIMITS
    budget: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client of the proxy."""

    name: str
    keys: tuple[ClientKey, ...] = ()
    models: tuple[str, ...] = ()  # patterns of the names that it may ask for; empty: all
    limits: Limits = NO_LIMITS
    budget: Budget | None = None
    group: str = ""
    expires: dt.datetime | None = None  # in UTC
    backends: tuple[str, ...] = ()  # names of those it may use; empty: all
    disabled: bool = False
    unmetered: bool = False  # it may start work whose tokens the proxy does not see, in spite of a budget or a token limit

    def may_use(self, model: str) -> bool:
        """Return whether it may ask for this model."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)
