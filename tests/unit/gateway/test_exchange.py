"""One request and its answer, through the stages."""

import gzip
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import quote

import pytest
from mitmproxy import http
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.api.backend import Backend, parse_base, parse_endpoint
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.api.response import Stream
from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.egress.request import Hold
from azure_openai_proxy.errors import BadRequest, Failed, Failure, NoKey, NotFound
from azure_openai_proxy.gateway.exchange import MESSAGE, Exchange
from azure_openai_proxy.gateway.ingress import Upstream
from azure_openai_proxy.routing.attempts import GIVE_UP, Retry

if TYPE_CHECKING:
    from azure_openai_proxy.inspection.replay_server import Replay

KEY = {"authorization": "Bearer client"}
JSON = {"content-type": "application/json"}
FILTERED = b'{"choices":[{"content_filter_results":{},"index":0}],"model":"gpt-4o"}'


def exchange(*, normalize: bool = True, token: str = "", mode: str = "azure", mapping: str = "", origin: str | None = None) -> Exchange:
    backend = Backend(name="default", base=parse_endpoint("https://r.openai.azure.com")[0], token=token, apiversion="2024-10-21")
    openai = parse_base("https://openai.example/prefix")[0]
    return Exchange(
        Settings(
            backends=(backend,),
            mapper=Mapper.parse(mapping),
            normalize=normalize,
            mode="openai" if mode == "openai" else "azure",
            passthrough_endpoint=openai,
        ),
        origin,
    )


def asking(method: str, path: str, body: bytes | None = None, **headers: str) -> http.Request:
    request = http.Request.make(method, f"http://localhost:8080{path}", body or b"")
    request.headers.update({"host": "localhost:8080", **KEY, **JSON, **headers})
    if body is None:
        request.headers.pop("content-length", None)
    return request


def answering(status: int, body: bytes, content_type: str | None = "application/json", **headers: str) -> http.Response:
    return http.Response.make(status, body, ({"content-type": content_type} if content_type else {}) | headers)


def chat(*, stream: bool = False, **more: object) -> bytes:
    return json.dumps({"model": "gpt-4o", "stream": stream} | more).encode()


def test_a_request_becomes_azures() -> None:
    """Server, path, key and length; the client's own key stays behind."""
    request = asking("POST", "/v1/chat/completions", chat())
    assert exchange(token="configured").request(request) is None
    assert "https://r.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21" == request.url
    assert ("configured", "r.openai.azure.com") == (request.headers["api-key"], request.headers["host"])
    assert "authorization" not in request.headers
    assert str(len(chat())) == request.headers["content-length"]


def test_a_chunked_body_gets_a_length() -> None:
    """It was read whole, so its length is known."""
    request = asking("POST", "/v1/chat/completions", chat(), **{"transfer-encoding": "chunked"})
    del request.headers["content-length"]
    exchange().request(request)
    assert (None, str(len(chat()))) == (request.headers.get("transfer-encoding"), request.headers["content-length"])


def test_a_request_without_a_body_gets_none() -> None:
    """A GET with a length would look odd to some."""
    request = asking("GET", "/v1/files")
    exchange().request(request)
    assert "content-length" not in request.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("OPTIONS", "/v1/chat/completions", 204),
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/favicon.ico", 404),
        ("GET", "/v1/models", 200),
    ],
)
def test_what_the_proxy_answers_itself(method: str, path: str, status: int) -> None:
    """Nothing of it goes to Azure."""
    asked = exchange()
    answer = asked.request(asking(method, path))
    assert answer is not None
    assert (status, None) == (answer.status_code, asked.upstream_request)


def test_an_answer_of_our_own_has_an_id() -> None:
    """To ask about, as Azure's have."""
    asked = exchange()
    answer = asked.request(asking("GET", "/v1/models"))
    assert answer
    asked.response_head(answer)
    assert answer.headers["x-request-id"].startswith("req_")


