"""Rewriting of Azure's URLs."""

from __future__ import annotations

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy.api import url_rewriting
from azure_openai_proxy.api.backend import parse_endpoint

HERE = "http://localhost:8080"
FRONT = parse_endpoint("https://apim.example/prefix")[0]


@pytest.mark.parametrize(
    "url, native, ours",
    [
        ("https://apim.example/prefix/openai/v1/files/f?x=1#y", False, f"{HERE}/v1/files/f?x=1#y"),
        ("https://apim.example/prefix/openai/v1/files/f", True, f"{HERE}/openai/v1/files/f"),
        ("https://r.openai.azure.com/openai/operations/images/1?api-version=v", False, f"{HERE}/openai/operations/images/1?api-version=v"),
        ("/prefix/openai/v1/realtime/calls/rtc_1", False, "/v1/realtime/calls/rtc_1"),
        ("/openai/v1/realtime/calls/rtc_1", True, "/openai/v1/realtime/calls/rtc_1"),
        ("https://store.blob.core.windows.net/openai/image.png", False, "https://store.blob.core.windows.net/openai/image.png"),
        ("https://apim.example/prefix/elsewhere", False, "https://apim.example/prefix/elsewhere"),
        ("https://[", False, "https://["),
        ("file-1", False, "file-1"),
    ],
)
def test_urls_of_azures_api_become_the_proxys(url: str, native: bool, ours: str) -> None:
    """URLs of Azure's API become the proxy's, in the client's form of the API; other URLs are unchanged."""
    assert ours == url_rewriting.ours(url, FRONT, HERE, native=native)


def test_headers_that_hold_an_address() -> None:
    """Only headers with URLs are rewritten."""
    headers = Headers([(b"Operation-Location", b"https://apim.example/prefix/openai/v1/x"), (b"x-other", b"/prefix/openai/v1/x")])
    url_rewriting.in_headers(headers, FRONT, native=False)
    assert [(b"Operation-Location", b"/v1/x"), (b"x-other", b"/prefix/openai/v1/x")] == list(headers.fields)


def test_the_next_page() -> None:
    """The next page's URL in a list is rewritten, and all other bytes stay."""
    page = (
        b'{"data": ["https://apim.example/prefix/openai/v1/x"], "nextLink": "https:\\/\\/apim.example\\/prefix\\/openai\\/v1\\/x?after=1"}'
    )
    ours = page[: page.index(b'"https:\\')] + b'"http://localhost:8080/v1/x?after=1"}'
    assert ours == url_rewriting.in_body(page, FRONT, HERE, native=False)


@pytest.mark.parametrize("body", [b"{}", b'["/openai/"]', b'{"text":"https://apim.example/prefix/openai/v1/x"}'])
def test_a_body_without_one_is_the_same_object(body: bytes) -> None:
    """A body without such a URL is returned as the same object, also if a model wrote similar text."""
    assert url_rewriting.in_body(body, FRONT, HERE, native=False) is body
