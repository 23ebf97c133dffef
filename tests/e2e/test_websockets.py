"""WebSockets through a real mitmdump: OpenAI's own realtime client, and the handshake that a browser makes."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from support.marks import THREADS, second_try
from support.processes import PATIENCE, for_websockets

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

WAYS = ["ws", "wss", "CONNECT"]
MAPPER = "rt=gpt-realtime,chat=gpt-4o"


def dial(way: str, proxy: Mitmdump, path: str, **options: Any) -> ClientConnection:
    """As a client with a base URL (plain or TLS), or as one with OpenAI's own address that goes through the proxy."""
    url = {"ws": proxy.url, "wss": proxy.https_url, "CONNECT": "https://api.openai.com"}[way].replace("http", "ws", 1)
    trust = None if way == "ws" else for_websockets(proxy.ca)
    through = proxy.url if way == "CONNECT" else None
    connection: ClientConnection = connect(url + path, ssl=trust, proxy=through, open_timeout=PATIENCE, close_timeout=PATIENCE, **options)
    return connection


def bearer(azure: Simulator) -> dict[str, str]:
    return {"authorization": f"Bearer {azure.key}"}


def heard(connection: ClientConnection) -> dict[str, Any]:
    frame = json.loads(connection.recv(timeout=PATIENCE))
    assert isinstance(frame, dict)
    return frame


@second_try(THREADS)
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the SDK does not
@pytest.mark.parametrize("way", WAYS)
def test_openai_s_realtime_client_has_a_session(way: str, azure: Simulator, proxy: Proxies) -> None:
    """The SDK's own client gets its session, changes it and gets an answer, under the model's name that it asked for."""
    through = proxy(azure_openai_model_mapper=MAPPER)
    base = {"ws": through.url, "wss": through.https_url, "CONNECT": "https://api.openai.com"}[way]
    options: Any = {} if way == "ws" else {"ssl": for_websockets(through.ca)}
    if way == "CONNECT":
        options["proxy"] = through.url
    client = openai.OpenAI(api_key=azure.key, base_url=f"{base}/v1")

    with client.realtime.connect(model="rt", websocket_connection_options=options) as connection:
        created: Any = connection.recv()
        connection.session.update(session={"type": "realtime", "model": "rt", "instructions": "Be brief."})
        updated: Any = connection.recv()
        connection.response.create()
        events = [connection.recv().type for _ in range(4)]

    asked = azure.wait_for_request()
    assert "/openai/v1/realtime?model=gpt-realtime" == asked.path
    assert azure.key == asked.header("api-key")
    assert None is asked.header("authorization")
    assert ("session.created", "rt") == (created.type, created.session.model)
    assert ("session.updated", "rt", "Be brief.") == (updated.type, updated.session.model, updated.session.instructions)
    assert "gpt-realtime" == json.loads(asked.frames[0])["session"]["model"]
    assert ["response.created", "response.output_text.delta", "response.output_text.delta", "response.done"] == events


