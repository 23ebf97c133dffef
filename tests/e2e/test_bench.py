"""`make bench` and `make soak`, one short turn of each: every measurement exists and no request is lost. Figures are not compared."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bench import accounting, growth, held, jobs, load, looks, many, targets, teams
from bench.session import Bench
from mitmproxy import contentviews

from support import redis
from support.processes import MITMDUMP, PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="processor time and memory are read from Linux's /proc"),
    pytest.mark.skipif(not os.environ.get("AZURE_OPENAI_PROXY_BENCH_TEST"), reason="`make bench-test` asks for it: it takes five minutes"),
]

CASES = {
    "chat, 1 client",
    "chat, 32 clients",
    "chat, 64 clients",
    "chat, new connections",
    "chat, far TLS upstream",
    "chat, new connections, far TLS upstream",
    "chat, TLS upstream",
    "chat, TLS both sides",
    "streams at full speed",
    "streams at full speed, TLS upstream",
    "50 paced streams",
    "50 paced streams, TLS upstream",
    "50 paced streams, TLS both sides",
    "chat, HTTP/2",
    "50 paced streams, HTTP/2",
    "100 realtime sessions",
    "embeddings of 30 KB",
    "uploads of 20 MB",
    "uploads of 20 MB, slow upstream",
}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(argparse.Namespace(mitmdump=MITMDUMP, tls=False), stack)


def run(*arguments: str, **variables: str) -> str:
    """What it prints: it ends well."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": "tools"} | variables
    command = [sys.executable, "-m", "bench", "--turns", "1", "--seconds", "0.2", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=300).stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with a peer in it: ours again, which gets its upstream from a file as a peer may need to."""
    folder = tmp_path_factory.mktemp("bench")
    settings = folder / "peer.yaml"
    settings.write_text("azure_openai_endpoint: {upstream}\n")
    command = f"{MITMDUMP} -q --set confdir={{confdir}} -s {ROOT}/addon/azure_openai.py"
    peer = {
        "BENCH_PEER_OTHER": f"env --unset AZURE_OPENAI_ENDPOINT AZURE_OPENAI_CONFIG={{config}} {command}",
        "BENCH_PEER_OTHER__CONFIG": str(settings),
        "BENCH_PEER_OTHER__HEADERS": "x-upstream: {upstream}; x-two: 2",
        "BENCH_PEER_OTHER__PREFIX": "/v1",
    }
    result = folder / "result.json"
    run("--only", "chat, 32", "--targets", "direct;bare mitmdump;ours;other", "--save", str(result), **peer)
    return result


def test_side_by_side(saved: Path) -> None:
    """Each target served requests and lost none; a target with a process has its CPU cost and its ratio to bare mitmdump."""
    row = json.loads(saved.read_text())["cases"]["chat, 32 clients"]
    assert {"direct", "bare mitmdump", "ours", "other"} == set(row)
    assert 0 == sum(seen["failed"] + seen["lost"] for seen in row.values())
    assert all(seen["requests"] for seen in row.values())
    assert {"bare mitmdump", "ours", "other"} == {name for name, seen in row.items() if seen["cpu"] and seen["of_bare"]}


def test_an_earlier_result_is_compared(saved: Path) -> None:
    """An earlier result is compared with the present one, and each row of both is shown."""
    printed = run("--only", "chat, 32", "--targets", "bare mitmdump;ours", "--against", str(saved))
    rows = [line.split(" | ")[:2] for line in printed.partition("\nagainst ")[2].splitlines()[4:]]
    assert [["| chat, 32 clients", "bare mitmdump"], ["| chat, 32 clients", "ours"]] == rows


def test_a_whole_run(tmp_path: Path) -> None:
    """No case loses anything, TLS included; accounting, views and large bodies have tables of their own."""
    run("--targets", "ours;ours, accounting", "--save", str(tmp_path / "result"))
    result = json.loads((tmp_path / "result").read_text())
    assert CASES == set(result["cases"])
    assert 0 == sum(seen["failed"] + seen["lost"] for row in result["cases"].values() for seen in row.values())
    assert {"accounting", "views", "large"} == set(result["tables"])
    assert [0, 0] == [row["bytes lost"] for row in result["tables"]["large"]]


def test_what_seeing_costs_is_shown(tmp_path: Path) -> None:
    """In mitmweb, beside mitmweb where nothing is seen."""
    printed = run("--only", "full speed", "--targets", "ours in mitmweb;ours in mitmweb, unseen", "--save", str(tmp_path / "result"))
    row = json.loads((tmp_path / "result").read_text())["cases"]["streams at full speed"]
    assert row["ours in mitmweb"]["of_other"] > 0
    assert 0 == sum(seen["failed"] + seen["lost"] for seen in row.values())
    assert "| in mitmweb | CPU µs each, unseen | seen | seen, of unseen |" in printed


def test_the_cost_of_accounting(bench: Bench) -> None:
    """The proxy with metrics, access log and ledger, beside the proxy without, in fresh processes."""
    rows = accounting.rows(bench, 2, 0.2)
    assert [("small chat", 2, 0), ("paced chunk", 2, 0)] == [(row["accounting"], row["starts"], row["failed or lost"]) for row in rows]
    assert all(0 < float(row["least"]) <= float(row["on, of off"]) <= float(row["most"]) for row in rows)


def test_views_of_a_large_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of our views is asked for requests or answers, and shows something."""
    monkeypatch.setattr(contentviews.registry, "_by_name", dict(contentviews.registry._by_name))
    rows = looks.rows(100_000)
    assert {"Conversation", "Answer", "As the client sent it", "As Azure sent it"} == {row["view"] for row in rows}
    assert all(row["characters shown"] for row in rows)


