"""Checks of upstream requests, of responses to clients and of the log. Each yields descriptions of faults."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from fuzz.hostile_input import CONFIGURED_KEY, KEY_SIGN, NUMBER
from support.hostile_requests import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.hostile_input import Input
    from support.hostile_requests import Received

__all__ = ["MARKED", "access_log_faults", "frame_faults", "request_faults", "response_faults", "sender"]

MARKED = re.compile(rb"z([qh])([0-9]{7})\1z|z[qh]([0-9]{7})[qh]z", re.IGNORECASE)
_OURS = frozenset({b"host", b"api-key", b"authorization", b"content-length", b"transfer-encoding", b"connection", b"upgrade", NUMBER})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # control characters and changes of the writing direction
_DOTS = re.compile(rb"(^|[/\\])\.{1,2}([/\\;]|$)")
_SENT_NAME = re.compile(rb"^[ \t]*([^:\r\n]+?)[ \t]*:", re.MULTILINE)
_KEYS = re.compile(re.escape(KEY_SIGN).encode() + rb"[0-9]{8}|" + re.escape(CONFIGURED_KEY).encode())


def sender(received: Received) -> tuple[int | None, bool]:
    """The number of the client request that caused this one, and whether its own mark (not only the hot mark) shows that."""
    numbers = {value for value in received.values(NUMBER) if value.isdigit()}
    if len(numbers) == 1:
        return int(numbers.pop()), True
    whole = b"\n".join([received.line, *(name + value for name, value in received.fields), received.body])
    marks = re.findall(rb"zq([0-9]{7})qz", whole)
    if marks:
        return int(marks[0]), True
    marks = re.findall(rb"zh([0-9]{7})hz", whole)
    return (int(marks[0]), False) if marks else (None, False)


def request_faults(sent: Input, received: Received, host: bytes) -> Iterator[str]:
    """The faults of the upstream request `received`, which `sent` caused."""
    config = sent.config
    if received.broken:
        yield f"not HTTP: {received.broken}"
        return
    parts = received.line.split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0") or not _NAME.fullmatch(parts[0]):
        yield f"request line {received.line!r}"
        return
    method, target, _ = parts
    path, _, query = target.partition(b"?")
    below = b"" if config.simulated else PREFIX.encode()
    if (
        not path.startswith(below + (b"/" if config.mode == "openai" else b"/openai/"))
        or not re.fullmatch(rb"[!-~]+", target)
        or b"#" in target
    ):
        yield f"target {target!r}"
    text = path
    for _ in range(5):
        if _DOTS.search(text) or re.search(rb"[\x00-\x1f\x7f\\]", text):
            yield f"path {path!r} becomes {text!r}"
            break
        text = unquote_to_bytes(text)
    if [host] != received.values(b"host"):
        yield f"Host {received.values(b'host')}"
    names = (
        _OURS
        | _names(sent)
        | ({name.lower() for name, _ in received.fields if sent.hot in name.lower()} if "header name" in sent.places else set())
    )
    for name, value in received.fields:
        if not _NAME.fullmatch(name) or name.lower() not in names:
            yield f"header {name!r} that the client did not send"
        if _CONTROL.search(value):
            yield f"value {value!r} of {name!r}"
    yield from _marks(sent, received, method, path, query)
    if config.mode != "openai":
        yield from _keys(sent, received, target)


def _names(sent: Input) -> set[bytes]:
    names = {match[1].lower() for match in _SENT_NAME.finditer(sent.data)} if sent.case is None or sent.splits else set()
    return names | {name.lower() for name, _ in sent.case.headers} if sent.case else names | _H2_NAMES


# Names that are not found by searching HTTP/2 frames, and whose place does not matter.
_H2_NAMES = {b"x-mine", b"content-type", b"te", b"origin", b"cookie", b"access-control-request-headers", b"sec-websocket-protocol",
             b"sec-websocket-version", b"expect", b"accept-encoding", b"trailer", *(b"x-%d" % n for n in range(300))}  # fmt: skip


def _marks(sent: Input, received: Received, method: bytes, path: bytes, query: bytes) -> Iterator[str]:
    allowed = sent.places
    other = {int(match[2] or match[3]) for match in MARKED.finditer(_whole(received))} - {sent.number}
    if other:
        yield f"text of requests {other}"
    if sent.splits:
        return
    for section, text in [("method", method), ("path", path), ("query", query), ("body", received.body), *_sections(received)]:
        if sent.hot in text.lower() and section not in allowed and not (section.startswith("header ") and "headers" in allowed):
            yield f"hostile text of the {sent.place} in the {section}: {text[:300]!r}"


def _sections(received: Received) -> Iterator[tuple[str, bytes]]:
    for name, value in received.fields:
        yield "header name", name
        lower = name.lower()
        yield "key" if lower in (b"api-key", b"authorization") else f"header {lower.decode('latin-1')}", value


def _whole(received: Received) -> bytes:
    return b"\n".join([received.line, *(name + b": " + value for name, value in received.fields), received.body])


def _keys(sent: Input, received: Received, target: bytes) -> Iterator[str]:
    credentials = received.values(b"api-key") + received.values(b"authorization")
    if len(credentials) != 1:
        yield f"keys {credentials}"
    if sent.config.key and credentials != [CONFIGURED_KEY.encode()]:
        yield f"key {credentials} in the place of the configured one"
    found = _KEYS.findall(b"\n".join(credentials))
    if any(key not in (CONFIGURED_KEY.encode(), sent.key) for key in found):
        yield f"key {found} of another client"
    elsewhere = [name for name, value in received.fields if _KEYS.search(value) and name.lower() not in (b"api-key", b"authorization")]
    if elsewhere and not sent.splits:
        yield f"a key in {elsewhere}"
    if (_KEYS.search(target) or _KEYS.search(received.body)) and not sent.splits:
        yield "a key in the target or in the body"
    if any(
        CONFIGURED_KEY.encode() in text
        for text in (target, received.body, *(value for name, value in received.fields if name.lower() != b"api-key"))
    ):
        yield "the configured key outside its header"


def frame_faults(data: bytes) -> str:
    """The first fault of WebSocket frames of a client; "" if they are valid."""
    at = 0
    message = -1  # the opcode of the current message
    text = b""
    while at < len(data):
        first, second = data[at], data[at + 1] if at + 1 < len(data) else 0
        opcode, size, at = first & 15, second & 127, at + 2
        if first & 0x70 or not second & 0x80 or opcode not in (0, 1, 2, 8, 9, 10):
            return f"frame that begins with {first:02x}{second:02x}"
        if opcode & 8 and (size > 125 or not first & 0x80):
            return "control frame that is large or in pieces"
        extra = {126: 2, 127: 8}.get(size, 0)
        if extra:
            size = int.from_bytes(data[at : at + extra], "big")
            at += extra
        mask, payload, at = data[at : at + 4], data[at + 4 : at + 4 + size], at + 4 + size
        if at > len(data):
            return ""  # truncated by the end of the connection
        if opcode & 8:
            continue
        if (opcode == 0) == (message < 0):
            return "a continuation out of order"
        message, text = (message, text) if opcode == 0 else (opcode, b"")
        whole = (mask * (size // 4 + 1))[:size]
        text += (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")
        if first & 0x80:
            if message == 1 and not _is_utf8(text):
                return f"text that is not UTF-8: {text[:100]!r}"
            message = -1
    return ""


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def response_faults(sent: Input, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> Iterator[str]:
    if not 100 <= status < 500:
        yield f"status {status}: {body[:300]!r}"
    if sent.transport == "benign" and status != 200:
        yield f"status {status} for a request without fault: {body[:300]!r}"
    for name, value in fields:
        if not re.fullmatch(rb":?[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(rb"[\x00\r\n]", value):
            yield f"response header {name!r}: {value!r}"
        if sent.hot in name.lower():
            yield f"hostile text in the name of response header {name!r}"
        if name.lower() == b"x-echo" and value not in (b"", b"%d" % sent.number) and not sent.splits:
            yield f"the response to request {value!r}"
    if _KEYS.search(body) or any(_KEYS.search(value) for _, value in fields):
        yield f"a key in the response: {fields} {body[:300]!r}"


def log_faults(line: str) -> Iterator[str]:
    """The faults of a log line."""
    if "Traceback (most recent call last)" in line or "could not be translated" in line:
        yield f"in the log: {line[:1500]} ... {line[-1500:]}"
    if _KEYS.search(line.encode("utf-8", "surrogateescape")):
        yield f"a key in the log: {line[:500]}"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", line):
        yield f"control characters in the log: {line[:500]!r}"


def access_log_faults(line: bytes) -> Iterator[str]:
    """The faults of a line of an access log, apart from keys."""
    try:
        fields = json.loads(line)
    except ValueError:
        yield f"no JSON in the access log: {line[:500]!r}"
        return
    if not isinstance(fields, dict) or "request_id" not in fields:
        yield f"no record in the access log: {line[:500]!r}"
    elif any(isinstance(value, str) and _UNSAFE.search(value) for value in fields.values()):
        yield f"control characters in the access log: {line[:500]!r}"
