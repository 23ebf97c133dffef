"""A graceful stop, as far as it needs no process of its own; the rest is seen end to end."""

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import ctx, http
from mitmproxy.test import tflow

from azure_openai_proxy import connections, stopping
from azure_openai_proxy.stopping import Stopping


class Master:
    """What is done to mitmproxy's."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.options: dict[str, Any] = {}

    def shutdown(self) -> None:
        self.ended.set()


@pytest.fixture
async def master(monkeypatch: pytest.MonkeyPatch) -> Master:
    master = Master()
    monkeypatch.setattr(ctx, "master", master, raising=False)
    monkeypatch.setattr(ctx, "options", SimpleNamespace(update=master.options.update), raising=False)
    monkeypatch.setattr(connections, "unsent", lambda: False)
    monkeypatch.setattr(stopping, "LOOK", 0.001)
    return master


def running(*, live: bool) -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.live = live
    return flow


async def test_nothing_runs(master: Master) -> None:
    """The ports are closed, and that was all."""
    ending = Stopping([running(live=False)], lambda: 30.0)
    ending.begin()
    await master.ended.wait()
    assert (True, {"server": False}) == (ending.began, master.options)


async def test_what_runs_may_finish(master: Master) -> None:
    """mitmproxy goes on until the last answer has left."""
    flow = running(live=True)
    Stopping([flow], lambda: 30.0).begin()
    await asyncio.sleep(0)
    assert not master.ended.is_set()
    flow.live = False
    await master.ended.wait()


async def test_within_a_limit(master: Master, caplog: pytest.LogCaptureFixture) -> None:
    """What takes too long is cut off, and that is said."""
    Stopping([running(live=True)], lambda: 0.0).begin()
    await master.ended.wait()
    assert "1 cut off" in caplog.text


async def test_a_second_time_is_at_once(master: Master) -> None:
    """Who insists is obeyed."""
    ending = Stopping([running(live=True)], lambda: 30.0)
    ending.begin()
    ending.begin()
    assert master.ended.is_set()


async def test_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM is ours, where there are signals."""
    taken: list[Any] = []
    loop = asyncio.get_running_loop()
    ending = Stopping([], lambda: 0.0)
    monkeypatch.setattr(loop, "add_signal_handler", lambda *what: taken.append(what))
    ending.arm()
    assert [(signal.SIGTERM, ending.begin)] == taken

    def none(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(loop, "add_signal_handler", none)
    ending.arm()
    assert not ending.began
