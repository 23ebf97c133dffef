"""The standard output of the commands."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.cli import standard_output
from support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDON = ROOT / "addon"


class Failing(io.TextIOWrapper):
    """An output whose writes fail."""

    error = OSError()

    def write(self, _: str) -> int:
        raise self.error


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Failing]:
    with (tmp_path / "out").open("wb") as file, Failing(file, "ascii") as output:
        yield output


@pytest.mark.parametrize(
    "error, system, quiet",
    [
        (BrokenPipeError(errno.EPIPE, ""), "posix", True),
        (BrokenPipeError(errno.EPIPE, ""), "nt", True),
        (OSError(errno.EINVAL, ""), "nt", True),
        (OSError(errno.EINVAL, ""), "posix", False),
        (OSError(errno.ENOSPC, ""), "nt", False),
    ],
)
def test_a_failed_write(error: OSError, system: str, quiet: bool, failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed pipe, which Windows reports as an invalid argument, is no error, and the interpreter's last flush goes nowhere."""
    failing.error = error
    monkeypatch.setattr(standard_output, "os", Named(system))
    monkeypatch.setattr(sys, "stdout", failing)
    with nullcontext() if quiet else pytest.raises(OSError, match=f"Errno {error.errno}"), standard_output.closing_early():
        standard_output.write("x")
    assert quiet == os.path.samestat(os.fstat(failing.fileno()), Path(os.devnull).stat())


class Named:
    """The module `os` of another system."""

    devnull, O_WRONLY = os.devnull, os.O_WRONLY
    open, dup2 = staticmethod(os.open), staticmethod(os.dup2)

    def __init__(self, name: str) -> None:
        self.name = name


def test_characters_that_the_output_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written as escapes."""
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        standard_output.write("caf\xe9\n")
        monkeypatch.undo()
    assert r"caf\xe9" == path.read_text().strip()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a key."""
    pytest.importorskip("sqlalchemy")
    from azure_openai_proxy.cli import keys

    path = tmp_path_factory.mktemp("ledger") / "usage.db"
    assert 0 == keys.main(["keys", "create", "alice", "--ledger", f"sqlite:///{path}"])
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["env", "--way", "base-url"],
        ["usage"],
        ["keys", "list"],
        ["inspect", "--help"],
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_a_reader_that_leaves(arguments: list[str], ledger: Path, tmp_path: Path) -> None:
    """A command whose reader has closed the pipe prints no error, as `command | head -1` shows."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"AZURE_OPENAI_LEDGER": f"sqlite:///{ledger}", "PYTHONPATH": str(ADDON), "HOME": str(tmp_path)}
    with os.fdopen(writing, "wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "azure_openai_proxy.cli.command", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (0, "") == (ended.returncode, ended.stderr)
