"""The headers of Azure's answers."""

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy import answer_headers


def shaped(headers: dict[str, str], *, stream: bool = False, http1: bool = True) -> dict[str, str]:
    result = Headers([(name.encode(), value.encode()) for name, value in ({"x-request-id": "r"} | headers).items()])
    answer_headers.headers(result, stream=stream, http1=http1)
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
    """Seconds become durations, durations stay, and what is neither is dropped."""
    headers = Headers([(name.encode(), azure.encode()), (b"x-request-id", b"r")])
    answer_headers.headers(headers, stream=False)
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
    """Azure's name for it is used where OpenAI's is missing; Azure's stays too."""
    assert headers | {"x-request-id": expected} == shaped(headers)


def test_request_id_is_made_up_where_there_is_none() -> None:
    """Users quote it when they ask for help."""
    headers = Headers()
    answer_headers.headers(headers, stream=False)
    assert headers["x-request-id"].startswith("req_")


def test_hop_by_hop_headers_end_here() -> None:
    """They are about Azure's connection, but for the two that mitmproxy acts on."""
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


def test_what_azure_says_of_its_own_host_ends_here() -> None:
    """A browser would hold it against the proxy's."""
    headers = {"strict-transport-security": "max-age=31536000", "set-cookie": "a=b", "alt-svc": "h3", "x-request-id": "r"}
    assert {"x-request-id": "r"} == shaped(headers)


def test_other_headers_pass() -> None:
    """Nothing is taken out without a reason."""
    headers = {
        "retry-after": "7",
        "retry-after-ms": "6900",
        "x-ms-region": "Sweden Central",
        "content-length": "3",
        "content-encoding": "gzip",
    }
    assert headers | {"x-request-id": "r"} == shaped(headers)


def test_headers_of_a_stream() -> None:
    """A body that is rewritten has no known length, is not compressed, and is events."""
    expected = {"x-request-id": "r", "content-type": "text/event-stream", "cache-control": "no-cache"}
    assert expected == shaped({"content-encoding": "gzip"}, stream=True)
    assert expected | {"transfer-encoding": "chunked"} == shaped({"content-length": "10"}, stream=True)
    assert expected == shaped({"content-length": "10"}, stream=True, http1=False)


def test_headers_of_a_stream_that_azure_gave() -> None:
    """What Azure said stays, and so does an encoding that nobody here can undo."""
    headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "content-encoding": "rot13"}
    assert headers | {"x-request-id": "r"} == shaped(headers, stream=True)
