"""Requests in HTTP/2, frame by frame."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, RstStreamFrame

from fuzz.hostile_input import HOT, NUMBER, hostile_text
from fuzz.http1_inputs import body_of
from fuzz.operation_inputs import case_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from fuzz.hostile_input import Input

__all__ = ["either"]


def _encoded(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Encode headers without the dynamic table, so that each block is independent."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode([(name, value, True) for name, value in fields], huffman=False)


def _headers(stream: int, fields: Sequence[tuple[bytes, bytes]], *flags: str, size: int = 16_000) -> list[Frame]:
    block = _encoded(fields)
    pieces = [block[start : start + size] for start in range(0, max(len(block), 1), size)]
    frames: list[Frame] = [HeadersFrame(stream, pieces[0], flags=[*flags, *(["END_HEADERS"] if len(pieces) == 1 else [])])]
    frames += [ContinuationFrame(stream, piece) for piece in pieces[1:-1]]
    if len(pieces) > 1:
        frames.append(ContinuationFrame(stream, pieces[-1], flags=["END_HEADERS"]))
    return frames


def _datas(stream: int, body: bytes) -> list[Frame]:
    pieces = [body[start : start + 16_000] for start in range(0, max(len(body), 1), 16_000)]
    return [DataFrame(stream, piece, flags=["END_STREAM"] if piece is pieces[-1] else []) for piece in pieces]


def either(made: Input, chosen: random.Random) -> None:
    if chosen.random() < 0.3:
        made.alone = True
        _raw(made, chosen)
        return
    case = made.case = case_of(made, chosen)
    pseudo = [(b":method", case.method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", case.target)]
    fields = pseudo + [(name, value) for name, value in case.headers if name not in (b"connection", b"upgrade")]
    made.alone = any(
        re.search(rb"[\x00-\x20\x7f-\xff]", name + b":".join(value.split(b" "))) or name != name.lower() for name, value in fields
    )
    frames = _headers(1, fields, *([] if case.body else ["END_STREAM"])) + (_datas(1, case.body) if case.body else [])
    made.data = b"".join(frame.serialize() for frame in frames)


def _raw(made: Input, chosen: random.Random) -> None:  # noqa: PLR0915 - a list of cases
    hot, body = made.hot, body_of(made)
    target = b"/v1/chat/completions?mark=" + made.mark
    made.places = frozenset({"headers"})
    pseudo = {b":method": b"POST", b":scheme": b"https", b":authority": b"localhost", b":path": target}
    fields = [(NUMBER, b"%d" % made.number), (b"authorization", b"Bearer " + made.key), (b"content-type", b"application/json")]
    size = 16_000
    text = hostile_text(chosen).replace(HOT, hot)
    made.place = place = chosen.choice(
        (
            "scheme",
            "authority",
            "path",
            "method",
            "unknown pseudo",
            "twice",
            "late",
            "missing",
            "upper case",
            "connection",
            "te",
            "host",
            "length",
            "trailers",
            "continuation",
            "reset",
            "value",
            "name",
            "cookies",
            "connect",
            "websocket",
            "padding",
            "key",
            "empty name",
            "many",
            "options",
        )
    )
    first = list(pseudo.items())
    match place:
        case "scheme" | "authority" | "path" | "method":
            pseudo[b":" + place.encode()] = chosen.choice((text, pseudo[b":" + place.encode()] + text, b""))
            first = list(pseudo.items())
            made.places |= {"path": {"path", "query"}, "method": {"method"}}.get(place, set())
        case "unknown pseudo":
            first.append((b":" + hot, text))
        case "twice":
            first.append(chosen.choice([(b":path", b"/v1/files/" + hot), (b":authority", hot + b".example"), (b":method", b"GET")]))
        case "late":
            fields.append(first.pop(chosen.randrange(4)))
        case "missing":
            del first[chosen.randrange(4)]
        case "upper case":
            fields.append((b"X-Mine", hot))
        case "connection":
            fields.append(
                chosen.choice(
                    [
                        (b"connection", b"keep-alive, x-mine"),
                        (b"transfer-encoding", b"chunked"),
                        (b"upgrade", hot),
                        (b"keep-alive", hot),
                        (b"proxy-connection", hot),
                    ]
                )
            )
        case "te":
            fields.append((b"te", chosen.choice([b"trailers", b"gzip", text])))
        case "host":
            fields.append((b"host", chosen.choice([b"localhost", hot + b".example", text, b""])))
        case "length":
            fields.append(
                (
                    b"content-length",
                    chosen.choice(
                        [
                            b"0",
                            b"%d" % (len(body) + 5),
                            b"-1",
                            b"+%d" % len(body),
                            b"%d" % len(body),
                            b"%d, %d" % (len(body), len(body)),
                            text,
                        ]
                    ),
                )
            )
        case "value":
            fields.append((b"x-mine", text))
        case "key":
            fields[1] = (
                fields[1][0],
                fields[1][1] + chosen.choice((b"\n", b"\r", b"\0", b" ", b"\t", b"\x7f", b"\xff", b"\r\nx: 1", b"A" * 20_000)),
            )
        case "name":
            fields.append((text, b"1"))
            made.places |= {"header name"}
        case "cookies":
            fields += [(b"cookie", made.stray), (b"cookie", text)]
        case "empty name":
            fields.append((b"", hot))
        case "many":
            fields += [(b"x-%d" % n, hot) for n in range(300)]
        case "continuation":
            size = 5
        case "options":
            first[0] = (b":method", b"OPTIONS")
            fields += [(b"origin", text), (b"access-control-request-headers", text)]
        case "connect":
            first = [
                (b":method", b"CONNECT"),
                (b":authority", chosen.choice([hot + b".example:443", b"127.0.0.1:1", b"api.openai.com:443"])),
            ]
        case "websocket":
            first = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *list(pseudo.items())[1:]]
            fields += [(b"sec-websocket-version", b"13"), (b"sec-websocket-protocol", b"realtime, " + text)]
            made.places |= {"key"}
    frames = _headers(1, first + fields, size=size)
    if place == "trailers":
        trailers = chosen.choice(
            [[(b"x-mine", text)], [(b":path", b"/" + hot)], [(b"api-key", made.stray)], [(b"content-length", b"0")], [(text, b"1")]]
        )
        frames += [DataFrame(1, body), *_headers(1, trailers, "END_STREAM")]
    elif place == "padding":
        frames += [DataFrame(1, body, flags=["PADDED", "END_STREAM"], pad_length=chosen.randrange(255))]
    elif place == "reset":
        frames += [RstStreamFrame(1, error_code=chosen.randrange(16))]
    else:
        frames += _datas(1, body)
    made.data = b"".join(frame.serialize() for frame in frames)
