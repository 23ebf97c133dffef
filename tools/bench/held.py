"""Many concurrent paced streams on one process, followed by an idle time: lost chunks, delays and memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .session import Case

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .session import Bench, Row
    from .targets import Target

__all__ = ["rows"]

GAP = 0.2  # seconds between two chunks of one stream
SPREAD = 0.01  # seconds between the starts of two streams
IDLE = 10.0  # seconds of idle time


def rows(bench: Bench, targets: Sequence[Target], seconds: float, *, streams: int = 1000, idle: float = IDLE) -> list[Row]:
    """One row for each target, with a new process. `seconds` is how long all streams are open."""
    return [_row(bench, target, seconds, streams, idle) for target in targets]


def _row(bench: Bench, target: Target, seconds: float, streams: int, idle: float) -> Row:
    chunks = round((seconds + streams * SPREAD) / GAP)
    running = bench.start(target)
    bench.run(Case("warm-up", {"kind": "chat", "clients": 1}), running, 0.3)
    before = running.cost().memory
    case = Case("", {"kind": "stream", "clients": streams, "chunks": chunks, "gap": GAP, "spread": SPREAD, "seconds": 0}, "chunks")
    seen = bench.run(case, running, 0)
    if running.process:
        time.sleep(idle)
    after = running.cost()
    running.stop()
    row: Row = {
        "target": target.name,
        "streams": streams,
        "seconds": seen["seconds"],
        "chunks": seen["chunks"],
        "failed or lost": seen["failed"] + seen["lost"],
        "delay p50 ms": seen.get("delay_p50", 0.0) * 1e3,
        "p99 ms": seen.get("delay_p99", 0.0) * 1e3,
        "longest ms": seen.get("delay_max", 0.0) * 1e3,
        "load's core busy": seen["busy"],
    }
    if running.process:
        row |= {"CPU µs each": seen["cpu"] * 1e6, "MB before": before, "MB at the peak": after.peak, "MB afterwards": after.memory}
    return row