def test_errors_are_raised() -> None:
    """Who calls shapes them."""
    with pytest.raises(BadRequest):
        exchange().request(asking("POST", "/v1/chat/completions", b"{"))
    with pytest.raises(NoKey):
        exchange().request(http.Request.make("POST", "http://localhost/v1/chat/completions", chat()))


def test_a_client_of_azures_keeps_its_deployments() -> None:
    """Unless somebody mapped them: the defaults are for OpenAI's names."""
    path = "/openai/deployments/whisper-1/chat/completions?api-version=2024-06-01"
    request = asking("POST", path, chat())
    exchange().request(request)
    assert path == request.path
    request = asking("POST", path, chat())
    exchange(mapping="whisper-1=w").request(request)
    assert path.replace("whisper-1", "w") == request.path


@pytest.mark.parametrize("method", ["TRACE", "trace", "TRACK", "CONNECT", "WS"])
def test_a_method_that_no_operation_has_is_refused(method: str) -> None:
    """TRACE would repeat the key, and WS is no method."""
    with pytest.raises(Failed, match="not a method") as refused:
        exchange().request(asking(method, "/v1/files"))
    assert 405 == refused.value.status


@pytest.mark.parametrize("version", ["v\r\nX: y", "2024-10-21 a", "2024-10-21&a=b", "junk", "2024-10-21-preview-2"])
@pytest.mark.parametrize("path", ["/openai/files", "/openai/v1/files", "/v1/files"])
def test_an_api_version_that_is_none_is_refused(version: str, path: str) -> None:
    """It would be written into Azure's query."""
    with pytest.raises(BadRequest, match="api-version") as refused:
        exchange().request(asking("GET", f"{path}?api-version={quote(version)}"))
    assert "api-version" == refused.value.param


@pytest.mark.parametrize("version", ["2024-10-21", "2025-04-01-PREVIEW", "v1", "preview", "latest", ""])
def test_an_api_version_that_azure_may_have_passes(version: str) -> None:
    """Azure says which it has."""
    assert exchange().request(asking("GET", f"/openai/files?api-version={version}")) is None


def test_a_request_that_cannot_be_sent_is_not_azures() -> None:
    """A header that the flow hides is seen at the last check; the answer is the proxy's own."""
    asked = exchange()
    with pytest.raises(BadRequest, match="value contains control"):
        asked.request(asking("GET", "/v1/files", None, **{"ocp-apim-subscription-key": "a\x01b"}))
    assert asked.upstream_request is None


def test_an_upgrade_of_another_method_is_none() -> None:
    """Its body would be taken for a WebSocket's frames."""
    request = asking("POST", "/v1/chat/completions", chat(), connection="Upgrade", upgrade="websocket")
    assert exchange().request(request) is None
    assert ("upgrade" in request.headers, "connection" in request.headers) == (False, False)


def test_openai_mode_hands_everything_over() -> None:
    """The request but for its server, and the answer as it comes."""
    asked = exchange(mode="openai")
    request = asking("POST", "/v1/anything?a=1", b"body")
    asked.forward_unchanged(request)
    assert "https://openai.example/prefix/v1/anything?a=1" == request.url
    assert (True, "Bearer client") == (request.stream, request.headers["authorization"])
    response = answering(200, FILTERED)
    asked.response_head(response)
    assert response.stream is True


def sent(body: bytes | None = None, path: str = "/v1/chat/completions", method: str = "POST", *, normalize: bool = True) -> Exchange:
    asked = exchange(normalize=normalize, origin="https://page.example")
    asked.request(asking(method, path, chat() if body is None else body))
    return asked