def test_the_model_that_transcribes_is_mapped(azure: Simulator, proxy: Proxies) -> None:
    """In a session's update, beside the session's own model; a body that makes a session names it as well."""
    through = proxy(azure_openai_model_mapper=f"{MAPPER},gpt-4o-transcribe=stt")
    session = {"type": "realtime", "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
    with dial("ws", through, "/v1/realtime?model=rt", additional_headers=bearer(azure)) as ws:
        heard(ws)
        ws.send(json.dumps({"type": "session.update", "session": session}))
        heard(ws)
    frame = json.loads(azure.requests[0].frames[0])
    assert "stt" == frame["session"]["audio"]["input"]["transcription"]["model"]
    httpx.post(f"{through.url}/v1/realtime/client_secrets", json={"session": session | {"model": "rt"}}, headers=bearer(azure))
    made = azure.requests[1].json["session"]
    assert ("gpt-realtime", "stt") == (made["model"], made["audio"]["input"]["transcription"]["model"])


@second_try(THREADS)
@pytest.mark.parametrize("way", WAYS)
def test_a_browser_s_key_among_the_subprotocols_reaches_azure_as_a_header(way: str, azure: Simulator, proxy: Proxies) -> None:
    """Of the two subprotocols that a browser offers Azure sees `realtime`, and `realtime` is the answer."""
    with dial(way, proxy(), "/v1/realtime?model=gpt-realtime", subprotocols=["realtime", f"openai-insecure-api-key.{azure.key}"]) as ws:
        created = heard(ws)
        chosen = ws.subprotocol

    asked = azure.wait_for_request()
    assert ("session.created", "realtime") == (created["type"], chosen)
    assert ("realtime", azure.key) == (asked.header("sec-websocket-protocol"), asked.header("api-key"))


def test_a_key_in_the_query_becomes_a_header(azure: Simulator, proxy: Proxies) -> None:
    """The key is in no forwarded or logged path, whether the request succeeds or fails."""
    through = proxy("--set", "flow_detail=1")
    with dial("ws", through, f"/v1/realtime?api-key={azure.key}&model=gpt-realtime") as ws:
        heard(ws)
    with pytest.raises(InvalidStatus), dial("ws", through, f"/v1/agents?api-key={azure.key}"):
        pass

    asked = azure.wait_for_request()
    assert ("/openai/v1/realtime?model=gpt-realtime", azure.key) == (asked.path, asked.header("api-key"))
    assert [] == [line for line in through.output if azure.key in line]


@pytest.mark.parametrize("how", ["header", "subprotocol"])
def test_a_client_of_the_previews_gets_the_previews_realtime(how: str, azure: Simulator, proxy: Proxies) -> None:
    """A client of the preview protocol is sent to the dated path, without its own api-version."""
    more: dict[str, Any] = {"subprotocols": ["realtime", f"openai-insecure-api-key.{azure.key}", "openai-beta.realtime-v1"]}
    if how == "header":
        more = {"additional_headers": bearer(azure) | {"OpenAI-Beta": "realtime=v1"}}

    with dial("ws", proxy(azure_openai_model_mapper=MAPPER), "/v1/realtime?model=rt", **more) as ws:
        created = heard(ws)

    assert "/openai/realtime?deployment=gpt-realtime&api-version=2025-04-01-preview" == azure.wait_for_request().path
    assert "rt" == created["session"]["model"]


@pytest.mark.parametrize(
    "asked, arrives",
    [
        ("/openai/v1/realtime?model=gpt-realtime", "/openai/v1/realtime?model=gpt-realtime"),
        ("/openai/v1/realtime?api-version=preview&model=gpt-realtime", "/openai/v1/realtime?model=gpt-realtime"),
        (
            "/openai/realtime?api-version=2024-10-01-preview&deployment=gpt-realtime",
            "/openai/realtime?deployment=gpt-realtime&api-version=2024-10-01-preview",
        ),
        ("/v1/realtime/translations?model=gpt-realtime", "/openai/v1/realtime/translations?model=gpt-realtime"),
        ("/v1/realtime?intent=transcription", "/openai/v1/realtime?intent=transcription"),
        ("/v1/realtime?call_id=rtc_1", "/openai/v1/realtime?call_id=rtc_1"),
    ],
)
def test_each_form_of_realtime_stays_what_it_is(asked: str, arrives: str, azure: Simulator, proxy: Proxies) -> None:
    """A client that speaks Azure's own paths keeps them, and GA realtime never gets an api-version."""
    with dial("ws", proxy(), asked, additional_headers={"api-key": azure.key}) as ws:
        assert "session.created" == heard(ws)["type"]

    assert arrives == azure.wait_for_request().path


def test_responses_over_a_websocket_name_their_model_in_the_frame(azure: Simulator, proxy: Proxies) -> None:
    """Out goes the deployment, back comes the name that the client used."""
    with dial("ws", proxy(azure_openai_model_mapper=MAPPER), "/v1/responses", additional_headers=bearer(azure)) as ws:
        ws.send(json.dumps({"type": "response.create", "model": "chat", "input": "hello"}))
        answer = [heard(ws) for _ in range(4)]

    asked = azure.wait_for_request()
    assert "/openai/v1/responses" == asked.path
    assert {"type": "response.create", "model": "gpt-4o", "input": "hello"} == json.loads(asked.frames[0])
    assert ("chat", "response.completed", "chat") == (answer[0]["response"]["model"], answer[-1]["type"], answer[-1]["response"]["model"])


@pytest.mark.parametrize("path", ["/v1/live/sessions", "/v1/live/sessions/s_1/attach", "/v1/live/sessions/s_1/fork"])
def test_live_sessions_name_their_model_in_the_frame(path: str, azure: Simulator, proxy: Proxies) -> None:
    """As responses do, but inside `session`."""
    with dial("ws", proxy(azure_openai_model_mapper=MAPPER), path, additional_headers=bearer(azure)) as ws:
        ws.send(json.dumps({"type": "session.start", "session": {"model": "rt"}}))
        created = heard(ws)

    asked = azure.wait_for_request()
    assert ("/openai" + path, "gpt-realtime") == (asked.path, json.loads(asked.frames[0])["session"]["model"])
    assert "rt" == created["session"]["model"]


@second_try(THREADS)
@pytest.mark.parametrize("way", WAYS)
def test_frames_of_every_kind_pass(way: str, azure: Simulator, proxy: Proxies) -> None:
    """Text beyond ASCII, binary, megabytes, pings, a closing code and its reason."""
    echo = json.dumps({"type": "test.echo", "text": "é€😀" * 500_000}, ensure_ascii=False)
    with dial(way, proxy(), "/v1/realtime?model=gpt-realtime", additional_headers=bearer(azure), max_size=None) as ws:
        heard(ws)
        ws.send(echo)
        assert echo == ws.recv(timeout=PATIENCE)
        ws.send(bytes(range(256)) * 4096)
        assert bytes(range(256)) * 4096 == ws.recv(timeout=PATIENCE)
        assert ws.ping(b"still there?").wait(PATIENCE)
        ws.send(json.dumps({"type": "test.close", "code": 4001, "reason": "enough"}))
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=PATIENCE)

    assert closed.value.rcvd
    assert (4001, "enough") == (closed.value.rcvd.code, closed.value.rcvd.reason)


