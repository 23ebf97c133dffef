"""The syntax check of requests to Azure, with hostile text in every part of every operation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.net.http.http1 import assemble_request_head

from azure_openai_proxy.api.backend import Backend, parse_endpoint
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.api.request_syntax import check, encoded, path_fault
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import BadRequest, ProxyError
from azure_openai_proxy.gateway.exchange import Exchange
from support import hostile_requests as hostile
from support import operations
from support.examples import examples

if TYPE_CHECKING:
    from support.hostile_requests import Case

ROWS = [row for row in operations.rows() if row.handled_by == "azure"]


def asking(path: bytes = b"/p/openai/files", method: bytes = b"GET", authority: bytes = b"", *fields: tuple[bytes, bytes]) -> http.Request:
    data = http.RequestData(b"HTTP/1.1", http.Headers(fields), None, None, 0, 0, "h", 443, method, b"https", authority, path)
    request = http.Request.make("GET", "https://h/")
    request.data = data
    return request


@pytest.mark.parametrize(
    "request_",
    [
        asking(),
        asking(b"/p/openai/v1/files/a%20b?after=%0d"),
        asking(b"/p/openai/v1/files/a%2Fb"),
        asking(b"/p/openai/files", b"M-SEARCH", b"h:1", (b"X-A", b"\xe9 \t;"), (b"a", b"")),
    ],
)
def test_a_request_that_http_can_carry_passes(request_: http.Request) -> None:
    """Escapes, any token as the method, and header values without control characters are accepted."""
    before = request_.copy()
    check(request_, "/p")
    assert before.data == request_.data


@pytest.mark.parametrize(
    "request_, says",
    [
        (asking(method=b"GET /"), "method"),
        (asking(method=b""), "method"),
        (asking(authority=b"h a"), "authority"),
        (asking(authority=b"h\r"), "authority"),
        (asking(b"/p/openai/a b"), "spaces"),
        (asking(b"/p/openai/a\r\nX: y"), "spaces"),
        (asking(b"/openai/files"), "leave"),
        (asking(b"/p/secret"), "leave"),
        (asking(b"/p/openai/a#b"), "path contains invalid characters"),
        (asking(b"/p/openai/a\\b"), "path contains invalid characters"),
        (asking(b"/p/openai/\xff"), "path contains invalid characters"),
        (asking(b"/p/openai/../x"), "dots"),
        (asking(b"/p/openai/%2e%2e/x?a=b"), "dots"),
        (asking(b"/p/openai/files", b"GET", b"", (b"", b"1")), "name"),
        (asking(b"/p/openai/files", b"GET", b"", (b"a b", b"1")), "name"),
        (asking(b"/p/openai/files", b"GET", b"", (b"a:", b"1")), "name"),
        (asking(b"/p/openai/files", b"GET", b"", (b"a", b"1\r\nb: 2")), "value"),
        (asking(b"/p/openai/files", b"GET", b"", (b"a", b"1\0")), "value"),
    ],
)
def test_a_request_that_would_be_another_is_refused(request_: http.Request, says: str) -> None:
    """Text that would end a line, a word or the endpoint's prefix is refused."""
    with pytest.raises(BadRequest, match=says):
        check(request_, "/p")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/a",
        "//v1/files//",
        "",
        "/v1/a.b",
        "/v1/...a",
        "/v1/a;b=c",
        "/v1/a%20b%25",
        "/v1/50%2525",
        "/v1/%C3%A9",
        "/v1/é",
        "/v1/a%2F",
    ],
)
def test_a_valid_path_has_no_fault(path: str) -> None:
    """A path with other characters, or with escapes of escapes, is accepted."""
    assert path_fault(path) is None


@pytest.mark.parametrize(
    "path, says",
    [
        ("/v1/a#b", "#"),
        ("/v1/%zz", "hexadecimal"),
        ("/v1/%c0%ae", "UTF-8"),
        ("/v1/\udcff", "UTF-8"),
        ("/v1/%00", "control"),
        ("/v1/%250a", "control"),
        ("/v1/%5c", "backslash"),
        ("/v1/a\\b", "backslash"),
        ("/v1/..", "dots"),
        ("/v1/./a", "dots"),
        ("/v1/.../a", "dots"),
        ("/v1/.. /a", "dots"),
        ("/v1/..;a=b/c", "dots"),
        ("/v1/%252e%252e%252fa", "dots"),
        ("/v1/%ef%bc%8e%ef%bc%8e/a", "dots"),
        ("/v1/%e2%80%a5/a", "dots"),
        ("/v1/%25252525252e", "too many"),
    ],
)
def test_a_path_that_refers_to_another_has_a_fault(path: str, says: str) -> None:
    """A path that refers to another one is refused in every spelling that a server or gateway decodes."""
    assert says in (path_fault(path) or "")


@pytest.mark.parametrize(
    "path, query, target",
    [
        ("/a", "", "/a"),
        ("/a%20b", "c=%0d&d", "/a%20b?c=%0d&d"),
        ("/é", "", "/%C3%A9"),
        ("/a\udcff", "b=\udcff", "/a%FF?b=%FF"),
        ("/a{b}", 'c="\\#<', "/a%7Bb%7D?c=%22%5C%23%3C"),
    ],
)
def test_a_target_is_encoded_where_it_must_be(path: str, query: str, target: str) -> None:
    """Characters that are valid in a request line are unchanged."""
    assert target == encoded(path, query)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_an_encoded_target_is_one_word(path: str, query: str) -> None:
    """An encoded target has no spaces and decodes to the same text."""
    target = encoded(f"/{path}", query)
    assert re.fullmatch("[!-~]+", target)
    assert "#" not in target
    assert unquote_to_bytes(f"/{path}?{query}" if query else f"/{path}") == unquote_to_bytes(target)


def head(case: Case, exchange: Exchange) -> bytes:
    """Return the head that is sent to Azure; "" if the proxy answers the client."""
    request = http.Request.make("POST", "http://localhost/", case.body)
    request.data.method, request.data.path, request.headers = (
        case.method,
        case.target,
        http.Headers([(b"host", b"localhost"), *case.headers]),
    )
    try:
        answer = exchange.request(request)
    except ProxyError:
        return b""
    return b"" if answer else assemble_request_head(request)


@settings(max_examples=examples(1000), deadline=None)
@given(st.data())
def test_hostile_text_shapes_no_head(data: st.DataObject) -> None:
    """Any text in any part gives one request line, the intended headers and the key, or an error."""
    row = data.draw(st.sampled_from(ROWS))
    mark = hostile.MARK.encode()
    text = data.draw(st.sampled_from(hostile.TEXTS) | st.binary(max_size=12).map(lambda text: text + mark))
    case = data.draw(st.sampled_from(list(hostile.cases(row, text))))
    version = data.draw(st.sampled_from(["2024-10-21", "2025-04-01-preview", "v1", "preview"]))
    mapping = data.draw(st.sampled_from(["", "gpt-4o=gpt-4o", "*=prod-*"]))
    base = parse_endpoint(f"https://r.example{hostile.PREFIX}")[0]
    exchange = Exchange(Settings(backends=(Backend(name="default", base=base, apiversion=version),), mapper=Mapper.parse(mapping)), None)
    if sent := head(case, exchange):
        assert [] == hostile.faults(case, [hostile.parse(sent)], b"r.example"), case
