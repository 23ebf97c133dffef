"""Three backends and the failures of two of them: the client sees none of them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import threading
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from websockets.sync.client import connect

from azure_simulator import Cut, Gate, Simulator, content_filter, reshape, status
from azure_simulator.answers import json_answer, typed_answer
from support.processes import PATIENCE, Mitmdump, only_http2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_simulator import Fault
    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
SAID = "You said: one two three"


class Cloud:
    """Three resources and a mitmdump in front of them, its backends in its own file."""

    def __init__(self, home: Path, confdir: Path, simulators: list[Simulator]) -> None:
        self.home, self.simulators = home, simulators
        ca = home / "azure.pem"
        ca.write_text("".join(simulator.ca.read_text() for simulator in simulators))
        self.confdir = confdir
        self.ca = ca

    def start(self, *entries: dict[str, Any], **options: object) -> Mitmdump:
        self.write(*entries)
        given = {"ssl_verify_upstream_trusted_ca": self.ca, "azure_openai_connect_timeout": "1"} | options
        return Mitmdump(self.home, self.confdir, options=given)

    def write(self, *entries: dict[str, Any]) -> None:
        # JSON is YAML. The file is replaced, not rewritten, so that a reader sees either the old or the new one.
        new = self.home / "new.yaml"
        new.write_text(json.dumps({"azure_openai_backends": list(entries)}))
        new.rename(self.home / "mitm_config.yaml")

    def entry(self, index: int, *, tls: bool = False, **more: object) -> dict[str, Any]:
        simulator = self.simulators[index]
        url = simulator.https_url if tls else simulator.http_url
        return {"name": "abc"[index], "endpoint": url, "token": simulator.key, "priority": index} | more


@pytest.fixture(scope="module")
def simulators() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Simulator()) for _ in range(3)]


@pytest.fixture
def cloud(tmp_path: Path, confdir: Path, simulators: list[Simulator]) -> Cloud:
    for simulator in simulators:
        simulator.reset()
    return Cloud(tmp_path, confdir, simulators)


@contextmanager
def client(proxy: Mitmdump, *, h2: bool = False) -> Iterator[httpx.Client]:
    how: dict[str, Any] = {"base_url": proxy.url}
    if h2:
        how = {"base_url": proxy.https_url, "verify": only_http2(proxy.ca), "http1": False, "http2": True}
    with httpx.Client(timeout=PATIENCE, trust_env=False, headers={"authorization": "Bearer mine"}, **how) as opened:
        yield opened


def contents(response: httpx.Response) -> str:
    """The text of either kind of response."""
    if "event-stream" not in response.headers["content-type"]:
        return str(response.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    if "event: response.completed" in response.text:
        return "".join(json.loads(event).get("delta", "") for event in events)
    assert "[DONE]" == events[-1]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])


class Cause(NamedTuple):
    """One row of the matrix: the fault of a backend, and the client's error if all backends have that fault."""

    name: str
    fault: Fault | None
    endpoint: Callable[[int], str] | None = None  # for faults before there is a request
    alone: int = 502
    streams: bool = True  # can befall a stream
    only_streams: bool = False
    once: bool = False  # Azure may have had the request: it is sent once more, and no third time
    responses: bool = False  # to the Responses API


class Nowhere:
    """Addresses at which connections fail in different ways, open as long as the tests run."""

    def __init__(self) -> None:
        self._closing = socket.create_server(("127.0.0.1", 0))
        self.closing: int = self._closing.getsockname()[1]
        threading.Thread(target=self._close_each, daemon=True).start()

    def _close_each(self) -> None:
        while True:
            try:
                connection, _ = self._closing.accept()
            except OSError:
                return
            connection.recv(1)
            connection.close()

    def close(self) -> None:
        self._closing.shutdown(socket.SHUT_RDWR)
        self._closing.close()


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Nowhere]:
    nowhere = Nowhere()
    yield nowhere
    nowhere.close()