@pytest.mark.parametrize(
    ("body", "status", "content_type", "streams"),
    [
        (chat(stream=True), 200, "text/event-stream", True),
        (chat(), 200, "text/event-stream; charset=utf-8", True),
        (chat(stream=True), 200, None, True),
        (chat(stream=True), 200, "text/plain", True),
        (chat(stream=True), 200, "application/json", False),
        (chat(stream=True), 400, "text/event-stream", False),
        (chat(), 200, "application/json", False),
        (chat(), 200, None, False),
    ],
)
def test_what_streams(body: bytes, status: int, content_type: str | None, streams: bool) -> None:
    """Decided from what was asked and from what came; an error never streams."""
    response = answering(status, b"", content_type)
    sent(body).response_head(response)
    assert streams == isinstance(response.stream, Stream)


@pytest.mark.parametrize(
    ("path", "method", "content_type"),
    [("/v1/audio/speech", "POST", "audio/mpeg"), ("/v1/files/f/content", "GET", "application/json"), ("/v1/new", "GET", "text/csv")],
)
def test_what_is_opaque_passes(path: str, method: str, content_type: str) -> None:
    """Sound, files and what nobody knows are not read, whatever their size."""
    response = answering(200, b"", content_type)
    sent(chat() if method == "POST" else b"", path, method).response_head(response)
    assert response.stream is True


