"""Escape sequences from clients and upstreams are shown on the terminal, never obeyed by it."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

import httpx
import pytest
from websockets.sync.client import connect

from support.hostile import Upstream
from support.mitmweb import mitmweb
from support.processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Decoy

ESCAPE = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"say {ESCAPE}"}]}


def controls(lines: list[str]) -> list[str]:
    return [line for line in lines if CONTROL.search(line)]


@pytest.mark.parametrize("name", [b"\x1b]0;pwned\x07.example", b"a\x1b[2Jb", b"x\n[00:00:00.000] forged", b"a\rb"])
def test_a_socks5_name_does_not_act_on_the_terminal(name: bytes, proxy: Proxies) -> None:
    """mitmproxy logs it with every connection and every failure: at any verbosity each line is one that it wrote."""
    through = proxy("--set", "termlog_verbosity=debug", "--set", "proxy_debug=true", mode="socks5", connection_strategy="eager")
    with socket.create_connection(("127.0.0.1", through.port), PATIENCE) as client:
        client.sendall(b"\x05\x01\x00")
        assert b"\x05\x00" == client.recv(2)
        client.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + (80).to_bytes(2))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(4096)
    through.wait_for_log("client disconnect")
    assert [] == controls(through.output)
    assert [] == [line for line in through.output if line.startswith("[00:00:00.000] forged")]


@pytest.mark.parametrize("detail", [1, 2, 3, 4])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_does_not_act_on_the_terminal(stream: bool, detail: int, azure: Simulator, proxy: Proxies) -> None:
    """Whatever the prompt and the answer hold, in the views that mitmdump prints."""
    through = proxy("--set", f"flow_detail={detail}", azure_openai_token=azure.key)
    answer = httpx.post(f"{through.url}/v1/chat/completions", json=CHAT | {"stream": stream}, timeout=PATIENCE, trust_env=False)
    assert 200 == answer.status_code
    through.wait_for_log("<< 200")
    assert [] == controls(through.output)


def test_an_error_and_a_model_do_not_act_on_the_terminal(confdir: Path, proxy: Proxies) -> None:
    """An upstream's error, and a model's name in a comment and in a log line."""
    body = json.dumps({"error": {"message": ESCAPE, "code": ESCAPE, "param": ESCAPE, "type": ESCAPE}}, ensure_ascii=False).encode()
    page = f"<html>{ESCAPE}".encode()
    said = [body]
    with Upstream(
        lambda _: [b"HTTP/1.1 400 Bad\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(said[-1]), said[-1])]
    ) as upstream:
        through = proxy("--set", "flow_detail=4", azure_openai_endpoint=upstream.url, azure_openai_token="k-0123456789")
        for text in (body, page):
            said.append(text)
            request = CHAT | {"model": ESCAPE}
            answer = httpx.post(f"{through.url}/v1/chat/completions", json=request, timeout=PATIENCE, trust_env=False)
            assert answer.status_code in (400, 404)
    through.wait_for_log("<< 4")
    assert [] == controls(through.output)


def test_a_close_reason_does_not_act_on_the_terminal(azure: Simulator, proxy: Proxies) -> None:
    """mitmdump prints why a WebSocket was closed."""
    through = proxy("--set", "flow_detail=4", azure_openai_token=azure.key)
    with connect(through.url.replace("http", "ws") + "/v1/realtime?model=gpt-realtime") as socket:
        socket.recv(timeout=PATIENCE)
        socket.close(4000, ESCAPE)
    through.wait_for_log("pwned")
    assert [] == controls(through.output)


def test_commands_do_not_act_on_the_terminal(decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """The answers that azure.resend compares stand in the log, and azure.explain and azure.export say what the client wrote."""
    said = [f"one {ESCAPE}", f"two {ESCAPE}"]

    def answer(_: object) -> list[bytes]:
        choice = {"index": 0, "message": {"role": "assistant", "content": said.pop(0)}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice]}, ensure_ascii=False).encode()
        return [
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        ]

    with (
        Upstream(answer) as upstream,
        mitmweb(tmp_path, confdir, decoy.port, azure_openai_endpoint=upstream.url, azure_openai_token="k-0123456789") as web,
    ):
        httpx.post(f"{web.proxy.url}/v1/chat/completions", json=CHAT, timeout=PATIENCE, trust_env=False).raise_for_status()
        web.command("azure.resend", "@all", "gpt-4o-mini")
        web.proxy.wait_for_log("the words are")
        told = [web.command("azure.explain", "@all"), web.command("azure.backends"), web.command("azure.models")]
        told += [web.command("azure.export", how, "@all") for how in ("curl", "httpx", "openai")]
        comments = [flow["comment"] for flow in web.flows()]
    assert [] == controls([*map(str, told), *comments, *web.proxy.output])
    assert re.search(r"\+two \\x1b\]0;pwned", web.proxy.log())