def test_a_client_s_closing_code_reaches_azure(azure: Simulator, proxy: Proxies) -> None:
    """Azure gets the client's closing code."""
    with dial("ws", proxy(), "/v1/realtime?model=gpt-realtime", additional_headers=bearer(azure)) as ws:
        heard(ws)
        ws.close(4321, "bye")
    asked = azure.wait_for_request()
    assert asked.done.wait(PATIENCE)

    assert 4321 == asked.close_code


def test_a_large_frame_that_is_changed_keeps_its_text(azure: Simulator, proxy: Proxies) -> None:
    """A renamed model in a frame of many kilobytes leaves the rest of the text unchanged."""
    instructions = "é€😀" * 5000
    with dial("ws", proxy(azure_openai_model_mapper=MAPPER), "/v1/realtime?model=rt", additional_headers=bearer(azure)) as ws:
        heard(ws)
        ws.send(json.dumps({"type": "session.update", "session": {"model": "rt", "instructions": instructions}}, ensure_ascii=False))
        session = heard(ws)["session"]

    assert ("rt", instructions) == (session["model"], session["instructions"])


def test_a_large_frame_without_its_filter_keeps_its_text(azure: Simulator, proxy: Proxies) -> None:
    """Filter results are removed from a response of many kilobytes, and the rest of the text stays unchanged."""
    text = "é€😀" * 5000
    frame = {"type": "test.echo", "response": {"content_filters": [], "text": text}}
    with dial("ws", proxy(), "/v1/realtime?model=gpt-realtime", additional_headers=bearer(azure)) as ws:
        heard(ws)
        ws.send(json.dumps(frame, ensure_ascii=False))
        assert {"text": text} == heard(ws)["response"]


def test_an_error_in_a_frame_is_openai_s(azure: Simulator, proxy: Proxies) -> None:
    """The error has OpenAI's members and no key in it; the frame keeps its own."""
    error = {"code": "429", "message": f"{azure.key} has no more tokens"}
    with dial("ws", proxy(), "/v1/responses", additional_headers=bearer(azure)) as ws:
        ws.send(json.dumps({"type": "test.echo", "status": 429, "error": error}))
        frame = heard(ws)

    assert ("test.echo", 429) == (frame["type"], frame["status"])
    assert {"message": "[key] has no more tokens", "type": "tokens", "param": None, "code": "rate_limit_exceeded"} == frame["error"]


def test_a_connection_that_breaks_off_is_no_regular_end(azure: Simulator, proxy: Proxies) -> None:
    """If Azure's connection breaks off, the client does not get 1000: the SDK reconnects after 1011."""
    with dial("ws", proxy(), "/v1/realtime?model=gpt-realtime", additional_headers=bearer(azure)) as ws:
        heard(ws)
        ws.send(json.dumps({"type": "test.drop"}))
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=PATIENCE)

    assert closed.value.rcvd
    assert 1011 == closed.value.rcvd.code


def test_a_client_that_half_closes_before_the_upgrade_holds_no_session(azure: Simulator, proxy: Proxies) -> None:
    """It can send nothing more, also no close frame: both connections are closed."""
    head = (
        "GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {azure.key}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", proxy().port), PATIENCE) as client:
        client.sendall(head.encode())
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            assert b"HTTP/1.1 101 " in answer.read()
    assert azure.wait_for_request().done.wait(PATIENCE)


@pytest.mark.parametrize(
    "path, key, status, code",
    [
        ("/v1/realtime?model=gpt-realtime", "wrong", 401, "invalid_api_key"),
        ("/v1/realtime?model=nothing", "", 404, "model_not_found"),
        ("/v1/agents", "", 404, "unsupported_by_azure"),
    ],
)
def test_a_handshake_that_fails_is_told_in_openai_s_shape(
    path: str, key: str, status: int, code: str, azure: Simulator, proxy: Proxies
) -> None:
    """Before the upgrade a refusal is an HTTP answer like any other."""
    headers = {"authorization": f"Bearer {key or azure.key}"}
    with pytest.raises(InvalidStatus) as refused, dial("ws", proxy(), path, additional_headers=headers):
        pass

    assert status == refused.value.response.status_code
    assert code == json.loads(refused.value.response.body)["error"]["code"]
