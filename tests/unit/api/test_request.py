"""Translation of an OpenAI request into Azure's."""

import json

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy.api import request as azure_request
from azure_openai_proxy.api.backend import Backend, parse_endpoint
from azure_openai_proxy.api.credentials import Credential
from azure_openai_proxy.api.large_bodies import LargeBody
from azure_openai_proxy.api.operation import recognise
from azure_openai_proxy.api.request import AzureRequest, ClientRequest, Query, Target
from azure_openai_proxy.formats import json_scan
from azure_openai_proxy.inspection.body_diff import Splice

KEY = Credential("api-key", "key")


def translated(
    method: str,
    url: str,
    apiversion: str = "2024-10-21",
    body: bytes = b'{"model": "gpt-4o"}',
    *,
    deployment: str = "",
    endpoint: str = "https://r.openai.azure.com",
    content_type: str = "application/json",
    add_usage: bool = False,
    large: LargeBody | None = None,
) -> AzureRequest:
    """Translate the request for `url`; `deployment` replaces every model if it is given."""
    path, _, text = url.partition("?")
    query = Query.read(text)
    call = recognise(method, path, {"content-type": content_type}, body, query.rest)
    assert call is not None
    asked = ClientRequest(Headers([(b"Host", b"localhost"), (b"Content-Type", content_type.encode())]), query, body, large)
    backend = Backend(name="default", base=parse_endpoint(endpoint)[0], token="", apiversion=apiversion)
    target = Target.of(call, backend, call.model and (deployment or call.model), query.api_version)
    return azure_request.translate(call, asked, target, lambda model: deployment or model, KEY, add_usage=add_usage)


@pytest.mark.parametrize(
    ("method", "url", "apiversion", "deployment", "path"),
    [
        ("POST", "/v1/chat/completions", "2024-10-21", "d", "/openai/deployments/d/chat/completions?api-version=2024-10-21"),
        ("POST", "//v1/completions", "2024-10-21", "d", "/openai/deployments/d/completions?api-version=2024-10-21"),
        ("POST", "/embeddings", "2024-10-21", "d", "/openai/deployments/d/embeddings?api-version=2024-10-21"),
        ("POST", "/v1/chat/completions", "v1", "d", "/openai/v1/chat/completions"),
        ("POST", "/v1/chat/completions", "preview", "d", "/openai/v1/chat/completions?api-version=preview"),
        ("POST", "/v1/responses", "2024-10-21", "d", "/openai/v1/responses"),
        ("GET", "/v1/files/f?a=1", "2024-10-21", "", "/openai/files/f?a=1&api-version=2024-10-21"),
        ("POST", "/v1/evals/e/runs/r/cancel", "v1", "", "/openai/v1/evals/e/runs/r"),
        ("GET", "/v1/webhook_endpoints/w", "v1", "", "/openai/v1/dashboard/webhook_endpoints/w"),
        # the query is kept
        ("POST", "/v1/embeddings?a=1&b=%20", "v1", "d", "/openai/v1/embeddings?a=1&b=%20"),
        ("POST", "/v1/embeddings?api-version=2023-05-15", "2024-10-21", "d", "/openai/deployments/d/embeddings?api-version=2024-10-21"),
        # the deployment is one segment
        ("POST", "/v1/embeddings", "2024-10-21", "gpt-4.1", "/openai/deployments/gpt-4.1/embeddings?api-version=2024-10-21"),
        ("POST", "/v1/embeddings", "2024-10-21", "a/../b c", "/openai/deployments/a%2F..%2Fb%20c/embeddings?api-version=2024-10-21"),
        ("POST", "/v1/embeddings", "2024-10-21", "{path}?#", "/openai/deployments/%7Bpath%7D%3F%23/embeddings?api-version=2024-10-21"),
        # the first API, with the model in the path
        ("POST", "/v1/engines/e/completions", "2024-10-21", "d", "/openai/deployments/d/completions?api-version=2024-10-21"),
        ("POST", "/v1/engines/e/completions", "v1", "d", "/openai/v1/completions"),
        # realtime
        ("WS", "/v1/realtime?model=m&a=1", "2024-10-21", "d", "/openai/v1/realtime?model=d&a=1"),
        ("WS", "/v1/realtime?MODEL=m&De%70loyment=n&a=1", "v1", "d", "/openai/v1/realtime?model=d&deployment=d&a=1"),
        ("WS", "/v1/realtime?call_id=c", "preview", "", "/openai/v1/realtime?call_id=c"),
        ("WS", "/v1/realtime?model=m&api-version=2024-10-01-preview", "v1", "d", "/openai/v1/realtime?model=d"),
        # Azure's own API
        (
            "POST",
            "/openai/deployments/e/chat/completions?api-version=2024-06-01",
            "v1",
            "d",
            "/openai/deployments/d/chat/completions?api-version=2024-06-01",
        ),
        (
            "POST",
            "/openai/deployments/e/chat/completions",
            "2024-06-01",
            "",
            "/openai/deployments/e/chat/completions?api-version=2024-06-01",
        ),
        ("POST", "/openai/deployments/e/chat/completions", "v1", "", "/openai/deployments/e/chat/completions?api-version=2024-10-21"),
        ("GET", "/openai/files?api-version=2024-06-01", "v1", "", "/openai/files?api-version=2024-06-01"),
        ("POST", "/openai/v1/chat/completions?api-version=preview", "2024-10-21", "d", "/openai/v1/chat/completions?api-version=preview"),
        ("POST", "/openai/v1/chat/completions?api-version=2024-10-21", "2024-10-21", "d", "/openai/v1/chat/completions"),
        (
            "WS",
            "/openai/realtime?api-version=2024-10-01-preview&deployment=e",
            "v1",
            "d",
            "/openai/realtime?deployment=d&api-version=2024-10-01-preview",
        ),
    ],
)
def test_path(method: str, url: str, apiversion: str, deployment: str, path: str) -> None:
    """Each operation has its path in each form of Azure's API."""
    assert path == translated(method, url, apiversion, deployment=deployment).path


