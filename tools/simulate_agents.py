"""Agents over several backends in virtual time, routed by the proxy's own code: `python tools/simulate_agents.py`.

Each session sends its growing prompt again and again, as coding agents do. A backend limits the tokens of each minute, caches the beginning
of prompts by Azure's rules, and fails now and then. The tool prints how many requests are answered, the share of their input that is read
from the cache, and the share of each backend: without session affinity, with it, and the best possible, which knows the budget of each
backend in advance and has one cache for all of them.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mitmproxy import http

from azure_openai_proxy.api import operation
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.request import ClientRequest, Query
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import Unavailable
from azure_openai_proxy.routing.attempts import Attempts
from azure_openai_proxy.routing.decisions import Respond, Retry
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.sessions import Sessions
from azure_openai_proxy.routing.state import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["STRATEGIES", "Result", "Workload", "main", "run", "workload"]

SHORTEST, STEP = 1024, 128  # tokens: a shorter prompt is not cached, a longer one in steps
KEPT = 600.0  # seconds without use for which a prompt is cached
COMMON = 4096  # tokens that the prompts of all sessions have in common: the tools and the instructions of the agent
OUTAGES_EVERY, OUTAGE = 1800.0, 60.0  # seconds
FAILS = 0.005  # share of the requests that fail with 500
RETRIES = 2  # of the client, after the Retry-After, as the SDKs do
STRATEGIES = ("without affinity", "with affinity", "best possible")


class Turn(NamedTuple):
    """One request of a session."""

    at: float
    session: int
    tokens: int  # of its prompt
    duration: float


class Workload(NamedTuple):
    turns: Sequence[Turn]
    tokens_per_minute: Sequence[int]  # of each backend
    outages: Sequence[Sequence[float]]  # times at which each backend fails for a minute
    seed: int


class Served(NamedTuple):
    backend: int
    cached: int


class Result(NamedTuple):
    asked: int
    answered: int
    tokens: int  # of the prompts that were answered
    cached: int
    by_backend: Sequence[int]

    @property
    def hit_rate(self) -> float:
        return self.cached / self.tokens

    @property
    def spread(self) -> str:
        return " / ".join(f"{count / self.answered:.0%}" for count in self.by_backend)


def workload(sessions: int = 200, backends: int = 3, hours: float = 2.0, load: float = 0.5, seed: int = 2) -> Workload:
    """Make requests at random times. `load` is their share of the sum of all limits."""
    rng = random.Random(seed)  # noqa: S311 - not for cryptography
    turns = []
    for session in range(sessions):
        now, tokens = rng.uniform(0, hours * 3000), rng.randint(6_000, 16_000)
        for _ in range(rng.randint(8, 40)):
            duration = rng.uniform(2, 15)
            turns.append(Turn(now, session, tokens, duration))
            now += duration + rng.expovariate(1 / 30)
            tokens += rng.randint(200, 2_500)
    turns = sorted(turn for turn in turns if turn.at < hours * 3600)
    whole = sum(turn.tokens for turn in turns) / (hours * 60) / load
    shares = [1 + index % 2 for index in range(backends)]
    limits = [round(whole * share / sum(shares)) for share in shares]
    outages = [_times(rng, hours * 3600) for _ in range(backends)]
    return Workload(turns, limits, outages, seed)


def _times(rng: random.Random, until: float) -> list[float]:
    times, now = [], rng.expovariate(1 / OUTAGES_EVERY)
    while now < until:
        times.append(now)
        now += OUTAGE + rng.expovariate(1 / OUTAGES_EVERY)
    return times


@dataclass
class PromptCache:
    """The beginnings of prompts that a deployment has cached: by session the tokens, and the time of the last use."""

    prompts: dict[int | None, tuple[int, float]] = field(default_factory=dict)

    def read(self, turn: Turn, now: float) -> int:
        """Return the tokens of a prompt that are read from the cache, and cache all of it."""
        found = max(self._left(turn.session, now), self._left(None, now))
        cached = min(found, turn.tokens) // STEP * STEP
        self.prompts[turn.session] = turn.tokens, now
        self.prompts[None] = COMMON, now
        return cached if cached >= SHORTEST else 0

    def _left(self, key: int | None, now: float) -> int:
        tokens, used = self.prompts.get(key, (0, now))
        return tokens if now - used < KEPT else 0


@dataclass
class Deployment:
    """One backend: a budget of tokens for each minute, a cache, and outages."""

    limit: int
    outages: Sequence[float]
    cache: PromptCache
    used: int = 0
    ends: float = 0.0

    def left(self, now: float) -> int:
        if now >= self.ends:
            self.used, self.ends = 0, now + 60
        return self.limit - self.used

    def is_out(self, now: float) -> bool:
        return any(start <= now < start + OUTAGE for start in self.outages)

    def take(self, turn: Turn, now: float) -> int:
        """Answer a request. Return the tokens that are read from the cache."""
        self.used += turn.tokens
        return self.cache.read(turn, now)

    def answer(self, turn: Turn, now: float, rng: random.Random) -> http.Response:
        """Answer as Azure does; the number of cached tokens is the body."""
        if self.is_out(now):
            return _failed(503)
        if turn.tokens > self.left(now):
            return _failed(429, **{"retry-after": str(max(1, round(self.ends - now)))})
        if rng.random() < FAILS:
            return _failed(500)
        cached = self.take(turn, now)
        headers = {
            "x-ratelimit-remaining-tokens": str(self.limit - self.used),
            "x-ratelimit-reset-tokens": str(round(self.ends - now)),
            "x-ratelimit-limit-tokens": str(self.limit),
        }
        return http.Response.make(200, str(cached), headers)


def _failed(status: int, **headers: str) -> http.Response:
    return http.Response.make(status, b'{"error":{"message":"no","code":null}}', headers)


def run(work: Workload, strategy: str) -> Result:
    """Play a workload. `strategy` is one of `STRATEGIES`."""
    if strategy == STRATEGIES[2]:
        return _best(work)
    proxy = _Proxy(work, affinity=strategy == STRATEGIES[1])
    deployments = [Deployment(limit, outages, PromptCache()) for limit, outages in zip(work.tokens_per_minute, work.outages, strict=True)]
    rng = random.Random(work.seed)  # noqa: S311
    return _play(work, lambda turn, now: proxy.ask(turn, now, deployments, rng), proxy.ended)


def _play(work: Workload, ask: Callable[[Turn, float], Served | float], ended: Callable[[Turn, float], None]) -> Result:
    """Send the requests in their order. `ask` returns the answer, or the seconds until the client may retry."""
    answered = tokens = cached = 0
    by_backend: Counter[int] = Counter()
    order = itertools.count()
    events = [(turn.at, next(order), turn, 0) for turn in work.turns]  # with the number of the try; -1: the end of the answer
    heapq.heapify(events)
    while events:
        now, _, turn, tries = heapq.heappop(events)
        if tries < 0:
            ended(turn, now)
            continue
        outcome = ask(turn, now)
        if isinstance(outcome, Served):
            heapq.heappush(events, (now + turn.duration, next(order), turn, -1))
            answered += 1
            tokens += turn.tokens
            cached += outcome.cached
            by_backend[outcome.backend] += 1
        elif tries < RETRIES:
            heapq.heappush(events, (now + outcome, next(order), turn, tries + 1))
    return Result(len(work.turns), answered, tokens, cached, [by_backend[index] for index in range(len(work.tokens_per_minute))])


class _Proxy:
    """The proxy's routing: `Attempts` with a pool and bindings of sessions on the virtual clock."""

    def __init__(self, work: Workload, *, affinity: bool) -> None:
        self._now = 0.0
        self._running: dict[Turn, Attempts] = {}
        backends = tuple(
            Backend(name=str(index), base=Base("https", f"{index}.example", 443), token="key", apiversion="v1")  # noqa: S106 - no secret
            for index in range(len(work.tokens_per_minute))
        )
        self._settings = Settings(backends=backends, session_affinity=affinity)
        self._shared = Shared(Pool(self._clock, random.Random(work.seed)), sessions=Sessions(self._clock))  # noqa: S311
        self._shared.use(backends)

    def _clock(self) -> float:
        return self._now

    def ask(self, turn: Turn, now: float, deployments: Sequence[Deployment], rng: random.Random) -> Served | float:
        self._now = now
        members = {"model": "gpt-4o", "prompt_cache_key": f"session {turn.session}", "messages": [], "user": ""}
        content = json.dumps(members).encode()
        content = content[:-2] + b"x" * (turn.tokens * 4 - len(content)) + content[-2:]
        wanted = operation.Wanted((), sessions=self._settings.session_affinity)
        call = operation.recognise("POST", "/v1/chat/completions", {}, content, wanted=wanted)
        assert call
        attempts = Attempts(self._settings, self._shared, call, ClientRequest(http.Headers(), Query(""), content))
        try:
            plan = attempts.first()
        except Unavailable as error:
            return error.wait or 1.0
        while True:
            index = int(plan.target.backend.name)
            response = deployments[index].answer(turn, now, rng)
            if response.status_code == 200:
                attempts.succeeded(response.headers)
                self._running[turn] = attempts
                return Served(index, int(response.content or b""))
            decision = attempts.next_attempt(response)
            if not isinstance(decision, Retry):
                told = decision.response if isinstance(decision, Respond) else response
                return float(told.headers.get("retry-after", "1")) if isinstance(told, http.Response) else 1.0
            plan = decision.plan

    def ended(self, turn: Turn, now: float) -> None:
        self._now = now
        self._running.pop(turn).end()