def test_an_answer_with_a_secret_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes, and yet it is remembered who made what it names."""
    made: list[bytes] = []
    monkeypatch.setattr("azure_openai_proxy.routing.attempts.Attempts.created", lambda _, answer: made.append(answer))
    response = answering(200, b"")
    sent(b"{}", "/v1/webhook_endpoints").response_head(response)
    assert callable(response.stream)
    passed = [response.stream(piece) for piece in (b'{"id":', b'"we_1"}', b"")]
    assert ([[b'{"id":'], [b'"we_1"}'], []], [b'{"id":"we_1"}']) == (passed, made)


@pytest.mark.parametrize(("path", "done"), [("/v1/chat/completions", True), ("/v1/responses", False)])
def test_only_chats_end_in_done(path: str, done: bool) -> None:
    """Typed events have an end of their own."""
    response = answering(200, b"", "text/event-stream")
    sent(chat(stream=True), path).response_head(response)
    assert callable(response.stream)
    response.stream(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
    assert done == (b"data: [DONE]\n\n" in response.stream(b""))


def test_an_answer_is_shaped() -> None:
    """What Azure added goes, and a page may read the rest."""
    asked, response = sent(), answering(200, FILTERED)
    asked.response_head(response)
    asked.response_body(response)
    assert b'{"choices":[{"index":0}],"model":"gpt-4o"}' == response.content
    assert "https://page.example" == response.headers["access-control-allow-origin"]


@pytest.mark.parametrize(("normalize", "body"), [(False, FILTERED), (True, b'{"object":"list"}')])
def test_an_answer_that_needs_no_change_has_none(normalize: bool, body: bytes) -> None:
    """Also when nobody wants one."""
    asked, response = sent(normalize=normalize), answering(200, body)
    asked.response_head(response)
    asked.response_body(response)
    assert body == response.content


def test_a_compressed_answer_is_shaped() -> None:
    """And stays compressed."""
    asked, response = sent(), answering(200, FILTERED)
    response.encode("gzip")
    asked.response_head(response)
    asked.response_body(response)
    assert b'{"choices":[{"index":0}],"model":"gpt-4o"}' == response.content
    assert "gzip" == response.headers["content-encoding"]


@pytest.mark.parametrize("status", [200, 400])
def test_a_bomb_is_not_read(status: int) -> None:
    """A good answer that becomes too large is an error instead, and an error has no text."""
    asked = sent()
    response = answering(status, b"")
    response.headers["content-encoding"] = "gzip"
    response.raw_content = gzip.compress(bytes(20 << 20))
    asked.response_head(response)
    asked.response_body(response)
    error = json.loads(response.content or b"")["error"]
    assert 1000 > len(response.raw_content)
    if status == 200:
        assert (502, "upstream_error", None) == (response.status_code, error["code"], response.headers.get("content-encoding"))
        assert "decompress to more than 16,777,216" in error["message"]
    else:
        assert (400, "Azure answered 400 Bad Request and gave no reason.") == (response.status_code, error["message"])


def test_an_error_is_shaped() -> None:
    """With the model that was asked for, those that are configured, and no key."""
    asked, response = sent(), answering(404, b'{"error":{"code":"DeploymentNotFound","message":"client"}}', "text/plain")
    asked.response_head(response)
    asked.response_body(response)
    error = json.loads(response.content or b"")["error"]
    assert "model_not_found" == error["code"]
    assert "gpt-4o" in error["message"]
    assert "client" not in error["message"]
    assert "application/json" == response.headers["content-type"]


def test_a_streamed_answer_is_left_alone_at_its_end() -> None:
    """It has gone by."""
    asked, response = sent(chat(stream=True)), answering(200, FILTERED, "text/event-stream")
    asked.response_head(response)
    asked.response_body(response)
    assert FILTERED == response.raw_content


def test_a_websockets_handshake_is_left_alone() -> None:
    """Its headers are between the client and Azure."""
    asked = exchange()
    asked.request(asking("GET", "/v1/realtime?model=m", upgrade="websocket", connection="upgrade"))
    response = http.Response.make(101, b"", {"upgrade": "websocket", "connection": "upgrade"})
    asked.response_head(response)
    asked.response_body(response)
    assert ("websocket", "upgrade") == (response.headers["upgrade"], response.headers["connection"])


@pytest.mark.parametrize("mode", ["azure", "openai"])
@pytest.mark.parametrize(
    ("path", "not_ready", "status"), [("/healthz", "stopping", 200), ("/readyz", None, 200), ("/readyz", "stopping", 503)]
)
def test_probes(path: str, not_ready: str | None, status: int, mode: str) -> None:
    """Those who run the proxy need no key; a process that stops is alive and of no more use."""
    asked, request = exchange(mode=mode), http.Request.make("GET", f"http://localhost{path}")
    asked.not_ready = lambda: not_ready
    answer = asked.request(request) if mode == "azure" else asked.forward_unchanged(request)
    assert answer
    assert status == answer.status_code


@pytest.mark.parametrize(("said", "closes"), [("close", True), ("Keep-Alive, Close", True), ("keep-alive", False)])
def test_a_client_that_wants_the_connection_closed(said: str, closes: bool) -> None:
    """It said so in a header that does not go to Azure."""
    asked = exchange()
    asked.request(asking("POST", "/v1/chat/completions", b'{"model":"gpt-4o"}', connection=said))
    response = http.Response.make(200, b"{}", JSON)
    asked.response_head(response)
    assert closes == (response.headers.get("connection") == "close")


def test_a_websocket_to_a_call_names_no_model() -> None:
    """Azure knows the call's; models in frames are mapped all the same."""
    asked = exchange(mapping="m=d")
    request = asking("GET", "/v1/realtime?call_id=c1", upgrade="websocket")
    assert asked.request(request) is None
    messages = [WebSocketMessage(Opcode.TEXT, True, b'{"type":"session.update","session":{"model":"m"}}')]
    asked.frame(messages, 1000)
    assert ("c1", "d") == (request.query["call_id"], json.loads(messages[0].content)["session"]["model"])


def talking() -> Exchange:
    asked = exchange(mapping="m=d")
    request = asking("GET", "/v1/realtime?model=m", upgrade="websocket")
    request.headers["sec-websocket-protocol"] = "realtime, openai-insecure-api-key.k"
    asked.request(request)
    return asked


def test_a_browser_gets_the_subprotocol_it_asked_for() -> None:
    """It would close a connection that answers with none."""
    response = http.Response.make(101, b"", {"upgrade": "websocket"})
    talking().response_head(response)
    assert "realtime" == response.headers["sec-websocket-protocol"]


