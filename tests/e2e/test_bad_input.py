"""Bad input gets a clear answer, and the next request succeeds: on the same connection where HTTP allows it."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from http.client import parse_headers
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

LIMIT = 10_000
GOOD = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"


class Case(NamedTuple):
    """The bytes that a client sends after the common head, the expected response, and whether the connection stays open."""

    sent: bytes
    status: int
    says: str
    goes_on: bool = True
    half_closed: bool = False  # the client says that no more will come


def body(content: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%s" % (len(content), content)


def chunked(content: bytes) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)


CASES = {
    "not JSON": Case(body(b"hello"), 400, "not valid JSON"),
    "JSON cut short": Case(body(GOOD[:-3]), 400, "not valid JSON"),
    "not UTF-8": Case(body(b"\xff\xfe\xfd"), 400, "not valid JSON"),
    "not an object": Case(body(b'["gpt-4o"]'), 400, "not an object"),
    "no model": Case(body(b'{"messages": []}'), 400, "you must provide a model"),
    "a model that is no string": Case(body(b'{"model": 4}'), 400, "must be a string"),
    "an empty model": Case(body(b'{"model": ""}'), 400, "name a model"),
    "an empty body": Case(body(b""), 400, "empty"),
    "no body": Case(b"\r\n", 400, "empty"),
    "a body over the limit": Case(body(b"x" * (LIMIT + 1)), 413, f"larger than {LIMIT} bytes"),
    "a chunked body over the limit": Case(chunked(b"x" * (LIMIT + 1)), 413, f"larger than {LIMIT} bytes"),
    "a body cut short": Case(b"Content-Length: 100\r\n\r\n{", 400, "", goes_on=False, half_closed=True),
    "a chunk cut short": Case(b"Transfer-Encoding: chunked\r\n\r\n20\r\n{", 400, "", goes_on=False, half_closed=True),
    "a length that is none": Case(b"Content-Length: many\r\n\r\n", 400, "", goes_on=False),
    "a negative length": Case(b"Content-Length: -1\r\n\r\n", 400, "", goes_on=False),
    "two lengths": Case(b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400, "", goes_on=False),
    "a length and chunks": Case(b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "", goes_on=False),
    "a bad chunk": Case(b"Transfer-Encoding: chunked\r\n\r\nno\r\n", 400, "", goes_on=False),
    "a header with control characters": Case(b"X-Bad: a\x00b\r\n" + body(GOOD), 400, "control characters", goes_on=False),
    "a header with a bare return": Case(b"X-Bad: a\rb\r\n" + body(GOOD), 400, "", goes_on=False),
    "a header without a colon": Case(b"nonsense\r\n" + body(GOOD), 400, "", goes_on=False),
    "a compressed body": Case(b"Content-Encoding: gzip\r\n" + body(b"\x1f\x8b\x08\x00"), 400, "compressed"),
}


class Connection:
    """A client that sends exactly the given bytes."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self._received = opened.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One response, without any byte of a following one."""
        status = int(self._received.readline().split()[1])
        headers = {name.lower(): value for name, value in parse_headers(self._received).items()}
        return status, headers, self._received.read(int(headers["content-length"]))

    def at_end(self) -> bool:
        """The proxy has closed it."""
        return not self._received.read(1)


@contextmanager
def connection(proxy: Mitmdump) -> Iterator[Connection]:
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as opened:
        connection = Connection(opened)
        with connection._received:
            yield connection


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_answered_and_the_next_request_succeeds(case: Case, azure: Simulator, proxy: Proxies) -> None:
    """In OpenAI's shape, with nothing sent to Azure; and the process goes on, and where HTTP allows it the connection."""
    through = proxy(azure_openai_max_body=str(LIMIT))
    head = HEAD % azure.key.encode()
    with connection(through) as opened:
        opened.send(head + case.sent)
        if case.half_closed:
            opened.socket.shutdown(socket.SHUT_WR)
        status, headers, content = opened.answer()
        error = json.loads(content)["error"]
        assert case.status == status
        assert case.says in error["message"]
        assert "invalid_request_error" == error["type"]
        assert {"message", "type", "param", "code"} <= set(error)
        assert headers["x-request-id"]
        assert [] == azure.requests
        if case.goes_on:
            opened.send(head + body(GOOD))
            assert 200 == opened.answer()[0]
        else:
            assert opened.at_end()
    with connection(through) as opened:
        opened.send(head + body(GOOD))
        assert 200 == opened.answer()[0]


def test_a_length_that_is_too_short_leaves_a_head_that_nobody_can_read(azure: Simulator, proxy: Proxies) -> None:
    """The request has its declared length; the bytes after it are refused and end the connection."""
    head = HEAD % azure.key.encode()
    with connection(proxy()) as opened:
        opened.send(head + b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD + b'{"and": "more"}\r\n\r\n'))
        assert 200 == opened.answer()[0]
        assert 400 == opened.answer()[0]
        assert opened.at_end()
    assert 1 == len(azure.requests)


def test_a_client_that_says_nothing_and_leaves_is_no_matter(azure: Simulator, proxy: Proxies) -> None:
    """Half a head, and then nothing: the next client is served."""
    through = proxy()
    with connection(through) as opened:
        opened.send(HEAD[:20])
    with connection(through) as opened:
        opened.send(HEAD % azure.key.encode() + body(GOOD))
        assert 200 == opened.answer()[0]


def test_a_repeated_model_is_the_last(azure: Simulator, proxy: Proxies) -> None:
    """As JSON parsers have it; the path and the body say the same."""
    content = b'{"model": "nothing", "model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}'
    for form in ("2024-10-21", "v1"):
        with connection(proxy(azure_openai_apiversion=form, azure_openai_model_mapper="gpt-4o=gpt-4.1")) as opened:
            opened.send(HEAD % azure.key.encode() + body(content))
            assert 200 == opened.answer()[0]
    assert ["/openai/deployments/gpt-4.1/chat/completions", "/openai/v1/chat/completions"] == [r.bare_path for r in azure.requests]
    assert content.replace(b'"gpt-4o"', b'"gpt-4.1"') == azure.requests[1].body
