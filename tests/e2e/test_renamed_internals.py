"""The guard over private API: attributes are renamed in a copy of mitmproxy or h11, as a new version might."""

from __future__ import annotations

import json
import signal
import socket
from typing import TYPE_CHECKING

import httpx
import pytest

from support.processes import PATIENCE, RECORDER, SCRIPT, Mitmdump
from support.renamed import copy_package

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator

HTTP = "Requests to Azure are sent by mitmproxy itself"
SHUTDOWN = "On SIGTERM the proxy does not see"
CONNECTIONS = "is abandoned and not closed"
FAST_PATH = "The fast path is off"

# Package, attribute, and the warnings: none where the attribute is not used. h11's reader of trailers and mitmproxy's table of connections
# that are being established are no longer used, since the upstream leg has a reader and connections of its own; nor is the buffer of a
# client connection, since its requests have a reader of their own.
RENAMED = [
    ("h11", "_reading_trailer", ()),
    ("mitmproxy", "waiting_for_establishment", ()),
    ("mitmproxy", "_paused", (FAST_PATH,)),
    ("mitmproxy", "response_body_buf", (HTTP,)),
    ("mitmproxy", "buf", ()),
    ("mitmproxy", "is_updating", (SHUTDOWN,)),
    ("mitmproxy", "transports", (HTTP, CONNECTIONS, SHUTDOWN)),
]
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


def test_a_handshake_that_does_not_end(confdir: Path, tmp_path: Path) -> None:
    """A renamed table of connections that are being established changes nothing for a backend that accepts and never ends its handshake.

    The time-out for connecting is the case in which that table was used: a client then waited for ever.
    """
    assert copy_package("mitmproxy", "waiting_for_establishment", tmp_path / "packages")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {
            "azure_openai_endpoint": f"https://127.0.0.1:{silent.getsockname()[1]}",
            "azure_openai_connect_timeout": "0.5",
            "ssl_insecure": "true",
        }
        mitmdump = Mitmdump(
            tmp_path / "home", confdir, options=options, env={"PYTHONPATH": f"{RECORDER}:{tmp_path / 'packages'}"}, scripts=[SCRIPT]
        )
        with mitmdump, httpx.Client(base_url=f"{mitmdump.url}/v1", timeout=PATIENCE, headers={"authorization": "Bearer key"}) as client:
            response = client.post("/chat/completions", json=CHAT)
            assert (504, "upstream_connect_timeout") == (response.status_code, response.json()["error"]["code"])


@pytest.mark.parametrize("package, attribute, warnings", RENAMED, ids=[attribute for _, attribute, _ in RENAMED])
def test_a_renamed_attribute(
    package: str, attribute: str, warnings: tuple[str, ...], azure: Simulator, confdir: Path, tmp_path: Path
) -> None:
    """One warning for each feature that needs it; chats, streams and SIGTERM work in any case."""
    assert copy_package(package, attribute, tmp_path / "packages")
    mitmdump = Mitmdump(
        tmp_path / "home",
        confdir,
        options={"azure_openai_endpoint": azure.http_url},
        env={"PYTHONPATH": f"{RECORDER}:{tmp_path / 'packages'}"},
        scripts=[SCRIPT],
    ).start()
    try:
        with httpx.Client(base_url=f"{mitmdump.url}/v1", timeout=PATIENCE, headers={"authorization": f"Bearer {azure.key}"}) as client:
            for _ in range(2):
                response = client.post("/chat/completions", json=CHAT)
                assert (200, "chat.completion") == (response.status_code, response.json()["object"])
                streamed = client.post("/chat/completions", json=CHAT | {"stream": True})
                events = [line for line in streamed.text.splitlines() if line]
                assert (200, "data: [DONE]") == (streamed.status_code, events[-1])
                assert "chat.completion.chunk" == json.loads(events[0].removeprefix("data: "))["object"]
        assert {azure.key} == {request.header("api-key") for request in azure.requests}
        mitmdump.signal(signal.SIGTERM)
        assert 0 == mitmdump.wait()
    finally:
        mitmdump.stop()
    mitmdump.check()
    said = mitmdump.log()
    assert {each: int(each in warnings) for each in (HTTP, SHUTDOWN, CONNECTIONS)} == {
        each: said.count(each) for each in (HTTP, SHUTDOWN, CONNECTIONS)
    }
    assert (FAST_PATH in warnings) == (FAST_PATH in said)
    assert len(warnings) == said.count("differs from those known")
