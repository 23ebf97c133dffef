"""The sinks as one object."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting import accounts as accounts_module
from azure_openai_proxy.accounting.accounts import Accounts, SinkKind
from azure_openai_proxy.accounting.record import NO_TOKENS, CallRecord, Tokens
from azure_openai_proxy.accounting.sink import NOTHING_LIVE, LiveState
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CALL = CallRecord(time=0.0, request_id="r", trace_id="t")


class Kept:
    """A sink that keeps records."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.calls: list[CallRecord] = []
        self.told: list[str] = []

    def record(self, calls: Sequence[CallRecord]) -> None:
        if self.fails:
            raise RuntimeError
        self.calls.extend(calls)

    async def start(self, live: Callable[[], LiveState]) -> None:
        assert live() == NOTHING_LIVE
        self.told.append("start")

    def reopen(self) -> None:
        self.told.append("reopen")

    async def close(self) -> None:
        self.told.append("close")


async def test_a_configured_sink_is_opened_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of a sink is imported if its setting is on, and only then."""
    module, sink = ModuleType("azure_openai_proxy.accounting.kept"), Kept()
    module.__dict__["open_sink"] = lambda _settings: sink
    monkeypatch.setitem(sys.modules, module.__name__, module)
    accounts = Accounts(kinds=(SinkKind("debug_headers", "kept"), SinkKind("discover_models", "absent")))
    assert [] == accounts.sinks
    await accounts.start(Settings(debug_headers=True))
    assert accounts.active
    accounts.record([CALL])
    accounts.reopen()
    await accounts.close()
    assert [CALL] == sink.calls
    assert ["start", "reopen", "close"] == sink.told
    assert [] == accounts.sinks


async def test_records_during_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that takes long to open gets the requests that end meanwhile, up to a bound, and each sink gets each of them once."""
    opening, opened = asyncio.Event(), asyncio.Event()

    class Late(Kept):
        async def start(self, live: Callable[[], LiveState]) -> None:
            await super().start(live)
            opening.set()
            await opened.wait()

    monkeypatch.setattr(accounts_module, "MOST_EARLY", 2)
    first, late = Kept(), Late()
    sinks = [late, first]
    module = ModuleType("azure_openai_proxy.accounting.kept")
    module.__dict__["open_sink"] = lambda _settings: sinks.pop()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    accounts = Accounts(kinds=(SinkKind("debug_headers", "kept"), SinkKind("discover_models", "kept")))
    starting = asyncio.create_task(accounts.start(Settings(debug_headers=True, discover_models=True)))
    await opening.wait()
    for _ in range(3):
        accounts.record([CALL])
    opened.set()
    await starting
    accounts.record([CALL])
    assert ([CALL] * 4, [CALL] * 3) == (first.calls, late.calls)
    assert accounts.active
    await accounts.close()
    assert not accounts.active


async def test_rows_that_the_ledger_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live state that sinks see has the number of rows that a sink lost, if one of them counts such rows."""

    class Ledger(Kept):
        lost_rows = 3

    sinks = [Kept(), Ledger()]
    module = ModuleType("azure_openai_proxy.accounting.kept")
    module.__dict__["open_sink"] = lambda _settings: sinks.pop()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    accounts = Accounts(lambda: LiveState(active_requests=7), (SinkKind("repair", "kept"), SinkKind("normalize", "kept")))
    states: list[LiveState] = []

    async def start(_: Kept, live: Callable[[], LiveState]) -> None:
        states.append(live())

    monkeypatch.setattr(Kept, "start", start)
    await accounts.start(Settings())
    assert [LiveState(7), LiveState(7, ledger_lost_rows=3)] == states
    await accounts.close()


def test_a_failing_sink_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Each sink gets every record, and the failure is logged."""
    accounts, failing, sink = Accounts(), Kept(fails=True), Kept()
    accounts.sinks = [failing, sink]
    accounts.record([CALL])
    assert [CALL] == sink.calls
    assert "could not be stored" in caplog.text


@pytest.mark.parametrize(
    ("status", "incomplete", "failed"),
    [(200, None, False), (200, "client", False), (200, "upstream", True), (429, None, True), (None, "client", False)],
)
def test_failed(status: int | None, incomplete: str | None, failed: bool) -> None:
    """A call failed with status 400 and above, or if the upstream ended the response early."""
    call = CallRecord(time=0.0, request_id="r", trace_id="t", status=status, incomplete=incomplete)  # type: ignore[arg-type]
    assert failed == call.failed


class Opened(Kept):
    """A sink that remembers the settings it was opened with."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    async def start(self, _: Callable[[], LiveState]) -> None:
        if self.settings.max_attempts > 9:
            raise SettingsError("ten is too many")
        self.told.append("start")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Opened]:
    """All sinks that were opened, of the kind that `max_attempts` turns on."""
    found: list[Opened] = []

    def open_sink(settings: Settings) -> Opened:
        found.append(Opened(settings))
        return found[-1]

    module = ModuleType("azure_openai_proxy.accounting.opened")
    module.__dict__["open_sink"] = open_sink
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


async def test_changed_settings(opened: list[Opened], caplog: pytest.LogCaptureFixture) -> None:
    """A changed sink replaces the previous one, an unchanged one stays, and one that cannot be opened leaves the previous one."""
    accounts = Accounts(kinds=(SinkKind("max_attempts", "opened", also=("repair",)),))
    current = Settings(max_attempts=1)
    await accounts.start(current)

    async def follow(**changes: object) -> list[int]:
        nonlocal current
        current = dataclasses.replace(current, **changes)  # type: ignore[arg-type]
        differs = accounts.differs(current)
        before = list(accounts.sinks)
        await accounts.follow(lambda: current)
        assert differs == (accounts.sinks != before or accounts.differs(current))
        return [opened.index(sink) for sink in accounts.sinks if isinstance(sink, Opened)]

    assert [0] == await follow(debug_headers=True)
    assert [1] == await follow(max_attempts=2)
    assert [2] == await follow(repair=False)
    assert [2] == await follow(max_attempts=10)
    assert [2] == await follow(max_attempts=2)
    assert [] == await follow(max_attempts=0)
    assert [4] == await follow(max_attempts=3)
    assert [["start", "close"], ["start", "close"], ["start", "close"], [], ["start"]] == [sink.told for sink in opened]
    assert "ten is too many" in caplog.text


async def test_the_cost_of_a_call() -> None:
    """It follows from the built-in prices."""
    record = dataclasses.replace(CALL, response_model="gpt-4o-2024-11-20")
    meters = Accounts().meters
    assert (meters.price(record, Tokens(input=1000, output=1000)) or 0) > 0
    assert meters.price(record, NO_TOKENS) is None


async def test_sinks_are_closed_at_the_same_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A sink that is slow or fails does not delay the others, and closing it has a bound."""
    monkeypatch.setattr("azure_openai_proxy.accounting.accounts.CLOSE_WITHIN", 0.05)
    second = asyncio.Event()

    class Waiting(Kept):
        async def close(self) -> None:
            await second.wait()
            await super().close()

    class Second(Kept):
        async def close(self) -> None:
            second.set()

    class Slow(Kept):
        async def close(self) -> None:
            await asyncio.Event().wait()

    class Broken(Kept):
        async def close(self) -> None:
            raise OSError

    accounts, waiting = Accounts(kinds=()), Waiting()
    accounts.sinks = [Slow(), Broken(), waiting, Second()]
    await accounts.close()
    assert ["close"] == waiting.told
    assert "Slow was not closed" in caplog.text
    assert "Broken could not be closed" in caplog.text
