"""The ledger of a real mitmdump: under load, with a database that is stopped, a disk that is full, and kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sa
from websockets.sync.client import connect

from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.ledger.report import usage
from azure_openai_proxy.accounting.ledger.schema import SCHEMA, UPGRADES
from azure_simulator.answers import json_answer
from support.ledger import rows
from support.load import SECRET_TEXT, Load, wait_until
from support.postgres import PASSWORD
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call
    from support.postgres import Postgres

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": SECRET_TEXT}]}


@pytest.fixture
def mitmdump(azure: Simulator, confdir: Path, tmp_path: Path) -> Callable[..., Mitmdump]:
    """A mitmdump with a ledger, which is not started."""

    def make(url: str, home: str = "home", **options: object) -> Mitmdump:
        return Mitmdump(
            tmp_path / home, confdir, options={"azure_openai_endpoint": azure.http_url, **options}, env={"AZURE_OPENAI_LEDGER": url}
        )

    return make


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


def names(url: str) -> set[str]:
    """The sessions of all rows."""
    return {row["session"] for row in rows(parse(url))}


def sum_of_requests(url: str) -> int:
    return sum(group["requests"] for group in usage(parse(url), ["model"], None))


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_kill_under_load(
    database: str, mitmdump: Callable[..., Mitmdump], azure: Simulator, file: Path, request: pytest.FixtureRequest
) -> None:
    """After kill -9 at most the calls of the last second are missing, the database is whole, and the next process continues it."""
    url = f"sqlite:///{file}" if database == "sqlite" else request.getfixturevalue("postgres").create()
    proxy = mitmdump(url).start()
    with Load(proxy.url, azure.key) as load:
        wait_until(lambda: load.done and load.done[-1].ended - load.done[0].ended > 2.5)
        proxy.signal(signal.SIGKILL)
        wait_until(lambda: load.failed)
        answered = list(load.done)
    assert -signal.SIGKILL == proxy.wait()
    last = answered[-1].ended
    found = rows(parse(url))
    kept = {row["session"] for row in found}
    assert [] == [done for done in answered if done.name not in kept and done.ended < last - 1]
    assert [row["number"] for row in found] == list(range(len(found)))
    assert len(found) == sum_of_requests(url) > 20
    assert all(row["input_tokens"] for row in found)

    with mitmdump(url, "home2") as proxy, Load(proxy.url, azure.key, clients=1) as load:
        load.wait(3)
    assert len(found) + len(load.done) == len(rows(parse(url))) == sum_of_requests(url)
    if database == "sqlite":
        with parse(url).connect("read") as connection:
            assert "ok" == connection.scalar(sa.text("PRAGMA integrity_check"))


def test_postgresql_is_stopped_under_load(mitmdump: Callable[..., Mitmdump], azure: Simulator, postgres: Postgres) -> None:
    """While PostgreSQL is stopped every request is answered, and its row is written when the server runs again."""
    url = postgres.create()
    with mitmdump(url) as proxy:
        with Load(proxy.url, azure.key) as load:
            load.wait(30)
            postgres.stop()
            try:
                proxy.wait_for_log("The ledger cannot be written")
                load.wait(60)
            finally:
                postgres.start()
            load.wait(30)
        assert {200} == {done.status for done in load.done}
        assert [] == load.failed
        wait_until(lambda: len(names(url)) == len(load.done))
        proxy.wait_for_log("The ledger is written again")
    assert {done.name for done in load.done} == names(url)
    assert len(load.done) == len(rows(parse(url))) == sum_of_requests(url)
    assert PASSWORD not in "\n".join([proxy.log(), *proxy.records])


def test_a_start_without_the_database(mitmdump: Callable[..., Mitmdump], azure: Simulator, postgres: Postgres) -> None:
    """Without client keys the proxy starts and answers while PostgreSQL is stopped, and then creates the tables and writes the rows."""
    url = postgres.create()
    postgres.stop()
    try:
        proxy = mitmdump(url, azure_openai_client_auth="off").start()
        with Load(proxy.url, azure.key, clients=1) as load:
            load.wait(3)
    finally:
        postgres.start()
    proxy.wait_for_log("The ledger's tables were created")
    wait_until(lambda: len(names(url)) == len(load.done))
    proxy.stop()
    assert ([], {200}) == (load.failed, {done.status for done in load.done})


@contextmanager
def limited_size(proxy: Mitmdump, folder: Path) -> Iterator[None]:
    """The process cannot make a file larger than those that it has."""
    import resource

    hard = resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (max(file.stat().st_size for file in folder.glob("usage.db*")), hard))
    try:
        yield
    finally:
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def full(_: Mitmdump, folder: Path) -> Iterator[None]:
    """The file system is full."""
    filler = folder / "filler"
    try:
        with filler.open("wb", 0) as output, suppress(OSError):
            while output.write(b"\0" * 512):
                pass
        yield
    finally:
        filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("way", ["limit", "full"])
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process can be set on Linux only")
def test_a_full_disk(way: str, mitmdump: Callable[..., Mitmdump], azure: Simulator, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """While nothing can be written every request is answered, and its row is written when there is space again."""
    folder: Path = request.getfixturevalue("small_disk") if way == "full" else tmp_path
    url = f"sqlite:///{folder}/usage.db"
    with mitmdump(url) as proxy:
        with Load(proxy.url, azure.key) as load:
            load.wait(30)
            wait_until(lambda: (folder / "usage.db").exists() and names(url))
            with (limited_size if way == "limit" else full)(proxy, folder):
                proxy.wait_for_log(r"The ledger cannot be written.*(disk I/O error|disk is full)")
                load.wait(60)
            load.wait(10)
        assert ([], {200}) == (load.failed, {done.status for done in load.done})
        wait_until(lambda: len(names(url)) == len(load.done))
    assert {done.name for done in load.done} == names(url)
    assert len(load.done) == sum_of_requests(url)


def test_a_start_on_a_full_disk(mitmdump: Callable[..., Mitmdump], azure: Simulator, small_disk: Path) -> None:
    """Without client keys the proxy starts and answers on a full disk, and creates the database when there is space."""
    url = f"sqlite:///{small_disk}/usage.db"
    proxy = mitmdump(url, azure_openai_client_auth="off")
    with full(proxy, small_disk), proxy, Load(proxy.url, azure.key, clients=1) as load:
        proxy.wait_for_log(r"The ledger cannot be written.*disk is full")
        load.wait(3)
        (small_disk / "filler").write_bytes(b"")
        proxy.wait_for_log("The ledger's tables were created")
        load.wait(3)
    assert ([], {200}) == (load.failed, {done.status for done in load.done})
    assert {done.name for done in load.done} == names(url)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_replicas(database: str, mitmdump: Callable[..., Mitmdump], azure: Simulator, file: Path, request: pytest.FixtureRequest) -> None:
    """Replicas that start together create the tables once and write to the same ledger, which the command adds up."""
    url = f"sqlite:///{file}" if database == "sqlite" else request.getfixturevalue("postgres").create()
    replicas = [mitmdump(url, f"home{number}").launch() for number in range(3)]
    for replica in replicas:
        replica.wait_until_ready()
    loads = [Load(replica.url, azure.key, clients=2) for replica in replicas]
    for load in loads:
        with load:
            load.wait(20)
    for replica in replicas:
        replica.stop()
        replica.check()
    answered = sum(len(load.done) for load in loads)
    with parse(url).connect("read") as connection:
        assert [1 + len(UPGRADES)] == list(connection.scalars(sa.select(SCHEMA.c.version)))
    assert 1 == sum("The ledger's tables were created" in replica.log() for replica in replicas)
    assert not any("cannot be written" in replica.log() for replica in replicas)
    ran = subprocess.run(
        [sys.executable, "-m", "azure_openai_proxy.cli.command", "usage", "--by", "model,day,backend,client", "--format", "json"],
        env=os.environ | {"AZURE_OPENAI_LEDGER": url},
        capture_output=True,
        check=True,
    )
    groups: list[dict[str, Any]] = json.loads(ran.stdout)
    assert {("gpt-4o", "default", "")} == {(group["model"], group["backend"], group["client"]) for group in groups}
    found = rows(parse(url))
    assert answered == len(found) == sum(group["requests"] for group in groups)
    for name in ("input_tokens", "output_tokens"):
        assert sum(row[name] for row in found) == sum(group[name] for group in groups)
    assert sum(row["cost_usd"] for row in found) == pytest.approx(sum(group["cost_usd"] for group in groups))


def complete(answer: Answer, _: Call) -> Answer:
    """Azure's response, as a background response that is complete."""
    members = {"background": True, "status": "completed", "usage": {"input_tokens": 11, "output_tokens": 7}}
    return json_answer(json.loads(answer.body) | members)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_background_response(
    database: str, mitmdump: Callable[..., Mitmdump], azure: Simulator, file: Path, request: pytest.FixtureRequest
) -> None:
    """Its usage is counted once, although another replica, and the same one after a restart, show it too; each request has a row."""
    url = f"sqlite:///{file}" if database == "sqlite" else request.getfixturevalue("postgres").create()
    headers = {"api-key": azure.key}
    for home in ("home", "home2", "home"):
        with mitmdump(url, home) as proxy, httpx.Client(base_url=proxy.url, timeout=PATIENCE, headers=headers) as http:
            for _ in range(2):
                azure.faults.next(complete)
                assert 200 == http.get("/v1/responses/resp_background").status_code
    found = [row for row in rows(parse(url)) if row["operation"] == "responses"]
    assert 6 == len(found)
    assert [(11, 7)] == [(row["input_tokens"], row["output_tokens"]) for row in found if row["usage_state"] == "known"]
    (group,) = usage(parse(url), ["client"], None)
    assert (6, 11, 7, 0) == (group["requests"], group["input_tokens"], group["output_tokens"], group["unknown_usage"])


