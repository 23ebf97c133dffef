"""The fast path can be deleted: its folder is one feature, and nothing else needs it."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING, Any

import httpx
from websockets.sync.client import connect

from support.processes import PATIENCE, ROOT, Mitmdump

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


def test_without_its_folder(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """A chat, a stream and a WebSocket pass through a copy of the addon that lacks it, without a warning."""
    addon = tmp_path / "addon"
    shutil.copytree(ROOT / "addon", addon, ignore=shutil.ignore_patterns("__pycache__", "fastpath"))
    options = {"azure_openai_endpoint": azure.http_url}
    bearer = {"authorization": f"Bearer {azure.key}"}
    with Mitmdump(tmp_path / "home", confdir, options=options, scripts=[addon / "azure_openai.py"]) as mitmdump:
        with httpx.Client(base_url=f"{mitmdump.url}/v1", timeout=PATIENCE, headers=bearer) as client:
            assert "chat.completion" == client.post("/chat/completions", json=CHAT).json()["object"]
            assert client.post("/chat/completions", json=CHAT | {"stream": True}).text.endswith("data: [DONE]\n\n")
        url = f"{mitmdump.url}/v1/realtime?model=gpt-realtime".replace("http", "ws", 1)
        with connect(url, additional_headers=bearer, open_timeout=PATIENCE, proxy=None) as websocket:
            created: dict[str, Any] = json.loads(websocket.recv(PATIENCE))
            assert "session.created" == created["type"]
        mitmdump.signal(signal.SIGTERM)
        assert 0 == mitmdump.wait()
    assert "fast path" not in mitmdump.log()
