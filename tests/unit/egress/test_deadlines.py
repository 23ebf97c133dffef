"""One timer for the deadlines of several requests."""

from __future__ import annotations

import asyncio

from azure_openai_proxy.egress.deadlines import Deadlines


class Request:
    """A request whose deadline is now."""

    def __init__(self, shortest_timeout: float) -> None:
        self.shortest_timeout = shortest_timeout
        self.deadline: float | None = asyncio.get_running_loop().time()
        self.late = asyncio.Event()

    def too_late(self) -> None:
        self.deadline = None
        self.late.set()


async def test_each_late_request_is_told() -> None:
    """The timer runs for the shortest timeout, and again for requests that are still watched."""
    deadlines, patient, hasty = Deadlines(), Request(600.0), Request(0.002)
    deadlines.watch(patient)
    deadlines.watch(hasty)
    deadlines.watch(Request(600.0))
    await asyncio.gather(patient.late.wait(), hasty.late.wait())
    hasty.late.clear()
    hasty.deadline = 0.0
    await hasty.late.wait()
    for request in list(deadlines._watched):
        deadlines.forget(request)
    assert deadlines._timer is None


async def test_a_request_without_a_deadline_is_not_late() -> None:
    """A request that waits for its client has no deadline."""
    deadlines, waiting, other = Deadlines(), Request(0.002), Request(0.002)
    waiting.deadline = None
    deadlines.watch(waiting)
    deadlines.watch(other)
    await other.late.wait()
    assert not waiting.late.is_set()
    deadlines.forget(waiting)
    deadlines.forget(other)