def test_a_websocket(mitmdump: Callable[..., Mitmdump], azure: Simulator, file: Path) -> None:
    """Each response of a WebSocket has a row, and the WebSocket has one without usage."""
    url = f"sqlite:///{file}"
    with mitmdump(url) as proxy:
        address = f"{proxy.url.replace('http', 'ws')}/v1/responses"
        with connect(address, additional_headers={"authorization": f"Bearer {azure.key}"}, proxy=None) as websocket:
            for _ in range(2):
                websocket.send(json.dumps({"type": "response.create", "model": "gpt-4o", "input": SECRET_TEXT}))
                while json.loads(websocket.recv(PATIENCE))["type"] != "response.completed":
                    pass
        wait_until(lambda: file.exists() and len(rows(parse(url))) == 3)
    *responses, whole = rows(parse(url))
    assert [True, True, False] == [row["in_websocket"] for row in (*responses, whole)]
    assert [("gpt-4o", 200)] * 2 == [(row["model"], row["status"]) for row in responses]
    assert "none" not in {row["usage_state"] for row in responses}
    assert (101, "none", None) == (whole["status"], whole["usage_state"], whole["input_tokens"])


def test_neither_keys_nor_texts(mitmdump: Callable[..., Mitmdump], azure: Simulator, file: Path) -> None:
    """The files of the database contain no key and no text of a message, also of requests that fail, and no row of a 401."""
    keys = ["sk-a-wrong-key-0123456789", "sk-in-the-query-0123456789", azure.key]
    with mitmdump(f"sqlite:///{file}", azure_openai_token=azure.key) as proxy, httpx.Client(base_url=proxy.url, timeout=PATIENCE) as http:
        asked = [
            http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {keys[0]}"}).status_code,
            http.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers={"api-key": keys[0]}).status_code,
            http.post(f"/v1/chat/completions?api-key={keys[1]}", json=CHAT | {"no_such": SECRET_TEXT}).status_code,
            http.post("/v1/responses", json={"model": "gpt-4o", "input": SECRET_TEXT}).status_code,
            http.post("/v1/chat/completions", content=f"{{{SECRET_TEXT}").status_code,
            http.post("/v1/embeddings", json={"model": SECRET_TEXT[:9], "input": [SECRET_TEXT]}).status_code,
        ]
        wait_until(lambda: len(rows(parse(f"sqlite:///{file}"))) == len(asked))
        content = b"".join(each.read_bytes() for each in file.parent.glob("usage.db*"))
    assert 200 in asked
    assert 400 in asked
    assert b"chat.completions" in content
    for secret in (*keys, SECRET_TEXT):
        assert secret.encode() not in content


