"""Whose key goes to Azure."""

import pytest
from mitmproxy.http import Headers, Request

from azure_openai_proxy.credentials import MASK, Credential, choose, scrub, seen
from azure_openai_proxy.errors import NoKey

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJhIn0.c2ln"


@pytest.mark.parametrize(
    ("token", "headers", "query", "credential"),
    [
        ("", {"authorization": "Bearer client"}, "", Credential("api-key", "client")),
        ("", {"authorization": "bearer  client "}, "", Credential("api-key", "client")),
        ("", {"api-key": "own", "authorization": "Bearer client"}, "", Credential("api-key", "own")),
        ("", {}, "asked", Credential("api-key", "asked")),
        ("", {"authorization": "Bearer client"}, "asked", Credential("api-key", "client")),
        ("", {"authorization": f"Bearer {JWT}"}, "", Credential("authorization", f"Bearer {JWT}")),
        ("configured", {"authorization": f"Bearer {JWT}"}, "", Credential("api-key", "configured")),
        ("configured", {"api-key": "own", "authorization": "Bearer client"}, "asked", Credential("api-key", "configured")),
        ("configured", {}, "", Credential("api-key", "configured")),
    ],
)
def test_the_strongest_credential_goes(token: str, headers: dict[str, str], query: str, credential: Credential) -> None:
    """Configured, api-key, Bearer, query: in this order; an Entra token stays a Bearer."""
    fields = Headers([(k.encode(), v.encode()) for k, v in headers.items()])
    assert credential == choose(token, fields, query)


@pytest.mark.parametrize("authorization", [b"", b"Bearer", b"Bearer  ", b"Basic dXNlcg=="])
def test_no_key_at_all(authorization: bytes) -> None:
    """The message says where one would come from."""
    with pytest.raises(NoKey, match="AZURE_OPENAI_TOKEN"):
        choose("", Headers([(b"authorization", authorization)]))


def test_what_the_client_sent_is_known() -> None:
    """Each of its secrets can be masked, also those that were not used."""
    headers = Headers([(b"api-key", b"own"), (b"authorization", b"Bearer client")])
    assert ("own", "client", "asked") == seen(headers, "asked")


def test_a_credential_shows_no_secret() -> None:
    """It may end up in a message."""
    assert "secret" not in repr(Credential("api-key", "secret"))


@pytest.mark.parametrize(
    ("path", "scrubbed"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models?a=1", "/v1/models?a=1"),
        ("/v1/models?a=1&API-Key=secret&b=2", f"/v1/models?a=1&api-key={MASK}&b=2"),
        ("/v1/models?api%2Dkey=secret", f"/v1/models?api-key={MASK}"),
        ("/v1/models?api-version=1", "/v1/models?api-version=1"),
    ],
)
def test_a_scrubbed_request_holds_no_key(path: str, scrubbed: str) -> None:
    """Not in its headers and not in its query; what held one still shows that it did."""
    request = Request.make("GET", f"http://localhost{path}", headers=Headers(authorization="Bearer secret", api_key="secret"))
    scrub(request)
    assert (scrubbed, MASK, MASK) == (request.path, request.headers["authorization"], request.headers["api-key"])


def test_a_request_without_a_key_gets_no_mask() -> None:
    """It had none."""
    request = Request.make("GET", "http://localhost/")
    scrub(request)
    assert "api-key" not in request.headers


def test_a_key_among_the_subprotocols_is_masked() -> None:
    """Where a browser put it; the others stay."""
    offered = Headers(sec_websocket_protocol="realtime, openai-insecure-api-key.sk-1")
    request = Request.make("GET", "http://localhost/v1/realtime", headers=offered)
    scrub(request)
    assert f"realtime, openai-insecure-api-key.{MASK}" == request.headers["sec-websocket-protocol"]
