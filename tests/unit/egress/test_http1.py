"""Reading HTTP/1.1 responses, with h11 as the authority on framing."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.net.http import validate

from azure_openai_proxy.client_leg.headers import is_checked
from azure_openai_proxy.egress import http1
from azure_openai_proxy.egress.http1 import END, MAX_HEAD, BadResponse, H11Reader, Http11Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Read(NamedTuple):
    """The items of a response, however it was split into pieces."""

    head: tuple[int, bytes, tuple[tuple[bytes, bytes], ...]] | None = None
    body: bytes = b""
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    ended: bool = False
    failed: bool = False
    reusable: bool = False


def read(reader: Http11Reader | H11Reader, pieces: Sequence[bytes], method: bytes = b"GET", *, eof: bool = True) -> Read:
    """What the reader makes of these pieces, as a connection would ask it: until the end or a fault, then the connection is closed."""
    reader.begin(method)
    seen = Read()
    feeds = [lambda piece=piece: reader.feed(piece) for piece in pieces if piece]
    for feed in [*feeds, reader.eof] if eof else feeds:
        try:
            items = feed()
        except BadResponse:
            return seen._replace(failed=True)
        for item in items:
            if isinstance(item, http.Response):
                if is_checked(item):
                    validate.validate_headers(item)
                fields = tuple(
                    (name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in item.headers.fields
                )
                seen = seen._replace(head=(item.status_code, item.data.reason, fields))
            elif isinstance(item, bytes):
                seen = seen._replace(body=seen.body + item)
            elif isinstance(item, http.Headers):
                seen = seen._replace(trailers=item.fields)
            else:
                seen = seen._replace(ended=True)
        if reader.failed:
            return seen._replace(failed=True)
        if seen.ended:
            return seen._replace(reusable=reader.reusable)
    return seen


def both(pieces: Sequence[bytes], method: bytes = b"GET") -> Read:
    """What the reader makes of a response; h11 makes the same of it."""
    seen = read(Http11Reader(), pieces, method)
    assert read(H11Reader(), pieces, method) == seen
    return seen


def every_split(data: bytes, method: bytes = b"GET") -> Read:
    """The same whether it comes in one piece, cut in two anywhere, or byte by byte. Only whether more came behind it may differ."""
    seen = both([data], method)
    for at in range(len(data)):
        cut = both([data[:at], data[at:]], method)
        assert seen._replace(reusable=False) == cut._replace(reusable=False)
    assert seen._replace(reusable=False) == both([data[at : at + 1] for at in range(len(data))], method)._replace(reusable=False)
    return seen


STATUS = st.sampled_from(
    [b"200 OK", b"200", b"200 ", b"201 Created", b"204 No Content", b"304 Not Modified", b"429 Too many\xe9", b"503 x\ty"]
)
NAMES = st.sampled_from([b"Content-Type", b"x-request-id", b"A", b"connection", b"Content-Length", b"Transfer-Encoding", b"Set-Cookie"])
VALUES = st.one_of(
    st.sampled_from(b"|close|keep-alive|keep-alive, Close|closed|5|0|05|5, 5|chunked|CHUNKED|gzip|a \t b".split(b"|")),
    st.binary(max_size=6).map(lambda value: re.sub(rb"[\x00-\x1f\x7f]", b"", value).strip()),
)
FIELD = st.tuples(NAMES, st.sampled_from([b":", b": ", b":\t ", b" :"]), VALUES, st.sampled_from([b"\r\n", b"  \r\n", b"\n", b"\r\n "]))
LINES = st.lists(FIELD, max_size=4).map(lambda fields: b"".join(b"".join(field) for field in fields))
INFORMATIONAL = st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"])


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    head = draw(INFORMATIONAL) + draw(st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.1 ", b"HTTP/1.0 "])) + draw(STATUS) + b"\r\n" + draw(LINES)
    body = draw(st.binary(max_size=30))
    match draw(st.sampled_from(["sized", "chunked", "neither", "both"])):
        case "sized":
            return head + b"Content-Length: %d\r\n\r\n" % len(body) + body + draw(st.binary(max_size=3))
        case "neither":
            return head + b"\r\n" + body
        case kind:
            if kind == "both":
                head += b"Content-Length: 3\r\n"
            chunks = b""
            for piece in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
                extension = draw(st.sampled_from([b"", b"", b"", b";a=b", b" "]))
                chunks += draw(st.sampled_from([b"%x", b"%X", b"%04x", b"%010x"])) % len(piece) + extension + b"\r\n" + piece + b"\r\n"
            trailers = draw(st.sampled_from([b"", b"", b"X-Check: 1\r\n", b"a: b\r\nc: d\r\n", b"broken\r\n"]))
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n" + draw(st.binary(max_size=3))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(responses()))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["cut", "change", "insert", "remove"])):
            case "cut":
                del data[max(1, at) :]
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.sampled_from([b"\r\n", b"\n", b"\r", b"0", b"\x00", b" ", b";", b":"]))
            case _ if len(data) > 1:
                del data[at]
    return bytes(data)


@given(mutated(), st.lists(st.integers(0, 300), max_size=6), st.sampled_from([b"GET", b"POST", b"HEAD"]))
@example(b"HTTP/1.1 200 OK\n\r\nhello", [], b"GET")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\nx\r\n\r\n", [20], b"GET")
@example(CHUNKED + b"1\r\nx\r\nnonsense\r\n", [], b"GET")
@example(CHUNKED + b"nonsense\r\n", [], b"GET")
@example(CHUNKED + b"1\r\nx\rnonsense\r\n", [len(CHUNKED) + 5], b"GET")
@example(CHUNKED + b"1\r\nx\r\n0\r\nbroken\r\n\r\n", [], b"GET")
@example(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\n\r\n", [], b"GET")
@example(b"HTTP/1.1 200 OK\r\nConnection: closed\r\nContent-Length: 1\r\n\r\nx", [], b"GET")
@example(b"\x15\x03\x01\x00\x02\x02\x46", [], b"GET")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 05\r\n\r\nhello", [], b"GET")
def test_the_reader_and_h11_agree(data: bytes, cuts: list[int], method: bytes) -> None:
    """On every response, whole or broken, and on every way in which it is cut into pieces, both readers see the same."""
    at = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    both([data[start:end] for start, end in pairwise(at)], method)


def test_a_sized_body_and_what_is_behind_it() -> None:
    """A connection is reused if no bytes follow the body; following bytes are not part of it."""
    sized = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTen-bytes-:  b \r\n\r\nhello"
    seen = every_split(sized)
    assert Read((200, b"OK", ((b"Content-Length", b"5"), (b"Ten-bytes-", b"b"))), b"hello", ended=True, reusable=True) == seen
    more = every_split(sized + b"HTTP/1.1 400 Bad\r\n\r\n")
    assert (b"hello", True, False) == (more.body, more.ended, more.reusable)


def test_an_empty_body_ends_with_the_head() -> None:
    """Content-Length 0 is a whole response."""
    seen = every_split(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (b"", True, True) == (seen.body, seen.ended, seen.reusable)


def test_chunks() -> None:
    """Chunks are joined, and the last one ends the response, which leaves the connection usable."""
    seen = every_split(CHUNKED + b"5\r\nhello\r\n00000006\r\n world\r\n0\r\n\r\n")
    assert (b"hello world", True, True) == (seen.body, seen.ended, seen.reusable)


@pytest.mark.parametrize(
    "chunks",
    [
        b"5;name=value\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0;last\r\n\r\n",
        b"0000000005\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
    ],
)
def test_unusual_chunk_heads(chunks: bytes) -> None:
    """Extensions, leading zeros and trailing spaces change nothing (RFC 9112, section 7.1.1)."""
    seen = every_split(CHUNKED + chunks)
    assert (b"hello", True, True) == (seen.body, seen.ended, seen.reusable)


def test_trailers() -> None:
    """Fields behind the last chunk are handed on before the end, and the connection stays usable."""
    seen = every_split(CHUNKED + b"5\r\nhello\r\n0\r\nX-Check: 1\r\nX-More: 2\r\n\r\n")
    assert (b"hello", ((b"X-Check", b"1"), (b"X-More", b"2")), True, True) == (*seen[1:4], seen.reusable)


def test_a_connection_that_closes_is_not_reused_after_unusual_chunks() -> None:
    """`Connection: close` holds for a response that h11 had to read to its end, too."""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rest in (b"1\r\nx\r\n0\r\na: b\r\n\r\n", b"1;x\r\nx\r\n0\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n"):
        seen = every_split(head + rest)
        assert (b"x", True, False) == (seen.body, seen.ended, seen.reusable)


@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
def test_informational_responses_are_dropped(status: bytes) -> None:
    """Informational responses before the final one are dropped (RFC 9110, section 15.2)."""
    seen = every_split(b"HTTP/1.1 %b\r\nx: y\r\n\r\n" % status * 2 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert seen.head
    assert (200, b"ok", True, True) == (seen.head[0], seen.body, seen.ended, seen.reusable)


@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_responses_without_a_body(method: bytes, head: bytes) -> None:
    """204, 304 and responses to HEAD end with their head, whatever length it declares (RFC 9112, section 6.3)."""
    seen = every_split(head, method)
    assert (b"", True, True) == (seen.body, seen.ended, seen.reusable)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\nX-A: b\n\n"])
def test_a_body_until_the_connection_closes(head: bytes) -> None:
    """Without a framing header the end of the connection ends the body."""
    seen = every_split(head + b"hello")
    assert (b"hello", True, False) == (seen.body, seen.ended, seen.reusable)
    assert not read(Http11Reader(), [head + b"hello"], eof=False).ended
    assert seen.head
    assert (b"transfer-encoding", b"chunked") == seen.head[2][-1]  # for the client, whose connection remains open


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("more", [b"", b"X-Folded: a\r\n b\r\n"], ids=["usual", "h11"])
def test_hop_by_hop_headers_stay_here(more: bytes, version: bytes) -> None:
    """Headers about the connection to the upstream are dropped, but none that decides how the body is read; the version is the proxy's."""
    lines = b"Keep-Alive: timeout=1\r\nConnection: X-Mine, close\r\nconnection: Content-Length\r\nx-mine: 1\r\nProxy-Connection: close\r\n"
    head = b"HTTP/%b 200 OK\r\n%b%bX-Kept: 1\r\nContent-Length: 2\r\n\r\n" % (version, lines, more)
    seen = every_split(head + b"ok")
    assert seen.head
    assert [b"X-Kept", b"Content-Length"] == [name for name, _ in seen.head[2] if name != b"X-Folded"]
    assert (b"ok", True, False) == (seen.body, seen.ended, seen.reusable)
    reader = Http11Reader()
    reader.begin(b"GET")
    response = reader.feed(head)[0]
    assert isinstance(response, http.Response)
    assert "HTTP/1.1" == response.http_version


