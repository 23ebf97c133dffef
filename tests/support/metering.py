"""Meters with a clock of their own, for the tests of requests that are measured."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from mitmproxy import http

from azure_openai_proxy.accounting.cost import Tariff
from azure_openai_proxy.accounting.meters import Meters
from azure_openai_proxy.accounting.record import COMMON, CallKind, Tokens
from azure_openai_proxy.api import operation
from azure_openai_proxy.api.backend import Backend, Base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.record import CallRecord

__all__ = ["ANSWER", "BACKEND", "TARIFF", "TOKENS", "USAGE", "Bench", "Keys", "fields", "of_kind", "response", "streamed"]

BACKEND = Backend(name="b", base=Base("https", "r.openai.azure.com", 443), apiversion="v1", zone="eu")
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
TOKENS = Tokens(input=3, output=4)
TARIFF = Tariff((), ((0, 0, 0, 0, 0, 125_000, 125_000),))
"""`TOKENS` cost 0.5 USD."""
ANSWER = json.dumps({"id": "c", "model": "m-1", "usage": USAGE}).encode()


class Keys(NamedTuple):
    """The keys of a request."""

    all: tuple[str, ...]


class Bench:
    """Meters with a clock of their own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.records: list[CallRecord] = []
        self._started: WeakSet[Meter] = WeakSet()
        self.meters = Meters(self._deliver, lambda _: TARIFF, lambda: self._started, clock=lambda: self.now, wall=lambda: 1000.0 + self.now)

    def _deliver(self, records: Sequence[CallRecord]) -> None:
        for record in records:  # a sink uses what it remembers of the kind
            same = record.kind.sample if record.kind else record
            assert [getattr(same, name) for name in COMMON] == [getattr(record, name) for name in COMMON]
        self.records += records

    def start(self, path: str = "/v1/chat/completions", method: str = "POST", body: bytes = b'{"model":"m"}', **headers: str) -> Meter:
        """A request that arrived 1 s ago, with its body, and was recognised."""
        meter = self.request(path, method, **headers)
        meter.call = operation.recognise("WS" if "upgrade" in headers else method, path, {}, body, details=True)
        meter.request_read(len(body), None)
        return meter

    def request(self, path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> Meter:
        request = http.Request.make(method, f"http://proxy{path}", headers=fields(headers))
        request.timestamp_start = 999.0 + self.now
        meter = self.meters.start(request, "10.0.0.1")
        assert meter
        self._started.add(meter)
        return meter

    async def delivered(self) -> list[CallRecord]:
        await asyncio.sleep(0)
        found, self.records[:] = list(self.records), []
        return found


def fields(headers: dict[str, str]) -> http.Headers:
    return http.Headers([(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()])


def response(status: int = 200, content: bytes = b"", **headers: str) -> http.Response:
    return http.Response.make(status, content, fields(headers))


def streamed(meter: Meter, **headers: str) -> http.Response:
    """The head of a stream of events."""
    head = http.Response.make(200, b"", fields({"content_type": "text/event-stream", **headers}))
    meter.head(head)
    head.stream = True
    meter.stream_head(head, events=True)
    return head


def of_kind(record: CallRecord, kind: CallKind | None = None) -> CallRecord:
    """The same record, of this kind or of a new one."""
    made = (kind or CallKind(**{name: getattr(record, name) for name in COMMON})).record()
    for name, value in vars(record).items():
        if name not in {*COMMON, "kind"}:
            setattr(made, name, value)
    assert record == made
    return made
