"""The counters of limits in Redis.

Each reservation that the server grants is counted in this process too. While the server is down, or its reply takes more than 50 ms, this
process goes on with its own counters, which know its own last minute, or refuses, as the settings say. Amounts
that the server missed are added when it is back; a server that has lost its data gets all that this process knows.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from azure_openai_proxy.accounting.limits import WINDOW, LocalLimits, Refused, Reservation, Unavailable, Use

from .link import PREFIX, Down
from .scripts import BEAT, PLACES, RESERVE, SETTLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from azure_openai_proxy.accounting.limits import Claim, Kind, Outcome

    from .link import Link

__all__ = ["SharedLimits"]

BEAT_EVERY = 5.0
"""Seconds between two signs of life."""
_LIVE = "live"
_UNSEEN = (Use(0, 0.0), 0.0)

type _Change = tuple[str, Kind, int, int]
"""A counter, the kind of its limit, what is given back of it, and what it counts instead."""


@dataclass(slots=True)
class _Shared(Reservation):
    """A reservation that the server granted, and its copy in this process."""

    own: Reservation | None = None


class SharedLimits:
    """A `LimitStore` in Redis, and a listener of its link."""

    def __init__(self, link: Link, *, refuse: bool, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._refuse = refuse
        self._clock = clock
        self._own = LocalLimits(clock)
        self._unsent: dict[int, dict[str, int]] = {}  # amounts that the server does not know, by second of this machine and counter
        self._ahead = 0  # seconds by which the server's clock is ahead of this machine's
        self._seen: dict[str, tuple[Use, float]] = {}  # the last known use of each counter, for `look`, and when
        self._placed: set[str] = set()  # counters of places in which the server may have some of this process
        self._next_beat = 0.0

    # The store

    def reserve(self, claims: Sequence[Claim]) -> Outcome | Awaitable[Outcome]:
        return self._reserve(claims) if self._link.up else self._alone(claims)

    async def _reserve(self, claims: Sequence[Claim]) -> Outcome:
        keys = [claim.key for claim in claims]
        arguments: list[Any] = [self._link.process]
        for _, kind, limit, take, _ in claims:
            arguments += ("p" if kind == "max_parallel" else "w", limit, take)
        self._placed.update(claim.key for claim in claims if claim.kind == "max_parallel")
        asked = self._link.run_soon(RESERVE, [_LIVE, *keys], *arguments, late=partial(self._give_back, claims))
        try:
            reply = await asked
        except (Down, TimeoutError):
            return self._alone(claims)
        except asyncio.CancelledError:
            if not asked.cancelled() and not asked.exception():  # the reply came in the same moment
                self._give_back(claims, asked.result())
            raise
        uses = self._uses(keys, reply)
        if not reply[0]:
            return Refused(claims[reply[1] - 1], reply[2] / 1000, claims, uses)
        return _Shared(claims, int(reply[3]), own=self._own.take(claims))

    def _alone(self, claims: Sequence[Claim]) -> Outcome:
        if self._refuse:
            return Unavailable("The counters of azure_openai_shared_state cannot be reached: the proxy's log says why.")
        outcome = self._own.reserve(claims)
        if isinstance(outcome, Reservation):
            for _, kind, _, take, key in claims:
                if kind != "max_parallel":
                    self._count(key, outcome.second, take)
                elif self._link.up:  # its reply was late
                    self._settle([(key, kind, 0, take)], 0)
        return outcome

    def _give_back(self, claims: Sequence[Claim], reply: Sequence[int]) -> None:
        """Give back what a late reply granted."""
        if reply[0]:
            self._settle([(claim.key, claim.kind, claim.take, 0) for claim in claims], reply[3])

    def settle(self, reservation: Reservation, tokens: int | None = None, *, refund: bool = False) -> None:
        if reservation.settled:
            return
        reservation.settled = True
        shared = isinstance(reservation, _Shared)
        own = cast("_Shared", reservation).own if shared else reservation
        assert own
        own.settled = False
        self._own.settle(own, tokens, refund=refund)
        changes = [(claim.key, claim.kind, *_change(claim, tokens, refund=refund)) for claim in reservation.claims]
        if self._link.up:
            if not shared:
                self._send()
            self._settle(changes, reservation.second if shared else reservation.second + self._ahead)
            return
        now = int(self._clock())
        for key, kind, back, add in changes:
            if kind != "max_parallel":
                self._count(key, own.second, -back)
                self._count(key, now, add)

    def _settle(self, changes: Sequence[_Change], second: int) -> None:
        """Give back and add amounts of counters. `second`: of the server's clock, in which they were reserved."""
        arguments: list[Any] = [self._link.process, second]
        keys = []
        for key, kind, back, add in changes:
            if back or add:
                keys.append(key)
                arguments += ("p" if kind == "max_parallel" else "w", back, add)
                use, at = self._seen.get(key, _UNSEEN)
                self._seen[key] = Use(max(0, use.used - back + add), use.reset), at
        if keys:
            self._link.send_run(SETTLE, keys, *arguments)

    def look(self, claims: Sequence[Claim]) -> Sequence[Use]:
        if not self._link.up:
            return self._own.look(claims)
        now = self._clock()
        found = []
        for claim in claims:
            use, at = self._seen.get(claim.key, _UNSEEN)
            found.append(Use(use.used, max(0.0, use.reset - (now - at))) if now - at < WINDOW else self._own.look([claim])[0])
        return found

    def _uses(self, keys: Sequence[str], reply: Sequence[int]) -> list[Use]:
        now = self._clock()
        self._ahead = int(reply[3]) - int(now)
        uses = [Use(int(reply[place]), reply[place + 1] / 1000) for place in range(4, 4 + 2 * len(keys), 2)]
        self._seen.update(zip(keys, [(use, now) for use in uses], strict=True))
        return uses

    # The link

    def joined(self, *, lost: bool) -> None:
        """Send the places of this process, also those that are free by now, and what the server does not know."""
        places = dict.fromkeys(self._placed, 0) | self._own.places()
        self._placed.update(places)
        if places:
            self._link.send_run(PLACES, [_LIVE, *places], self._link.process, *places.values())
        if lost:
            self._unsent.clear()
            for key, second, amount in self._own.buckets():
                self._count(key, second, amount)
        self._send()
        self._next_beat = 0.0

    async def tick(self) -> None:
        self._send()
        if (now := self._clock()) >= self._next_beat or self._next_beat > now + BEAT_EVERY:
            self._next_beat = now + BEAT_EVERY
            places = self._own.places()
            if not await self._link.run(BEAT, [_LIVE, *places], self._link.process) and places:
                places = self._own.places()
                self._link.send_run(PLACES, [_LIVE, *places], self._link.process, *places.values())

    def _count(self, key: str, second: int, amount: int) -> None:
        """Add an amount that the server does not know. Those of more than a minute ago are dropped: the server may be down for days."""
        if not amount:
            return
        if second not in self._unsent:
            self._unsent = self._of_last_minute()
        amounts = self._unsent.setdefault(second, {})
        amounts[key] = amounts.get(key, 0) + amount

    def _of_last_minute(self) -> dict[int, dict[str, int]]:
        oldest = int(self._clock()) - WINDOW
        return {second: amounts for second, amounts in self._unsent.items() if second > oldest}

    def _send(self) -> None:
        """Send what the server does not know of the last minute."""
        unsent, self._unsent = self._of_last_minute(), {}
        for second, amounts in unsent.items():
            for key, amount in amounts.items():
                if amount:
                    self._link.send("HINCRBY", f"{PREFIX}{key}", second + self._ahead, amount)
                    self._link.send("EXPIRE", f"{PREFIX}{key}", WINDOW + 1)


def _change(claim: Claim, tokens: int | None, *, refund: bool) -> tuple[int, int]:
    """The amounts that the end of a request gives back of a claim, and counts instead, now."""
    if claim.kind == "max_parallel" or refund:
        return claim.take, 0
    if claim.kind == "tokens_per_minute" and tokens is not None:
        return claim.take, tokens
    return 0, 0