@pytest.mark.parametrize(
    ("model", "apiversion", "deployment", "path"),
    [
        ("auto", "2024-10-21", "auto", "/openai/v1/chat/completions"),
        ("auto", "v1", "auto", "/openai/v1/chat/completions"),
        ("auto", "preview", "auto", "/openai/v1/chat/completions?api-version=preview"),
        ("auto", "2024-10-21", "router", "/openai/deployments/router/chat/completions?api-version=2024-10-21"),
        ("router", "2024-10-21", "auto", "/openai/deployments/auto/chat/completions?api-version=2024-10-21"),
    ],
)
def test_the_model_router_without_a_deployment(model: str, apiversion: str, deployment: str, path: str) -> None:
    """`auto` that is not mapped to a deployment goes to the v1 API, whose path names none."""
    body = json.dumps({"model": model, "messages": []}).encode()
    assert path == translated("POST", "/v1/chat/completions", apiversion, body, deployment=deployment).path


def test_the_endpoints_prefix_comes_first() -> None:
    """The endpoint's prefix, which an API Management gateway has, precedes the path."""
    assert "/ai/openai/v1/embeddings" == translated("POST", "/v1/embeddings", "v1", endpoint="https://front.azure-api.net/ai/").path


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", Query("")),
        ("api-version=2023-05-15", Query("", "2023-05-15")),
        ("a=1&api-version=2023-05-15&b=2", Query("a=1&b=2", "2023-05-15")),
        ("API-Version=x&api%2Dversion=y", Query("", "y")),
        ("a=%41&&b", Query("a=%41&b")),
        ("api-key=se%2Bcret&a=1", Query("a=1", "", "se+cret")),
    ],
)
def test_query(text: str, query: Query) -> None:
    """Parameters that the proxy sets are removed, and all other bytes stay."""
    assert query == Query.read(text)


