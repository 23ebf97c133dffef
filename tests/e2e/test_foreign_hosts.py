"""Requests for other hosts through the proxy: no mode takes them for the gateway's own, also on a mitmproxy that is not known."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pytest

from support.curl import Curl
from support.processes import RECORDER
from support.renamed import copy_package

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

PATH = "/v1/chat/completions"
BODY = '{"model":"gpt-4o","messages":[]}'
NAMES = {"RECORDER_HOSTS": json.dumps({"other.example": ["127.0.0.1"], "gateway.example": ["127.0.0.1"]})}


class Other:
    """Another host, and the other proxy of the mode `upstream`: it answers everything and accepts every CONNECT."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as lines:
            while head := b"".join(iter(lines.readline, b"\r\n")):
                if head.startswith(b"CONNECT"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    continue
                lines.read(len(BODY))
                self.heads.append(head)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nforeign")


@pytest.fixture
def other() -> Iterator[Other]:
    with Other() as other:
        yield other


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment with a mitmproxy that lacks an attribute of the HTTP layer."""
    folder = tmp_path_factory.mktemp("packages")
    assert copy_package("mitmproxy", "response_body_buf", folder)
    return {"PYTHONPATH": f"{RECORDER}:{folder}"}


@pytest.fixture(params=["known", "unknown"])
def env(request: pytest.FixtureRequest) -> Mapping[str, str]:
    return NAMES if request.param == "known" else NAMES | request.getfixturevalue("unknown")


def by(way: str, through: Mitmdump) -> Curl:
    """A client that comes this way."""
    if way == "socks5":
        return Curl(["--proxy", f"socks5h://127.0.0.1:{through.port}"])
    at = through.https_url if "TLS" in way else through.url
    return Curl(["--proxy", at, "--proxy-cacert", str(through.ca), *(["--proxytunnel"] if "CONNECT" in way else [])])


@pytest.mark.parametrize("way", ["plain", "plain, proxy by TLS", "CONNECT", "socks5", "upstream", "upstream, CONNECT"])
def test_another_host_gets_its_request(way: str, env: Mapping[str, str], other: Other, azure: Simulator, proxy: Proxies) -> None:
    """As the client sent it; nothing is sent to Azure."""
    mode = "socks5" if way == "socks5" else f"upstream:http://127.0.0.1:{other.port}" if "upstream" in way else "regular"
    through = proxy("--mode", mode, env=env, azure_openai_token="the-configured-key")

    answer = by(way, through)("-H", "authorization: Bearer mine", "-d", BODY, f"http://other.example:{other.port}{PATH}")

    assert "foreign" == answer.body
    (head,) = other.heads
    assert b"Bearer mine" in head
    assert b"the-configured-key" not in head
    assert PATH.encode() in head.partition(b"\r\n")[0]
    assert [] == azure.requests


@pytest.mark.parametrize("named", [False, True], ids=["not set", "set"])
def test_a_gateway_by_a_name_of_its_own(named: bool, env: Mapping[str, str], azure: Simulator, proxy: Proxies) -> None:
    """On a mitmproxy that is not known the name has to be set; otherwise the request ends, and does not come round again and again."""
    known = "PYTHONPATH" not in env
    through = proxy(env=env, **({"azure_openai_hosts": "gateway.example"} if named else {}))
    curl = Curl(["--resolve", f"gateway.example:{through.port}:127.0.0.1", "-H", f"authorization: Bearer {azure.key}"])

    answer = curl("-d", BODY.replace("[]", '[{"role":"user","content":"hi"}]'), f"http://gateway.example:{through.port}{PATH}")

    if known or named:
        assert 200 == answer.status
        assert 1 == len(azure.requests)
    else:
        assert 502 == answer.status
        assert [] == azure.requests
        through.wait_for_log("not known as 'gateway.example': add the name to azure_openai_hosts")
        assert 1 == through.wait_for_connections().count(f"127.0.0.1:{through.port}")
