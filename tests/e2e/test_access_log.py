"""The access log of a real mitmdump: one line for each request, with the usage that the simulated Azure reported."""

from __future__ import annotations

import json
import signal
import socket
import stat
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from websockets.sync.client import connect

from azure_simulator import Cut, Gate, Simulator, errors, reshape, status
from azure_simulator.answers import json_answer
from support.access_log import AccessLog
from support.processes import PATIENCE, Mitmdump, only_http2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_simulator import Fault
    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call
    from conftest import Proxies

SECRET = "one two three"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": SECRET}]}
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
KNOWN = {"usage": "known", "input_tokens": 11, "output_tokens": 7}


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> AccessLog:
    return AccessLog(tmp_path_factory.mktemp("access") / "access.log")


@pytest.fixture
def logged(proxy: Proxies, log: AccessLog) -> Mitmdump:
    """A mitmdump with an access log."""
    mitmdump = proxy(azure_openai_access_log=log.path, azure_openai_apiversion="v1")
    log.forget()
    return mitmdump


@pytest.fixture
def http(logged: Mitmdump, azure: Simulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=logged.url, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE) as client:
        yield client


def some(line: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: line[name] for name in names}


class Case(NamedTuple):
    """A request, and what its line says."""

    path: str
    body: dict[str, Any]
    expected: dict[str, Any]
    files: dict[str, tuple[str, bytes]] | None = None
    method: str = "POST"


CASES = {
    "chat": Case("/v1/chat/completions", CHAT, {"operation": "chat.completions", "usage": "known", "model": "gpt-4o", "stream": False}),
    "chat stream": Case("/v1/chat/completions", STREAM, {"operation": "chat.completions", "usage": "known", "stream": True}),
    "completion": Case(
        "/v1/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": SECRET},
        {"operation": "completions", "usage": "known", "model": "gpt-3.5-turbo-instruct"},
    ),
    "embeddings": Case(
        "/v1/embeddings", {"model": "text-embedding-3-small", "input": SECRET}, {"operation": "embeddings", "usage": "known"}
    ),
    "response": Case("/v1/responses", {"model": "gpt-4o", "input": SECRET}, {"operation": "responses", "usage": "known"}),
    "response stream": Case(
        "/v1/responses", {"model": "gpt-4o", "input": SECRET, "stream": True}, {"operation": "responses", "usage": "known", "stream": True}
    ),
    "image": Case(
        "/v1/images/generations",
        {"model": "gpt-image-1", "prompt": SECRET},
        {"operation": "images.generations", "usage": "known", "input_tokens": 3, "output_tokens": 272},
    ),
    "image stream": Case(
        "/v1/images/generations",
        {"model": "gpt-image-1", "prompt": SECRET, "stream": True},
        {"operation": "images.generations", "usage": "known", "stream": True, "input_tokens": 3, "output_tokens": 272},
    ),
    "speech": Case(
        "/v1/audio/speech",
        {"model": "tts-1", "input": SECRET, "voice": "alloy"},
        {"operation": "audio.speech", "usage": "none", "input_tokens": None},
    ),
    "transcription": Case(
        "/v1/audio/transcriptions",
        {"model": "whisper-1"},
        {"operation": "audio.transcriptions", "usage": "none", "input_tokens": None, "model": "whisper-1"},
        files={"file": ("a.wav", b"RIFF" + SECRET.encode())},
    ),
    "transcription stream": Case(
        "/v1/audio/transcriptions",
        {"model": "gpt-4o-transcribe", "stream": "true"},
        {"operation": "audio.transcriptions", "usage": "known", "input_tokens": 10, "output_tokens": 6},
        files={"file": ("a.wav", b"RIFF" + SECRET.encode())},
    ),
    "file": Case("/v1/files", {"purpose": "batch"}, {"operation": "files", "usage": "none"}, files={"file": ("a.jsonl", b'{"a": 1}\n')}),
    "conversation": Case("/v1/conversations", {}, {"operation": "conversations", "usage": "none"}),
    "poll": Case("/v1/responses/resp_1", {}, {"operation": "responses", "usage": "none", "input_tokens": None}, method="GET"),
    "models": Case("/v1/models", {}, {"operation": "models", "usage": "none", "attempts": 0, "backend": None}, method="GET"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_operation_has_a_line(case: Case, http: httpx.Client, log: AccessLog) -> None:
    """The line has the operation's label, the models, and the usage as Azure reported it."""
    if case.files:
        response = http.post(case.path, data=case.body, files=case.files)
    else:
        response = http.request(case.method, case.path, json=case.body if case.method == "POST" else None)
    line = log.one()
    assert 200 == response.status_code, response.text
    expected = {"status": 200, "method": case.method, "path": case.path, "response_bytes": len(response.content)} | case.expected
    assert expected == some(line, *expected)
    assert response.headers["x-request-id"] == line["request_id"]
    assert (line["input_tokens"] is not None) == (line["usage"] == "known")
    assert line["duration_ms"] >= line["first_byte_ms"] > 0
    if line["attempts"]:
        assert int(response.request.headers.get("content-length", 0)) == line["request_bytes"]
        assert line["duration_ms"] >= line["overhead_ms"] > 0


def test_the_tokens_of_a_response(http: httpx.Client, log: AccessLog, azure: Simulator) -> None:
    """Each part of the usage has its own field, and the cost follows from them."""
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 400, "audio_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 50, "audio_tokens": 20},
    }
    azure.faults.next(changed(usage=usage, service_tier="default"))
    http.post("/v1/chat/completions", json=CHAT)
    line = log.one()
    expected = {
        "input_tokens": 1000,
        "cached_input_tokens": 400,
        "cache_write_input_tokens": None,
        "audio_input_tokens": 100,
        "output_tokens": 200,
        "reasoning_output_tokens": 50,
        "audio_output_tokens": 20,
        "service_tier": "default",
    }
    assert expected == some(line, *expected)
    assert line["cost_usd"] > 0