def test_a_client_without_a_key_leaves_no_row(mitmdump: Callable[..., Mitmdump], azure: Simulator, file: Path) -> None:
    """Requests that get a 401 are not written."""
    with mitmdump(f"sqlite:///{file}") as proxy, httpx.Client(base_url=proxy.url, timeout=PATIENCE) as http:
        assert 401 == http.post("/v1/chat/completions", json=CHAT).status_code
        assert 200 == http.post("/v1/chat/completions", json=CHAT, headers={"api-key": azure.key}).status_code
    assert [200] == [row["status"] for row in rows(parse(f"sqlite:///{file}"))]


@pytest.mark.parametrize(
    "url, says",
    [
        ("usage.db", "write sqlite:///usage.db or postgresql"),
        ("mysql://u:tiger@h/d", "write sqlite:///usage.db or postgresql"),
        ("postgresql+psycopg2://u:tiger@h/d", "unknown database or driver"),
        ("postgresql://u:tiger@h/d?colour=blue", "a parameter that PostgreSQL does not know"),
        ("postgresql://127.0.0.1:1/d?user=u&password=tiger", "a password belongs before the host"),
        ("sqlite:////no/such/folder/usage.db", "unable to open database file: /no/such/folder/usage.db"),
    ],
)
def test_a_ledger_that_cannot_work_ends_the_start(url: str, says: str, mitmdump: Callable[..., Mitmdump]) -> None:
    """One line names the fault and where the value is from, without the password."""
    started = mitmdump(url).launch()
    assert 1 == started.wait()
    about = [line for line in started.output if re.search("azure.openai.ledger", line)]
    assert 1 == len(about), started.log()
    assert says in about[0]
    assert "azure_openai_ledger (environment variable AZURE_OPENAI_LEDGER): " in about[0]
    assert "Traceback" not in started.log()
    assert "tiger" not in started.log()


@pytest.mark.skipif(sys.platform != "linux", reason="the processes of the server are found in /proc")
def test_postgresql_hangs(mitmdump: Callable[..., Mitmdump], azure: Simulator, postgres: Postgres) -> None:
    """While PostgreSQL accepts connections and answers nothing, every request is answered, the proxy stops in time, and no row is twice."""
    url = postgres.create()
    proxy, other = mitmdump(url).start(), mitmdump(url, "home2").start()
    with Load(proxy.url, azure.key, clients=2) as load, Load(other.url, azure.key, clients=1) as more:
        load.wait(10)
        postgres.pause()
        try:
            load.wait(40)
            more.wait(10)
            other.signal(signal.SIGTERM)
            assert 0 == other.wait()
        finally:
            postgres.resume()
        load.wait(10)
    assert ([], {200}) == (load.failed, {done.status for done in load.done})
    wait_until(lambda: {done.name for done in load.done} <= names(url))
    proxy.stop()
    assert sum_of_requests(url) == len(rows(parse(url))) <= len(load.done) + len(more.done)