@pytest.mark.parametrize(
    ("from_client", "content", "passed"),
    [
        (True, b'{"type":"session.update","session":{"model":"m"}}', b'{"type":"session.update","session":{"model":"d"}}'),
        (False, b'{"type":"session.created","session":{"model":"d"}}', b'{"type":"session.created","session":{"model":"m"}}'),
        (True, b'{"type":"input_audio_buffer.append","audio":"m"}', b'{"type":"input_audio_buffer.append","audio":"m"}'),
    ],
)
def test_frames_name_the_deployment_out_and_the_model_back(from_client: bool, content: bytes, passed: bytes) -> None:
    """And nothing else in them changes."""
    messages = [WebSocketMessage(Opcode.TEXT, from_client, content)]
    talking().frame(messages, 100)
    assert passed == messages[0].content


def test_items_in_frames_are_remembered() -> None:
    """Those of the backend's frames, where there is more than one backend."""
    frame = b'{"type":"response.output_item.done","item":{"id":"fc_1"}}'
    for names, from_client, known in (("ab", False, 1), ("ab", True, 0), ("a", False, 0)):
        backends = tuple(Backend(name=name, base=parse_endpoint("http://azure.example")[0], apiversion="v1") for name in names)
        asked = exchange()
        asked.settings = replace(asked.settings, backends=backends)
        asked.request(asking("GET", "/v1/realtime?model=m", upgrade="websocket"))
        asked.frame([WebSocketMessage(Opcode.TEXT, from_client, frame)], 1000)
        assert known == len(asked.shared.owners)


FRAME = '{"response":{%s"text":"%s"},"type":"response.done"}'


def test_a_changed_frame_is_ascii() -> None:
    """mitmproxy cuts it anywhere, and half a character would be lost; the text stays the same."""
    said = 2000 * "é€😀"
    for content in (FRAME % ('"model":"d",', said), FRAME % ('"content_filters":[],"model":"m",', said)):
        messages = [WebSocketMessage(Opcode.TEXT, False, content.encode())]
        talking().frame(messages, 10**6)
        assert messages[0].content.isascii()
        assert {"model": "m", "text": said} == json.loads(messages[0].content)["response"]


