"""openai-node through a real mitmdump, over the families its users call most."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from azure_simulator.binary import BYTES
from support.processes import PATIENCE, ROOT

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies

FOLDER = ROOT / ".venv-node"
SCRIPT = ROOT / "tests" / "clients" / "surface.mjs"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The client beside its modules, where Node looks for them."""
    if not (FOLDER / "node_modules" / "openai").exists():
        pytest.skip("openai-node is not installed: `make test` does it where there is a Node.js")
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    return Path(shutil.copy(SCRIPT, tmp_path / SCRIPT.name))


@pytest.mark.parametrize("form", ["2024-10-21", "v1"])
def test_openai_node_works(form: str, script: Path, azure: Simulator, proxy: Proxies) -> None:
    """Chats, responses, embeddings, files, audio, images and realtime work as with OpenAI, and refusals are OpenAI's errors."""
    through = proxy(azure_openai_apiversion=form)
    trust = {"NODE_EXTRA_CA_CERTS": str(through.ca)}  # its realtime client knows wss alone
    env = {"PATH": os.environ["PATH"], "KEY": azure.key, "BASE_URL": f"{through.https_url}/v1"} | trust

    done = subprocess.run(["node", str(script)], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False, encoding="utf-8")

    assert done.returncode == 0, done.stderr
    said = "You said: hello"
    assert {
        "chat": ["gpt-3.5-turbo", "You said: Grüße, Azure", ["finish_reason", "index", "logprobs", "message"]],
        "stream": "You said: Grüße, Azure",
        "response": [said, False],
        "events": ["response.created", "response.completed", said, False],
        "embeddings": [1536, 1536],
        "file": ["batch.jsonl", 3, "batch"],
        "files": ["file-1", "file-2"],
        "content": len(BYTES),
        "speech": ["audio/mpeg", 8 * 256 + len("hello")],
        "transcription": "hello.wav has 4 bytes",
        "translation": "hello.wav has 4 bytes",
        "image": ["b64_json"],
        "edit": ["b64_json"],
        "moderations": ["NotFoundError", 404, "unsupported_by_azure", "invalid_request_error"],
        "realtime": ["session.created", "response.created", "response.output_text.delta", "response.output_text.delta", "response.done"],
    } == json.loads(done.stdout)
    assert {azure.key} == {request.header("api-key") for request in azure.requests}