# Port 1 has no listener; a name in `.invalid` never resolves (RFC 6761).
CAUSES = (
    Cause("refused", None, lambda _: "SCHEME://127.0.0.1:1"),
    Cause("no such name", None, lambda _: "SCHEME://nowhere.invalid"),
    Cause("TLS fails", None, lambda closing: f"https://127.0.0.1:{closing}"),
    Cause("closed early", Cut(), once=True),
    Cause("reset early", Cut(reset=True), once=True),
    Cause("cut in the body", Cut(byte=20), streams=False, once=True),
    Cause("408", status(408), alone=408),
    Cause("429", status(429), alone=429),
    Cause("500", status(500), alone=500),
    Cause("502", status(502, "html"), alone=502),
    Cause("503", status(503, "empty"), alone=503),
    Cause("504", status(504), alone=504),
    Cause("error as first event", reshape.error_event(0), alone=500, only_streams=True),
    Cause("429 as first event", reshape.error_event(1, status=429), alone=429, only_streams=True),
    Cause("late, chat", reshape.late_failure("nested"), alone=429, only_streams=True),
    Cause("late and flat, chat", reshape.late_failure("flat", code="server_is_overloaded"), alone=503, only_streams=True),
    Cause("late response.failed", reshape.late_failure("failed"), alone=429, only_streams=True, responses=True),
    Cause("late error event", reshape.late_failure("nested", code="too_many_requests"), alone=429, only_streams=True, responses=True),
    Cause("late and flat", reshape.late_failure("flat", code="server_error"), alone=500, only_streams=True, responses=True),
    Cause("late, error null", reshape.late_failure("null"), alone=429, only_streams=True, responses=True),
)
SEEN: dict[tuple[str, str], str] = {}
WAYS = [(h2, tls) for h2 in (False, True) for tls in (False, True)]


def case(cause: Cause, h2: bool, tls: bool) -> str:
    return re.sub(r"\W", "-", f"{cause.name} {'h2' if h2 else 'h1'} {'TLS' if tls else 'plain'}")


def entries(cause: Cause, h2: bool, tls: bool, cloud: Cloud, nowhere: Nowhere) -> Iterator[dict[str, Any]]:
    """Three backends for each cell of the matrix, used by no other test; only two of them have the model `none-...`."""
    name = case(cause, h2, tls)
    for index in range(3):
        entry = cloud.entry(index, tls=tls) | {"name": f"{name}-{index}", "models": {name: "gpt-4o"}}
        if index < 2:
            entry["models"] |= {f"none-{name}": "gpt-4o-mini"}
            if cause.endpoint:
                entry["endpoint"] = cause.endpoint(nowhere.closing).replace("SCHEME", "https" if tls else "http")
        yield entry


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, confdir: Path, simulators: list[Simulator], nowhere: Nowhere) -> Iterator[Mitmdump]:
    cloud = Cloud(tmp_path_factory.mktemp("matrix"), confdir, simulators)
    with cloud.start(*(entry for cause in CAUSES for way in WAYS for entry in entries(cause, *way, cloud, nowhere))) as proxy:
        yield proxy


@pytest.mark.parametrize("h2, tls", WAYS, ids=["h1-plain", "h1-TLS", "h2-plain", "h2-TLS"])
@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_two_of_three_fail(cause: Cause, h2: bool, tls: bool, matrix: Mitmdump, cloud: Cloud) -> None:
    """With one backend healthy the client sees success, JSON and stream; with none the shaped failure, and goes on on its connection."""
    for simulator in cloud.simulators[: 1 if cause.once else 2]:
        if cause.fault:
            simulator.faults.always(cause.fault)
    kinds = [stream for stream in (False, True) if (cause.streams if stream else not cause.only_streams)]
    name = case(cause, h2, tls)
    path, body = ("/v1/responses", {"input": "one two three"}) if cause.responses else ("/v1/chat/completions", CHAT)

    with client(matrix, h2=h2) as http:
        for stream in kinds:
            answer = http.post(path, json=body | {"model": name, "stream": stream})
            assert (200, SAID) == (answer.status_code, contents(answer))
            assert ("HTTP/2" if h2 else "HTTP/1.1") == answer.http_version
        if cause.once and cause.fault:
            cloud.simulators[1].faults.always(cause.fault)
        for stream in kinds:
            failed = http.post(path, json=body | {"model": f"none-{name}", "stream": stream})
            assert cause.alone == failed.status_code
            assert {"message", "type", "param", "code"} <= set(failed.json()["error"])
            assert 0 < int(failed.headers["retry-after-ms"])

    matrix.check()
    said = {(False,): "JSON", (True,): "SSE", (False, True): "JSON+SSE"}[tuple(kinds)]
    SEEN[cause.name, f"{'h2' if h2 else 'h1'}/{'TLS' if tls else 'plain'}"] = f"200 {said}, none: {cause.alone}"


