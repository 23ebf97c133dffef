"""The cost of a small chat with one client key and with 1,000 in 100 groups, without and with Redis: the number should make no difference.

All clients and groups have all limits and a budget, which no request reaches. Each turn has the same number of requests and connections,
and in each turn every client sends one request. With turns of a certain time, a slow machine asked only the first clients, in the warm-up
too, and the others were seen for the first time in the measurement.
"""

from __future__ import annotations

import json
import statistics
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .jobs import client_keys
from .session import Case
from .targets import ours

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .session import Bench, Row
    from .targets import Running, Target

__all__ = ["rows"]

CONNECTIONS = 32
PER_GROUP = 10
WARM = 3
"""Turns before the first one that counts."""
_PLENTY = {"requests_per_minute": 10**9, "tokens_per_minute": 10**11, "max_parallel": 10**6, "budget_usd": 10**9}


def rows(bench: Bench, turns: int, *, clients: int = 1000) -> list[Row]:
    """A row for one and for `clients` clients, and the same with Redis if it is installed."""
    from support import redis  # noqa: PLC0415 - `session` makes it importable

    with ExitStack() as stack:
        urls = [""]
        if reason := redis.missing():
            print(f"Redis is not measured: {reason}", file=sys.stderr, flush=True)
        else:
            urls.append(stack.enter_context(redis.RedisServer()).url)
        made = [(count, bench.start(_target(count, url))) for url in urls for count in (1, clients)]
        runs: dict[str, list[dict[str, float]]] = {}
        for turn in range(-WARM, turns):
            for count, one in made if turn % 2 else reversed(made):
                seen = bench.run(_case(count, clients), one, 0)
                if seen["failed"]:
                    print(f"{one.target.name} does not serve well: {seen}", file=sys.stderr, flush=True)
                if turn >= 0:
                    runs.setdefault(one.target.name, []).append(seen)
            print(f"turn {turn + 1} of {turns}" if turn >= 0 else "warm-up", file=sys.stderr, flush=True)
        found = [_row(one, runs, made[index - index % 2][1], made[index % 2][1]) for index, (_, one) in enumerate(made)]
        for _, one in made:
            one.stop()
        return found


def _case(count: int, requests: int) -> Case:
    return Case("small chat", {"kind": "chat", "clients": CONNECTIONS, "keys": count, "requests": requests})


def _target(count: int, redis: str) -> Target:
    """This proxy with `count` clients in groups of ten. The price of the model is known by its deployment's name."""
    groups = -(-count // PER_GROUP)
    settings = {
        "azure_openai_clients": [
            {"name": f"client-{number}", "key": key, "group": f"group-{number % groups}", **_PLENTY}
            for number, key in enumerate(client_keys(count))
        ],
        "azure_openai_client_groups": [{"name": f"group-{number}", **_PLENTY} for number in range(groups)],
        "azure_openai_model_mapper": {"gpt-4o": "gpt-4o"},
        **({"azure_openai_shared_state": redis} if redis else {}),
    }
    plain = ours(f"{count:,} client{'s' * (count > 1)}{', Redis' * bool(redis)}")
    return plain._replace(variables=(*plain.variables, ("AZURE_OPENAI_CONFIG", "{config}")), config=json.dumps(settings))


def _row(one: Running, runs: Mapping[str, list[dict[str, float]]], first: Running, without: Running) -> Row:
    """`first`: the one with one client, Redis alike; `without`: the one with as many clients, and without Redis."""
    mine = runs[one.target.name]

    def against(other: Running) -> float:
        return statistics.median(run["cpu"] / other["cpu"] for run, other in zip(mine, runs[other.target.name], strict=True))

    return {
        "small chat with": one.target.name,
        "per second": statistics.median(run["rate"] for run in mine),
        "CPU µs each": statistics.median(run["cpu"] for run in mine) * 1e6,
        "of 1 client": against(first),
        "of the same without Redis": against(without),
        "MB": one.cost().memory,
        "failed or lost": sum(run["failed"] for run in mine),
    }
