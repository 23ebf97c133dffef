"""The faults that `make fuzz` reports, and the repetition of its requests."""

from __future__ import annotations

import pytest
from fuzz import checks, inputs
from fuzz.hostile_input import CONFIGS, CONFIGURED_KEY, Input

from support.hostile_requests import Case, Received

HOST = b"127.0.0.1:1"
LINE = b"POST /apim/team-a/openai/v1/chat/completions HTTP/1.1"


def sent(config: int = 1, places: tuple[str, ...] = ("header x-mine",)) -> Input:
    headers = ((b"x-fuzz-number", b"7"), (b"x-mine", b"zh0000007hz"))
    return Input(7, CONFIGS[config], "http1", "plain", "header value", frozenset(places), Case("", b"POST", b"/", headers))


def received(
    line: bytes = LINE, *more: tuple[bytes, bytes], key: bytes | None = b"clients-own-key-00000007", body: bytes = b""
) -> Received:
    keys = [] if key is None else [(b"api-key", key)]
    return Received(line, [(b"host", HOST), (b"x-fuzz-number", b"7"), *keys, *more], body)


def faults(request: Received, config: int = 1) -> list[str]:
    return list(checks.request_faults(sent(config), request, HOST))


def test_what_should_arrive_is_no_fault() -> None:
    """The hostile text in its place, and the key in its header."""
    assert [] == faults(received(LINE, (b"X-Mine", b"a zh0000007hz")))
    assert [] == faults(received(key=CONFIGURED_KEY.encode()), config=3)


FAULTS = {
    "another version": received(b"POST /apim/team-a/openai/v1/x HTTP/0.9"),
    "space in the target": received(b"POST /apim/team-a/openai/v1/x y HTTP/1.1"),
    "outside the prefix": received(b"POST /apim/team-b/openai/v1/x HTTP/1.1"),
    "dots": received(b"POST /apim/team-a/openai/v1/%252e%252e/x HTTP/1.1"),
    "hostile text in the path": received(b"POST /apim/team-a/openai/v1/zh0000007hz HTTP/1.1"),
    "hostile text in the body": received(body=b"zh0000007hz"),
    "hostile text in a header's name": received(LINE, (b"zh0000007hz", b"1")),
    "hostile text in the key": received(key=b"zh0000007hz"),
    "text of another request": received(body=b"zh0000008hz"),
    "a header that was not sent": received(LINE, (b"x-evil", b"1")),
    "a control character": received(LINE, (b"x-mine", b"a\x1bb")),
    "two hosts": received(LINE, (b"Host", HOST)),
    "no key": received(key=None),
    "two keys": received(LINE, (b"authorization", b"Bearer x")),
    "the key of another client": received(key=b"clients-own-key-00000008"),
    "the key in another header": received(LINE, (b"x-mine", b"clients-own-key-00000007")),
    "the key in the target": received(b"POST /apim/team-a/openai/v1/x?k=clients-own-key-00000007 HTTP/1.1"),
    "the configured key in the body": received(body=CONFIGURED_KEY.encode()),
    "no HTTP": Received(b"x", broken="broken"),
}


@pytest.mark.parametrize("request_", FAULTS.values(), ids=FAULTS)
def test_what_should_not_arrive_is_a_fault(request_: Received) -> None:
    """Each of these alone."""
    assert [] != faults(request_)


def test_a_client_s_key_in_the_place_of_the_configured_one_is_a_fault() -> None:
    """The owner pays with the owner's key."""
    assert [] != faults(received(), config=3)


@pytest.mark.parametrize(
    ("status", "fields", "body"),
    [
        (502, [], b""),
        (200, [(b"x\nzh0000007hz", b"1")], b""),
        (200, [(b"x-echo", b"8")], b""),
        (200, [], b"clients-own-key-00000007"),
        (200, [(b"x", CONFIGURED_KEY.encode())], b""),
    ],
)
def test_what_no_client_should_get_is_a_fault(status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    """A failure of the proxy, another header, another client's response, a key."""
    assert [] == list(checks.response_faults(sent(), 400, [(b"x-echo", b"7")], b"{}"))
    assert [] != list(checks.response_faults(sent(), status, fields, body))


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", f"a {CONFIGURED_KEY}", "\x1b[2J"])
def test_what_no_log_should_hold_is_a_fault(line: str) -> None:
    """A traceback, a key, a terminal's commands."""
    assert [] == list(checks.log_faults("a line"))
    assert [] != list(checks.log_faults(line))


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", rb'{"request_id": "1", "path": "/\u001b[2J"}'])
def test_faults_of_the_access_log(line: bytes) -> None:
    """Each line is a record without control characters."""
    assert [] == list(checks.access_log_faults(b'{"request_id": "1", "status": 200}'))
    assert [] != list(checks.access_log_faults(line))


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        (b"\x81\x81abcd\x00", ""),
        (b"\x82\xfe\x00\x7eabcd" + b"x" * 126, ""),
        (b"\x01\x81abcd\x00\x89\x80abcd\x80\x81abcd\x00", ""),
        (b"\x81\x01a", "frame"),
        (b"\xc1\x81abcd\x00", "frame"),
        (b"\x83\x81abcd\x00", "frame"),
        (b"\x09\x81abcd\x00", "control"),
        (b"\x80\x81abcd\x00", "continuation"),
        (b"\x81\x81abcd\x9e", "UTF-8"),
    ],
)
def test_what_no_client_may_send_on_a_websocket_is_a_fault(frames: bytes, fault: str) -> None:
    """Frames that are not masked, reserved bits and opcodes, pieces out of order, text that is none."""
    assert fault in checks.frame_faults(frames)
    assert bool(fault) == bool(checks.frame_faults(frames))


def test_a_request_is_known_by_its_number() -> None:
    """Or by its mark; one with hostile text alone was not sent as it is."""
    assert (7, True) == checks.sender(received())
    assert (9, True) == checks.sender(Received(b"POST /?mark=zq0000009qz HTTP/1.1"))
    assert (9, False) == checks.sender(Received(b"GET /zh0000009hz HTTP/1.1"))
    assert (None, False) == checks.sender(Received(b"GET / HTTP/1.1"))


def test_a_seed_makes_the_same_requests() -> None:
    """Each by itself, in any order."""
    made = [inputs.make(5, number) for number in range(300)]
    assert made[200:] == [inputs.make(5, number) for number in range(200, 300)]
    assert {"http1", "raw1", "http2", "websocket", "benign"} == {one.transport for one in made}
    assert made[:50] != [inputs.make(6, number) for number in range(50)]
