"""The cost of accounting: a small chat and a paced chunk with metrics, access log and ledger, and without them.

Two starts of the same program differ by several per cent, so several pairs of processes are started, and the median is reported. Turns are
short and alternate, so that other load of the machine affects both. Accounting writes its last rows after a turn, so the CPU time of a turn
is counted until the next turn of the same process.
"""

from __future__ import annotations

import statistics
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .session import Case
from .targets import accounting, ours

if TYPE_CHECKING:
    from .session import Bench, Row
    from .targets import Running

__all__ = ["rows"]

CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "small chat": ({"kind": "chat", "clients": 32}, "requests", 12),
    "paced chunk": ({"kind": "stream", "clients": 50, "seconds": 0, "gap": 0.02, "spread": 0.02}, "chunks", 3),
}
"""The job, its unit, and the pairs of turns for each pair of processes."""
PART = 1 / 3
"""Duration of a turn of small chats, as a part of a turn of other tables."""
CHUNKS = 67
"""Chunks of a paced stream, for each second of a turn of other tables. A client gets 50 of them a second, so its turn is a third longer."""


def rows(bench: Bench, starts: int, seconds: float) -> list[Row]:
    """A row for each case."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CASES}
    failed = dict.fromkeys(CASES, 0.0)
    chunks = {"chunks": max(2, round(CHUNKS * seconds))}
    for number in range(starts):
        pair = [bench.start(ours()), bench.start(accounting())]
        for name, (job, unit, count) in CASES.items():
            case = Case(name, job | chunks, unit)
            for one in pair:
                bench.run(case, one, seconds * PART)
            bench.settle()
            costs, lost = _turns(bench, case, pair, count, seconds * PART)
            off, on = map(statistics.median, zip(*costs, strict=True))
            found[name].append((off, on, statistics.median(with_it / without for without, with_it in costs)))
            failed[name] += lost
        for one in pair:
            one.stop()
        print(f"accounting: start {number + 1} of {starts}", file=sys.stderr, flush=True)
    return [_row(name, found[name], failed[name]) for name in CASES]


def _turns(bench: Bench, case: Case, pair: list[Running], count: int, seconds: float) -> tuple[list[tuple[float, ...]], float]:
    """Return the CPU time in µs of both processes for each pair of turns, and what failed or was lost."""
    readings: tuple[list[float], list[float]] = [], []  # before each turn
    done: tuple[list[float], list[float]] = [], []
    lost = 0.0
    for turn in range(count):
        for index in (0, 1) if turn % 2 else (1, 0):
            readings[index].append(pair[index].cost().cpu)
            seen = bench.run(case, pair[index], seconds)
            done[index].append(max(1.0, seen[case.unit]))
            lost += seen["failed"] + seen["lost"]
    bench.settle()
    costs: list[list[float]] = []
    for one, before, units in zip(pair, readings, done, strict=True):
        used = [later - earlier for earlier, later in pairwise([*before, one.cost().cpu])]
        costs.append([each / number * 1e6 for each, number in zip(used, units, strict=True)])
    return list(zip(*costs, strict=True)), lost


def _row(name: str, starts: list[tuple[float, float, float]], failed: float) -> Row:
    off, on, ratios = zip(*starts, strict=True)
    return {
        "accounting": name,
        "starts": len(starts),
        "CPU µs each, off": statistics.median(off),
        "on": statistics.median(on),
        "on, of off": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "failed or lost": failed,
    }
