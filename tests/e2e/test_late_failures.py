"""Streams that fail before their first output: for how long their beginning is held, and who gets the failure."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Gate, Simulator, reshape
from support.processes import PATIENCE, Mitmdump, only_http2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APIS = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "one two"}], "stream": True}),
    "responses": ("/v1/responses", {"input": "one two", "stream": True}),
}
BEGUN = {"chat": '"role":"assistant"', "responses": "response.created"}
WAYS = [(api, h2) for api in APIS for h2 in (False, True)]
LONG = "600"


@pytest.fixture(scope="module")
def simulators() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Simulator()) for _ in range(2)]


@pytest.fixture(scope="module")
def home(simulators: list[Simulator], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two backends for each model `MODEL-...` of this file, so that no test sees the cool-downs of another."""
    folder = tmp_path_factory.mktemp("late")
    names = [f"{test}-{api}-{int(h2)}" for test in ("comment", "output", "lone", "time", "prompt", "wait") for api, h2 in WAYS]
    entries = [
        {"name": f"{name}-{index}", "endpoint": simulator.http_url, "token": simulator.key, "priority": index, "models": {name: "gpt-4o"}}
        for name in names
        for index, simulator in enumerate(simulators[: 1 if name.startswith("lone") else 2])
    ]
    (folder / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}))
    return folder


@contextmanager
def mitmdump(home: Path, confdir: Path, hold: str) -> Iterator[Mitmdump]:
    with Mitmdump(home, confdir, options={"azure_openai_hold_stream": hold}) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def patient(home: Path, confdir: Path) -> Iterator[Mitmdump]:
    """A proxy that holds a stream for ten minutes."""
    with mitmdump(home, confdir, LONG) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def hasty(home: Path, confdir: Path) -> Iterator[Mitmdump]:
    """A proxy that holds a stream for a moment."""
    with mitmdump(home, confdir, "0.2") as proxy:
        yield proxy


@contextmanager
def client(proxy: Mitmdump, *, h2: bool) -> Iterator[httpx.Client]:
    how: dict[str, Any] = {"base_url": proxy.https_url, "verify": only_http2(proxy.ca), "http1": False, "http2": True}
    with httpx.Client(timeout=PATIENCE, trust_env=False, **(how if h2 else {"base_url": proxy.url})) as opened:
        yield opened


def model(test: str, api: str, h2: bool) -> dict[str, str]:
    return {"model": f"{test}-{api}-{int(h2)}"}


def reset(simulators: list[Simulator]) -> None:
    for simulator in simulators:
        simulator.reset()


@pytest.mark.parametrize("api, h2", WAYS)
@pytest.mark.parametrize("test", ["comment", "lone", "time"])
def test_what_is_not_held(test: str, api: str, h2: bool, patient: Mitmdump, hasty: Mitmdump, simulators: list[Simulator]) -> None:
    """A comment, the absence of another backend, or the end of the time releases the beginning; then the failure is the client's."""
    reset(simulators)
    gate = Gate()
    simulators[0].faults.next(reshape.late_failure("failed", gate, comment=test == "comment"))
    path, body = APIS[api]
    with (
        client(hasty if test == "time" else patient, h2=h2) as http,
        http.stream("POST", path, json=body | model(test, api, h2)) as answer,
    ):
        lines = answer.iter_lines()
        assert 200 == answer.status_code
        assert any(BEGUN[api] in line for line in lines)
        gate.release()
        assert any("rate_limit_exceeded" in line for line in lines)
    assert [1, 0] == [len(simulator.requests) for simulator in simulators]


@pytest.mark.parametrize("api, h2", WAYS)
def test_the_first_output_ends_the_hold(api: str, h2: bool, patient: Mitmdump, simulators: list[Simulator]) -> None:
    """Everything up to it arrives while the rest is still held back by Azure."""
    reset(simulators)
    gate = Gate(before=3 if api == "chat" else 6)
    simulators[0].faults.next(gate)
    path, body = APIS[api]
    with client(patient, h2=h2) as http, http.stream("POST", path, json=body | model("output", api, h2)) as answer:
        lines = answer.iter_lines()
        assert any('"You"' in line for line in lines)
        gate.release()
        assert any("two" in line for line in lines)
    assert [1, 0] == [len(simulator.requests) for simulator in simulators]


@pytest.mark.parametrize("api, h2", WAYS)
def test_an_invalid_prompt_is_the_clients(api: str, h2: bool, patient: Mitmdump, simulators: list[Simulator]) -> None:
    """A failure that another backend would repeat is passed on, and no other backend is asked."""
    reset(simulators)
    simulators[0].faults.next(reshape.late_failure("failed", code="invalid_prompt"))
    path, body = APIS[api]
    with client(patient, h2=h2) as http:
        answer = http.post(path, json=body | model("prompt", api, h2))
    assert "invalid_prompt" in answer.text
    assert [1, 0] == [len(simulator.requests) for simulator in simulators]


@pytest.mark.parametrize("api, h2", WAYS)
def test_a_late_failure_starts_a_cool_down(api: str, h2: bool, patient: Mitmdump, simulators: list[Simulator]) -> None:
    """For as long as its own `retry-after` says: the next request goes elsewhere at once."""
    reset(simulators)
    simulators[0].faults.always(reshape.late_failure("failed", retry_after="200"))
    path, body = APIS[api]
    with client(patient, h2=h2) as http:
        for _ in range(3):
            answer = http.post(path, json=body | model("wait", api, h2))
            assert (200, True) == (answer.status_code, "two" in answer.text)
    assert [1, 3] == [len(simulator.requests) for simulator in simulators]
