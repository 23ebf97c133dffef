"""The cost of a small chat with many open streams, mapped models or backends, which should be constant.

Each configuration is measured in turns with the smallest one and compared with it, because other load of the machine affects both.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from typing import TYPE_CHECKING

from .session import Case
from .targets import ours

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .session import Bench, Row
    from .targets import Running

__all__ = ["rows"]

CHAT = Case("small chat", {"kind": "chat", "clients": 16})
SPREAD = 0.004  # seconds between the starts of two streams
FILES = 2  # file descriptors per stream
SPARE = 500  # file descriptors for other purposes


def rows(
    bench: Bench,
    turns: int,
    seconds: float,
    *,
    streams: Sequence[int] = (10, 100, 1000, 5000),
    models: Sequence[int] = (1, 100, 1000),
    backends: Sequence[int] = (1, 10, 50),
) -> list[Row]:
    return [*_streams(bench, streams, turns, seconds), *_settings(bench, models, backends, turns, seconds)]


def _streams(bench: Bench, counts: Sequence[int], turns: int, seconds: float) -> Iterator[Row]:
    """Compare two equal processes, one of them with open, silent streams."""
    idle, full = bench.start(ours()), bench.start(ours())
    _turns(bench, [idle, full], 1, seconds)
    for count in counts:
        if count * FILES + SPARE > bench.files:
            _say(f"{count:,} streams are not measured: the limit is {bench.files:,} open files (ulimit -n)")
            continue
        with bench.hold(full, count, SPREAD) as seen:
            costs = _turns(bench, [idle, full], turns, seconds)
            memory = full.cost().memory
        yield _row(f"{count:,} open streams", costs[1], costs[0]) | {"MB": memory, "failed or lost": count - seen["held"] + seen["lost"]}
    idle.stop()
    full.stop()


def _settings(bench: Bench, models: Sequence[int], backends: Sequence[int], turns: int, seconds: float) -> Iterator[Row]:
    for what, counts in (("models", models), ("backends", backends)):
        running = [bench.start(ours(models=count) if what == "models" else ours(backends=count)) for count in counts]
        _turns(bench, running, 1, seconds)
        costs = _turns(bench, running, turns, seconds)
        for count, one, cost in zip(counts, running, costs, strict=True):
            lost = sum(run["failed"] for run in cost)
            yield _row(f"{count:,} {what if count > 1 else what[:-1]}", cost, costs[0]) | {"MB": one.cost().memory, "failed or lost": lost}
            one.stop()


def _turns(bench: Bench, running: Sequence[Running], turns: int, seconds: float) -> list[list[dict[str, float]]]:
    runs = [[bench.run(CHAT, one, seconds) for one in (running if turn % 2 else reversed(running))] for turn in range(turns)]
    return [list(each) for each in zip(*(run if turn % 2 else run[::-1] for turn, run in enumerate(runs)), strict=True)]


def _row(name: str, costs: list[dict[str, float]], fewest: list[dict[str, float]]) -> Row:
    pairs = itertools.zip_longest(costs, fewest)
    return {
        "small chat with": name,
        "per second": statistics.median(run["rate"] for run in costs),
        "CPU µs each": statistics.median(run["cpu"] for run in costs) * 1e6,
        "of the fewest": statistics.median(run["cpu"] / other["cpu"] for run, other in pairs),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
