"""The ledger as a sink of usage records."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING

import sqlalchemy as sa

from azure_openai_proxy.accounting.record import batch_of
from azure_openai_proxy.errors import SettingsError

from . import state
from .database import BadURL, Unusable, parse
from .writer import Writer

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Sequence

    from azure_openai_proxy.accounting.record import CallRecord
    from azure_openai_proxy.accounting.sink import LiveState
    from azure_openai_proxy.config.settings import Settings

    from .database import Database

__all__ = ["Ledger", "open_sink"]

logger = logging.getLogger(__name__)

_status = attrgetter("status")
FIRST_READING = 3.5
"""Seconds that the start waits for the first attempt to read the database."""


class Ledger:
    """Gives records to the writer."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._followed = False

    @property
    def lost_rows(self) -> int:
        return self._writer.lost

    def record(self, calls: Sequence[CallRecord]) -> None:
        calls = batch_of(calls)
        if 401 in map(_status, calls.samples):  # clients without a key must not fill the database
            calls = [call for call in calls if call.status != 401]
        if calls:
            self._writer.put(calls)

    def follow(self, receive: Callable[[state.LedgerState], None]) -> None:
        """Pass the keys and sums of the database to `receive`, on the event loop. To be called before `start`, in the event loop."""
        loop = asyncio.get_running_loop()

        def pass_on(found: state.LedgerState) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(receive, found)

        self._writer.follow(pass_on)
        self._followed = True

    async def spent(self, name: str, first: dt.date, last: dt.date) -> float | None:
        """The cost of a client's calls of these days, in USD; None if the database cannot be read."""
        return await asyncio.to_thread(self._read_spent, name, first, last)

    def _read_spent(self, name: str, first: dt.date, last: dt.date) -> float | None:
        try:
            with self._database.connect("read") as connection, connection.begin():
                return state.spent(connection, name, first, last)
        except (Unusable, sa.exc.SQLAlchemyError) as error:
            logger.warning("The ledger cannot be read: %s: %s", self._database, self._database.describe(error))
            return None

    async def start(self, live: Callable[[], LiveState]) -> None:  # noqa: ARG002 - of the interface
        """Start the writer. A server that cannot be reached delays this only if the ledger is followed, for a few seconds.

        Raises:
            SettingsError: the file cannot be used.
        """
        try:
            await asyncio.to_thread(self._database.check)
        except Unusable as error:
            raise SettingsError(f"azure_openai_ledger: {error}") from None
        self._writer.start()
        if self._followed:
            await asyncio.to_thread(self._writer.tried.wait, FIRST_READING)

    def reopen(self) -> None:
        """Nothing to reopen: a database is not rotated."""

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.close)


def open_sink(settings: Settings) -> Ledger:
    """Return the ledger of `settings.ledger`.

    Raises:
        SettingsError: the URL is invalid, or its driver is missing.
    """
    try:
        database = parse(settings.ledger)
    except BadURL as error:
        raise SettingsError(f"azure_openai_ledger: {error}") from None
    return Ledger(database, Writer(database))
