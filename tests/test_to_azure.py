"""OpenAI's request → Azure's."""

import json

import pytest
from azure_openai_proxy import to_azure
from azure_openai_proxy.backends import Backend, parse_endpoint
from azure_openai_proxy.calls import Call, recognise
from azure_openai_proxy.credentials import Credential
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.http import Headers


def backend(apiversion: str, endpoint: str = "https://r.openai.azure.com") -> Backend:
    return Backend(name="default", base=parse_endpoint(endpoint)[0], token="", apiversion=apiversion)


def call(path: str, body: bytes = b'{"model": "gpt-4o"}') -> Call:
    recognised = recognise("POST", path, {}, body)
    assert recognised is not None
    return recognised


@pytest.mark.parametrize(
    ("asked", "apiversion", "deployment", "query", "path"),
    [
        ("/v1/chat/completions", "2024-10-21", "d", "", "/openai/deployments/d/chat/completions?api-version=2024-10-21"),
        ("/v1/completions", "2024-10-21", "d", "", "/openai/deployments/d/completions?api-version=2024-10-21"),
        ("/v1/embeddings", "2024-10-21", "d", "", "/openai/deployments/d/embeddings?api-version=2024-10-21"),
        ("/v1/chat/completions", "v1", "d", "", "/openai/v1/chat/completions"),
        ("/v1/chat/completions", "preview", "d", "", "/openai/v1/chat/completions?api-version=preview"),
        ("/v1/chat/completions", "v1", "d", "a=1&b=%20", "/openai/v1/chat/completions?a=1&b=%20"),
        ("/v1/embeddings", "2024-10-21", "d", "a=1", "/openai/deployments/d/embeddings?a=1&api-version=2024-10-21"),
        ("/v1/embeddings", "2024-10-21", "gpt-4.1", "", "/openai/deployments/gpt-4.1/embeddings?api-version=2024-10-21"),
        ("/v1/embeddings", "2024-10-21", "a/../b c", "", "/openai/deployments/a%2F..%2Fb%20c/embeddings?api-version=2024-10-21"),
        ("/v1/embeddings", "2024-10-21", "ü?#", "", "/openai/deployments/%C3%BC%3F%23/embeddings?api-version=2024-10-21"),
    ],
)
def test_path(asked: str, apiversion: str, deployment: str, query: str, path: str) -> None:
    """Each operation in each form, the deployment as one segment, the client's query kept."""
    assert path == to_azure.path(call(asked), deployment, backend(apiversion), query)


def test_the_endpoints_prefix_comes_first() -> None:
    """An API Management front has one."""
    front = backend("v1", "https://front.azure-api.net/ai/")
    assert "/ai/openai/v1/embeddings" == to_azure.path(call("/v1/embeddings"), "d", front)


@pytest.mark.parametrize(
    ("query", "rest", "api_key"),
    [
        ("", "", None),
        ("api-version=2023-05-15", "", None),
        ("a=1&api-version=2023-05-15&b=2", "a=1&b=2", None),
        ("API-Version=x&api%2Dversion=y", "", None),
        ("a=%41&&b", "a=%41&b", None),
        ("api-key=se%2Bcret&a=1", "a=1", "se+cret"),
        ("api-key=", "", None),
    ],
)
def test_query(query: str, rest: str, api_key: str | None) -> None:
    """What is not Azure's goes; every other byte stays."""
    assert to_azure.Query(rest, api_key) == to_azure.Query.read(query)


def test_headers() -> None:
    """The client's own headers pass in their order; its account, its connection and its keys stay behind."""
    client = Headers(
        [
            (b"Host", b"localhost:8080"),
            (b"Accept", b"*/*"),
            (b"Authorization", b"Bearer client"),
            (b"Api-Key", b"client"),
            (b"OpenAI-Organization", b"org"),
            (b"OpenAI-Project", b"project"),
            (b"OpenAI-Beta", b"assistants=v2"),
            (b"Connection", b"keep-alive, X-Mine"),
            (b"X-Mine", b"1"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Cookie", b"a=b"),
            (b"X-Stainless-Lang", b"python"),
        ]
    )
    azure = to_azure.headers(client, Credential("api-key", "key"), "r.openai.azure.com")
    expected = [(b"Host", b"r.openai.azure.com"), (b"Accept", b"*/*"), (b"X-Stainless-Lang", b"python"), (b"api-key", b"key")]
    assert expected == list(azure.fields)


def test_headers_without_a_host() -> None:
    """HTTP/2 has its authority elsewhere."""
    assert "host" not in to_azure.headers(Headers(), Credential("api-key", "key"), "r.openai.azure.com")


@pytest.mark.parametrize(
    ("apiversion", "deployment", "sent"),
    [
        ("2024-10-21", "prod", b'{ "model" : "gpt-4o" , "n":1.0 }'),
        ("v1", "gpt-4o", b'{ "model" : "gpt-4o" , "n":1.0 }'),
        ("v1", "prod", b'{ "model" : "prod" , "n":1.0 }'),
    ],
)
def test_body(apiversion: str, deployment: str, sent: bytes) -> None:
    """Only v1 has the deployment in the body, and only `model` changes."""
    body = b'{ "model" : "gpt-4o" , "n":1.0 }'
    assert sent == to_azure.body(call("/v1/chat/completions", body), deployment, backend(apiversion), body)


@pytest.mark.parametrize(
    ("body", "replaced"),
    [
        (b'{"model":"a"}', b'{"model":"\\u00fc\\""}'),
        (b'{"model":"a","model":"b"}', b'{"model":"a","model":"\\u00fc\\""}'),
        (b'{"mod\\u0065l":"a\\"b"}', b'{"mod\\u0065l":"\\u00fc\\""}'),
        (
            b'{"x":{"model":"a"},"model":"b","y":["model",{"model":"c"}]}',
            b'{"x":{"model":"a"},"model":"\\u00fc\\"","y":["model",{"model":"c"}]}',
        ),
        (b'{"x":"{\\"model\\":1","model"\n:\r\n\t"b"}', b'{"x":"{\\"model\\":1","model"\n:\r\n\t"\\u00fc\\""}'),
        (b'{"x":"model","model":"model"}', b'{"x":"model","model":"\\u00fc\\""}'),
        (b'{"x":"\\\\","model":"b"}', b'{"x":"\\\\","model":"\\u00fc\\""}'),
    ],
)
def test_only_the_model_changes(body: bytes, replaced: bytes) -> None:
    """Not another byte, whatever stands around it."""
    assert replaced == to_azure.replace_model(body, 'ü"')


def test_a_body_without_a_model_is_a_mistake_of_ours() -> None:
    """recognise has refused it before."""
    with pytest.raises(ValueError, match="no top-level model"):
        to_azure.replace_model(b"{}", "prod")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
)


@given(st.dictionaries(st.text(), JSON), st.text(), st.text(), st.booleans(), st.sampled_from([None, 2]))
def test_any_body_keeps_its_meaning(members: dict[str, object], model: str, deployment: str, ascii: bool, indent: int | None) -> None:
    """Parsed, the body is the same but for its model."""
    body = json.dumps(members | {"model": model}, ensure_ascii=ascii, indent=indent).encode(errors="surrogatepass")
    replaced = to_azure.replace_model(body, deployment)
    assert members | {"model": deployment} == json.loads(replaced)