def changed(**members: Any) -> Fault:
    """Azure's JSON answer with other members."""

    def fault(answer: Answer, call: Call) -> Answer:
        return json_answer(json.loads(answer.body) | members)

    return fault


@pytest.mark.parametrize(
    "headers, body, session",
    [
        ({"x-session-affinity": "here", "session_id": "codex"}, {"prompt_cache_key": "key"}, "here"),
        ({"session_id": "codex"}, {"prompt_cache_key": "key"}, "codex"),
        ({"x-claude-code-session-id": "claude"}, {}, "claude"),
        ({}, {"prompt_cache_key": "key", "previous_response_id": "resp_0"}, "key"),
        ({}, {"previous_response_id": "resp_0"}, "resp_0"),
        ({}, {}, None),
    ],
    ids=["a header", "an agent's header", "another agent's header", "the key of the cache", "a chain", "none"],
)
def test_the_session(headers: dict[str, str], body: dict[str, str], session: str | None, http: httpx.Client, log: AccessLog) -> None:
    """The session is that of a header, then the key of the prompt cache, then the chain of responses."""
    http.post("/v1/responses", json={"model": "gpt-4o", "input": SECRET} | body, headers=headers)
    assert session == log.one()["session"]


def test_a_chain_of_responses_is_one_session(http: httpx.Client, log: AccessLog) -> None:
    """Each response of a chain has the id of the first one as its session."""
    first = previous = http.post("/v1/responses", json={"model": "gpt-4o", "input": SECRET}).json()["id"]
    for _ in range(2):
        asked = {"model": "gpt-4o", "input": SECRET, "previous_response_id": previous}
        previous = http.post("/v1/responses", json=asked).json()["id"]
    assert [None, first, first] == [line["session"] for line in log.wait(3)]