CLIENT = [
    (b"Host", b"localhost:8080"),
    (b"Accept", b"*/*"),
    (b"Authorization", b"Bearer client"),
    (b"Api-Key", b"client"),
    (b"OpenAI-Organization", b"org"),
    (b"OpenAI-Project", b"project"),
    (b"OpenAI-Beta", b"assistants=v2"),
    (b"Connection", b"Upgrade, X-Mine"),
    (b"Upgrade", b"websocket"),
    (b"X-Mine", b"1"),
    (b"Keep-Alive", b"timeout=5"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Cookie", b"a=b"),
    (b"X-Stainless-Lang", b"python"),
]


def test_models_in_a_query_that_are_not_utf8() -> None:
    """Their bytes are encoded, as elsewhere in a request target."""
    assert "model=a-%80b&c=%80" == Query("model=\udc80b&c=%80").with_models("a-{}".format)


def test_headers() -> None:
    """The client's headers are forwarded in their order, except for those of its OpenAI account, its connection and its keys."""
    azure = azure_request.headers(Headers(CLIENT), KEY, "r.openai.azure.com")
    expected = [(b"Host", b"r.openai.azure.com"), (b"Accept", b"*/*"), (b"X-Stainless-Lang", b"python"), (b"api-key", b"key")]
    assert expected == list(azure.fields)


def test_hop_by_hop_headers_are_not_forwarded() -> None:
    """Headers that `connection` names are dropped, in any bytes, and so is `expect`, because the body is complete."""
    client = Headers([(b"Connection", b"x-own, \xff"), (b"X-Own", b"1"), (b"\xff", b"2"), (b"Expect", b"100-continue")])
    assert [(b"api-key", b"key")] == list(azure_request.headers(client, KEY, "r").fields)


def test_a_websocket_upgrade_is_forwarded() -> None:
    """The headers of a WebSocket upgrade are forwarded."""
    azure = azure_request.headers(Headers(CLIENT), KEY, "r.openai.azure.com", websocket=True)
    assert "websocket" == azure["upgrade"]
    assert "upgrade" == azure["connection"].lower()


@pytest.mark.parametrize(("offered", "sent"), [(b"realtime, openai-insecure-api-key.k", ["realtime"]), (b"openai-insecure-api-key.k", [])])
def test_a_key_among_the_subprotocols_stays_behind(offered: bytes, sent: list[str]) -> None:
    """A browser's key among the subprotocols is not forwarded."""
    client = Headers([(b"Sec-WebSocket-Protocol", offered)])
    assert sent == azure_request.headers(client, KEY, "r", websocket=True).get_all("sec-websocket-protocol")


def test_a_key_among_the_subprotocols_of_an_ordinary_request_stays_behind() -> None:
    """Azure gets it in api-key alone."""
    client = Headers([(b"Host", b"localhost"), (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.key")])
    assert [(b"Host", b"r"), (b"api-key", b"key")] == list(azure_request.headers(client, KEY, "r").fields)


def test_a_host_that_belongs_to_the_connection_goes_on() -> None:
    """A client may not take Azure's Host away."""
    client = Headers([(b"Host", b"localhost"), (b"Connection", b"Host, x-mine"), (b"X-Mine", b"1")])
    assert [(b"Host", b"r"), (b"api-key", b"key")] == list(azure_request.headers(client, KEY, "r").fields)


def test_headers_without_a_host() -> None:
    """A request without a host header, as in HTTP/2, gets none."""
    assert "host" not in azure_request.headers(Headers(), KEY, "r.openai.azure.com")


FORM = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
MULTIPART = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("url", "apiversion", "body", "sent"),
    [
        ("/v1/chat/completions", "2024-10-21", b'{ "model" : "gpt-4o" , "n":1.0 }', b'{ "model" : "gpt-4o" , "n":1.0 }'),
        ("/v1/chat/completions", "v1", b'{ "model" : "gpt-4o" , "n":1.0 }', b'{ "model" : "d\\u00fc" , "n":1.0 }'),
        ("/v1/responses", "v1", b'{"input": "model"}', b'{"input": "model"}'),
        ("/v1/realtime/client_secrets", "v1", b'{"session":{"model":"m"},"model":"x"}', b'{"session":{"model":"d\\u00fc"},"model":"x"}'),
        (
            "/v1/realtime/client_secrets",
            "v1",
            b'{"session":{"audio":{"input":{"transcription":{"model":"a"}}},"model":"m"}}',
            b'{"session":{"audio":{"input":{"transcription":{"model":"d\\u00fc"}}},"model":"d\\u00fc"}}',
        ),
        (
            "/v1/realtime/transcription_sessions",
            "v1",
            b'{"input_audio_transcription":{"model":"a"}}',
            b'{"input_audio_transcription":{"model":"d\\u00fc"}}',
        ),
        (
            "/v1/realtime/calls/c/accept",
            "v1",
            b'{"model":"m","audio":{"input":{"transcription":{"model":"a"}}}}',
            b'{"model":"d\\u00fc","audio":{"input":{"transcription":{"model":"d\\u00fc"}}}}',
        ),
        (
            "/v1/fine_tuning/alpha/graders/run",
            "v1",
            b'{"grader":{"graders":{"model":"a"}}}',
            b'{"grader":{"graders":{"model":"d\\u00fc"}}}',
        ),
        ("/v1/fine_tuning/jobs", "v1", b'{"model":"gpt-4.1"}', b'{"model":"gpt-4.1"}'),
        ("/v1/engines/e/completions", "2024-10-21", b'{"prompt":""}', b'{"prompt":""}'),
        ("/v1/engines/e/completions", "v1", b' {"prompt":""}', b' {"model":"d\\u00fc","prompt":""}'),
        ("/v1/engines/e/completions", "v1", b"{ }", b'{"model":"d\\u00fc" }'),
        ("/v1/engines/e/completions", "v1", b"[]", b"[]"),
        ("/v1/engines/e/completions", "v1", b'{"model":"e","n":1}', b'{"model": "d\\u00fc", "n": 1}'),
        ("/v1/engines/e/embeddings", "v1", b'{"n":1,"model":null}', b'{"n": 1, "model": "d\\u00fc"}'),
        ("/v1/engines/e/chat/completions", "v1", b'{"model":"a","mod\\u0065l":"b"}', b'{"model": "d\\u00fc"}'),
        ("/v1/engines/e/completions", "v1", b'{"prompt":"\\"model\\""}', b'{"model":"d\\u00fc","prompt":"\\"model\\""}'),
        ("/v1/engines/e/completions", "v1", b'{"a":{"model":1}}', b'{"model":"d\\u00fc","a":{"model":1}}'),
        ("/v1/engines/e/completions", "v1", b'{"model":', b'{"model":'),
        ("/v1/engines/e/completions", "v1", b'[{"a":1}]', b'[{"a":1}]'),
        ("/openai/deployments/e/chat/completions", "v1", b'{"model":"x"}', b'{"model":"x"}'),
    ],
)
def test_body(url: str, apiversion: str, body: bytes, sent: bytes) -> None:
    """The body has the deployment only for v1, and only the model changes."""
    assert sent == translated("POST", url, apiversion, body, deployment="dü").content


def test_a_model_that_is_the_deployment_changes_nothing() -> None:
    """A model that equals its deployment leaves the body unchanged, also its spelling."""
    body = b'{"model": "gpt\\u002d4o"}'
    assert body == translated("POST", "/v1/chat/completions", "v1", body).content


def test_a_form_names_the_deployment() -> None:
    """A form has the deployment as its model for v1; the dated API has it in the path."""
    url = "/v1/audio/transcriptions"
    assert FORM.replace(b"whisper-1", b"d") == translated("POST", url, "v1", FORM, deployment="d", content_type=MULTIPART).content
    assert FORM == translated("POST", url, "2024-10-21", FORM, deployment="d", content_type=MULTIPART).content


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "APPLICATION/JSON; Charset=utf-8", MULTIPART])
@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/responses", "/v1/images/edits", "/v1/realtime/sessions", "/v1/something/new"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b" \r\n\t"])
def test_a_json_body_is_recognised_with_any_content_type(url: str, kind: str, start: bytes) -> None:
    """A JSON body is recognised with any content type, and only its model changes."""
    assert start + b'{"model":"d"}' == translated("POST", url, "v1", start + b'{"model":"m"}', deployment="d", content_type=kind).content


def test_a_form_is_no_json() -> None:
    """Brackets in a form do not make it JSON."""
    form = FORM.replace(b"whisper-1", b"]")
    assert form == translated("POST", "/v1/audio/transcriptions", "v1", form, content_type=MULTIPART).content


def test_a_translated_request_has_its_base_and_deployment() -> None:
    """The translated request has the backend's base and the deployment."""
    sent = translated("POST", "/v1/embeddings", deployment="d")
    assert ("r.openai.azure.com", "d", "key") == (sent.base.host, sent.deployment, sent.headers["api-key"])


FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("start", "stream", "growth"), [(FORM, FORM.replace(b"whisper-1", b"w"), -8), (FORM[:20], FORM.replace(b"whisper-1", b"w"), None)]
)
def test_a_streamed_form_is_rewritten(start: bytes, stream: bytes, growth: int | None) -> None:
    """A streamed form is rewritten in chunks, and the change of its length is known if the model is in the beginning."""
    headers = Headers([(b"content-type", b"multipart/form-data; boundary=b")])
    call = recognise("POST", "/v1/audio/transcriptions", headers, start)
    assert call is not None
    backend = Backend(name="default", base=parse_endpoint("https://r.openai.azure.com")[0], token="", apiversion="v1")
    sent = azure_request.translate(
        call, ClientRequest(headers, Query(""), start, more=True), Target.of(call, backend, call.model and "w"), lambda _: "w", KEY
    )
    assert (b"", growth) == (sent.content, sent.growth)
    assert callable(sent.stream)
    assert stream == b"".join([*sent.stream(FORM), *sent.stream(b"")])
    assert [] == sent.stream(b"")