def _best(work: Workload) -> Result:
    """The fullest budget that suffices takes the request, and each backend has every cached prompt."""
    cache = PromptCache()
    deployments = [Deployment(limit, outages, cache) for limit, outages in zip(work.tokens_per_minute, work.outages, strict=True)]

    def ask(turn: Turn, now: float) -> Served | float:
        able = [one for one in deployments if not one.is_out(now) and one.left(now) >= turn.tokens]
        if not able:
            return min(one.ends if one.left(now) < turn.tokens else now + OUTAGE for one in deployments) - now
        chosen = min(able, key=lambda one: one.left(now))
        return Served(deployments.index(chosen), chosen.take(turn, now))

    return _play(work, ask, lambda *_: None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--backends", type=int, default=3)
    parser.add_argument("--load", type=float, nargs="*", default=[0.4, 0.5, 0.6], help="share of the sum of all limits")
    parser.add_argument("--seed", type=int, default=2, help="of the random numbers")
    asked = parser.parse_args(argv)
    print(f"{'load':>5}  {'':18}{'requests':>9}{'answered':>10}{'cached':>8}  spread")
    for load in asked.load:
        work = workload(asked.sessions, asked.backends, load=load, seed=asked.seed)
        for strategy in STRATEGIES:
            result = run(work, strategy)
            print(f"{load:5.0%}  {strategy:18}{result.asked:9}{result.answered:10}{result.hit_rate:8.1%}  {result.spread}")


if __name__ == "__main__":
    logging.disable()
    main()