@pytest.mark.parametrize("fault", [Cut(), Cut(reset=True), Cut(byte=20)], ids=["closed", "reset", "cut"])
@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
def test_a_request_that_azure_may_have_had_is_sent_once_more(fault: Fault, h2: bool, cloud: Cloud) -> None:
    """To one other backend: a third one that would answer is not asked, for each attempt may be billed."""
    for simulator in cloud.simulators[:2]:
        simulator.faults.always(fault)
    with cloud.start(*map(cloud.entry, range(3))) as proxy, client(proxy, h2=h2) as http:
        failed = http.post("/v1/chat/completions", json=CHAT)
        assert (502, "upstream_error") == (failed.status_code, failed.json()["error"]["code"])
    assert [1, 1, 0] == [len(simulator.requests) for simulator in cloud.simulators]


def test_the_matrix_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The observed results, as a table."""
    columns = ["h1/plain", "h1/TLS", "h2/plain", "h2/TLS"]
    with capsys.disabled():
        print("", f"{'cause':22}" + "".join(f"{column:26}" for column in columns), sep="\n")  # noqa: T201 - for people
        for name in dict.fromkeys(name for name, _ in SEEN):
            print(f"{name:22}" + "".join(f"{SEEN.get((name, column), '-'):26}" for column in columns))  # noqa: T201
    assert {column for _, column in SEEN} <= set(columns)


def test_a_stream_after_a_failure_is_not_held_back(cloud: Cloud) -> None:
    """The answer of the second backend arrives chunk by chunk."""
    gate = Gate(before=3)
    cloud.simulators[0].faults.always(status(503))
    cloud.simulators[1].faults.next(gate)
    with (
        cloud.start(cloud.entry(0), cloud.entry(1)) as proxy,
        client(proxy) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert '"role":"assistant"' in next(lines)
        assert gate.reached.wait(PATIENCE)
        gate.release()
        assert "data: [DONE]" in list(lines)


def raw(answer: bytes) -> tuple[int, threading.Thread]:
    """A server that answers one request with these bytes and then says no more; its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)
            connection.settimeout(PATIENCE)
            connection.recv(1)  # until the proxy closes

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return server.getsockname()[1], thread


@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
def test_after_a_malformed_answer(h2: bool, cloud: Cloud) -> None:
    """The connection that is closed for it does not affect later requests."""
    port, thread = raw(b"HTTP/1.1 nonsense\r\n\r\n")
    broken = cloud.entry(0) | {"endpoint": f"http://127.0.0.1:{port}"}
    with cloud.start(broken, cloud.entry(1)) as proxy, client(proxy, h2=h2) as http:
        for stream in (True, False):
            answer = http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
            assert (200, SAID) == (answer.status_code, contents(answer))
    thread.join(PATIENCE)
    assert not thread.is_alive()


class Late(NamedTuple):
    name: str
    option: str
    endpoint: bool  # the server is mute from the TLS hello on
    code: str


LATE = (
    Late("connect", "azure_openai_connect_timeout", True, "upstream_connect_timeout"),
    Late("first byte", "azure_openai_first_byte_timeout", False, "upstream_timeout"),
)


@pytest.mark.parametrize("late", LATE, ids=lambda late: late.name)
@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
def test_time_runs_out(late: Late, h2: bool, cloud: Cloud) -> None:
    """After a time-out the request fails over; without another backend the client gets a 504 that names the time-out."""
    gate = Gate(before=None)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        slow = cloud.entry(0)
        if late.endpoint:
            slow |= {"endpoint": f"https://127.0.0.1:{mute.getsockname()[1]}"}
        else:
            cloud.simulators[0].faults.always(gate)
        slow |= {"models": ["gpt-4o", "gpt-4o-mini"]}
        with cloud.start(slow, cloud.entry(1) | {"models": ["gpt-4o"]}, **{late.option: "0.3"}) as proxy, client(proxy, h2=h2) as http:
            answer = http.post("/v1/chat/completions", json=CHAT)
            assert (200, SAID) == (answer.status_code, contents(answer))
            failed = http.post("/v1/chat/completions", json=CHAT | {"model": "gpt-4o-mini"})
            assert (504, late.code) == (failed.status_code, failed.json()["error"]["code"])
    gate.release()


