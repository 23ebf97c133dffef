"""Check that a way of connecting serves requests: with curl, and with a client of its own for a WebSocket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from azure_simulator import Gate
from support.curl import Curl, events
from support.processes import PATIENCE, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator

__all__ = ["H1", "H2", "OPENAI", "keeps_its_certificate", "serves"]

OPENAI = "https://api.openai.com"
ANSWER = "You said: one two three"
H1, H2 = "--http1.1", "--http2"


def body(**more: object) -> str:
    return json.dumps({"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "one two three"}]} | more)


def serves(curl: Curl, base: str, azure: Simulator) -> str:
    """A chat, a stream and a WebSocket come through, the stream event by event; the HTTP version that the client got."""
    azure.reset()
    ask = ("-H", f"Authorization: Bearer {azure.key}", "-H", "Content-Type: application/json", f"{base}/v1/chat/completions", "-d")

    answer = curl(*ask, body())
    assert (200, "") == (answer.status, answer.error), answer
    assert ANSWER == answer.json["choices"][0]["message"]["content"]

    gate = Gate(before=3)
    azure.faults.next(gate)
    with curl.lines(*ask, body(stream=True)) as lines:
        chunks = events(lines)
        first = json.loads(next(chunks))
        assert gate.reached.wait(PATIENCE)  # Azure holds the next one back, and yet the first is here
        gate.release()
        rest = list(chunks)
    assert "assistant" == first["choices"][0]["delta"]["role"]
    assert ANSWER == "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in rest[:-1])
    assert "[DONE]" == rest[-1]

    assert "session.created" == talks(curl, base, azure)
    assert [azure.key] * 3 == [request.header("api-key") for request in azure.requests]
    return answer.http


def talks(curl: Curl, base: str, azure: Simulator) -> str:
    """What a client says that comes as curl does and opens a realtime session."""
    at = list(curl.arguments)
    proxy = at[at.index("--proxy") + 1 :][:1] if "--proxy" in at else []
    command = [*curl.prefix, sys.executable, str(ROOT / "tests/clients/talk.py"), base, azure.key, at[at.index("--cacert") + 1], *proxy]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def keeps_its_certificate(curl: Curl, third_party: str, ca: Path, status: int) -> None:
    """The client trusts the third party's CA alone, so it is the third party's certificate that it sees, and its answer."""
    answer = curl("--cacert", str(ca), f"{third_party}/v1/models")  # the proxy itself would answer 200
    assert ("", status) == (answer.error, answer.status)
