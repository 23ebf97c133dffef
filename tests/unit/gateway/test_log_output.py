"""Output that does not wait for its reader."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import pytest

from azure_openai_proxy.gateway import log_output
from azure_openai_proxy.gateway.log_output import AT_MOST, Output


def drained(output: Output, reader: int, writer: IO[str]) -> bytes:
    """Let the reader of a pipe go on. Return what it gets until everything is written and the pipe is closed."""
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(reader, 1 << 16), b"")))
    thread.start()
    assert output.drain(30)
    writer.close()
    thread.join()
    os.close(reader)
    return b"".join(received)


def test_lines_arrive_in_order(tmp_path: Path) -> None:
    """Everything that is printed is written, and the rest of the file is as it was."""
    with (tmp_path / "out").open("w") as file:
        output = Output(file)
        for number in range(1000):
            print(number, file=cast("Any", output), flush=True)
        assert output.drain()
        assert not output.isatty()
    assert [str(number) for number in range(1000)] == (tmp_path / "out").read_text().splitlines()


def test_a_reader_that_stops_loses_lines() -> None:
    """Lines that exceed the queue are dropped and counted; the proxy does not wait."""
    reader, writer = os.pipe()
    line = "a" * 999 + "\n"
    with os.fdopen(writer, "w") as file:
        output = Output(file)
        for _ in range(3 * AT_MOST // 1000):
            output.write(line)
        assert not output.drain(0)
        text = drained(output, reader, file)
    assert b" lines of output were dropped: its reader was too slow.\n" in text
    assert text.count(b"\n") < 3 * AT_MOST // 1000


def test_a_pipe_that_does_not_block() -> None:
    """What its slow reader does not take at once is written later."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    lines = [f"{number:0999}\n" for number in range(300)]  # more than a pipe holds
    with os.fdopen(writer, "w") as file:
        output = Output(file)
        output.write("".join(lines))
        assert not output.drain(0.2)
        text = drained(output, reader, file)
    assert "".join(lines) == text.decode()


def test_a_reader_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """As `print` finds out by itself: mitmproxy ends then."""

    def write(_: bytes) -> int:
        raise BrokenPipeError

    with (tmp_path / "out").open("w") as file:
        output = Output(file, write)
        output.write("a\n")
        assert output.drain()
        with pytest.raises(BrokenPipeError):
            output.write("b\n")


def test_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log and the dumper share a file, so they share its queue; an output without a file descriptor stays unchanged."""
    drains: list[object] = []
    monkeypatch.setattr("atexit.register", drains.append)
    with (tmp_path / "out").open("w") as file:
        termlog, dumper = SimpleNamespace(logger=SimpleNamespace(file=file)), SimpleNamespace(outfp=file)
        master = cast("Any", SimpleNamespace(addons={"termlog": termlog, "dumper": dumper}))
        log_output.install(master)
        log_output.install(master)
        assert isinstance(dumper.outfp, Output)
        assert termlog.logger.file is dumper.outfp
        assert 1 == len(drains)
    dumper.outfp = object()
    log_output.install(master)
    assert not isinstance(dumper.outfp, Output)
