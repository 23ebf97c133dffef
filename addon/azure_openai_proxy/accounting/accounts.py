"""All sinks that are configured, as one object. Without a sink it is inactive, and no request is measured."""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.errors import SettingsError

from .meters import Meters
from .prices import Prices
from .record import batch_of
from .sink import NOTHING_LIVE, Followed, Tracing

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Sequence

    from azure_openai_proxy.config.prices import PriceFile
    from azure_openai_proxy.config.settings import Settings

    from .cost import Tariff
    from .ledger.state import LedgerState
    from .meter import Meter
    from .record import CallRecord
    from .sink import LiveState, Sink

__all__ = ["Accounts", "SinkKind"]

logger = logging.getLogger(__name__)

CLOSE_WITHIN = 10.0
"""Seconds for a sink to write its last records. Each sink has a smaller bound of its own."""
MOST_EARLY = 10_000
"""Records that are kept for sinks that are not open yet."""


class SinkKind(NamedTuple):
    """A kind of sink: the attribute of `Settings` that turns it on, and the module of this subpackage with `open_sink(settings)`."""

    setting: str
    module: str
    also: tuple[str, ...] = ()  # other attributes of `Settings` that it depends on


SINKS: tuple[SinkKind, ...] = (
    SinkKind("access_log", "access_log"),
    SinkKind("metrics", "metrics", also=("metrics_series", "semconv")),
    SinkKind("otlp", "otlp", also=("semconv", "otlp_content", "metrics_series")),
    SinkKind("ledger", "ledger.sink"),
)


class _Open(NamedTuple):
    sink: Sink
    values: tuple[object, ...]  # the settings it was opened with


class Accounts:
    """Gives each record to the sinks, and opens and closes the sinks as the settings say."""

    def __init__(
        self,
        live: Callable[[], LiveState] = lambda: NOTHING_LIVE,
        kinds: Sequence[SinkKind] = SINKS,
        of_flows: Callable[[], Iterable[Meter | None]] = tuple,
    ) -> None:
        self.sinks: list[Sink] = []
        self.meters = Meters(self.record, self.tariff, of_flows)
        self.prices = Prices()
        self.price_file: PriceFile | None = None  # of the current settings
        self.receive_ledger: Callable[[LedgerState], None] | None = None  # gets the keys and sums of the ledger
        self._live = live
        self._kinds = kinds
        self._open: dict[SinkKind, _Open] = {}
        self._early: list[CallRecord] | None = None  # records of the start, for the sinks that open after them
        self._changing = asyncio.Lock()

    @property
    def active(self) -> bool:
        """Whether anything receives records."""
        return bool(self.sinks) or self._early is not None

    def differs(self, settings: Settings) -> bool:
        """Whether `settings` have other sinks than those that are open."""
        return any(_values(kind, settings) != (self._open[kind].values if kind in self._open else None) for kind in self._kinds)

    async def start(self, settings: Settings) -> None:
        """Open the configured sinks. Each gets the records of requests that ended before.

        Raises:
            SettingsError: a sink cannot work.
        """
        self._early = []
        try:
            for kind in self._kinds:
                await self._change(kind, settings)
        finally:
            self._early = None

    async def follow(self, settings: Callable[[], Settings], text: Callable[[SettingsError], str] = str) -> None:
        """Apply changed settings. A sink that cannot be opened is logged; the previous one stays, unless both need the same address.

        `text` returns the line of the log for an error.
        """
        async with self._changing:
            for kind in self._kinds:
                try:
                    await self._change(kind, settings())
                except SettingsError as error:
                    logger.error("%s", text(error))  # noqa: TRY400 - no traceback for a user's error

    async def _change(self, kind: SinkKind, settings: Settings) -> None:
        values = _values(kind, settings)
        before = self._open.get(kind)
        if values == (before.values if before else None):
            return
        if before and values and before.values[0] == values[0]:  # the new sink needs the same file or address
            await self._close(kind)
        sink: Sink | None = None
        if values:
            module = importlib.import_module(f".{kind.module}", __package__)
            sink = module.open_sink(settings)
            if self.receive_ledger and isinstance(sink, Followed):
                sink.follow(self.receive_ledger)
            await sink.start(self._state)
        if kind in self._open:
            await self._close(kind)
        if values and sink:
            self._open[kind] = _Open(sink, values)
            self._opened([one.sink for one in self._open.values()])
            if self._early:
                self._give(self._early, sink)

    async def _close(self, kind: SinkKind) -> None:
        closed = self._open.pop(kind)
        self._opened([one.sink for one in self._open.values()])
        await closed.sink.close()

    def _opened(self, sinks: list[Sink]) -> None:
        """Use these sinks. With one that exports traces, the traces of the clients are continued at Azure."""
        self.sinks = sinks
        self.meters.tracing = next((sink for sink in sinks if isinstance(sink, Tracing)), None)

    async def spent(self, client: str, first: dt.date, last: dt.date) -> float | None:
        """The cost of a client's calls of these days in USD, by the ledger; None without one, or while it is down."""
        ledger = next((sink for sink in self.sinks if isinstance(sink, Followed)), None)
        return await ledger.spent(client, first, last) if ledger else None

    def tariff(self, call: CallRecord) -> Tariff | None:
        """The prices of calls that are of the same kind as `call`; None without a price."""
        return self.prices.of_call(call, self.price_file)

    def _state(self) -> LiveState:
        return self._live()._replace(ledger_lost_rows=sum(getattr(sink, "lost_rows", 0) for sink in self.sinks))

    def record(self, calls: Sequence[CallRecord]) -> None:
        """Give records to each sink. A sink that fails does not stop the others."""
        calls = batch_of(calls)
        for sink in self.sinks:
            self._give(calls, sink)
        if self._early is not None:
            self._early.extend(calls[: MOST_EARLY - len(self._early)])

    @staticmethod
    def _give(calls: Sequence[CallRecord], sink: Sink) -> None:
        try:
            sink.record(calls)
        except Exception:
            logger.exception("Usage records could not be stored")

    def reopen(self) -> None:
        for sink in self.sinks:
            sink.reopen()

    async def close(self) -> None:
        """Deliver the records of all requests, and close the sinks."""
        self.meters.flush()
        sinks, self.sinks = self.sinks, []
        self._open.clear()
        await asyncio.gather(*map(_close, sinks))


async def _close(sink: Sink) -> None:
    try:
        async with asyncio.timeout(CLOSE_WITHIN):
            await sink.close()
    except TimeoutError:
        logger.warning("%s was not closed within %.0f seconds: its last records may be missing", type(sink).__name__, CLOSE_WITHIN)
    except Exception:
        logger.exception("%s could not be closed: its last records may be missing", type(sink).__name__)


def _values(kind: SinkKind, settings: Settings) -> tuple[object, ...] | None:
    """The settings that the sink depends on; None if it is off."""
    found = getattr(settings, kind.setting)
    return (found, *(getattr(settings, name) for name in kind.also)) if found else None
