"""A load of clients with limits and budgets on replicas that share a ledger and a Redis server, and the check of its result."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import httpx
import sqlalchemy as sa

from azure_openai_proxy.accounting.ledger import keys
from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.ledger.schema import CALLS
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from support.processes import Mitmdump

__all__ = ["PARALLEL", "Load", "create"]

PARALLEL = 4
"""Requests that each client sends at the same time."""
REQUESTS = 25
TOKENS = 300
CHAT = {"model": "gpt-4o", "max_tokens": 50, "messages": [{"role": "user", "content": "one two three"}]}
WINDOW = 59.0
"""Seconds in which no more than a limit may be admitted: the windows of the proxy begin with whole seconds."""


class Key(NamedTuple):
    name: str
    secret: str
    kind: str  # "requests", "tokens", "budget" or "none"


def create(ledger: str, clients: int, budget: float) -> list[Key]:
    """Create managed keys: a third with each kind of limit, and a last one without any."""
    database = parse(ledger)
    found = []
    for number in range(clients + 1):
        kind = ("requests", "tokens", "budget")[number % 3] if number < clients else "none"
        limits = {
            "requests": {"requests_per_minute": REQUESTS},
            "tokens": {"tokens_per_minute": TOKENS, "max_parallel": PARALLEL},
            "budget": {"budget_usd": budget, "budget_period": "total"},
            "none": {},
        }[kind]
        name = f"{kind}-{number}"
        found.append(Key(name, keys.create(database, keys.ManagedKey(name=name, **limits))[1], kind))  # type: ignore[arg-type]
    return found


class Answer(NamedTuple):
    key: Key
    status: int
    code: str | None
    tokens: int
    started: float


@dataclass
class Load:
    """Sends `total` chats, of all clients to all replicas in turn. `at` are functions to call when so many were answered."""

    replicas: Sequence[Mitmdump]
    clients: Sequence[Key]
    total: int
    at: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        each = self.total // len(self.clients) // PARALLEL
        # No expiry: httpx closes a connection that was idle for five seconds also if it has just given it to another request, which
        # then fails with a `ReadError` (of httpcore, `_assign_requests_to_connections`). On a busy machine idle connections get as old.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
        async with AsyncExitStack() as stack:
            jobs = []
            for key in self.clients:  # a pool each: httpcore checks all connections of a pool for each request
                http = await stack.enter_async_context(httpx.AsyncClient(timeout=PATIENCE, trust_env=False, limits=limits))
                jobs += [self._client(http, key, each, first) for first in range(PARALLEL)]
            await asyncio.gather(*jobs)

    async def _client(self, http: httpx.AsyncClient, key: Key, count: int, first: int) -> None:
        replicas = itertools.islice(itertools.cycle(self.replicas), first, None)
        for replica in itertools.islice(replicas, count):
            started = time.monotonic()
            headers = {"authorization": f"Bearer {key.secret}"}
            response = await http.post(f"{replica.url}/v1/chat/completions", json=CHAT, headers=headers)
            body = response.json()
            code, tokens = body.get("error", {}).get("code"), body.get("usage", {}).get("total_tokens", 0)
            self.answers.append(Answer(key, response.status_code, code, tokens, started))
            if act := self.at.get(len(self.answers)):
                await asyncio.to_thread(act)

    @property
    def statuses(self) -> Counter[tuple[int, str | None]]:
        return Counter((answer.status, answer.code) for answer in self.answers)

    def check_limits(self, times: int = 1) -> None:
        """No client got more than `times` its limit in a minute, and what it has in flight."""
        for key in self.clients:
            admitted = [answer for answer in self.answers if answer.key is key and answer.status == 200]
            for first in admitted:
                minute = [answer for answer in admitted if first.started <= answer.started < first.started + WINDOW]
                if key.kind == "requests":
                    assert len(minute) <= times * REQUESTS + PARALLEL, (key.name, len(minute))
                if key.kind == "tokens":
                    assert sum(answer.tokens for answer in minute) <= times * TOKENS + PARALLEL * max(answer.tokens for answer in minute)

    def check_ledger(self, ledger: str, budget: float, times: int = 1) -> None:
        """The rows of the ledger are the calls that the clients sent, with their tokens; each budget ended with the crossing calls."""
        with parse(ledger).connect("read") as connection:
            cost, tokens = sa.func.sum(CALLS.c.cost_usd), sa.func.sum(CALLS.c.input_tokens + CALLS.c.output_tokens)
            query = sa.select(CALLS.c.client, sa.func.count(), tokens, cost, sa.func.max(CALLS.c.cost_usd)).group_by(CALLS.c.client)
            rows = {row[0]: row[1:] for row in connection.execute(query)}
        for key in self.clients:
            mine = [answer for answer in self.answers if answer.key is key]
            count, tokens, cost, most = rows[key.name]
            assert (len(mine), sum(answer.tokens for answer in mine)) == (count, tokens or 0), key.name
            if key.kind == "budget":
                assert cost < times * budget + PARALLEL * most, (key.name, cost)
                if any(answer.code == "insufficient_quota" for answer in mine):
                    assert cost >= budget, (key.name, cost)