@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
def test_a_stream_that_stops_ends_with_an_error_event(h2: bool, cloud: Cloud) -> None:
    """After the first event there is no retry: the stream ends with an error event."""
    gate = Gate(before=4)
    cloud.simulators[0].faults.always(gate)
    with cloud.start(cloud.entry(0), cloud.entry(1), azure_openai_chunk_timeout="0.3") as proxy, client(proxy, h2=h2) as http:
        received: list[str] = []
        with (
            http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            received.extend(response.iter_lines())
    gate.release()
    events = [line for line in received if line]
    assert '"content":" said"' in events[-2]
    assert "upstream_timeout" == json.loads(events[-1].removeprefix("data: "))["error"]["code"]
    assert [] == cloud.simulators[1].requests


def test_what_nobody_has(cloud: Cloud) -> None:
    """A model that no backend has is reported as missing, the second time too, and not as a rate limit."""
    with cloud.start(cloud.entry(0), cloud.entry(1)) as proxy, client(proxy) as http:
        answers = [http.post("/v1/chat/completions", json=CHAT | {"model": "nobody-s"}) for _ in range(3)]
        fine = http.post("/v1/chat/completions", json=CHAT)
    assert [(404, "model_not_found")] * 3 == [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
    assert 200 == fine.status_code


async def test_many_streams_on_one_connection(cloud: Cloud) -> None:
    """Of an HTTP/2 client's twenty streams all are under way at once: mitmproxy by itself has five connections for them."""
    gate = Gate(before=3)
    cloud.simulators[0].faults.always(gate)
    with cloud.start(cloud.entry(0)) as proxy:
        async with asyncio.timeout(PATIENCE), Streams(proxy) as streams:
            for _ in range(20):
                streams.ask(CHAT | {"stream": True})
            await streams.until(lambda: len(streams.received) == 20)
            gate.release()
            await streams.until(lambda: len(streams.ended) == 20)
    assert all(text.endswith(b"data: [DONE]\n\n") for text in streams.received.values())


class Streams:
    """Many requests on one HTTP/2 connection; httpx loses answers when it has many at once."""

    def __init__(self, proxy: Mitmdump) -> None:
        self.port, self.context = proxy.port, ssl.create_default_context(cafile=proxy.ca)
        self.context.set_alpn_protocols(["h2"])
        self.http = H2Connection(H2Configuration(client_side=True))
        self.received: defaultdict[int, bytes] = defaultdict(bytes)
        self.ended: set[int] = set()

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("localhost", self.port, ssl=self.context)
        self.http.initiate_connection()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def ask(self, body: dict[str, Any]) -> None:
        number, content = self.http.get_next_available_stream_id(), json.dumps(body).encode()
        head = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": "/v1/chat/completions"}
        self.http.send_headers(number, [*head.items(), ("content-type", "application/json"), ("authorization", "Bearer mine")])
        self.http.send_data(number, content, end_stream=True)

    async def until(self, there: Callable[[], bool]) -> None:
        while not there():
            self.writer.write(self.http.data_to_send())
            for event in self.http.receive_data(await self.reader.read(65535)):
                if isinstance(event, DataReceived) and event.data:
                    self.received[event.stream_id] += event.data
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, StreamEnded):
                    self.ended.add(event.stream_id)


@pytest.mark.parametrize(
    "method, path, body",
    [("POST", "/v1/files", b"{}"), ("POST", "/v1/batches", b"{}"), ("POST", "/v1/responses", b'{"model":"gpt-4o","background":true}')],
)
def test_what_makes_something_is_not_made_twice(method: str, path: str, body: bytes, cloud: Cloud) -> None:
    """A request that may have reached Azure is not sent again; one that surely did not is."""
    cloud.simulators[0].faults.always(status(503))
    refused = cloud.entry(2) | {"endpoint": "http://127.0.0.1:1", "priority": 0}
    with cloud.start(refused, cloud.entry(0) | {"priority": 1}, cloud.entry(1) | {"priority": 2}) as proxy, client(proxy) as http:
        answer = http.request(method, path, content=body, headers={"content-type": "application/json"})
    assert 503 == answer.status_code
    assert (1, 0) == (len(cloud.simulators[0].requests), len(cloud.simulators[1].requests))


def test_a_change_of_the_file_drops_no_request(cloud: Cloud) -> None:
    """A stream from a backend that is taken out goes on to its end; the next request goes to the new one."""
    gate = Gate(before=4)
    cloud.simulators[0].faults.next(gate)
    with cloud.start(cloud.entry(0)) as proxy, client(proxy) as http:
        with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            cloud.write(cloud.entry(1))
            proxy.wait_for_log(f"azure mode: {cloud.simulators[1].http_url}")
            gate.release()
            assert "data: [DONE]" in list(lines)
        assert 200 == http.post("/v1/chat/completions", json=CHAT).status_code
        cloud.write({"name": "a"})
        proxy.wait_for_log("a: endpoint: write text; in YAML, between quotes: the previous settings stay in force")
        assert 200 == http.post("/v1/chat/completions", json=CHAT).status_code
    assert (1, 2) == (len(cloud.simulators[0].requests), len(cloud.simulators[1].requests))


def test_what_was_tried_can_be_seen(cloud: Cloud) -> None:
    """The attempts are in the response headers if the option is set; a filtered prompt is marked as not to be retried."""
    cloud.simulators[0].faults.next(status(429))
    with cloud.start(cloud.entry(0), cloud.entry(1), azure_openai_debug_headers=True) as proxy, client(proxy) as http:
        answer = http.post("/v1/chat/completions", json=CHAT)
        assert ("b", "2") == (answer.headers["x-azure-openai-proxy-backend"], answer.headers["x-azure-openai-proxy-attempts"])
        cloud.simulators[1].faults.next(content_filter)
        filtered = http.post("/v1/chat/completions", json=CHAT)
    assert (400, "false", "content_filter") == (filtered.status_code, filtered.headers["x-should-retry"], filtered.json()["error"]["code"])


def keeping(id: str) -> Fault:
    """A resource that has this object: POST makes it, and it is there; any other is not."""

    def fault(answer: Answer, call: Call) -> Answer:
        received = call.received
        if received.method == "POST" or id in received.path:
            return json_answer({"id": id, "object": "response"})
        return json_answer({"error": {"code": "404", "message": "No such object"}}, 404)

    return fault


def test_what_lives_on_one_backend(cloud: Cloud) -> None:
    """The backend that created a resource gets the requests for it, also those that only mention it; there is no failover from it."""
    a, b, c = cloud.simulators
    for simulator, id in zip(cloud.simulators, ("resp_aaa111", "resp_bbb222", "resp_ccc333"), strict=True):
        simulator.faults.always(keeping(id))
    a.faults.next(status(429, retry_after=0.001))
    with cloud.start(*map(cloud.entry, range(3)), azure_openai_apiversion="v1") as proxy, client(proxy) as http:
        assert "resp_bbb222" == http.post("/v1/responses", json={"model": "gpt-4o", "input": "hi"}).json()["id"]
        assert 200 == http.get("/v1/responses/resp_bbb222").status_code
        follow_up = {"model": "gpt-4o", "input": "on", "previous_response_id": "resp_bbb222"}
        assert "resp_bbb222" == http.post("/v1/responses", json=follow_up).json()["id"]
        # Unknown: asked for in turn, and known from then on.
        assert 200 == http.get("/v1/responses/resp_ccc333").status_code
        assert 200 == http.get("/v1/responses/resp_ccc333").status_code
        assert (2, 4, 2) == (len(a.requests), len(b.requests), len(c.requests))
        # No backend has it.
        assert 404 == http.get("/v1/responses/resp_ddd444").status_code
        b.faults.clear()
        b.faults.always(status(503))
        before = len(a.requests), len(c.requests)
        failed = http.post("/v1/responses", json=follow_up)
        assert 503 == failed.status_code
        assert before == (len(a.requests), len(c.requests))


def test_what_one_client_is_refused_for_moves_no_other(cloud: Cloud) -> None:
    """A path, a version or a size that one client chose: the others are asked for where they were."""
    a, b, _ = cloud.simulators
    for simulator in (a, b):
        simulator.faults.always(status(429, retry_after=60), when=lambda call: call.asked.get("max_tokens") == 10**8)
    with cloud.start(cloud.entry(0), cloud.entry(1)) as proxy, client(proxy) as http:
        for path, more in (
            ("/openai/deployments/gpt-4o/nothing?api-version=2024-10-21", {}),
            ("/openai/deployments/gpt-4o/chat/completions?api-version=2099-01-01", {}),
            ("/v1/chat/completions", {"max_tokens": 10**8}),
        ):
            assert 400 <= http.post(path, json=CHAT | more).status_code < 500
            before = len(a.requests), len(b.requests)
            assert 200 == http.post("/v1/chat/completions", json=CHAT).status_code
            assert (before[0] + 1, before[1]) == (len(a.requests), len(b.requests))


ENCRYPTED = "gAAAAA" + "k" * 100
CALLED = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}", "status": "completed"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": ENCRYPTED}


