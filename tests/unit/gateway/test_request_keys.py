"""The keys of a request are kept beside its flow, and masked on it and in its response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mitmproxy import ctx, http

from azure_openai_proxy.client_leg import http1
from azure_openai_proxy.client_leg.headers import is_checked
from azure_openai_proxy.gateway.request_keys import RequestKeys
from support.exchanges import answering, asking
from support.flows import ask, gateways

if TYPE_CHECKING:
    from azure_openai_proxy.addon import AzureOpenAIProxy


def test_keys_are_hidden_and_restored() -> None:
    """The request of the flow has masks, and a copy of its head the keys."""
    keys, request = RequestKeys(), asking("GET", "/v1/files?api-key=in-the-query-0123", None, authorization="Bearer in-the-header-0123")
    keys.hide(request)
    assert ("Bearer [key]", "[key]") == (request.headers["authorization"], request.query["api-key"])
    restored = keys.restored(request)
    assert ("Bearer in-the-header-0123", "in-the-query-0123") == (restored.headers["authorization"], restored.query["api-key"])
    assert "in-the" not in repr(keys)


def test_masked_headers_stay_checked() -> None:
    """A head that was checked when it was read need not be checked for its masks, but for other changes."""
    found = http1.ordinary(b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer in-the-header-0123\r\n\r\n")
    assert found
    RequestKeys().hide(found.request)
    assert "Bearer [key]" == found.request.headers["authorization"]
    assert is_checked(found.request)
    found.request.headers["x-added"] = "a\nb"
    RequestKeys().hide(found.request)
    assert not is_checked(found.request)


@pytest.mark.parametrize(
    "path, shown",
    [
        ("/v1/files/in-the-header-0123", "/v1/files/[key]"),
        ("/v1/files/x%69n-the-header-0123/content?a=b", "/v1/files/[key]/content?a=b"),
        ("/v1/files?after=in-the-header-0123&limit=1", "/v1/files?after=[key]&limit=1"),
        ("/v1/files/in-the-header?api-key=in-the-header-0123", "/v1/files/in-the-header?api-key=[key]"),
    ],
)
def test_a_key_that_is_repeated_in_the_path(path: str, shown: str) -> None:
    """It is masked there too, in any spelling, and restored."""
    keys, request = RequestKeys(), asking("GET", path, None, authorization="Bearer in-the-header-0123")
    keys.hide(request)
    assert (shown, "[key]" in shown.partition("?")[0]) == (request.path, keys.in_path)
    assert path == keys.restored(request).path


def test_a_key_with_a_delimiter_is_masked_with_its_path() -> None:
    """Base64 has some, and a client need not encode them."""
    keys, request = RequestKeys(), asking("GET", "/v1/files/in-the/header=0123", None, authorization="Bearer in-the/header=0123")
    keys.hide(request)
    assert ("/[key]", True) == (request.path, keys.in_path)


async def test_only_a_key_of_use_is_refused_in_the_path(addon: AzureOpenAIProxy) -> None:
    """If the proxy has a key, that of the client is any text, such as the name of a deployment."""
    for token, refused in (("", True), ("a-key-for-azure-0123", False)):
        ctx.options.update(azure_openai_token=token)
        flow = ask(addon, gateways("GET", "/v1/files/the-name-of-a-file", b"", authorization="Bearer the-name-of-a-file"))
        assert refused == (flow.response is not None)


def test_all_keys_are_known() -> None:
    """Those of the client and of the backends, each once; those on the flow too, if the request is not translated."""
    keys, request = RequestKeys(), asking("GET", "/v1/files", None, authorization="Bearer in-the-header-0123")
    keys.hide(request)
    assert ((), ("in-the-header-0123",)) == (keys.secrets, keys.all)
    keys.read(("in-the-header-0123", "", None))
    for key in ("configured", None, "configured"):
        keys.add(key)
    assert ("in-the-header-0123", "configured") == keys.secrets == keys.all


def test_a_change_of_the_request_is_seen() -> None:
    """A user or another addon may edit the head; only then it is masked again."""
    keys, request = RequestKeys(), asking("GET", "/v1/files")
    keys.hide(request)
    assert not keys.is_changed(request)
    request.headers["api-key"] = "added"
    assert keys.is_changed(request)
    keys.mask_changes(request)
    assert "[key]" == request.headers["api-key"]


@pytest.mark.parametrize("translated", [True, False])
def test_a_response_repeats_no_key(translated: bool) -> None:
    """Neither in its headers nor in its trailers, also if the request was not translated."""
    keys, request = RequestKeys(), asking("GET", "/v1/files", None, authorization="Bearer in-the-header-0123")
    keys.hide(request)
    if translated:
        keys.read(("in-the-header-0123",))
    response = answering(200, b"{}", **{"x-echo": "it is in-the-header-0123"})
    keys.mask_trailers(response)
    response.trailers = http.Headers(x_echo="in-the-header-0123")
    keys.mask_head(response)
    keys.mask_trailers(response)
    assert ("it is [key]", "[key]") == (response.headers["x-echo"], response.trailers["x-echo"])


def test_a_key_that_somebody_put_in_since_is_masked(addon: AzureOpenAIProxy) -> None:
    """A person or another addon may edit a request on its way; the flow is kept longer than that."""
    ours = ask(addon, gateways())
    ours.request.headers["authorization"] = "Bearer mine"
    ours.response = http.Response.make(200, b"{}")
    addon.responseheaders(ours)
    assert "Bearer [key]" == ours.request.headers["authorization"]
