"""How tests learn that a forked mitmdump has ended."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from support.forks import can_fork, fork
from support.processes import MITMDUMP, PATIENCE, RECORDER

pytestmark = [pytest.mark.skipif(not can_fork({}), reason="only Linux tells of the end of any process"), pytest.mark.slow]


def test_a_reader_of_a_wrong_descriptor_takes_no_exit_status(tmp_path: Path) -> None:
    """The status is known although another thread of the process has tried to read from the descriptor first."""
    notes, notes_in = os.pipe()
    env = {"PYTHONPATH": str(RECORDER), "RECORDER_DECOY_PORT": "0"}
    process = fork(Path(MITMDUMP), ["--no-such-option"], env, tmp_path, notes_in)
    os.close(notes_in)
    with process.stdout as output:
        assert "--no-such-option" in output.read()
    select.select([process._ended], [], [], PATIENCE)
    with pytest.raises(OSError, match="Invalid argument"):
        os.read(process._ended, 64)
    assert [1, 1] == [process.wait(PATIENCE), process.poll()]
    os.close(notes)
