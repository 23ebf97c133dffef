"""The time limit of replies for which a request waits."""

from __future__ import annotations

import asyncio
import time

import pytest

from azure_openai_proxy.accounting.shared import deadlines as module
from azure_openai_proxy.accounting.shared.deadlines import Deadlines


@pytest.fixture(autouse=True)
def _real(monkeypatch: pytest.MonkeyPatch, _patience: None) -> None:
    monkeypatch.setattr(module, "REPLY_TIMEOUT", 0.05)


class Loop:
    """An event loop whose time is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: object, *_: object) -> None:
        self.timers.append((when, callback))


class Clocked:
    """Futures of a loop whose time is set, and their deadlines."""

    def __init__(self) -> None:
        self.loop, self.deadlines = Loop(), Deadlines()

    def add(self) -> asyncio.Future[int]:
        loop = self.loop

        class Future(asyncio.Future[int]):
            def get_loop(self) -> asyncio.AbstractEventLoop:
                return loop  # type: ignore[return-value]

        future = Future(loop=asyncio.get_running_loop())
        self.deadlines.add(future)
        return future

    def go(self, now: float) -> None:
        """Run the timer that is set, at this time."""
        self.loop.now = now
        self.loop.timers.pop()
        assert not self.loop.timers
        self.deadlines._check(self.loop)  # type: ignore[arg-type]


@pytest.fixture
def clocked() -> Clocked:
    return Clocked()


async def test_each_future_has_the_same_time(clocked: Clocked) -> None:
    """A future fails 50 ms after it was added, with one timer for all; a done one is left alone."""
    first = clocked.add()
    clocked.loop.now += 0.02
    answered, last = clocked.add(), clocked.add()
    assert [pytest.approx(100.05)] == [when for when, _ in clocked.loop.timers]
    answered.set_result(1)
    clocked.go(100.051)
    assert isinstance(first.exception(), TimeoutError)
    assert not last.done()
    assert [pytest.approx(100.07)] == [when for when, _ in clocked.loop.timers]
    clocked.go(100.071)
    assert isinstance(last.exception(), TimeoutError)
    assert 1 == answered.result()
    assert not clocked.loop.timers
    clocked.add()
    assert clocked.loop.timers


async def test_a_loop_that_was_busy(clocked: Clocked) -> None:
    """Time in which the event loop was blocked does not count as the server's: replies get another 50 ms."""
    first = clocked.add()
    clocked.loop.now += 0.04
    second = clocked.add()
    clocked.go(100.08)
    assert not first.done()
    assert not second.done()
    assert [pytest.approx(100.09)] == [when for when, _ in clocked.loop.timers]
    clocked.go(100.091)
    assert isinstance(second.exception(), TimeoutError)
    assert not first.done()
    clocked.go(100.131)
    assert isinstance(first.exception(), TimeoutError)


async def test_a_real_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A future without a reply fails, and one whose reply came while the loop was blocked has it."""
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    asked = loop.create_future()
    deadlines.add(asked)
    loop.call_soon(time.sleep, 0.1)
    loop.call_later(module.REPLY_TIMEOUT, lambda: loop.call_soon(asked.set_result, 1))
    assert 1 == await asked
    monkeypatch.setattr(module, "LOOP_LATENESS", 20.0)
    unanswered = loop.create_future()
    deadlines.add(unanswered)
    with pytest.raises(TimeoutError):
        await unanswered
