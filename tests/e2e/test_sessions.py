"""Sessions over several backends: affinity, and the items that only the backend which made them can read."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Simulator, status
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from azure_simulator.calls import Call

REASON, BACKEND = "x-azure-openai-proxy-reason", "x-azure-openai-proxy-backend"


@pytest.fixture(scope="module")
def running() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Simulator()) for _ in range(3)]


@pytest.fixture
def simulators(running: list[Simulator]) -> list[Simulator]:
    for simulator in running:
        simulator.reset()
    return running


def write(home: Path, simulators: Sequence[Simulator], names: str = "abc") -> None:
    entries = [
        {"name": name, "endpoint": simulator.http_url, "token": simulator.key} for name, simulator in zip("abc", simulators, strict=True)
    ]
    new = home / "new.yaml"
    new.write_text(json.dumps({"azure_openai_backends": [entry for entry in entries if entry["name"] in names]}))
    new.rename(home / "mitm_config.yaml")


def proxying(home: Path, confdir: Path, simulators: Sequence[Simulator], **options: object) -> Mitmdump:
    write(home, simulators)
    given = {"azure_openai_apiversion": "v1", "azure_openai_debug_headers": True}
    return Mitmdump(home, confdir, options=given | options)


def connected(proxy: Mitmdump) -> httpx.Client:
    return httpx.Client(base_url=proxy.url, timeout=PATIENCE, trust_env=False, headers={"authorization": "Bearer mine"})


def chat(text: str = "hello", **members: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **members}


def test_a_session_and_its_reasons(tmp_path: Path, confdir: Path, simulators: list[Simulator]) -> None:
    """A session stays at one backend and moves with a failover; the header is removed, and the reason is in headers, log and access log."""
    log = tmp_path / "access.log"
    by_name = dict(zip("abc", simulators, strict=True))

    with proxying(tmp_path, confdir, simulators, azure_openai_access_log=log, termlog_verbosity="debug") as proxy, connected(proxy) as http:

        def ask(body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> tuple[str, str]:
            answer = http.post(path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})
            assert 200 == answer.status_code
            return answer.headers[BACKEND], answer.headers[REASON]

        first, reason = ask(chat("1"), x_session_affinity="one")
        assert "weight" == reason
        assert {(first, "bound")} == {ask(chat(f"turn {turn}"), x_session_affinity="one") for turn in range(6)}
        assert all("x-session-affinity" not in dict(request.headers) for request in by_name[first].requests)
        grown = chat("a conversation")
        began, _ = ask(grown)
        grown["messages"] += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
        assert (began, "bound") == ask(grown)
        assert "weight" == ask(grown | {"model": "gpt-4o-mini"})[1]
        assert "weight" == ask(grown, authorization="Bearer another")[1]
        by_name[first].faults.next(status(503, retry_after=0.001))
        moved, reason = ask(chat("2"), x_session_affinity="one")
        assert (f"failover from {first}", True) == (reason, moved != first)
        assert {(moved, "bound")} == {ask(chat(f"turn {turn}"), x_session_affinity="one") for turn in range(3)}
        embedded = {ask({"model": "text-embedding-3-small", "input": "x"}, "/v1/embeddings", x_session_affinity="one")[1] for _ in range(3)}
        assert {"weight"} == embedded
        proxy.wait_for_log(f"POST /v1/chat/completions: backend {moved}, reason: bound")
    reasons = [json.loads(line)["reason"] for line in log.read_text().splitlines()]
    assert {"weight", "bound", f"failover from {first}"} == set(reasons)


class Session:
    """A coding agent that keeps its conversation itself, with encrypted reasoning, and sends all of it again each turn."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.input: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.owner = ""

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": "o4-mini",
            "input": self.input,
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "tools": [{"type": "function", "name": "shell", "parameters": {}}],
            "stream": self.number % 4 < 2,
        }

    def turn(self, http: httpx.Client) -> None:
        text = f"session {self.number}, turn {len(self.statuses)}"
        self.input.append({"role": "user", "content": [{"type": "input_text", "text": text}]})
        answer = http.post("/v1/responses", json=self.body)
        self.statuses.append(answer.status_code)
        assert 200 == answer.status_code, answer.text
        self.owner = answer.headers[BACKEND]
        if "event-stream" in answer.headers["content-type"]:
            events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
            output = events[-1]["response"]["output"]
        else:
            output = answer.json()["output"]
        for item in output:
            if self.number % 2:
                self.input.append({name: value for name, value in item.items() if name != "id"})
            elif item["type"] == "reasoning":
                self.input.append(item)
            else:
                self.input.append({"type": "item_reference", "id": item["id"]})
            if item["type"] == "function_call":
                self.input.append({"type": "function_call_output", "call_id": item["call_id"], "output": "done"})


def says_gone(answer: httpx.Response, item: str) -> bool:
    """Whether the error names the item and says that its backend is gone."""
    error = answer.json()["error"]
    return "item_backend_gone" == error["code"] and item in error["message"] and "gone" in error["message"]


