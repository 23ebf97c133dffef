"""Requests of the API with one hostile text in one place."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING

from fuzz.hostile_input import HOT, NUMBER, hostile_text
from support import hostile_requests, operations
from support.hostile_requests import Case

if TYPE_CHECKING:
    import random

    from fuzz.hostile_input import Input

__all__ = ["benign", "case_of", "over_http1"]

ROWS = [row for row in operations.rows() if row.handled_by == "azure"]
TARGET = frozenset({"path", "query"})
_PLACES = {
    "segment": frozenset({"path"}),
    "end of path": frozenset({"path"}),
    "query value": frozenset({"query"}),
    "query name": frozenset({"query"}),
    "model in query": TARGET,
    "key in query": frozenset({"key"}),
    "api-version": frozenset({"query"}),
    "version of a deployment": frozenset({"query"}),
    "deployment": frozenset({"path", "body"}),
    "engine": frozenset({"path", "body"}),
    "method": frozenset({"method"}),
    "header value": frozenset({"header x-mine"}),
    "header name": frozenset({"header name"}),
    "content type": frozenset({"header content-type"}),
    "bearer": frozenset({"key"}),
    "api-key": frozenset({"key"}),
    "gateway's key": frozenset({"key", "header ocp-apim-subscription-key"}),
    "account": frozenset(),
    "subprotocol": frozenset({"header sec-websocket-protocol"}),
    "key in a subprotocol": frozenset({"key"}),
    "model": frozenset({"path", "body"}),
    "field name": frozenset({"body"}),
    "file name": frozenset({"body"}),
}
_OPENAI_MODE = {
    "key in query": TARGET,
    "account": frozenset({"header openai-beta", "header openai-organization"}),
    "key in a subprotocol": frozenset({"header sec-websocket-protocol"}),
}
# The number of cases of an operation is unknown before they are generated. This is a lower bound.
_CASES = 40


def case_of(made: Input, chosen: random.Random) -> Case:
    row, text = chosen.choice(ROWS), hostile_text(chosen)
    skipped = chosen.randrange(_CASES + 24)
    cases = hostile_requests.cases(row, text)
    case = next(islice(cases, skipped, None), None) or next(islice(hostile_requests.cases(row, text), skipped % _CASES, None))
    made.place, how = case.place, case.place.rpartition(" ")[2]
    place = case.place.removesuffix(f" {how}") if how in ("raw", "encoded", "doubly") else case.place
    made.places = _OPENAI_MODE.get(place, _PLACES[place]) if made.config.mode == "openai" else _PLACES[place]
    if how == "raw" and made.places & (TARGET | {"key"}):
        made.places |= TARGET  # the client itself may send `?`, `&` and `/`
    if place == "segment" and b"/engines/" in case.target:
        made.places |= {"body"}
    if b"api-key" in text:
        made.places |= {"key"}
    if "subprotocol" in place and b"," in text:
        made.places |= {"key", "header sec-websocket-protocol"}

    def put(data: bytes) -> bytes:
        return data.replace(HOT, made.hot).replace(hostile_requests.KEY.encode(), made.key)

    headers = ((NUMBER, b"%d" % made.number), *((put(name), put(value)) for name, value in case.headers))
    return Case(case.place, put(case.method), put(case.target), headers, put(case.body))


def _fields_of(case: Case) -> list[tuple[bytes, bytes]]:
    """The headers in the form of HTTP/1.1."""
    length = [(b"content-length", b"%d" % len(case.body))] if case.body else []
    return [(b"host", b"localhost"), *case.headers, *length]


def _written(case: Case) -> bytes:
    lines = [case.method + b" " + case.target + b" HTTP/1.1", *(name + b": " + value for name, value in _fields_of(case))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + case.body


def over_http1(made: Input, chosen: random.Random) -> None:
    case = made.case = case_of(made, chosen)
    made.data = _written(case)
    head = b"".join(name + value for name, value in case.headers)
    if (
        re.search(rb"[\r\n \t\x0b\x0c]", case.method + case.target)
        or re.search(rb"[\r\n]", head)
        or any(not name or b":" in name or re.search(rb"[\s\0]", name) for name, _ in case.headers)
    ):
        made.transport, made.splits = "raw1", True


def benign(made: Input, _: random.Random) -> None:
    """A valid request, which must be answered with 200, to test that the proxy still works."""
    made.place, made.places = "nowhere", frozenset({"body"})
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": made.hot.decode()}]}).encode()
    headers = ((NUMBER, b"%d" % made.number), (b"authorization", b"Bearer " + made.key), (b"content-type", b"application/json"))
    made.case = Case("nowhere", b"POST", b"/v1/chat/completions", headers, body)
    made.data = _written(made.case)