def test_both_framings() -> None:
    """Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3)."""
    seen = every_split(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert (b"hello", True) == (seen.body, seen.ended)


def test_folded_headers() -> None:
    """A line that begins with a space continues the one before it (RFC 9112, section 5.2)."""
    seen = every_split(b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok")
    assert seen.head
    assert (b"X-A", b"b c") in seen.head[2]
    assert (b"ok", True, True) == (seen.body, seen.ended, seen.reusable)


def test_control_characters_become_spaces() -> None:
    """A client may print headers to a terminal. Tabs and bytes of UTF-8 stay."""
    text = b"a\x1b]0;b\x07\x08\x7fc\td\xc3\xa9"
    seen = every_split(b"HTTP/1.1 200 %b\r\nX-A: %b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-B: %b\r\n\r\n" % (text, text, text))
    plain = b"a ]0;b   c\td\xc3\xa9"
    assert seen.head
    assert (plain, (b"X-A", plain), ((b"X-B", plain),)) == (seen.head[1], seen.head[2][0], seen.trailers)
    reader = Http11Reader()
    reader.begin(b"GET", upgrade=True)
    (response,) = reader.feed(b"HTTP/1.1 101 %b\r\nUpgrade: websocket\r\nX-A: %b\r\n\r\n" % (text, text))
    assert isinstance(response, http.Response)
    assert (plain, plain) == (response.data.reason, dict(response.headers.fields)[b"X-A"])


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/2 200\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_heads_that_cannot_be_read(head: bytes) -> None:
    """Nothing of them reaches the client."""
    seen = every_split(head)
    assert Read(failed=True) == seen


@pytest.mark.parametrize(
    "rest", [b"zz\r\n", b"5\r\nhelloXX", b"\r\n", b"5\nhello", b"123456789012345678901\r\n", b"5\r\nhello\r\n0\r\nno trailer\r\n\r\n"]
)
def test_a_fault_between_chunks(rest: bytes) -> None:
    """The data before it is passed on; then the response is over, and the connection is not reused."""
    seen = every_split(CHUNKED + b"3\r\nabc\r\n" + rest)
    assert seen.head
    assert (True, False, False) == (seen.failed, seen.ended, seen.reusable)
    assert seen.body == (b"abchello" if b"\r\nhello" in rest else b"abc")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"0\r\n",
    ],
)
def test_the_connection_closes_too_early(data: bytes) -> None:
    """A response that is cut is no response."""
    seen = every_split(data)
    assert (True, False) == (seen.failed, seen.ended)


