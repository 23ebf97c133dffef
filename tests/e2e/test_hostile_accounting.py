"""Hostile clients against the sinks of a real mitmdump: names that are made up, and keys in unusual places."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Gate, Simulator
from support.access_log import AccessLog
from support.processes import PATIENCE, Mitmdump
from support.prometheus import fetch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Proxies

KEY = "0123456789abcdef0123456789abcdef"
"""A key of hexadecimal digits, as Azure's were for years."""
MESSAGES = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[AccessLog]:
    """The access logs of a proxy without and with a key."""
    return [AccessLog(tmp_path_factory.mktemp("access") / "access.log") for _ in range(2)]


def leave(mitmdump: Mitmdump, azure: Simulator, body: dict[str, Any]) -> Gate:
    """Send a chat, and close the connection before Azure responds, which it does when the gate is released."""
    gate = Gate(before=None)
    azure.faults.next(gate)
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", mitmdump.port)) as client:
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {azure.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        assert gate.reached.wait(PATIENCE)
    return gate


def models(page: str) -> dict[str, float]:
    """The number of requests by model."""
    found: dict[str, float] = {}
    for model, count in re.findall(r'(?m)^azure_openai_proxy_requests_total\{.*model="([^"]*)".*\} (\S+)$', page):
        found[model] = found.get(model, 0) + float(count)
    return found


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_clients_that_leave_take_half_of_the_values(proxy: Proxies, azure: Simulator) -> None:
    """Clients that name made-up models and leave before the response do not keep a later model out of the metrics."""
    mitmdump = proxy(azure_openai_metrics="127.0.0.1:0", env={"AZURE_OPENAI_METRICS_SERIES": "10"})  # a process of its own
    found = mitmdump.wait_for_start_line(r"Prometheus metrics: (http://\S+/metrics)")
    for number in range(12):
        gate = leave(mitmdump, azure, {"model": f"made-up-{number}", "messages": MESSAGES})
        eventually(lambda count=number + 1: sum(models(fetch(found[1])).values()) == count)  # type: ignore[misc]
        gate.release()
    with httpx.Client(base_url=mitmdump.url, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE) as http:
        assert 200 == http.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": MESSAGES}).status_code
    eventually(lambda: sum(models(fetch(found[1])).values()) == 13)
    assert {"gpt-4o": 1.0, "other": 7.0}.items() <= models(fetch(found[1])).items()


def test_a_key_as_a_trace_id(proxy: Proxies, tmp_path: Path) -> None:
    """The access log does not have a client's key if the client sends it as its trace id as well."""
    log = AccessLog(tmp_path / "access.log")
    mitmdump = proxy(azure_openai_access_log=log.path)
    headers = {"api-key": KEY, "traceparent": f"00-{KEY}-{KEY[:16]}-01", "tracestate": f"a={KEY}"}
    httpx.post(f"{mitmdump.url}/v1/chat/completions", json={"model": "gpt-4o", "messages": MESSAGES}, headers=headers, timeout=PATIENCE)
    assert re.fullmatch("[0-9a-f]{32}", log.one()["trace_id"])
    assert KEY.encode() not in log.path.read_bytes()


@pytest.mark.parametrize(
    "query, header",
    [("?key=", ""), ("?token=", ""), ("?a=b&subscription-key=", ""), ("", "x-api-key"), ("", "ocp-apim-subscription-key")],
)
@pytest.mark.parametrize("configured", [True, False])
def test_a_key_in_an_unusual_place(
    query: str, header: str, configured: bool, proxy: Proxies, azure: Simulator, logs: list[AccessLog]
) -> None:
    """A key in any header or parameter for keys is masked wherever the client repeats it, also if the proxy has a key of its own."""
    log = logs[configured]
    mitmdump = proxy(azure_openai_access_log=log.path, azure_openai_token=azure.key if configured else "")
    log.forget()
    headers = {"user-agent": f"agent {KEY}", "x-session-affinity": KEY} | ({header: KEY} if header else {})
    httpx.get(f"{mitmdump.url}/v1/files/{KEY}{query}{KEY if query else ''}", headers=headers, timeout=PATIENCE)
    line = log.one()
    assert ("/v1/files/[key]", "agent [key]", "[key]") == (line["path"], line["user_agent"], line["session"])


def test_the_rest_of_a_line_in_the_access_log(proxy: Proxies, tmp_path: Path, azure: Simulator) -> None:
    """A line that an earlier process could not complete, as on a full disk, does not damage the next one."""
    path = tmp_path / "access.log"
    path.write_text('{"time":"2026-01-01T00:00')
    mitmdump = proxy(azure_openai_access_log=path)
    httpx.post(f"{mitmdump.url}/v1/chat/completions", json={"model": "gpt-4o", "messages": MESSAGES}, headers={"api-key": azure.key})
    eventually(lambda: path.read_text().endswith("}\n"))
    assert "gpt-4o" == json.loads(path.read_text().splitlines()[1])["model"]


@pytest.mark.parametrize("clients", [True, False], ids=["of the proxy", "of Azure"])
def test_a_key_in_the_path(clients: bool, azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """Such a request is refused, and no log and no flow has the key, as it is or percent-encoded, also if it is repeated in the query."""
    spellings = (KEY, f"%{ord(KEY[0]):02x}{KEY[1:]}", f"x{KEY}")
    if clients:
        (tmp_path / "mitm_config.yaml").write_text(f"azure_openai_clients: [{{name: alice, key: {KEY}}}]\n")
    options = {
        "azure_openai_endpoint": azure.http_url,
        "azure_openai_access_log": tmp_path / "access.log",
        "save_stream_file": tmp_path / "flows",
    }
    env = {"AZURE_OPENAI_TOKEN": azure.key} if clients else {}
    with Mitmdump(tmp_path, confdir, options=options, env=env) as proxy:
        for written in spellings:
            for path in (f"/v1/files/{written}", f"/v1/files?after={written}"):
                headers = {"authorization": f"Bearer {KEY}"}
                response = httpx.get(f"{proxy.url}{path}", headers=headers, timeout=PATIENCE, trust_env=False)
                assert ("key_in_path" in response.text) == ("?" not in path)
        printed = "\n".join((*proxy.output, *proxy.records)).encode()
    assert len(spellings) == len(azure.requests)
    for kept in (printed, (tmp_path / "access.log").read_bytes(), (tmp_path / "flows").read_bytes()):
        assert b"/v1/files" in kept
        assert KEY[1:].encode() not in kept