def is_new(call: Call) -> bool:
    return all("role" in item for item in call.asked.get("input", []))


def test_sessions_of_a_coding_agent(tmp_path: Path, confdir: Path, simulators: list[Simulator]) -> None:
    """Of 50 sessions with encrypted reasoning, references and failovers in between, none fails that a backend could serve."""
    rng = random.Random(3)
    sessions = [Session(number) for number in range(50)]
    by_name = dict(zip("abc", simulators, strict=True))
    with proxying(tmp_path, confdir, simulators) as proxy, connected(proxy) as http, ThreadPoolExecutor(6) as threads:
        for turn in range(4):
            started = sessions[: 20 + turn * 10]
            for failing, fault in zip(simulators[:2], (status(503), status(429, retry_after=60)), strict=True):
                failing.faults.clear()
                if turn:
                    failing.faults.next(fault, when=is_new)  # the third one can serve
            list(threads.map(Session.turn, started, [http] * len(started)))
            gone = rng.choice("ab")
            by_name[gone].stop()
            others = [session for session in started if session.owner != gone]
            new = Session(100 + turn)
            list(threads.map(Session.turn, [*others, new], [http] * (len(others) + 1)))
            assert gone != new.owner
            by_name[gone].start()
    assert {200} == {code for session in sessions for code in session.statuses}
    assert len({session.owner for session in sessions}) > 1


def test_a_session_after_a_restart(tmp_path: Path, confdir: Path, simulators: list[Simulator]) -> None:
    """A proxy that does not know who made an item finds the backend."""
    session = Session(0)
    with proxying(tmp_path, confdir, simulators) as proxy, connected(proxy) as http:
        session.turn(http)
    owner = session.owner
    with proxying(tmp_path, confdir, simulators) as proxy, connected(proxy) as http:
        session.turn(http)
    assert owner == session.owner


def test_a_session_whose_backend_is_gone(tmp_path: Path, confdir: Path, simulators: list[Simulator]) -> None:
    """Its owner is asked alone: an answer of its own is passed on, without one the client gets an error that names the item."""
    by_name = dict(zip("abc", simulators, strict=True))
    with proxying(tmp_path, confdir, simulators) as proxy, connected(proxy) as http:
        session = Session(0)
        session.turn(http)
        owner = by_name[session.owner]
        item = next(item["id"] for item in reversed(session.input) if "id" in item)
        before = sum(len(simulator.requests) for simulator in simulators)
        owner.faults.next(status(429, retry_after=7))
        limited = http.post("/v1/responses", json=session.body)
        assert (429, "7") == (limited.status_code, limited.headers["retry-after"])
        owner.stop()
        try:
            refused = http.post("/v1/responses", json=session.body)
        finally:
            owner.start()
        assert 503 == refused.status_code
        assert says_gone(refused, item)
        assert before + 1 == sum(len(simulator.requests) for simulator in simulators)
        session.turn(http)
        item = next(item["id"] for item in reversed(session.input) if "id" in item)
        write(tmp_path, simulators, names="abc".replace(session.owner, ""))
        proxy.wait_for_log(r"azure mode: " + ", ".join(rf"{name} \S+" for name in "abc".replace(session.owner, "")) + ", API")
        before = sum(len(simulator.requests) for simulator in simulators)
        refused = http.post("/v1/responses", json=session.body)
        assert 404 == refused.status_code
        assert says_gone(refused, item)
        assert before == sum(len(simulator.requests) for simulator in simulators)


def test_lost_reasoning_is_dropped(tmp_path: Path, confdir: Path, simulators: list[Simulator]) -> None:
    """With `azure_openai_lost_items=drop` a conversation goes on elsewhere without the encrypted reasoning, and says so."""
    by_name = dict(zip("abc", simulators, strict=True))
    with proxying(tmp_path, confdir, simulators, azure_openai_lost_items="drop") as proxy, connected(proxy) as http:
        session = Session(1)
        session.turn(http)
        gone = session.owner
        for number in range(0, 100, 2):
            referring = Session(number)
            referring.turn(http)
            if referring.owner == gone:
                break
        by_name[gone].stop()
        try:
            session.input.append({"role": "user", "content": "go on"})
            answer = http.post("/v1/responses", json=session.body)
            refused = http.post("/v1/responses", json=referring.body)
        finally:
            by_name[gone].start()
        assert (200, "1", f"failover from {gone}") == (
            answer.status_code,
            answer.headers["x-azure-openai-proxy-lost-items"],
            answer.headers[REASON],
        )
        sent = by_name[answer.headers[BACKEND]].requests[-1].json
        assert [item for item in session.input if item.get("type") != "reasoning"] == sent["input"]
        assert 503 == refused.status_code
        proxy.wait_for_log("1 items with encrypted reasoning of . are left out")