def test_what_is_said_of_a_connection_that_closes() -> None:
    """Before a response and in the middle of one are two things."""
    for reader in (Http11Reader(), H11Reader()):
        reader.begin(b"GET")
        with pytest.raises(BadResponse, match=r"^the connection was closed$"):
            reader.eof()
        reader.begin(b"GET")
        reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        with pytest.raises(BadResponse, match=r"^the connection was closed in the middle of the response$"):
            reader.eof()


def test_what_comes_after_the_end() -> None:
    """Bytes without a request are a fault: they would be taken for the next response."""
    for reader in (Http11Reader(), H11Reader()):
        for data in (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", CHUNKED + b"0\r\n\r\n", b"HTTP/1.1 204 None\r\n\r\n"):
            reader.begin(b"GET")
            assert END is reader.feed(data)[-1]
            with pytest.raises(BadResponse, match="bytes came after the end"):
                reader.feed(b"HTTP/1.1 200 OK\r\n\r\n")


def test_a_fault_is_raised_again() -> None:
    """Nothing is read after a fault, not even the end."""
    for reader in (Http11Reader(), H11Reader()):
        reader.begin(b"GET")
        assert 1 == len(reader.feed(CHUNKED + b"zz\r\n"))
        assert reader.failed
        with pytest.raises(BadResponse, match="illegal chunk header"):
            reader.feed(b"x")
        with pytest.raises(BadResponse, match="illegal chunk header"):
            reader.eof()
        reader.begin(b"GET")
        assert END is reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")[-1]


def test_an_upgrade_with_bytes_behind_it() -> None:
    """Bytes after a 101 belong to the other protocol, in the same read or later, until the connection closes."""
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    for together in (b"", b"\x81\x02hi"):
        reader = Http11Reader()
        reader.begin(b"GET", upgrade=True)
        response, *behind = reader.feed(head + together)
        assert isinstance(response, http.Response)
        assert 101 == response.status_code
        assert ([together] if together else []) == behind
        assert [b"\x81\x02yo"] == reader.feed(b"\x81\x02yo")
        assert [END] == reader.eof()
        assert not reader.reusable


def test_an_upgrade_that_is_refused() -> None:
    """Any other response to a request for an upgrade is an ordinary one."""
    reader = Http11Reader()
    reader.begin(b"GET", upgrade=True)
    response, body, end = reader.feed(b"HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\nno")
    assert isinstance(response, http.Response)
    assert (429, b"no", END, True) == (response.status_code, body, end, reader.reusable)


def test_a_connection_carries_many_responses() -> None:
    """No state of one response is left for the next."""
    reader = Http11Reader()
    for _ in range(2):
        for data in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            CHUNKED + b"2;x\r\nok\r\n0\r\n\r\n",
            CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
        ):
            reader.begin(b"GET")
            assert [b"ok", END] == reader.feed(data)[1:]
            assert reader.reusable