def making_items(answer: Answer, call: Call) -> Answer:
    """A response of a reasoning item and a function call, JSON or events."""
    response = {"id": "resp_1", "object": "response", "output": [THOUGHT, CALLED], "metadata": call.asked.get("metadata")}
    if not call.asked.get("stream"):
        return json_answer(response)
    added = [
        {"type": "response.output_item.added", "item": item | {"encrypted_content": ""}, "output_index": 0} for item in (THOUGHT, CALLED)
    ]
    done = [{"type": "response.output_item.done", "item": item, "output_index": 0} for item in (THOUGHT, CALLED)]
    created = {"type": "response.created", "response": response | {"output": []}}
    return typed_answer([created, *added, *done, {"type": "response.completed", "response": response}])


FOLLOWING = {
    "item reference": {"type": "item_reference", "id": "fc_1"},
    "reasoning": THOUGHT,
    "reasoning without an id": {"type": "reasoning", "summary": [], "encrypted_content": ENCRYPTED},
    "response": "resp_1",
}


@pytest.mark.parametrize("options", [{}, {"azure_openai_normalize": "false"}, {"azure_openai_fast_path": "false"}], ids=str)
@pytest.mark.parametrize("way", ["JSON", "SSE", "gzip", "h2", "poll"])
def test_the_items_of_a_response(way: str, options: dict[str, str], cloud: Cloud) -> None:
    """Follow-ups on an item go to the backend that made it once that has recovered; no other backend gets them."""
    a, b, _ = cloud.simulators
    a.faults.next(status(429, retry_after=0.001))
    faults = (making_items, reshape.compressed("gzip")) if way == "gzip" else (making_items,)
    b.faults.always(*faults)
    asked = {"model": "gpt-4o", "input": "hi", "store": False, "stream": way in ("SSE", "gzip")}
    with (
        cloud.start(cloud.entry(0), cloud.entry(1), azure_openai_apiversion="v1", **options) as proxy,
        client(proxy, h2=way == "h2") as http,
    ):
        if way == "poll":
            assert 200 == http.get("/v1/responses/resp_1").status_code
        else:
            assert 200 == http.post("/v1/responses", json=asked).status_code
        assert 200 == http.post("/v1/responses", json=asked).status_code
        assert (2, 1) == (len(a.requests), len(b.requests))
        for name, item in FOLLOWING.items():
            body = asked | ({"previous_response_id": item} if isinstance(item, str) else {"input": [item]})
            before = len(b.requests)
            assert 200 == http.post("/v1/responses", json=body).status_code
            assert (2, before + 1) == (len(a.requests), len(b.requests)), name
        assert 200 == http.post("/v1/responses", json=asked | {"input": [CALLED | {"id": "fc_2"}]}).status_code
        assert 3 == len(a.requests)


