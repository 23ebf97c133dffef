"""Limits of requests, tokens and parallel requests: reserved together before a request, and settled after it.

Requests and tokens are counted in a sliding window of 60 buckets of one second each. A bucket is empty 60 seconds after it began, so the
size of a window depends on neither the limit nor the number of requests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from azure_openai_proxy.config.clients import Client, Group, Limits

__all__ = ["WINDOW", "Claim", "Kind", "LimitStore", "LocalLimits", "Outcome", "Refused", "Reservation", "Unavailable", "Use", "claims"]

WINDOW = 60
"""Seconds of the sliding window."""
PLACE_WAIT = 1.0
"""Seconds until a request that found all places taken should try again."""

type Kind = Literal["requests_per_minute", "tokens_per_minute", "max_parallel"]


class Claim(NamedTuple):
    """One limit, and what a request takes of it."""

    owner: str  # "client NAME" or "group NAME", as in messages
    kind: Kind
    limit: int
    take: int
    key: str  # the name of its counter


class Use(NamedTuple):
    """The state of one limit."""

    used: int
    reset: float  # seconds until the window is empty; 0 for places

    def remaining(self, limit: int) -> int:
        return max(0, limit - self.used)


@dataclass(slots=True)
class Reservation:
    """What an admitted request holds. `settle` ends it."""

    claims: Sequence[Claim]
    second: int = 0  # of the store's clock, in which it was reserved
    settled: bool = False


class Refused(NamedTuple):
    """The request does not fit. Nothing was reserved."""

    claim: Claim  # the limit with the longest wait
    wait: float  # seconds, at most 60
    claims: Sequence[Claim]
    uses: Sequence[Use]  # of each claim, without this request


class Unavailable(NamedTuple):
    """A shared store cannot be reached, and the configuration says that requests are refused then."""

    reason: str


type Outcome = Reservation | Refused | Unavailable


class LimitStore(Protocol):
    """Counters of limits. A store that others share returns an awaitable, with a time limit of its own, and never raises."""

    def reserve(self, claims: Sequence[Claim]) -> Outcome | Awaitable[Outcome]:
        """Reserve all claims, or none. A claim of `max_parallel` takes a place until it is settled."""

    def settle(self, reservation: Reservation, tokens: int | None = None, *, refund: bool = False) -> None:
        """Free the place, and replace the reserved tokens by `tokens`, which count in the present second. None: the reserved ones stay.

        `refund`: the request was not admitted for another reason: its request and its tokens are given back. A second call does nothing.
        """

    def look(self, claims: Sequence[Claim]) -> Sequence[Use]:
        """The state of limits, without a request. A shared store may answer from its copy."""


def claims(client: Client, group: Group | None, tokens: int) -> list[Claim]:
    """The claims of a request: all limits of the client and its group. `tokens` is capped at what an empty window has."""
    found = list(_claims(f"client {client.name}", client.limits, tokens))
    if group is not None:
        found += _claims(f"group {group.name}", group.limits, tokens)
    return found


def _claims(owner: str, limits: Limits, tokens: int) -> Iterator[Claim]:
    requests, most_tokens, places = limits
    if requests is not None:
        yield Claim(owner, "requests_per_minute", requests, 1, f"{owner}:requests_per_minute")
    if most_tokens is not None:
        yield Claim(owner, "tokens_per_minute", most_tokens, min(tokens, most_tokens), f"{owner}:tokens_per_minute")
    if places is not None:
        yield Claim(owner, "max_parallel", places, 1, f"{owner}:max_parallel")


class _Window:
    """One limit's use of the last 60 seconds."""

    __slots__ = ("amounts", "checked", "used")

    def __init__(self) -> None:
        # By the second, oldest first. A dict of numbers: with a list for each second the garbage collector would visit 120,000 objects
        # for 1,000 clients.
        self.amounts: dict[int, int] = {}
        self.used = 0
        self.checked = 0  # the second in which the old ones were dropped

    def drop_old(self, second: int) -> None:
        if second == self.checked:
            return
        self.checked = second
        amounts = self.amounts
        while amounts and (oldest := next(iter(amounts))) <= second - WINDOW:
            self.used -= amounts.pop(oldest)
        if amounts and next(reversed(amounts)) > second:  # the clock was set back: they leave the window within a minute all the same
            later = [at for at in amounts if at > second]
            amounts[second] = amounts.get(second, 0) + sum([amounts.pop(at) for at in later])

    def add(self, second: int, amount: int) -> None:
        second = max(second, next(reversed(self.amounts), second))  # a clock that was set back counts in the newest second
        self.amounts[second] = self.amounts.get(second, 0) + amount
        self.used += amount

    def give_back(self, second: int, amount: int) -> None:
        if given := min(amount, self.amounts.get(second, 0)):
            self.amounts[second] -= given
            self.used -= given

    def wait(self, excess: int, now: float) -> float:
        """Seconds until `excess` has left the window."""
        for second, amount in self.amounts.items():
            excess -= amount
            if excess <= 0:
                return min(float(WINDOW), second + WINDOW - now)
        return float(WINDOW)  # more than an empty window has

    def reset(self, now: float) -> float:
        for second, amount in reversed(self.amounts.items()):
            if amount:
                return min(float(WINDOW), max(0.0, second + WINDOW - now))
        return 0.0