def test_a_trace_is_continued(http: httpx.Client, log: AccessLog) -> None:
    """The trace id is the client's, and a new one without a valid header."""
    http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01"})
    http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": "00-0-0-0"})
    first, second = log.wait(2)
    assert "a1" * 16 == first["trace_id"]
    assert 32 == len(second["trace_id"])


# Failures


def refusing(error: errors.AzureError) -> Fault:
    def fault(answer: Answer, call: Call) -> Answer:
        return error.answer

    return fault


@pytest.mark.parametrize(
    "fault, code, expected",
    [
        (status(429), 429, {"error_code": "rate_limit_exceeded", "attempts": 1}),
        (refusing(errors.AzureError(400, {"message": "no", "code": "bad"})), 400, {"error_code": "bad"}),
        (Cut(), 502, {"error_code": "upstream_error", "attempts": 1}),
    ],
    ids=["a rate limit", "an invalid request", "no response"],
)
def test_a_failure_of_azure(
    fault: Fault, code: int, expected: dict[str, Any], http: httpx.Client, log: AccessLog, azure: Simulator
) -> None:
    """A failed request has its status and code, no tokens, and no unknown usage."""
    for _ in range(2):  # a connection that breaks at once is replaced once
        azure.faults.next(fault)
    response = http.post("/v1/chat/completions", json=CHAT)
    line = log.one()
    expected = {"status": code, "usage": "none", "input_tokens": None, "incomplete": None, "cost_usd": None} | expected
    assert code == response.status_code
    assert expected == some(line, *expected)
    assert response.headers["x-request-id"] == line["request_id"]
    assert len(response.content) == line["response_bytes"]


@pytest.mark.parametrize(
    "method, path, body, code, expected",
    [
        ("POST", "/v1/chat/completions", b"{", 400, {"operation": "chat.completions"}),
        ("GET", "/v1/no/such/thing", b"", 404, {"operation": "other"}),
        ("GET", "/nothing", b"", 404, {"operation": "other", "attempts": 0}),
        ("POST", "/v1/agents", b"{}", 404, {"operation": "agents", "error_code": "unsupported_by_azure"}),
    ],
)
def test_an_error_of_the_proxy(
    method: str, path: str, body: bytes, code: int, expected: dict[str, Any], http: httpx.Client, log: AccessLog
) -> None:
    """The proxy's own errors have lines too."""
    response = http.request(method, path, content=body, headers={"content-type": "application/json"})
    expected = {"status": code, "path": path, "usage": "none"} | expected
    assert code == response.status_code
    assert expected == some(log.one(), *expected)


def test_a_client_without_a_key(logged: Mitmdump, log: AccessLog) -> None:
    """A 401 of the proxy has a line."""
    with httpx.Client(base_url=logged.url) as http:
        response = http.post("/v1/chat/completions", json=CHAT)
    expected = {"status": 401, "error_code": "invalid_api_key", "operation": "chat.completions", "attempts": 0, "backend": None}
    assert 401 == response.status_code
    assert expected == some(log.one(), *expected)


def test_a_request_that_is_too_large(logged: Mitmdump, log: AccessLog, azure: Simulator) -> None:
    """An error that the HTTP layer finds has a line with its status."""
    with socket.create_connection(("127.0.0.1", logged.port)) as client:
        client.sendall(head(azure, 999999999999))
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    expected = {"status": 413, "error_code": "request_too_large", "incomplete": None, "usage": "none", "attempts": 0, "request_bytes": None}
    assert expected == some(log.one(), *expected)


def test_an_upload_that_is_refused_at_its_beginning(http: httpx.Client, log: AccessLog) -> None:
    """It has a line as a smaller one, though the rest of its body is discarded."""
    response = http.post("/v1/audio/transcriptions", data={"model": "m" * 2000}, files={"file": ("a.wav", bytes(3 << 20))})
    expected = {"status": 400, "path": "/v1/audio/transcriptions", "usage": "none", "attempts": 0}
    assert 400 == response.status_code
    assert expected == some(log.one(), *expected)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/"])