def test_the_items_of_a_websocket(cloud: Cloud) -> None:
    """A request can follow up an item that was made on a WebSocket; the metadata of a client claims no item."""
    a, b, _ = cloud.simulators
    b.faults.always(making_items)
    with cloud.start(cloud.entry(0, models=["gpt-4o"]), cloud.entry(1), azure_openai_apiversion="v1") as proxy, client(proxy) as http:
        url = proxy.url.replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
        with connect(url, additional_headers={"authorization": "Bearer x"}, open_timeout=PATIENCE, proxy=None) as talk:
            talk.recv(timeout=PATIENCE)
            frame = json.dumps({"type": "test.echo", "of": "response.output_item.done", "item": CALLED, "metadata": {"id": "rs_9"}})
            talk.send(frame)
            assert frame == talk.recv(timeout=PATIENCE)
        for item, count in ((CALLED, 0), ({"type": "item_reference", "id": "rs_9"}, 1)):
            assert 200 == http.post("/v1/responses", json={"model": "gpt-4o", "input": [item]}).status_code
            assert count == len(a.requests)


def test_the_command_and_the_flow(cloud: Cloud) -> None:
    """`azure.backends` tells how the backends are, and a flow whom it asked; no key in either."""
    asking = cloud.home / "asking.py"
    asking.write_text(
        "import json, logging\nfrom mitmproxy import ctx\n"
        "def response(flow):\n"
        "    told = [ctx.master.commands.execute('azure.backends'), flow.metadata['azure_openai_attempts']]\n"
        "    logging.warning('TOLD %s', json.dumps(told))\n"
    )
    cloud.simulators[0].faults.next(status(429, retry_after=30))
    proxy = cloud.start(cloud.entry(0), cloud.entry(1))
    proxy.scripts = (*proxy.scripts, asking)
    with proxy, client(proxy) as http:
        assert 200 == http.post("/v1/chat/completions", json=CHAT).status_code
        told = proxy.wait_for_log("TOLD (.*)")[1]
    backends, attempts = json.loads(told)
    assert [{"backend": "a", "cause": "429", "repaired": []}, {"backend": "b", "cause": "", "repaired": []}] == attempts
    assert any(line.startswith("  gpt-4o: rate-limited for ") for line in backends)
    assert any(line.startswith(f"b {cloud.simulators[1].http_url}: healthy, 0 in flight") for line in backends)
    assert cloud.simulators[0].key not in told


