"""The access log's lines and its file. A real mitmdump writes one in tests/e2e/test_access_log.py."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.accounting import access_log
from azure_openai_proxy.accounting.access_log import FIELDS, AccessLog, open_sink, write
from azure_openai_proxy.accounting.record import CallRecord, Tokens
from azure_openai_proxy.accounting.sink import NOTHING_LIVE
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions, renamed open files and named pipes are POSIX's")


def record(number: int = 0, **members: Any) -> CallRecord:
    return CallRecord(time=1.5, request_id=str(number), trace_id="t", **members)


def ids(path: Path) -> list[str]:
    return [json.loads(text)["request_id"] for text in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
async def log(path: Path) -> AsyncIterator[AccessLog]:
    log = open_sink(Settings(access_log=str(path)))
    await log.start(lambda: NOTHING_LIVE)
    yield log
    await log.close()


async def written(log: AccessLog) -> None:
    """Wait until the thread has written all lines."""
    log._pass_on()
    while log._waiting:
        await asyncio.sleep(0.001)


def test_a_line() -> None:
    """Unknown values are null, times are in milliseconds."""
    call = record(tokens=Tokens(input=3, cached_input=0), status=200, duration=0.0123456, repairs=("a",), cost_usd=0.5)
    found = json.loads(write([call]))
    assert [field.name for field in FIELDS] == list(found)
    assert ("1970-01-01T00:00:01.500Z", 12.346, None, 3, 0, None, ["a"], 0, 0.5) == (
        found["time"],
        found["duration_ms"],
        found["first_byte_ms"],
        found["input_tokens"],
        found["cached_input_tokens"],
        found["output_tokens"],
        found["repairs"],
        found["attempts"],
        found["cost_usd"],
    )


def test_control_characters_are_escaped() -> None:
    """A line is ASCII without control characters, whatever a client sends."""
    text = "\x00\n\r\x1b\x7f\x85\u2028\ud800é"
    whole = write([record(model=text)])
    assert whole.endswith("\n")
    assert whole[:-1].isascii()
    assert whole[:-1].isprintable()
    assert text == json.loads(whole)["model"]


def test_the_choice_of_the_model_router() -> None:
    """It is an object; null without one."""
    details = {"model_router_details": {"mode": "cost\x7f"}}
    whole = write([record(model_selection_details=details)])
    assert (details, False) == (json.loads(whole)["model_selection_details"], "\x7f" in whole)
    assert None is json.loads(write([record()]))["model_selection_details"]


def test_each_field_is_described() -> None:
    """The documentation has a text for each field."""
    assert all(field.description for field in FIELDS)
    assert len(FIELDS) == len({field.name for field in FIELDS})


async def test_lines_are_written_in_order(log: AccessLog, path: Path) -> None:
    """They are collected, and written by a timer or at the end."""
    for number in range(3):
        log.record([record(number)])
    while path.stat().st_size == 0:
        await asyncio.sleep(0.001)
    log.record([record(3)])
    await log.close()
    assert ["0", "1", "2", "3"] == ids(path)


async def test_lines_end_with_a_newline_on_windows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows converts the ends of lines in files that are not opened as binary ones."""
    given: list[int] = []
    binary = 1 << 30

    def opened(name: str, flags: int, mode: int = 0o777) -> int:
        given.append(flags)
        return real(name, flags & ~binary, mode)

    real = os.open
    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "open", opened)
    log = open_sink(Settings(access_log=str(path)))
    await log.start(lambda: NOTHING_LIVE)
    await log.close()
    assert [True] == [bool(flags & binary) for flags in given]


async def test_lines_are_appended(path: Path, log: AccessLog) -> None:
    """The lines of an earlier process stay."""
    path.write_text('{"request_id":"before"}\n')
    log.record([record()])
    await written(log)
    assert ["before", "0"] == ids(path)


@POSIX
async def test_only_the_owner_may_read_the_file(log: AccessLog, path: Path) -> None:
    """The file has the addresses of clients."""
    log.reopen()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@POSIX
@pytest.mark.parametrize("removed", [False, True], ids=["renamed", "removed"])
async def test_a_rotation(removed: bool, log: AccessLog, path: Path) -> None:
    """After the file was renamed or removed, lines go to a new one."""
    log.record([record(0)])
    await written(log)
    if removed:
        path.unlink()
    else:
        path.rename(path.with_suffix(".1"))
    log.record([record(1)])
    await written(log)
    assert ["1"] == ids(path)