def test_an_error_in_a_frame_is_shaped() -> None:
    """The frame keeps what else it has, and the key that Azure repeats is masked."""
    frame = {"type": "error", "event_id": "e", "error": {"code": "429", "message": "k was mykey0123"}}
    messages = [WebSocketMessage(Opcode.TEXT, False, json.dumps(frame).encode())]
    asked = talking()
    asked.secrets = ("mykey0123",)
    asked.frame(messages, 10**6)
    error = {"message": "k was [key]", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
    assert frame | {"error": error} == json.loads(messages[0].content)


def test_of_a_long_talk_the_oldest_frames_are_forgotten() -> None:
    """A session lasts an hour, and sound is large."""
    asked = talking()
    messages: list[WebSocketMessage] = []
    for _ in range(5):
        messages.append(WebSocketMessage(Opcode.BINARY, from_client=True, content=b"x" * 10))
        asked.frame(messages, 2 * (10 + MESSAGE) + 5)
    assert 2 == len(messages)


@pytest.mark.parametrize(
    ("version", "authority", "sent"), [("HTTP/2.0", "", "azure.example"), ("HTTP/1.1", "api.openai.com", ""), ("HTTP/1.1", "", "")]
)
@pytest.mark.parametrize("mode", ["azure", "openai"])
def test_azure_gets_a_host_and_no_whole_url(version: str, authority: str, sent: str, mode: Literal["azure", "openai"]) -> None:
    """An HTTP/2 client may send no authority, and one in a tunnel the whole URL or no Host."""
    asked = exchange(mode=mode)
    base = parse_endpoint("http://azure.example")[0]
    asked.settings = replace(asked.settings, backends=(Backend(name="b", base=base, apiversion="v1"),), passthrough_endpoint=base)
    request = asking("POST", "/v1/chat/completions", chat())
    request.http_version, request.authority = version, authority
    request.headers.pop("host", None)
    if mode == "azure":
        asked.request(request)
    else:
        asked.forward_unchanged(request)
    assert (sent, None if sent else "azure.example") == (request.authority, request.headers.get("host"))


def test_behind_another_proxy_the_request_is_prepared_for_it() -> None:
    """Once it is known where it goes."""
    asked = exchange()
    asked.upstream = Upstream(connects=False, authorization=b"Basic x")
    asked.settings = replace(asked.settings, backends=(Backend(name="b", base=parse_endpoint("http://azure.example")[0], apiversion="v1"),))
    request = asking("POST", "/v1/chat/completions", chat())
    asked.request(request)
    assert "azure.example" == request.authority
    handed = exchange(mode="openai")
    handed.upstream = Upstream(connects=True, authorization=None)
    handed.forward_unchanged(request)
    assert "" == request.authority


def uploading(length: str | None, start: bytes, *, path: str = "/v1/audio/transcriptions") -> http.Request:
    request = asking("POST", path, None, **{"content-type": "multipart/form-data; boundary=b"})
    if length is not None:
        request.headers["content-length"] = length
    asked = exchange(mapping="whisper-1=w")
    asked.settings = replace(asked.settings, backends=(replace(asked.settings.backends[0], apiversion="v1"),))
    assert asked.may_stream_upload(request)
    assert asked.request(request, start) is None
    assert asked.streamed
    return request


FIELD = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b\r\n'


@pytest.mark.parametrize(
    ("length", "start", "path", "sent"),
    [
        ("1000", FIELD, "/v1/audio/transcriptions", "992"),
        ("1000", FIELD[:9], "/v1/audio/transcriptions", None),
        ("1000", FIELD, "/v1/files", "1000"),
        (None, FIELD, "/v1/audio/transcriptions", None),
    ],
)
def test_a_body_that_goes_on_has_the_length_that_it_will_have(length: str | None, start: bytes, path: str, sent: str | None) -> None:
    """Or none, where nobody knows."""
    request = uploading(length, start, path=path)
    assert (sent, True) == (request.headers.get("content-length"), bool(request.stream))


def test_a_request_that_was_held_can_be_sent_again() -> None:
    """It is not streamed."""
    asked = exchange()
    assert not asked.streamed
    asked.request(asking("POST", "/v1/chat/completions", chat()))
    assert not asked.streamed


def test_moderations_are_unflagged_by_the_option_alone() -> None:
    """Without it there are none."""
    asked = exchange()
    with pytest.raises(NotFound, match="Azure AI Content Safety"):
        asked.request(asking("POST", "/v1/moderations", b'{"input":"x"}'))
    asked.settings = replace(asked.settings, moderations_unflagged=True)
    response = asked.request(asking("POST", "/v1/moderations", b'{"input":"x"}'))
    assert response
    assert [False] == [result["flagged"] for result in response.json()["results"]]


def test_what_was_discovered_is_listed() -> None:
    """Beside what is configured; the defaults are a guess that it replaces."""
    for mapping, names in (("m=d", ["m", "found"]), ("", ["found"])):
        asked = exchange(mapping=mapping)
        asked.discovered = ("found",)
        response = asked.request(asking("GET", "/v1/models"))
        assert response
        assert names == [model["id"] for model in response.json()["data"]]


@pytest.mark.parametrize(("replaced", "version"), [(frozenset({"2023-03-15-preview"}), "2024-10-21"), (frozenset(), "2023-03-15-preview")])
def test_a_version_that_azure_has_retired(replaced: frozenset[str], version: str) -> None:
    """By the option it becomes the configured one."""
    asked = exchange()
    asked.settings = replace(asked.settings, replace_apiversions=replaced)
    request = asking("POST", "/openai/deployments/d/chat/completions?api-version=2023-03-15-preview", b"{}")
    assert asked.request(request) is None
    assert f"/openai/deployments/d/chat/completions?api-version={version}" == request.path


def test_addresses_in_the_answer_are_the_proxys() -> None:
    """In its headers and in its body."""
    asked, response = (
        sent(chat()),
        answering(200, b'{"next":"https://r.openai.azure.com/openai/v1/files?after=1"}', location="/openai/v1/x"),
    )
    asked.response_head(response)
    asked.response_body(response)
    assert ("/v1/x", b'{"next":"http://localhost:8080/v1/files?after=1"}') == (response.headers["location"], response.content)


# What the upstream leg asks


def test_what_is_held() -> None:
    """Failures and JSON until they are complete, streams until they have begun, other responses and those of no attempt not at all."""
    asked = exchange()
    assert (Hold.NOTHING, GIVE_UP) == (asked.hold_mode(answering(503, b"")), asked.next_attempt(asking("GET", "/"), answering(503, b"")))
    asked.request(asking("POST", "/v1/chat/completions", chat(stream=True)))
    assert (Hold.FAILURE, Hold.WHOLE) == (asked.hold_mode(answering(503, b"")), asked.hold_mode(answering(200, b"{}")))
    assert isinstance(asked.hold_mode(answering(200, b"", "text/event-stream")), Peek)


def test_sound_is_not_held() -> None:
    """A response that is neither JSON nor a stream of events passes as it comes."""
    asked = exchange()
    asked.request(asking("POST", "/v1/audio/speech", chat(input="hello", voice="alloy")))
    assert Hold.NOTHING is asked.hold_mode(answering(200, b"RIFF", "audio/wav"))


def two_backends(*, keyless: bool = False) -> Exchange:
    asked = exchange(token="first-key")
    (first,) = asked.settings.backends
    second = replace(first, name="second", base=parse_base("https://second.example")[0], token="" if keyless else "second-key", priority=1)
    asked.settings = replace(asked.settings, backends=(first, second), debug_headers=True)
    return asked


def test_a_request_sent_again() -> None:
    """It is the other backend's in every respect, and its answer says so."""
    asked = two_backends()
    request = asking("POST", "/v1/chat/completions", chat(stream=True))
    asked.request(request)
    assert isinstance(asked.next_attempt(request, answering(503, b"")), Retry)
    assert ("second.example", "second-key", "second.example") == (request.host, request.headers["api-key"], request.headers["host"])
    response = answering(200, b"", "text/event-stream")
    peek = asked.hold_mode(response)
    assert isinstance(peek, Peek)
    peek.feed(b'data: {"choices":[{}],"id":"chatcmpl-1"}\n\n')
    asked.response_head(response)
    assert ("second", "2") == (response.headers["x-azure-openai-proxy-backend"], response.headers["x-azure-openai-proxy-attempts"])
    asked.finish()
    asked.broke_off(Failure(502, "upstream_error", "cut"))
    exchange().broke_off(Failure(502, "upstream_error", "cut"))
    assert asked.attempts
    assert ["503", "upstream_error"] == [attempt.cause for attempt in asked.attempts.tried]


def test_a_client_without_a_key_for_the_other() -> None:
    """Then the first one's failure is its answer."""
    asked = two_backends(keyless=True)
    request = asking("POST", "/v1/chat/completions", chat())
    del request.headers["authorization"]
    asked.request(request)
    assert GIVE_UP is asked.next_attempt(request, answering(503, b""))


def test_a_token_of_entra_id() -> None:
    """It goes to Azure and is masked in whatever Azure says."""
    asked = exchange()
    (backend,) = asked.settings.backends
    asked.settings = replace(asked.settings, backends=(replace(backend, entra="cli"),))
    asked.shared.tokens.token = lambda _: "token-of-entra"  # type: ignore[method-assign, assignment]
    request = asking("POST", "/v1/chat/completions", chat())
    asked.request(request)
    assert ("Bearer token-of-entra", None) == (request.headers["authorization"], request.headers.get("api-key"))
    assert "token-of-entra" in asked.secrets


def test_a_filtered_prompt_is_not_to_be_sent_again() -> None:
    """By nobody: it is filtered the second time as well."""
    asked = exchange()
    asked.request(asking("POST", "/v1/chat/completions", chat()))
    response = answering(400, b'{"error":{"code":"content_filter","message":"filtered"}}')
    asked.response_head(response)
    asked.response_body(response)
    assert "false" == response.headers["x-should-retry"]


def test_a_recording_answers_instead_of_azure() -> None:
    """Without a key; what the player gives in its own pace streams."""
    recorded = tflow.tflow(resp=True)

    class Recorded:
        def find(self, *_: object) -> http.HTTPFlow:
            return recorded

        def answer(self, *_: object) -> http.Response | None:
            return None

    one = exchange()
    one.replay = cast("Replay", Recorded())
    assert one.request(asking("POST", "/v1/chat/completions", chat())) is None
    played, at_once = answering(200, b"", **{"set-cookie": "a=b", "access-control-allow-origin": "*"}), answering(200, b"{}")
    played.raw_content = None
    one.response_head(played)
    one.response_head(at_once)
    assert (None, recorded, True, False) == (one.upstream_request, one.recorded, played.stream, at_once.stream)
    assert {"content-type", "content-length", "x-request-id", "x-content-type-options"} == set(played.headers)
    one.verify(asking("GET", "/name"))
    with pytest.raises(BadRequest, match="spaces"):
        one.verify(asking("GET", "/name a"))


def early(one: Exchange, method: str = "POST", path: str = "/v1/responses", **headers: str) -> http.Response | None:
    request = http.Request.make(method, f"http://localhost{path}")
    request.headers.update(headers)
    one.request_head(request)
    return one.early


def test_a_request_without_a_key_is_refused_by_its_head() -> None:
    """With the response that it would get after its body."""
    refused = early(exchange())
    assert refused
    with pytest.raises(NoKey) as raised:
        exchange().request(http.Request.make("POST", "http://localhost/v1/chat/completions", chat()))
    assert (401, raised.value.message) == (refused.status_code, json.loads(refused.text or "")["error"]["message"])


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/v1/responses", {"authorization": "Bearer k"}),
        ("POST", "/v1/responses", {"api-key": "k"}),
        ("POST", "/v1/responses?api-key=k", {}),
        ("GET", "/v1/realtime", {"upgrade": "WebSocket", "sec-websocket-protocol": "realtime, openai-insecure-api-key.k"}),
        ("GET", "/v1/models", {}),
        ("GET", "/", {}),
        ("OPTIONS", "/v1/responses", {}),
    ],
)
def test_other_requests_are_not_refused_by_their_head(method: str, path: str, headers: dict[str, str]) -> None:
    """The client has a key, or none is needed."""
    assert early(exchange(), method, path, **headers) is None


def test_a_configured_key_admits_every_request() -> None:
    """Of any backend, since the model is not known yet; recordings and OpenAI itself need none of ours."""
    replayed = exchange()
    replayed.replay = cast("Replay", object())
    entra = exchange()
    entra.settings = replace(entra.settings, backends=(replace(entra.settings.backends[0], entra="cli"),))
    assert [None] * 4 == [early(one) for one in (exchange(token="k"), exchange(mode="openai"), replayed, entra)]


def test_another_model_in_the_body_is_mapped() -> None:
    """The models that a body names beside the request's own have deployments of their own."""
    asked = exchange(mapping="gpt-4o=prod,gpt-4o-transcribe=ears")
    session = {"type": "realtime", "model": "gpt-4o", "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
    request = asking("POST", "/v1/realtime/client_secrets", json.dumps({"session": session}).encode())
    asked.request(request)
    assert b'"gpt-4o-transcribe"' not in (request.content or b"")
    assert b'"ears"' in (request.content or b"")
