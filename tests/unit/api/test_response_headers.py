"""Translation of response headers."""

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy.api import response_headers


def shaped(headers: dict[str, str], *, stream: bool = False, http1: bool = True) -> dict[str, str]:
    result = Headers([(name.encode(), value.encode()) for name, value in ({"x-request-id": "r"} | headers).items()])
    response_headers.headers(result, stream=stream, http1=http1)
    assert "nosniff" == result.pop("x-content-type-options")
    return dict(result.items())


@pytest.mark.parametrize(
    ("azure", "openai"),
    [
        ("10", "10s"),
        ("300", "5m0s"),
        ("0", "0s"),
        ("3661", "1h1m1s"),
        ("86400", "24h0m0s"),
        (" 59 ", "59s"),
        ("6m0s", "6m0s"),
        ("1.5s", "1.5s"),
        ("120ms", "120ms"),
        ("-1", None),
        ("soon", None),
        ("9" * 5000, None),
        ("9" * 12_000 + "s", None),
        ("1h" * 6000, None),
    ],
)
@pytest.mark.parametrize("name", ["x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"])
def test_resets_are_durations(azure: str, openai: str | None, name: str) -> None:
    """Seconds become durations, durations are kept, and other values are dropped."""
    headers = Headers([(name.encode(), azure.encode()), (b"x-request-id", b"r")])
    response_headers.headers(headers, stream=False)
    assert openai == headers.get(name)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-request-id": "a", "apim-request-id": "b"}, "a"),
        ({"x-request-id": "", "apim-request-id": "b", "x-ms-request-id": "c"}, "b"),
        ({"x-request-id": "", "x-ms-client-request-id": "d"}, "d"),
    ],
)
def test_request_id(headers: dict[str, str], expected: str) -> None:
    """Azure's request id is copied to OpenAI's header if that is missing, and is kept."""
    assert headers | {"x-request-id": expected} == shaped(headers)


def test_request_id_is_made_up_where_there_is_none() -> None:
    """A response without a request id gets one, which users can quote."""
    headers = Headers()
    response_headers.headers(headers, stream=False)
    assert headers["x-request-id"].startswith("req_")


def test_hop_by_hop_headers_end_here() -> None:
    """Hop-by-hop headers are dropped, except for the two that mitmproxy interprets."""
    headers = {
        "connection": "close, X-Mine",
        "x-mine": "1",
        "keep-alive": "timeout=5",
        "upgrade": "h2c",
        "trailer": "x",
        "transfer-encoding": "chunked",
        "content-type": "application/json",
    }
    kept = {"connection": "close", "transfer-encoding": "chunked", "content-type": "application/json", "x-request-id": "r"}
    assert kept == shaped(headers)
    assert {"x-request-id": "r"} == shaped({"connection": "keep-alive"})


def test_headers_for_azures_own_origin_are_dropped() -> None:
    """Headers that a browser would apply to the proxy's origin are dropped."""
    assert {"x-request-id": "r"} == shaped(OF_THE_ORIGIN)


OF_THE_ORIGIN = {
    "Strict-Transport-Security": "max-age=31536000",
    "set-cookie": "a=b",
    "alt-svc": "h3",
    "clear-site-data": '"*"',
    "access-control-allow-origin": "*",
    "access-control-allow-credentials": "true",
    "refresh": "0; url=https://evil.example",
    "service-worker-allowed": "/",
    "x-content-type-options": "sniff",
    "content-security-policy-report-only": "default-src 'none'; report-uri https://evil.example",
    "nel": "{}",
    "report-to": "{}",
}


def test_an_upgrade_keeps_its_own_headers() -> None:
    """An upgrade's headers are kept, except for those that act on the proxy's origin."""
    own = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-accept": "x"}
    headers = Headers([(name.encode(), value.encode()) for name, value in (own | OF_THE_ORIGIN).items()])
    response_headers.drop_origin_headers(headers)
    assert own == dict(headers.items())


@pytest.mark.parametrize(
    "azure, client",
    [
        ("text/html", "text/plain; charset=utf-8"),
        ("TEXT/HTML; charset=latin-1", "text/plain; charset=utf-8"),
        ("text/plain, text/html", "text/plain; charset=utf-8"),
        ("application/xhtml+xml", "text/plain; charset=utf-8"),
        ("application/xml", "text/plain; charset=utf-8"),
        ("text/xsl", "text/plain; charset=utf-8"),
        ("multipart/x-mixed-replace; boundary=x", "text/plain; charset=utf-8"),
        ("image/svg+xml, text/html", "text/plain; charset=utf-8"),
        *[(kind, kind) for kind in ("application/json", "text/event-stream", "audio/mpeg", "application/octet-stream", "text/plain")],
        *[(f"application/vnd.openxmlformats-officedocument.{kind}",) * 2 for kind in ("wordprocessingml.document",)],
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_is_a_page(azure: str, client: str, stream: bool) -> None:
    """A type that a browser would render as a page of the proxy's origin becomes plain text; other types are kept."""
    assert client == shaped({"content-type": azure}, stream=stream)["content-type"]
    assert "content-security-policy" not in shaped({"content-type": azure})


def test_a_drawing_is_one_without_scripts() -> None:
    """An SVG image keeps its type and gets a sandbox policy against scripts."""
    shown = {"content-type": "image/svg+xml; charset=utf-8", "content-security-policy": "sandbox", "x-request-id": "r"}
    assert shown == shaped({"content-type": "image/svg+xml; charset=utf-8", "content-security-policy": "default-src *"})


def test_other_headers_pass() -> None:
    """All other headers are forwarded."""
    headers = {
        "retry-after": "7",
        "retry-after-ms": "6900",
        "x-ms-region": "Sweden Central",
        "content-length": "3",
        "content-encoding": "gzip",
    }
    assert headers | {"x-request-id": "r"} == shaped(headers)


def test_headers_of_a_stream() -> None:
    """A rewritten body has no length and no encoding, and its type is an event stream."""
    expected = {"x-request-id": "r", "content-type": "text/event-stream", "cache-control": "no-cache"}
    assert expected == shaped({"content-encoding": "gzip"}, stream=True)
    assert expected | {"transfer-encoding": "chunked"} == shaped({"content-length": "10"}, stream=True)
    assert expected == shaped({"content-length": "10"}, stream=True, http1=False)


def test_headers_of_a_stream_that_azure_gave() -> None:
    """Azure's own headers are kept, and so is an unsupported encoding."""
    headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "content-encoding": "rot13"}
    assert headers | {"x-request-id": "r"} == shaped(headers, stream=True)