def test_no_line_for_the_proxy_s_own_pages(path: str, http: httpx.Client, log: AccessLog) -> None:
    """Health checks, preflights and the start page are no requests of the API."""
    http.get(path)
    http.options("/v1/chat/completions", headers={"origin": "http://localhost", "access-control-request-method": "POST"})
    http.get("/v1/models")
    http.get("/v1/engines")
    assert ["/v1/models", "/v1/engines"] == [line["path"] for line in log.wait(2)]


def test_a_failover(log: AccessLog, azure: Simulator, tmp_path: Path, confdir: Path) -> None:
    """The line counts the attempts, and names the backend of the last one."""
    with Simulator() as other:
        entries = [
            {"name": name, "endpoint": one.http_url, "token": one.key, "priority": priority}
            for priority, (name, one) in enumerate({"first": azure, "second": other}.items())
        ]
        (tmp_path / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}))
        own = AccessLog(tmp_path / "access.log")
        azure.faults.next(status(503))
        with Mitmdump(tmp_path, confdir, options={"azure_openai_access_log": own.path}) as mitmdump:
            response = httpx.post(f"{mitmdump.url}/v1/chat/completions", json=CHAT, timeout=PATIENCE)
            line = own.one()
    expected = {"status": 200, "attempts": 2, "backend": "second", "usage": "known", "repairs": []}
    assert 200 == response.status_code
    assert expected == some(line, *expected)


def test_a_spillover(http: httpx.Client, log: AccessLog, azure: Simulator) -> None:
    """The line has the deployment that was requested and the one that answered, as Azure's headers say."""
    http.post("/v1/chat/completions", json=CHAT)
    azure.faults.next(reshape.spilled("gpt-4.1"))
    http.post("/v1/chat/completions", json=CHAT)
    names = ("deployment", "served_deployment", "spillover")
    assert [("gpt-4o", "gpt-4.1", True)] == [tuple(line[name] for name in names) for line in log.wait(2)[1:]]


def test_a_repair(http: httpx.Client, log: AccessLog) -> None:
    """The line lists the repairs."""
    response = http.post("/v1/chat/completions", json=CHAT | {"model": "o3-mini", "max_tokens": 7})
    line = log.one()
    assert 200 == response.status_code
    assert (2, ["max_tokens -> max_completion_tokens"]) == (line["attempts"], line["repairs"])


def test_a_stream_that_breaks(http: httpx.Client, log: AccessLog, azure: Simulator) -> None:
    """The line names the upstream's failure and the bytes sent; the usage is unknown, not zero."""
    azure.faults.next(Cut(after=4))
    content: list[bytes] = []
    with http.stream("POST", "/v1/chat/completions", json=STREAM) as response, pytest.raises(httpx.RemoteProtocolError):
        content.extend(response.iter_raw())
    line = log.one()
    expected = {"status": 200, "incomplete": "upstream", "usage": "unknown", "input_tokens": None, "cost_usd": None}
    expected |= {"error_code": "upstream_error", "response_bytes": sum(map(len, content))}
    assert expected == some(line, *expected)


def sent(mitmdump: Mitmdump, azure: Simulator, body: dict[str, Any]) -> socket.socket:
    """A connection on which a chat was sent."""
    content = json.dumps(body).encode()
    client = socket.create_connection(("127.0.0.1", mitmdump.port))
    client.sendall(head(azure, len(content)) + content)
    return client


def head(azure: Simulator, length: int) -> bytes:
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {azure.key}", f"Content-Length: {length}")
    return "".join(f"{line}\r\n" for line in (*lines, "Content-Type: application/json", "")).encode()


def leave(mitmdump: Mitmdump, azure: Simulator, body: dict[str, Any], until: Callable[[socket.socket], object]) -> None:
    """Send a chat, and close the connection when `until` returns."""
    with sent(mitmdump, azure, body) as client:
        until(client)


