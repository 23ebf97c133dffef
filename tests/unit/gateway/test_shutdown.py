"""A graceful stop, as far as it needs no process of its own; the rest is seen end to end."""

import asyncio
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import ctx, http
from mitmproxy.test import tflow

from azure_openai_proxy.gateway import shutdown as shutdown_module
from azure_openai_proxy.gateway.shutdown import Shutdown
from azure_openai_proxy.mitmproxy_patches import connections


class Master:
    """The calls of mitmproxy's master."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.options: dict[str, Any] = {}
        self.closing = False

    def shutdown(self) -> None:
        self.ended.set()


@pytest.fixture
async def master(monkeypatch: pytest.MonkeyPatch) -> Master:
    master = Master()
    monkeypatch.setattr(ctx, "master", master, raising=False)
    monkeypatch.setattr(ctx, "options", SimpleNamespace(update=master.options.update), raising=False)
    monkeypatch.setattr(connections, "unsent", lambda: False)
    monkeypatch.setattr(connections, "closing", lambda: master.closing)
    monkeypatch.setattr(shutdown_module, "LOOK", 0.001)
    return master


def running(*, live: bool) -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.live = live
    return flow


async def test_nothing_runs(master: Master) -> None:
    """The ports are closed, and that was all."""
    ending = Shutdown([running(live=False)], lambda: 30.0)
    ending.begin()
    await master.ended.wait()
    assert (True, {"server": False}) == (ending.began, master.options)


async def test_what_runs_may_finish(master: Master) -> None:
    """mitmproxy goes on until the last answer has left."""
    flow = running(live=True)
    Shutdown([flow], lambda: 30.0).begin()
    await asyncio.sleep(0)
    assert not master.ended.is_set()
    flow.live = False
    await master.ended.wait()


async def test_ports_are_closed_first(master: Master) -> None:
    """Closing the ports may take a moment."""
    master.closing = True
    Shutdown([], lambda: 30.0).begin()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(master.ended.wait(), 10 * shutdown_module.LOOK)
    master.closing = False
    await master.ended.wait()


async def test_within_a_limit(master: Master, caplog: pytest.LogCaptureFixture) -> None:
    """Responses that take too long are cut off, and a log line says so."""
    Shutdown([running(live=True)], lambda: 0.0).begin()
    await master.ended.wait()
    assert "cut off after 0 s: 1" in caplog.text


async def test_a_second_time_is_at_once(master: Master) -> None:
    """Who insists is obeyed."""
    ending = Shutdown([running(live=True)], lambda: 30.0)
    ending.begin()
    ending.begin()
    assert master.ended.is_set()


@pytest.mark.parametrize("look", ["unsent", "closing"])
async def test_a_look_that_fails(look: str, master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    """If mitmproxy's internals differ, the proxy waits for requests only."""

    def fails() -> bool:
        raise AttributeError

    monkeypatch.setattr(connections, look, fails)
    flow = running(live=True)
    Shutdown([flow], lambda: 30.0).begin()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(master.ended.wait(), 10 * shutdown_module.LOOK)
    flow.live = False
    await master.ended.wait()


async def test_whatever_fails(master: Master, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The process ends at once if the ports cannot be closed, and the log has the reason."""
    monkeypatch.setattr(ctx, "options", None)
    Shutdown([running(live=True)], lambda: 30.0).begin()
    await master.ended.wait()
    assert "stops at once" in caplog.text


@pytest.fixture
def sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
async def test_arm(master: Master) -> None:
    """The proxy handles SIGTERM instead of the previous handler; each signal counts once."""
    others: list[int] = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, others.append, 1)
    flow = running(live=True)
    ending = Shutdown([flow], lambda: 30.0)
    ending.arm()
    signal.raise_signal(signal.SIGTERM)
    while not ending.began:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)  # the loop reads its socket in one of these turns
    assert ([], False) == (others, master.ended.is_set())
    signal.raise_signal(signal.SIGTERM)
    await master.ended.wait()
    flow.live = False


@pytest.mark.usefixtures("sigterm")
async def test_in_the_moment_before(master: Master) -> None:
    """A signal that came to mitmproxy a moment ago is not lost on its way."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, int)
    signal.raise_signal(signal.SIGTERM)
    Shutdown([], lambda: 0.0).arm()
    async with asyncio.timeout(10):
        await master.ended.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python says that the socket is full
@pytest.mark.usefixtures("sigterm")
async def test_in_a_busy_moment(master: Master) -> None:
    """A signal is not lost among hundreds of other calls that the loop has not yet seen."""
    loop = asyncio.get_running_loop()
    Shutdown([], lambda: 0.0).arm()
    for _ in range(10_000):
        loop.call_soon_threadsafe(int)
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        await master.ended.wait()


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
@pytest.mark.usefixtures("sigterm")
async def test_no_signals(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, or in another thread, the signals are handled by the program itself."""
    asked: list[int] = []

    def add(number: int, _: object) -> None:
        asked.append(number)
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", add)
    before = signal.getsignal(signal.SIGTERM)
    Shutdown([], lambda: 0.0).arm()
    assert ([signal.SIGTERM], before) == (asked, signal.getsignal(signal.SIGTERM))