@POSIX
async def test_reopening(log: AccessLog, path: Path) -> None:
    """SIGHUP opens the file at once, and waiting lines go to the new one."""
    path.rename(path.with_suffix(".1"))
    log.record([record(0)])
    log.reopen()
    log.reopen()
    await written(log)
    assert ["0"] == ids(path)


@POSIX
async def test_a_file_that_cannot_be_reopened(log: AccessLog, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines go to the previous file, and the error is logged once."""
    path.rename(path.with_suffix(".1"))
    path.mkdir()
    for number in range(2):
        log.record([record(number)])
        await written(log)
    assert ["0", "1"] == ids(path.with_suffix(".1"))
    assert 1 == caplog.text.count("The access log cannot be written")


@pytest.mark.parametrize("name", ["no/access.log", ".", "nul\0"])
async def test_an_unusable_file(name: str, tmp_path: Path) -> None:
    """The error is one line that names the file."""
    log = AccessLog(str(tmp_path / name))
    with pytest.raises(SettingsError, match=r"azure_openai_access_log: cannot write .*: [^\n]+$"):
        await log.start(lambda: NOTHING_LIVE)


@POSIX
async def test_a_named_pipe_without_a_reader(tmp_path: Path) -> None:
    """It is unusable; to open it would block."""
    os.mkfifo(tmp_path / "pipe")  # type: ignore[attr-defined, unused-ignore]
    with pytest.raises(SettingsError, match="cannot write"):
        await AccessLog(str(tmp_path / "pipe")).start(lambda: NOTHING_LIVE)


async def test_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """With - lines go to standard output, which nothing can rotate."""
    output = StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    log = AccessLog("-")
    await log.start(lambda: NOTHING_LIVE)
    log.record([record(7)])
    log.reopen()
    await log.close()
    assert "7" == json.loads(output.getvalue())["request_id"]


async def test_a_full_disk(log: AccessLog, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Lines are lost, which is logged once; later lines are written, and the number of lost ones is logged."""

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fail)
        for number in range(3):
            log.record([record(number)])
            await written(log)
    log.record([record(3)])
    await written(log)
    assert ["3"] == ids(path)
    assert 1 == caplog.text.count("No space left on device")
    assert "3 lines were lost" in caplog.text


async def test_a_partial_write(log: AccessLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a line follows."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    log.record([record(5)])
    await written(log)
    assert ["5"] == ids(path)


async def test_a_disk_that_is_full_within_a_line(log: AccessLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line that can be written begins on a line of its own."""
    write = os.write

    def some(file: int, data: bytes) -> int:
        if path.stat().st_size:
            raise OSError(28, "No space left on device")
        return write(file, data[:7])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", some)
        log.record([record(1)])
        await written(log)
    log.record([record(2)])
    await written(log)
    rest, line = path.read_text().splitlines()
    assert ('{"time"', "2") == (rest, json.loads(line)["request_id"])


@pytest.mark.parametrize("content, within", [("", False), ("{}\n", False), ("{", True)])
def test_whether_a_file_ends_within_a_line(content: str, within: bool, path: Path) -> None:
    """The last byte tells; a file that may not be read counts as complete."""
    path.write_text(content)
    with path.open("a") as file:
        assert within == access_log._ends_within_a_line(file.fileno(), str(path))
        assert not access_log._ends_within_a_line(file.fileno(), f"{path}.missing")


async def test_a_disk_that_does_not_answer(
    log: AccessLog, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bounded number of lines waits; the end does not wait for ever."""
    monkeypatch.setattr(access_log, "MOST", 5)
    monkeypatch.setattr(access_log, "CLOSE_WITHIN", 0.01)
    released, write = threading.Event(), os.write

    def stuck(file: int, data: bytes) -> int:
        released.wait(30)
        return write(file, data)

    monkeypatch.setattr(os, "write", stuck)
    for number in range(8):
        log.record([record(number)])
    await log.close()
    assert "does not take the last 5 lines" in caplog.text
    assert "3 lines were lost" in caplog.text
    released.set()
    await written(log)
    assert ["0", "1", "2", "3", "4"] == ids(path)
