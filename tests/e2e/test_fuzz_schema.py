"""OpenAI's own document, as schemathesis reads it: whatever fits it, or nearly does, has an answer that is no server's error.

Runs where the document lies beside the repository (operations.py says where) and the command `schemathesis` is on PATH.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from support import operations

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies

SECONDS = 40
COMMAND = shutil.which("schemathesis")
DOCUMENTS = sorted((operations.FOLDER / "specs").glob("openai-*.json"))


@pytest.mark.skipif(not COMMAND or not DOCUMENTS, reason="needs schemathesis on PATH and OpenAI's document beside the repository")
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("version", ["2024-10-21", "v1"])
def test_openai_s_document(version: str, azure: Simulator, proxy: Proxies) -> None:
    """For a bounded time, over every operation."""
    through = proxy(azure_openai_apiversion=version)
    told = ["--url", f"{through.url}/v1", "-H", f"Authorization: Bearer {azure.key}", "--checks", "not_a_server_error", "--no-color"]
    bounded = ["--phases", "examples,fuzzing", "--max-examples", "5", "--max-time", str(SECONDS), "--request-timeout", "20"]
    assert COMMAND

    done = subprocess.run(
        [COMMAND, "run", str(DOCUMENTS[-1]), *told, *bounded, "--suppress-health-check", "all", "--continue-on-failure"],
        capture_output=True,
        text=True,
        timeout=SECONDS + 100,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert len(azure.requests) > 0
    assert [] == [record for record in through.records if "could not be translated" in record]