def test_a_client_that_leaves_a_stream(logged: Mitmdump, log: AccessLog, azure: Simulator) -> None:
    """The line says that the client ended it, and its usage is unknown."""
    gate = Gate(before=4)
    azure.faults.next(gate)
    leave(logged, azure, STREAM, lambda client: client.recv(10))
    line = log.one()
    gate.release()
    expected = {"status": 200, "incomplete": "client", "usage": "unknown", "input_tokens": None, "error_code": None, "stream": True}
    assert expected == some(line, *expected)
    assert line["response_bytes"] > 0


def test_an_http2_client_that_leaves_a_stream(logged: Mitmdump, log: AccessLog, azure: Simulator) -> None:
    """As over HTTP/1.1: the response is not complete, by the client."""
    gate = Gate(before=4)
    azure.faults.next(gate)
    headers = {"authorization": f"Bearer {azure.key}"}
    verify = only_http2(logged.ca)
    with (
        httpx.Client(base_url=logged.https_url, http1=False, http2=True, verify=verify, timeout=PATIENCE) as http,
        http.stream("POST", "/v1/chat/completions", json=STREAM, headers=headers) as response,
    ):
        assert "HTTP/2" == response.http_version
        next(response.iter_raw())
    line = log.one()
    gate.release()
    assert {"status": 200, "incomplete": "client", "usage": "unknown"} == some(line, "status", "incomplete", "usage")


def test_a_client_that_leaves_before_the_head(logged: Mitmdump, log: AccessLog, azure: Simulator) -> None:
    """Without any response there is no status."""
    gate = Gate(before=None)
    azure.faults.next(gate)
    leave(logged, azure, CHAT, lambda _: gate.reached.wait(PATIENCE))
    line = log.one()
    gate.release()
    expected = {"status": None, "incomplete": "client", "usage": "unknown", "response_bytes": None, "first_byte_ms": None, "attempts": 1}
    assert expected == some(line, *expected)


def test_a_client_that_leaves_at_the_end(logged: Mitmdump, log: AccessLog, azure: Simulator) -> None:
    """OpenAI's clients close the connection at the last event. Such a stream is complete."""
    gate = Gate(before=100)
    azure.faults.next(gate)

    def done(client: socket.socket) -> None:
        received = b""
        while b"[DONE]" not in received:
            received += client.recv(65536)

    leave(logged, azure, STREAM, done)
    line = log.one()
    gate.release()
    assert {"status": 200, "incomplete": None, "usage": "known"} == some(line, "status", "incomplete", "usage")


# Responses in the background, batches, WebSockets


def test_a_response_in_the_background(http: httpx.Client, log: AccessLog, azure: Simulator) -> None:
    """Its usage is counted once, by the first request that shows it complete."""
    asked = {"model": "gpt-4o", "input": SECRET, "background": True}
    id = http.post("/v1/responses", json=asked).json()["id"]
    azure.faults.next(changed(background=True, status="in_progress", usage=None))
    http.get(f"/v1/responses/{id}")
    for _ in range(2):
        azure.faults.next(changed(background=True, status="completed", usage={"input_tokens": 11, "output_tokens": 7}))
        http.get(f"/v1/responses/{id}")
    lines = log.wait(4)
    assert ["none", "none", "known", "none"] == [line["usage"] for line in lines]
    assert [None, None, 11, None] == [line["input_tokens"] for line in lines]
    assert KNOWN == some(lines[2], *KNOWN)


def test_a_batch(http: httpx.Client, log: AccessLog, azure: Simulator) -> None:
    """The usage of a batch is counted once, when it is complete."""
    usage = {"input_tokens": 11, "output_tokens": 7}
    for state in ("in_progress", "completed", "completed"):
        azure.faults.next(changed(id="batch_7", status=state, model="gpt-4o-2024-08-06", usage=usage))
        http.get("/v1/batches/batch_7")
    lines = log.wait(3)
    assert ["none", "known", "none"] == [line["usage"] for line in lines]
    assert KNOWN | {"operation": "batches", "model": None} == some(lines[1], *KNOWN, "operation", "model")