class LocalLimits:
    """The counters of this process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._places: dict[str, int] = {}

    def reserve(self, claims: Sequence[Claim]) -> Reservation | Refused:
        now = self._clock()
        refused, longest = None, 0.0
        for claim in claims:
            wait = self._wait(claim, now)
            if wait > longest:
                refused, longest = claim, wait
        if refused:
            return Refused(refused, longest, claims, self._look(claims, now))
        return self.take(claims)

    def take(self, claims: Sequence[Claim]) -> Reservation:
        """Count a request that was admitted."""
        second = int(self._clock())
        windows, places = self._windows, self._places
        for _, kind, _, take, key in claims:
            if kind == "max_parallel":
                places[key] = places.get(key, 0) + take
            elif take:
                window = windows.get(key)
                if window is None:
                    window = windows[key] = _Window()
                window.add(second, take)
        return Reservation(claims, second)

    def places(self) -> dict[str, int]:
        """The places that are taken, by the names of their counters."""
        return dict(self._places)

    def buckets(self) -> Iterator[tuple[str, int, int]]:
        """Each second's amount in each window: the name of its counter, the second, the amount."""
        now = int(self._clock())
        for key, window in self._windows.items():
            window.drop_old(now)
            yield from ((key, second, amount) for second, amount in window.amounts.items() if amount)

    def _wait(self, claim: Claim, now: float) -> float:
        """Seconds until the claim fits; 0 if it does."""
        _, kind, limit, take, key = claim
        if kind == "max_parallel":
            return PLACE_WAIT if self._places.get(key, 0) + take > limit else 0.0
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window()
        window.drop_old(int(now))
        excess = window.used + take - limit
        return window.wait(excess, now) if excess > 0 else 0.0

    def settle(self, reservation: Reservation, tokens: int | None = None, *, refund: bool = False) -> None:
        if reservation.settled:
            return
        reservation.settled = True
        second, places = int(self._clock()), self._places
        for _, kind, _, take, key in reservation.claims:
            if kind == "max_parallel":
                places[key] -= take
                if not places[key]:
                    del places[key]
                continue
            if not refund and (kind != "tokens_per_minute" or tokens is None):
                continue
            window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = _Window()
            window.drop_old(second)
            window.give_back(reservation.second, take)
            if tokens and not refund:
                window.add(second, tokens)

    def look(self, claims: Sequence[Claim]) -> Sequence[Use]:
        return self._look(claims, self._clock())

    def _look(self, claims: Sequence[Claim], now: float) -> list[Use]:
        uses = []
        for _, kind, _, _, key in claims:
            if kind == "max_parallel":
                uses.append(Use(self._places.get(key, 0), 0.0))
            elif window := self._windows.get(key):
                window.drop_old(int(now))
                uses.append(Use(window.used, window.reset(now)))
            else:
                uses.append(Use(0, 0.0))
        return uses
