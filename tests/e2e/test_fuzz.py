"""Whatever a client sends: an answer in OpenAI's shape, no 500, no traceback, and the proxy goes on."""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import operations
from support.raw import Raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Proxies
    from support.processes import Mitmdump

fuzzed = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

KEY = "azure-key-0123456789abcdef"
ROWS = [row for row in operations.rows() if row.method != "WS"]
METHODS = st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "QUERY"])
ESCAPED = [
    "%2e%2e",
    "%2F",
    "%00",
    "%ff",
    "%",
    "%zz",
    "..",
    ".",
    "",
    "{deployment}",
    "{",
    "}",
    "é".encode().decode("latin-1"),
    "v1",
    "openai",
]
SEGMENT = st.one_of(
    st.sampled_from(ESCAPED), st.text(string.ascii_letters + string.digits + "-._~:@!$&'()*+,;=%\\^|`<>\"#?\x7f", max_size=12)
)
FAMILIES = sorted({part for row in ROWS for part in row.path.partition("?")[0].split("/") if part and part[0] != "{"})
PATHS = st.lists(st.sampled_from(FAMILIES) | SEGMENT, max_size=7).map(lambda parts: "/" + "/".join(parts))
QUERIES = st.lists(
    st.tuples(st.sampled_from(["api-version", "API-Version", "api-key", "model", "deployment", "after", "stream", "", "%"]), SEGMENT),
    max_size=4,
).map(lambda pairs: "&".join("=".join(pair) for pair in pairs))
NAMES = ["model", "messages", "input", "stream", "session", "grader", "testing_criteria", "data_source", "content", "role", "mo\\u0064el"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["gpt-4o", "azure/gpt-4o", ".", "*"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)
BODIES = st.one_of(
    JSON.map(lambda value: json.dumps(value).encode(errors="surrogatepass")),
    JSON.map(lambda value: json.dumps({"model": "gpt-4o", "messages": value}, ensure_ascii=False).encode(errors="replace")),
    st.binary(max_size=64),
    st.sampled_from([b"", b"{}", b"[]", b"{", b'{"model":', b'{"model":"x"}{}', b'{"model":"\\ud800"}', b"\xef\xbb\xbf{}", b"[" * 20_000]),
)
TYPES = st.sampled_from(
    ["application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data", "application/sdp"]
)


@pytest.fixture
def through(proxy: Proxies) -> Iterator[Mitmdump]:
    """A mitmdump that has said nothing bad at the end of the test either."""
    through = proxy(azure_openai_model_mapper="gpt-4o=gpt-4o")
    yield through
    assert [] == [line for line in through.records if "could not be translated" in line]


@pytest.fixture
def client(through: Mitmdump) -> Iterator[Raw]:
    with Raw(through.port) as client:
        yield client


def send(client: Raw, method: str, target: str, headers: dict[str, str] | None = None, content: bytes | None = None) -> None:
    """One request with exactly this target; its answer is one that a client of OpenAI's can read."""
    key = {} if any(name in ("authorization", "api-key") for name in headers or {}) else {"authorization": f"Bearer {KEY}"}
    fields = [(name.encode(), value.encode("latin-1")) for name, value in (key | (headers or {})).items()]

    answer = client.ask(method, target.encode("latin-1", "replace"), fields, content)

    assert answer.status < 500, answer
    if answer.status >= 400 and method != "HEAD" and answer.headers.get("content-type") == "application/json":
        assert {"message", "type", "param", "code"} <= json.loads(answer.body)["error"].keys()


@fuzzed
@given(method=METHODS, path=PATHS, query=QUERIES)
def test_paths_and_queries(client: Raw, method: str, path: str, query: str) -> None:
    """No path and no query breaks the proxy, or Azure's paths."""
    send(client, method, f"{path}?{query}" if query else path)


@fuzzed
@given(row=st.sampled_from(ROWS), values=st.lists(SEGMENT.filter(bool), min_size=4, max_size=4), query=QUERIES, body=BODIES, kind=TYPES)
def test_bodies_of_every_operation(client: Raw, row: Any, values: list[str], query: str, body: bytes, kind: str) -> None:
    """Every operation takes any body: it is refused, or Azure refuses it."""
    path = row.path.partition("?")[0]
    for value in values:
        start, brace, rest = path.partition("{")
        path = start + value.replace("{", "(") + rest.partition("}")[2] if brace else path
    send(client, row.method, f"{path}?{query}", {"content-type": kind} if kind else {}, body)


PARTS = st.lists(
    st.tuples(
        st.sampled_from(
            ['form-data; name="model"', 'form-data; name=model; filename="x"', 'form-data; name="file"; filename="a"', "x", ""]
        ),
        st.sampled_from([b"gpt-4o", b"", b"\r\n--b", b"\r\n--b--", b"--b\r\n", b"\xff\x00"]) | st.binary(max_size=40),
    ),
    max_size=4,
)


@fuzzed
@given(
    path=st.sampled_from(
        ["audio/transcriptions", "images/edits", "videos", "files", "realtime/calls", "uploads/u/parts", "chat/completions"]
    ),
    parts=PARTS,
    end=st.sampled_from([b"--b--\r\n", b"--b--", b"--b", b"", b"--b\r\n"]),
    boundary=st.sampled_from(["b", '"b"', "b; charset=x", "", "c", '"', "b" * 200]),
)
def test_forms(client: Raw, path: str, parts: list[tuple[str, bytes]], end: bytes, boundary: str) -> None:
    """No form, whole or broken, does harm."""
    body = b"".join(b"--b\r\ncontent-disposition: " + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + end
    send(client, "POST", f"/v1/{path}", {"content-type": f"multipart/form-data; boundary={boundary}"}, body)


@fuzzed
@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["authorization", "api-key", "origin", "openai-beta", "content-encoding", "expect", "connection", "accept", "cookie"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20)
        | st.sampled_from(["Bearer", "Bearer ", "Bearer a b", "eyJ.eyJ.x", "close", "gzip", "null"]),
        max_size=4,
    )
)
def test_headers(client: Raw, headers: dict[str, str]) -> None:
    """Nor do headers, the key's own among them."""
    send(client, "POST", "/v1/chat/completions", {"content-type": "application/json"} | headers, b'{"model":"gpt-4o","messages":[]}')
