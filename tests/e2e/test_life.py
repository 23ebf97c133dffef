"""From start to end: probes, warnings, and a shutdown that truncates no response."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

from azure_simulator import Gate
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies

CHAT = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}


def data(lines: Iterator[str]) -> Iterator[str]:
    return (line.removeprefix("data: ") for line in lines if line.startswith("data: "))


@pytest.fixture
def mortal(azure: Simulator, confdir: Path, tmp_path: Path) -> Iterator[Mitmdump]:
    """A proxy that no other test needs."""
    proxy = Mitmdump(tmp_path / "home", confdir, options={"azure_openai_endpoint": azure.http_url, "azure_openai_shutdown_timeout": "20"})
    proxy.start()
    yield proxy
    proxy.stop()
    proxy.check()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("mode", ["azure", "openai"])
def test_probes(path: str, mode: str, azure: Simulator, proxy: Proxies) -> None:
    """They need no key, and no request is sent upstream."""
    through = proxy(azure_openai_proxy_mode=mode)
    answer = httpx.get(f"{through.url}{path}", trust_env=False)
    assert (200, "ok\n") == (answer.status_code, answer.text)
    assert [] == azure.requests


def test_without_a_backend_nobody_is_served(proxy: Proxies) -> None:
    """While all backends are in their cool-down, `/healthz` succeeds and `/readyz` fails."""
    through = proxy(azure_openai_endpoint="http://127.0.0.1:9", azure_openai_token="key")
    asked = httpx.post(f"{through.url}/v1/chat/completions", json=CHAT, timeout=PATIENCE, trust_env=False)
    answers = [httpx.get(f"{through.url}{path}", trust_env=False) for path in ("/healthz", "/readyz")]
    assert [502, 200, 503] == [asked.status_code, *(answer.status_code for answer in answers)]
    assert "no backend is usable now\n" == answers[1].text


def test_a_stop_cuts_nobody_off(mortal: Mitmdump, azure: Simulator) -> None:
    """SIGTERM in the middle of a stream: no new connection, alive and no longer ready, the stream comes to its end, exit 0."""
    gate = Gate(before=3)
    azure.faults.next(gate)
    headers = {"authorization": f"Bearer {azure.key}"}
    with (
        httpx.Client(base_url=mortal.url, headers=headers, timeout=PATIENCE, trust_env=False) as kept,
        httpx.Client(base_url=mortal.url, headers=headers, timeout=PATIENCE, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT) as response,
    ):
        events = data(response.iter_lines())
        first = json.loads(next(events))
        assert gate.reached.wait(PATIENCE)
        assert 200 == kept.get("/readyz").status_code

        mortal.signal(signal.SIGTERM)
        mortal.wait_for_log("Stopping: running requests have at most 20 s to finish: 1")
        mortal.wait_for_log("stopped")  # the port is closed
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{mortal.url}/healthz", trust_env=False)
        assert [200, 503] == [kept.get(path).status_code for path in ("/healthz", "/readyz")]
        gate.release()
        rest = list(events)

    assert "assistant" == first["choices"][0]["delta"]["role"]
    assert "[DONE]" == rest[-1]
    assert 0 == mortal.wait()
    assert "cut off" not in mortal.log()


def test_a_stop_has_its_limit(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """A response that takes longer is cut off, and a log line says so."""
    gate = Gate(before=3)
    azure.faults.next(gate)
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_shutdown_timeout": "0.1", "azure_openai_token": azure.key}
    proxy = Mitmdump(tmp_path / "home", confdir, options=options).start()
    with (
        httpx.Client(base_url=proxy.url, timeout=PATIENCE, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT) as response,
    ):
        events = data(response.iter_lines())
        next(events)
        proxy.signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            list(events)

    assert 0 == proxy.wait()
    assert "Stopping: requests cut off after 0.1 s: 1" in proxy.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_proxy_stops_at_once(number: signal.Signals, mortal: Mitmdump) -> None:
    """It does not wait."""
    mortal.signal(number)
    assert 0 == mortal.wait()
    assert "running" not in mortal.log().partition("Stopping")[2]


@pytest.mark.parametrize("option, value", [("connection_strategy", "eager"), ("allow_hosts", "['^other[.]example']")])
def test_what_closes_a_way_is_said(option: str, value: str, azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """One line for a setting of mitmproxy's with which clients would not be served."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "mitm_config.yaml").write_text(f"{option}: {value}\n")
    with Mitmdump(home, confdir, options={"azure_openai_endpoint": azure.http_url}) as proxy:
        proxy.wait_for_log(f"{option}: ")
    assert 1 == sum(f"{option}: " in line for line in proxy.output)
