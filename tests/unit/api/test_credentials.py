"""The choice of the credential for Azure."""

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy.api.credentials import Credential, choose, seen
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
        ("", {"authorization": "Bearer ek_68af"}, "", Credential("authorization", "Bearer ek_68af")),
        ("configured", {"authorization": f"Bearer {JWT}"}, "", Credential("api-key", "configured")),
        ("configured", {"api-key": "own", "authorization": "Bearer client"}, "asked", Credential("api-key", "configured")),
        ("configured", {}, "", Credential("api-key", "configured")),
    ],
)
def test_the_strongest_credential_goes(token: str, headers: dict[str, str], query: str, credential: Credential) -> None:
    """The precedence is: configured key, api-key, Bearer, query; an Entra token is sent as a Bearer."""
    fields = Headers([(k.encode(), v.encode()) for k, v in headers.items()])
    assert credential == choose(token, fields, query)


@pytest.mark.parametrize("authorization", [b"", b"Bearer", b"Bearer  ", b"Basic dXNlcg=="])
def test_no_key_at_all(authorization: bytes) -> None:
    """Without a key the error says where to set one."""
    with pytest.raises(NoKey, match="AZURE_OPENAI_TOKEN"):
        choose("", Headers([(b"authorization", authorization)]))


@pytest.mark.parametrize("key", [b"two words", b"k\x01", "schl\u00fcssel".encode(), b"k\x80"])
def test_a_key_that_no_header_may_contain(key: bytes) -> None:
    """A client's key with other characters is refused, and not repeated."""
    with pytest.raises(NoKey, match="non-ASCII characters") as raised:
        choose("", Headers([(b"api-key", key)]))
    assert key.decode("utf-8", "surrogateescape") not in raised.value.message


def test_every_secret_of_the_client_is_known() -> None:
    """Every secret of the client is returned for masking, also the unused ones."""
    headers = Headers([(b"api-key", b"own"), (b"authorization", b"Bearer client")])
    assert ("own", "client", "asked") == seen(headers, "asked")


def test_a_credential_shows_no_secret() -> None:
    """A credential's repr, which may be part of a message, does not contain the secret."""
    assert "secret" not in repr(Credential("api-key", "secret"))