def test_growth(bench: Bench) -> None:
    """A row for each number; streams that are held stay open."""
    rows = growth.rows(bench, 1, 0.2, streams=(1, 3), models=(1, 20), backends=(1, 3))
    names = ["1 open streams", "3 open streams", "1 model", "20 models", "1 backend", "3 backends"]
    assert names == [row["small chat with"] for row in rows]
    assert [0] * 6 == [row["failed or lost"] for row in rows]


def test_growth_that_this_machine_cannot_have(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said and left out."""
    assert [] == growth.rows(bench, 1, 0.2, streams=(bench.files,), models=(), backends=())
    assert f"{bench.files:,} streams are not measured" in capsys.readouterr().err


def test_streams_held(bench: Bench) -> None:
    """All chunks of all streams come, on each target."""
    direct, _, ours = targets.targets(options=False)[:3]
    rows = held.rows(bench, [direct, ours], 0.5, streams=10, idle=0)
    assert [("direct", 30, 0), ("ours", 30, 0)] == [(row["target"], row["chunks"], row["failed or lost"]) for row in rows]
    assert {"MB before", "MB at the peak", "MB afterwards"} < set(rows[1])


def test_clients_with_keys(bench: Bench) -> None:
    """Each client is asked, with Redis too if it is there; no request is refused."""
    rows = teams.rows(bench, 1, clients=40)
    names = ["1 client", "40 clients", "1 client, Redis", "40 clients, Redis"]
    assert names[: 2 if redis.missing() else 4] == [row["small chat with"] for row in rows]
    assert [0] * len(rows) == [row["failed or lost"] for row in rows]


def test_each_client_of_a_job_is_asked() -> None:
    """A job with a number of requests sends just these, with the keys of all clients, however slow the answers are."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                asked.append(head.partition(b"Authorization: Bearer ")[2].partition(b"\r\n")[0])
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def measure() -> dict[str, float]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await load.run(jobs.Job(port=port, kind="chat", clients=4, seconds=0, keys=20, requests=40))

    seen = asyncio.run(measure())
    assert (40, 0) == (seen["requests"], seen["failed"])
    assert sorted([key.encode() for key in jobs.client_keys(20)] * 2) == sorted(asked)


@pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")
def test_many_processes(bench: Bench) -> None:
    """One and two answer all."""
    rows = many.rows(bench, [], 1, 0.2, processes=2)
    assert ["ours, 1 process", "ours, 2 processes"] == [next(iter(row.values())) for row in rows]
    assert [0, 0] == [row["failed or lost"] for row in rows]


def _interrupted(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("seconds", "stop"), [("3", None), ("600", _interrupted)], ids=["to its end", "stopped"])
def test_a_steady_load(seconds: str, stop: Callable[[Any], None] | None) -> None:
    """The report says how much was done, and whether the run was complete or was stopped."""
    command = [sys.executable, str(ROOT / "tools" / "soak.py"), "--steady", "--seconds", seconds, "--rate", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        printed = [process.stdout.readline()]
        if stop:
            stop(process)
        printed += process.stdout
        assert 0 == process.wait(PATIENCE)
    assert " 0 wrong " in printed[0]
    assert printed[-1].startswith("memory ")