@pytest.mark.parametrize("path, models", [("/v1/realtime?model=gpt-realtime", "gpt-realtime"), ("/v1/responses", "gpt-4o")])
def test_a_websocket(path: str, models: str, logged: Mitmdump, log: AccessLog, azure: Simulator) -> None:
    """Each response has a line, and the WebSocket has one at its end, without usage."""
    url = logged.url.replace("http", "ws") + path
    with connect(url, additional_headers={"authorization": f"Bearer {azure.key}"}, proxy=None) as websocket:
        for _ in range(2):
            websocket.send(json.dumps({"type": "response.create", **({"model": "gpt-4o", "input": SECRET} if "responses" in path else {})}))
            while json.loads(websocket.recv(PATIENCE))["type"] not in ("response.done", "response.completed"):
                pass
    *responses, whole = log.wait(3)
    operation = "realtime" if "realtime" in path else "responses"
    expected: dict[str, Any] = {"operation": operation, "status": 101, "usage": "none", "in_websocket": False, "incomplete": None}
    assert expected == some(whole, *expected)
    for line in responses:
        expected = {"operation": operation, "status": 200, "in_websocket": True, "incomplete": None, "model": models, "deployment": models}
        assert expected == some(line, *expected)
        assert whole["trace_id"] == line["trace_id"]


# The file


def test_no_key_and_no_text_in_the_file(http: httpx.Client, log: AccessLog, azure: Simulator) -> None:
    """Neither a key nor the text of a message is in the file, wherever a client puts it."""
    headers = {"user-agent": f"agent {azure.key}", "x-session-affinity": azure.key}
    http.post(f"/v1/chat/completions?key={azure.key}", json=STREAM | {"user": SECRET}, headers=headers)
    http.post("/v1/chat/completions", json=CHAT | {"model": azure.key})
    http.get(f"/v1/files/{azure.key}")
    lines = log.wait(3)
    content = log.path.read_bytes()
    assert ["agent [key]", "[key]", "/v1/files/[key]"] == [lines[0]["user_agent"], lines[1]["model"], lines[2]["path"]]
    assert azure.key.encode() not in content
    assert SECRET.encode() not in content
    assert b"You said" not in content


def test_the_owner_alone_may_read_the_file(logged: Mitmdump, log: AccessLog) -> None:
    """The file has client addresses."""
    assert logged.port
    assert 0o600 == stat.S_IMODE(log.path.stat().st_mode)


