"""Several processes behind one port: `make scale`."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from azure_simulator import Gate
from support.asking import H1, H2, serves
from support.curl import Curl, events
from support.marks import THREADS, second_try
from support.processes import PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator

pytestmark = pytest.mark.skipif(not (shutil.which("haproxy") and shutil.which("curl")), reason="haproxy or curl is not installed")


def free_ports(count: int) -> list[int]:
    """That many next to each other, below those that the system may give to another socket before they are used."""
    while True:
        first = random.randrange(20_000, 32_000)
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return list(range(first, first + count))


@contextmanager
def scaled(azure: Simulator, confdir: Path, home: Path, **more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Two processes; the one port. They are ready when the balancer accepts a client."""
    port, first, _ = free_ports(3)
    command = [sys.executable, str(ROOT / "tools/scale.py"), "-n", "2", "--bind", f"127.0.0.1:{port}", "--first-port", str(first)]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "AZURE_OPENAI_ENDPOINT": azure.http_url, **more}
    with subprocess.Popen(
        [*command, "--set", f"confdir={confdir}"], cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        output: list[str] = []
        reader = threading.Thread(target=output.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            ready(port, output)
            yield process, port
        finally:
            process.terminate()
            reader.join(PATIENCE)  # before the pipe is closed


def ready(port: int, output: list[str]) -> None:
    """Wait until the balancer has a process for a client."""
    waited = threading.Event()
    for _ in range(int(PATIENCE / 0.1)):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE):
                return
        except OSError:
            waited.wait(0.1)
    pytest.fail(f"no process is ready; they printed:\n{''.join(output)}")


@second_try(THREADS)
def test_one_port(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """Chats, streams and WebSockets pass, by base URL and as a proxy, with TLS and HTTP/2."""
    with scaled(azure, confdir, tmp_path) as (process, port):
        trust = ["--cacert", str(confdir / "mitmproxy-ca-cert.pem")]
        assert "1.1" == serves(Curl([*trust, H1]), f"http://127.0.0.1:{port}", azure)
        assert "2" == serves(Curl([*trust, H2]), f"https://localhost:{port}", azure)
        assert "2" == serves(Curl([*trust, H2, "--proxy", f"http://127.0.0.1:{port}"]), "https://api.openai.com", azure)
        # behind a balancer every client has a local address, and is still refused private destinations
        assert 403 == Curl(["--proxy", f"http://127.0.0.1:{port}"])(azure.http_url).status

        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(PATIENCE)


def test_a_stop_lets_streams_finish(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """Through the balancer too."""
    gate = Gate(before=3)
    azure.reset()
    azure.faults.next(gate)
    body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    with scaled(azure, confdir, tmp_path) as (process, port):
        ask = ("-H", f"Authorization: Bearer {azure.key}", "-H", "Content-Type: application/json", "-d", json.dumps(body))
        with Curl().lines(*ask, f"http://127.0.0.1:{port}/v1/chat/completions") as lines:
            chunks = events(lines)
            next(chunks)
            assert gate.reached.wait(PATIENCE)
            process.send_signal(signal.SIGTERM)
            gate.release()
            rest = list(chunks)
        assert "[DONE]" == rest[-1]
        assert 0 == process.wait(PATIENCE)


@pytest.mark.parametrize("hosts, status", [({}, 403), ({"AZURE_OPENAI_HOSTS": "gateway.example.com"}, 200)])
def test_the_name_that_clients_use(hosts: dict[str, str], status: int, azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """The balancer passes the name on: with a configured key it has to be allowed, and the refusal names the setting."""
    azure.reset()
    with scaled(azure, confdir, tmp_path, AZURE_OPENAI_TOKEN=azure.key, **hosts) as (process, port):
        at = f"http://127.0.0.1:{port}/v1/models"
        named = Curl(["-H", f"Host: gateway.example.com:{port}"])(at)
        assert (200, status) == (Curl()(at).status, named.status)
        assert (status == 403) == ("azure_openai_hosts" in json.dumps(named.json))
        process.terminate()
        assert 0 == process.wait(PATIENCE)


def test_the_first_clients_are_served(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """As soon as the port answers, each new connection reaches a process that serves."""
    with scaled(azure, confdir, tmp_path) as (_, port):
        assert [200] * 12 == [Curl()(f"http://127.0.0.1:{port}/readyz").status for _ in range(12)]


def test_each_process_has_its_metrics(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """The processes serve their metrics at the configured port and the one after it, and together they count every request."""
    azure.reset()
    first, second = free_ports(2)
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]})
    ask = Curl(["-H", f"Authorization: Bearer {azure.key}", "-H", "Content-Type: application/json", "-d", body])
    with scaled(azure, confdir, tmp_path, AZURE_OPENAI_METRICS=f"127.0.0.1:{first}") as (_, port):
        answers = [ask(f"http://127.0.0.1:{port}/v1/chat/completions").status for _ in range(4)]
        pages = [
            Curl(["--retry", "50", "--retry-connrefused", "--retry-delay", "1"])(f"http://127.0.0.1:{at}/metrics") for at in (first, second)
        ]
    assert [200] * 4 == answers
    assert [200, 200] == [page.status for page in pages]
    counts = [float(count) for page in pages for count in re.findall(r"(?m)^azure_openai_proxy_requests_total{.*} (\S+)$", page.body)]
    assert 4 == sum(counts)
