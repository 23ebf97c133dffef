"""`make fuzz`, a short turn of it: hostile requests of every kind through six real mitmdumps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS = 3000


@pytest.mark.timeout(400)
def test_no_hostile_request_does_harm(tmp_path: Path) -> None:
    """No traceback, nothing of a hostile text outside its place upstream, no key elsewhere, one request for one, and always a response."""
    arguments = ["--requests", str(REQUESTS), "--seed", "2026", "--seconds", "300", "--quiet", "--folder", str(tmp_path)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": "tools"}
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=390, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for name, count in re.findall(r"^(.+?): +(\d+)$", done.stdout, re.MULTILINE)}
    assert counts["requests"] == REQUESTS
    assert counts["answered"] > REQUESTS * 0.8
    for transport in ("http1", "http2", "raw1", "websocket", "benign"):
        assert counts[f"arrived over {transport}"] > 50