def test_a_streamed_body_without_changes() -> None:
    """A streamed body without changes is forwarded by mitmproxy."""
    assert translated("GET", "/v1/files")._replace(rewriter=None).stream is True


OPTIONS = b'"stream_options":{"include_usage":true}'


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("url", "apiversion", "body", "expected"),
    [
        ("/v1/chat/completions", "v1", b'{"model":"m","stream":true}', b'{"model":"d",%b,"stream":true}'),
        ("/v1/chat/completions", "v1", b'{"stream":true,"model":"d"}', b'{"stream":true,"model":"d",%b}'),
        (
            "/v1/chat/completions",
            "v1",
            b'{"stream":true,"stream_options":{},"model":"m"}',
            b'{"stream":true,"stream_options":{"include_usage": true},"model":"d"}',
        ),
        ("/v1/completions", "2024-10-21", b'{"model":"m","stream":true}', b'{%b,"model":"m","stream":true}'),
        ("/openai/deployments/d/chat/completions", "v1", b'{"stream":true}', b'{%b,"stream":true}'),
        ("/v1/engines/m/completions", "v1", b'{"stream":true}', b'{"model":"d",%b,"stream":true}'),
        ("/v1/engines/m/completions", "v1", b'{"model":"m","stream":true}', b'{%b,"model": "d", "stream": true}'),
    ],
)
def test_the_usage_of_a_stream(url: str, apiversion: str, body: bytes, expected: bytes, large: bool) -> None:
    """The request for the usage is added in each place where the model can be, in a body of any size."""
    scanned = LargeBody(body, json_scan.outline(body, ("model",), every=True), places=("model",)) if large else None
    found = translated("POST", url, apiversion, body, deployment="d", add_usage=True, large=scanned)
    assert found.adds_usage
    assert json.loads(expected.replace(b"%b", OPTIONS)) == json.loads(found.content)
    if "engines" not in url:
        assert expected.replace(b"%b", OPTIONS) == found.content


@pytest.mark.parametrize("body", [b'{"model":"m","stream":true}', b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'])
def test_the_usage_is_not_added(body: bytes) -> None:
    """It is not added if it is not needed, or if the client asks for it itself."""
    found = translated("POST", "/v1/chat/completions", "v1", body, add_usage=b"stream_options" in body)
    assert (body, False) == (found.content, found.adds_usage)


def test_a_flow_keeps_a_small_part_of_the_clients_body() -> None:
    """The model and the request for the usage are one range of the body, also with long messages before the model, as the SDKs write it."""
    body = b'{"messages":[{"role":"user","content":"%b"}],"model":"m","stream":true}' % (b"long " * 1000)
    found = translated("POST", "/v1/chat/completions", "v1", body, deployment="prod", add_usage=True)
    splice = Splice.between(body, found.content)
    assert splice
    assert len(splice.old) < 20
    assert body == splice.undo(found.content)
