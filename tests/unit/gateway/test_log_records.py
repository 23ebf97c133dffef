"""Log records that a terminal can show."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

import pytest
from mitmproxy import log

from azure_openai_proxy.gateway import log_records

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("tests.of.log.records")


def fail(text: str) -> None:
    try:
        int(text, base=37)
    except ValueError as error:
        error.args = (text,)
        logger.exception("failed")


@pytest.fixture
def shown() -> Iterator[io.StringIO]:
    """What mitmproxy's own formatter makes of the records."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log.MitmFormatter(colorize=False))
    logger.addHandler(handler)
    log_records.install()
    yield stream
    log_records.remove()
    logger.removeHandler(handler)


@pytest.mark.parametrize("text", ["\x1b]0;pwned\x07", "\x1b[2J", "\x9b31m", "\r[00:00:00.000] forged", "\u202eevil", "\ud800", "\x7f"])
def test_control_characters_are_shown(text: str, shown: io.StringIO) -> None:
    """In the template, in an argument, and in the text of an exception, for every logger."""
    logger.warning("a %s name", text)
    logger.warning(f"another {text} name")  # noqa: G004 - as mitmproxy logs
    fail(text)
    assert repr(text)[1:-1] in shown.getvalue()
    assert "Traceback (most recent call last):" in shown.getvalue()
    assert text not in shown.getvalue()
    assert not {"\x1b", "\x9b", "\r", "\x07", "\u202e", "\ud800", "\x7f"} & set(shown.getvalue())


def test_a_line_break_makes_no_other_record(shown: io.StringIO) -> None:
    """The lines after it are indented."""
    logger.warning("SOCKS5 name: %s", "x\n[00:00:00.000] forged")
    assert 1 == len([line for line in shown.getvalue().splitlines() if line.startswith("[")])
    assert "\n    [00:00:00.000] forged" in shown.getvalue()


def test_what_is_harmless_stays(shown: io.StringIO) -> None:
    """Text of any language, and an exception that formatters write themselves."""
    logger.warning("gpt-4o → prod · é 👨‍👩‍👧 שלום")
    fail("plain")
    record = logger.makeRecord("x", logging.ERROR, "f", 1, "m", (), (ValueError, ValueError("plain"), None))
    assert "gpt-4o → prod · é 👨‍👩‍👧 שלום\n" in shown.getvalue()
    assert "ValueError: plain" in shown.getvalue()
    assert record.exc_info


def test_it_comes_and_goes() -> None:
    """The factory of another package stays."""
    before = logging.getLogRecordFactory()
    log_records.install()
    assert logging.getLogRecordFactory() is log_records.Record
    log_records.remove()
    assert logging.getLogRecordFactory() is before

    def other(*args: object) -> logging.LogRecord:
        return before(*args)

    logging.setLogRecordFactory(other)
    try:
        log_records.install()
        log_records.remove()
        assert logging.getLogRecordFactory() is other
    finally:
        logging.setLogRecordFactory(before)
