"""The ledger as a sink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.accounts import Accounts
from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.ledger.sink import Ledger, open_sink
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import SettingsError
from support.ledger import call, rows

if TYPE_CHECKING:
    from pathlib import Path


async def test_records_become_rows(url: str) -> None:
    """Each record becomes a row, except those of clients without a valid key."""
    accounts = Accounts()
    await accounts.start(Settings(ledger=url))
    for status in (200, 401, 404, None):
        accounts.record([call(status=status)])
    accounts.reopen()
    (sink,) = accounts.sinks
    await accounts.close()
    assert [200, 404, None] == [each["status"] for each in rows(parse(url))]
    assert isinstance(sink, Ledger)
    assert 0 == sink.lost_rows


async def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """A file that cannot be opened stops the start with one line that names the setting and the file."""
    sink = open_sink(Settings(ledger=f"sqlite:///{tmp_path}/missing/usage.db"))
    with pytest.raises(SettingsError, match=r"azure_openai_ledger: unable to open database file: .*/missing/usage\.db"):
        await sink.start(lambda: pytest.fail("not needed"))


def test_a_bad_url() -> None:
    """An invalid URL is an error of the setting, without the URL."""
    with pytest.raises(SettingsError, match="azure_openai_ledger: unknown database") as caught:
        open_sink(Settings(ledger="oracle://scott:tiger@h/d"))
    assert "tiger" not in str(caught.value)


def test_settings_do_not_show_a_password() -> None:
    """The settings in a traceback do not contain the URL."""
    assert "tiger" not in repr(Settings(ledger="postgresql://scott:tiger@h/d"))