def test_a_head_of_256_kb_in_single_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long head is read however it is cut; no byte of it is searched more than a few times."""

    class Counting(bytearray):
        searched = 0

        def find(self, sub: bytes, start: int) -> int:  # type: ignore[override]
            Counting.searched += len(self) - start
            return super().find(sub, start)

    head = (
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %b\r\n" % (number, b"v" * 1000) for number in range(250)) + b"Content-Length: 0\r\n\r\n"
    )
    assert 250_000 < len(head) < MAX_HEAD
    reader = Http11Reader()
    reader._buffer = Counting()
    reader.begin(b"GET")
    for at in range(len(head) - 1):
        assert [] == reader.feed(head[at : at + 1])
    assert Counting.searched < 12 * len(head)
    response, end = reader.feed(head[-1:])
    assert isinstance(response, http.Response)
    assert (251, END) == (len(response.headers.fields), end)


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: ", CHUNKED + b"1;", CHUNKED + b"0\r\nx: "]
)
def test_lines_without_end(start: bytes) -> None:
    """A head, a chunk's head or a trailer that never ends is refused, and takes no more memory than that."""
    reader = Http11Reader()
    reader.begin(b"GET")
    fed = 0

    def endless() -> None:
        nonlocal fed
        reader.feed(start)
        while fed < 3 * MAX_HEAD:
            reader.feed(b"y" * 4096)
            fed += 4096

    with pytest.raises(BadResponse, match="too long"):
        endless()
    assert fed < MAX_HEAD + 4096


def test_a_complete_head_that_is_too_long() -> None:
    """One that comes at once is read by h11, which has no objection."""
    seen = both([b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD + b"\r\nContent-Length: 0\r\n\r\n"])
    assert seen.ended


@pytest.mark.parametrize(
    "value", [b" " * 250_000, b"\t" * 250_000 + b"x", b"a " * 125_000, b"a" + b" " * 250_000 + b"\x00", b" " * 250_000 + b"\x00"]
)
def test_white_space_costs_no_more_than_other_bytes(value: bytes) -> None:
    """A value of white space is matched in one pass: the pattern has nothing to go back to."""
    match = http1._FIELDS.fullmatch(b"x:" + value + b"\r\n")
    assert bool(match) is (b"\x00" not in value)


def test_the_end_has_a_name() -> None:
    """The end of a response has a name of its own in a traceback."""
    assert "END" == repr(END)