FAILING = {
    "JSON": (status(500, retry_after=86400), False),
    "SSE": (status(503, retry_after=86400), True),
    "first event": (reshape.error_event(0), True),
    "closed early": (Cut(), False),
}


@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
@pytest.mark.parametrize("alone", [True, False], ids=["one backend", "two backends"])
@pytest.mark.parametrize("fault, stream", FAILING.values(), ids=FAILING)
def test_a_model_that_fails_is_no_backend_that_fails(fault: Fault, stream: bool, alone: bool, h2: bool, cloud: Cloud) -> None:
    """The proxy stays ready, and other models are asked for where they were."""
    a, b, _ = cloud.simulators
    a.faults.always(fault, deployment="gpt-4o")
    if not alone:
        b.faults.always(fault, deployment="gpt-4o")
    with cloud.start(*map(cloud.entry, range(1 if alone else 2))) as proxy, client(proxy, h2=h2) as http:
        failed = http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
        assert 500 <= failed.status_code
        assert 200 == http.get("/readyz").status_code
        before = len(b.requests)
        for model in ("gpt-4o-mini", "o3-mini"):
            answer = http.post("/v1/chat/completions", json=CHAT | {"model": model, "stream": stream})
            assert (200, SAID) == (answer.status_code, contents(answer))
        assert before == len(b.requests)


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
@pytest.mark.parametrize("how", ["Bearer", "api-key", "query"])
def test_a_limit_of_one_clients_own_key_is_that_keys(how: str, stream: bool, cloud: Cloud) -> None:
    """While clients bring their keys, one that is over its limit everywhere, or whose key is refused, is nothing to the others."""
    a, b, _ = cloud.simulators
    for simulator in (a, b):
        simulator.faults.always(status(429, retry_after=60), when=lambda call: call.received.header("api-key") == "one")

    def ask(http: httpx.Client, key: str) -> int:
        headers = {"Bearer": {"authorization": f"Bearer {key}"}, "api-key": {"api-key": key}}.get(how, {})
        query = "" if headers else f"?api-key={key}"
        return http.post(f"/v1/chat/completions{query}", json=CHAT | {"stream": stream}, headers=headers).status_code

    entries = [cloud.entry(index) for index in range(2)]
    for entry in entries:
        del entry["token"]
    with cloud.start(*entries) as proxy, httpx.Client(base_url=proxy.url, timeout=PATIENCE, trust_env=False) as http:
        assert [429, 429] == [ask(http, "one") for _ in range(2)]
        assert (1, 1) == (len(a.requests), len(b.requests))  # the second time the failure is immediate
        assert [200, 401, 200] == [ask(http, key) for key in (a.key, "wrong", a.key)]
        assert (4, 1) == (len(a.requests), len(b.requests))
        assert 200 == http.get("/readyz").status_code