def test_a_rotation(tmp_path: Path, proxy: Proxies, azure: Simulator) -> None:
    """After the file was renamed, the next lines are in a new file; after SIGHUP too."""
    own = AccessLog(tmp_path / "access.log")
    mitmdump = proxy(azure_openai_access_log=own.path)

    def ask() -> None:
        httpx.get(f"{mitmdump.url}/v1/models", headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE)

    ask()
    own.wait()
    for number in (1, 2):
        own.path.rename(tmp_path / f"access.log.{number}")
        if number == 2:
            mitmdump.signal(signal.SIGHUP)
        ask()
        AccessLog(own.path).wait()
    assert [1, 1, 1] == [len((tmp_path / name).read_text().splitlines()) for name in ("access.log.1", "access.log.2", "access.log")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_last_lines_are_written(number: signal.Signals, tmp_path: Path, confdir: Path, azure: Simulator) -> None:
    """A process that is stopped writes the lines of all requests."""
    own = AccessLog(tmp_path / "access.log")
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_access_log": own.path}
    mitmdump = Mitmdump(tmp_path / "home", confdir, options=options).start()
    with httpx.Client(base_url=mitmdump.url, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE) as http:
        for _ in range(5):
            http.post("/v1/chat/completions", json=CHAT)
        mitmdump.signal(number)
    mitmdump.wait()
    mitmdump.check()
    assert 5 == len(own.lines)


def test_a_request_that_is_cut_off_by_the_end(tmp_path: Path, confdir: Path, azure: Simulator) -> None:
    """A request that still runs when the process ends has a line."""
    own = AccessLog(tmp_path / "access.log")
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_access_log": own.path, "azure_openai_shutdown_timeout": "0"}
    gate = Gate(before=4)
    azure.faults.next(gate)
    mitmdump = Mitmdump(tmp_path / "home", confdir, options=options).start()
    with sent(mitmdump, azure, STREAM) as client:
        client.recv(10)
        mitmdump.signal(signal.SIGTERM)
        mitmdump.wait()
    gate.release()
    (line,) = own.lines
    assert {"status": 200, "incomplete": "upstream", "error_code": "proxy_stopped"} == some(line, "status", "incomplete", "error_code")


def test_an_unusable_file_stops_the_start(tmp_path: Path, confdir: Path, azure: Simulator) -> None:
    """The start ends with one line that names the file and where the setting is, and with an exit code."""
    config = tmp_path / "settings.yaml"
    config.write_text(f"azure_openai_access_log: {tmp_path / 'no' / 'access.log'}")
    mitmdump = Mitmdump(
        tmp_path / "home", confdir, options={"azure_openai_endpoint": azure.http_url, "azure_openai_config": config}
    ).launch()
    assert 1 == mitmdump.wait()
    assert f"azure_openai_access_log ({config}): cannot write {tmp_path / 'no' / 'access.log'}: No such file or directory" in mitmdump.log()
    assert "Traceback" not in mitmdump.log()


def test_standard_output(tmp_path: Path, confdir: Path, azure: Simulator) -> None:
    """With - the lines are on standard output."""
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_access_log": "-", "flow_detail": 0}
    with Mitmdump(tmp_path, confdir, options=options) as mitmdump:
        httpx.get(f"{mitmdump.url}/v1/models", headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE)
        found = mitmdump.wait_for_log(r'\{"time":.*"operation":"models".*\}')
    assert "/v1/models" == json.loads(found[0])["path"]


def test_a_change_while_it_runs(tmp_path: Path, confdir: Path, azure: Simulator) -> None:
    """A new file applies at once, one that cannot be written leaves the previous one, and without a file nothing is written."""
    first, second = AccessLog(tmp_path / "first.log"), AccessLog(tmp_path / "second.log")

    def configure(**options: object) -> None:
        new = tmp_path / "new.yaml"
        new.write_text(json.dumps({"azure_openai_endpoint": azure.http_url, **options}))
        new.rename(tmp_path / "mitm_config.yaml")

    configure(azure_openai_access_log=str(first.path))
    with Mitmdump(tmp_path, confdir) as mitmdump, httpx.Client(base_url=mitmdump.url, timeout=PATIENCE) as http:
        http.get("/v1/models")
        assert "models" == first.one()["operation"]

        configure(azure_openai_access_log=str(second.path))
        ask_until(http, lambda: second.lines)
        assert "models" == second.one()["operation"]

        configure(azure_openai_access_log=str(tmp_path / "no" / "access.log"))
        mitmdump.wait_for_log(r"azure_openai_access_log \(mitm_config\.yaml\): cannot write .*: No such file or directory")
        second.forget()
        http.get("/v1/engines")
        assert "engines" == second.one()["operation"]

        changes = mitmdump.log().count("azure mode:")
        configure()
        mitmdump.wait_for_log(f"(?s)(azure mode:.*){{{changes + 1}}}")
        http.get("/v1/engines/last")
    assert {"/v1/models", "/v1/engines"} == {line["path"] for line in second.lines}


def ask_until(http: httpx.Client, condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        http.get("/v1/models")
