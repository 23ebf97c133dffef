"""Simulates hours of requests against token-per-minute limits like Azure's and compares the success rates of several policies."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pytest

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.routing.pool import Pool
from support.processes import ROOT
from support.round_robin import RoundRobin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HOURS = 3
TOKENS_PER_MINUTE = (30_000, 60_000, 120_000)
ATTEMPTS = 4


class Request(NamedTuple):
    at: float
    tokens: int


@dataclass
class Deployment:
    """Azure's rate limiter: a number of tokens in a one-minute window, which the first request starts."""

    limit: int
    used: int = 0
    ends: float = 0.0

    def left(self, now: float) -> int:
        if now >= self.ends:
            self.used, self.ends = 0, now + 60
        return self.limit - self.used

    def ask(self, request: Request) -> dict[str, str] | None:
        """The headers of a successful response; None for a 429, until the window ends."""
        if request.tokens > self.left(request.at):
            return None
        self.used += request.tokens
        return {"x-ratelimit-remaining-tokens": str(self.limit - self.used), "x-ratelimit-reset-tokens": str(round(self.ends - request.at))}


def requests(load: float, seed: int) -> Iterator[Request]:
    """Requests at random times, most of them short, at `load` times the sum of all limits, in waves of ten minutes."""
    rng = random.Random(seed)
    now, mean = 0.0, 1500
    rate = load * sum(TOKENS_PER_MINUTE) / 60 / mean
    while now < HOURS * 3600:
        wave = 1.4 if int(now / 600) % 2 else 0.6
        now += rng.expovariate(rate * wave)
        yield Request(now, min(12_000, max(50, round(rng.lognormvariate(6.8, 0.9)))))


class Run(NamedTuple):
    answered: int
    asked: int  # requests sent to Azure
    of: int

    @property
    def share(self) -> float:
        return self.answered / self.of


def run(load: float, answer: Callable[[Sequence[Deployment], Request], int], seed: int = 1) -> Run:
    """Run a simulation. `answer` returns the number of attempts, negative if all of them failed, 0 if none was made."""
    deployments = [Deployment(limit) for limit in TOKENS_PER_MINUTE]
    answered = asked = of = 0
    for request in requests(load, seed):
        attempts = answer(deployments, request)
        answered += attempts > 0
        asked += abs(attempts)
        of += 1
    return Run(answered, asked, of)


def best(deployments: Sequence[Deployment], request: Request) -> int:
    """The optimum with full knowledge: the deployment with the smallest sufficient budget takes the request."""
    able = [deployment for deployment in deployments if deployment.left(request.at) >= request.tokens]
    if able:
        min(able, key=lambda deployment: deployment.left(request.at)).ask(request)
    return len(able[:1])


def round_robin() -> Callable[[Sequence[Deployment], Request], int]:
    """Each deployment in turn, regardless of its last response."""
    turn = 0

    def answer(deployments: Sequence[Deployment], request: Request) -> int:
        nonlocal turn
        turn += 1
        return 1 if deployments[turn % len(deployments)].ask(request) else -1

    return answer


def ours(pool: Pool, clock: list[float]) -> Callable[[Sequence[Deployment], Request], int]:
    """The proxy's policy: the pool's choice, with failover after a 429."""
    backends = tuple(
        Backend(name=str(index), base=Base("https", f"{index}.example", 443), apiversion="v1") for index in range(len(TOKENS_PER_MINUTE))
    )
    pool.update(backends)

    def answer(deployments: Sequence[Deployment], request: Request) -> int:
        clock[0] = request.at
        tried: set[str] = set()
        while len(tried) < ATTEMPTS:
            choice = pool.choose(backends, lambda _: "gpt-4o", tokens=request.tokens, tried=tried)
            if choice is None:
                break
            backend = choice.backend
            tried.add(backend.name)
            ticket = pool.begin(backend, "gpt-4o")
            deployment = deployments[int(backend.name)]
            if headers := deployment.ask(request):
                pool.succeeded(ticket, headers)
                pool.end(ticket)
                return len(tried)
            pool.rate_limited(ticket, deployment.ends - request.at)
        return -len(tried)

    return answer


@pytest.mark.slow
def test_nearly_everything_that_can_be_answered_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The pool's success rate is within two percent of the optimum, above round robin, and as documented; few attempts fail."""
    rows = []
    for load in (0.5, 0.7, 0.9, 1.1):
        clock = [0.0]
        pool = Pool(lambda clock=clock: clock[0], random.Random(7))  # type: ignore[misc]
        rows.append((load, run(load, best), run(load, ours(pool, clock)), run(load, round_robin())))

    with capsys.disabled():
        print(f"\nrequests answered, {HOURS} hours of virtual time, backends of {TOKENS_PER_MINUTE} tokens a minute")  # noqa: T201 - for people
        print(f"{'load':>6}{'requests':>10}{'best possible':>15}{'this proxy':>12}{'round robin':>13}{'asked in vain':>15}")  # noqa: T201
        for load, perfect, mine, turns in rows:
            vain = (mine.asked - mine.answered) / mine.of
            print(f"{load:6.0%}{mine.of:10}{perfect.share:15.1%}{mine.share:12.1%}{turns.share:13.1%}{vain:15.1%}")  # noqa: T201
    table = "".join(
        f"| {load:.0%} | {perfect.share:.1%} | {mine.share:.1%} | {turns.share:.1%} |\n".replace("%", " %")
        for load, perfect, mine, turns in rows
    )
    assert all(table in (ROOT / document).read_text() for document in ("README.md", "docs/retries-and-failover.md")), table
    for _, perfect, mine, turns in rows:
        assert mine.share >= perfect.share - 0.02
        assert mine.share > turns.share
        assert mine.asked - mine.answered < 0.1 * mine.of


@pytest.mark.slow
def test_round_robin_as_a_policy() -> None:
    """`RoundRobin` works as the policy of a pool and uses each backend in turn."""
    clock = [0.0]
    pool = Pool(lambda: clock[0], random.Random(7), RoundRobin())
    assert run(0.9, ours(pool, clock)).share > run(0.9, round_robin()).share
