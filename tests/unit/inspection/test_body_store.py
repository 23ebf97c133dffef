"""Streamed bodies are stored within a limit, without changing any stream."""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.test import tflow

from azure_openai_proxy.accounting.meters import Meters
from azure_openai_proxy.inspection.body_store import Shelf, Tap

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


def test_the_oldest_bodies_are_evicted() -> None:
    """A full store evicts its oldest body."""
    forgotten: list[http.HTTPFlow] = []
    shelf = Shelf(10, forgotten.append)
    flows = [tflow.tflow() for _ in range(3)]
    for flow in flows:
        assert shelf.reserve(4)
        shelf.keep(flow, 4)
    assert (flows[:1], 8) == (forgotten, shelf.used)


def test_a_body_larger_than_the_store_is_rejected() -> None:
    """A body larger than the store reserves nothing and evicts nothing."""
    shelf = Shelf(10, lambda _: None)
    assert not shelf.reserve(11)
    assert 0 == shelf.used


def test_a_collected_flow_releases_its_bytes() -> None:
    """A garbage-collected flow releases its bytes, as when the user deletes it or mitmdump has finished it."""
    shelf = Shelf(10, lambda _: None)
    flow = tflow.tflow()
    shelf.reserve(4)
    shelf.keep(flow, 4)
    del flow
    gc.collect()
    assert 0 == shelf.used


def test_a_flow_releases_request_and_response() -> None:
    """A flow releases the bytes of its request and of its response."""
    shelf = Shelf(10, lambda _: None)
    flow = tflow.tflow()
    for _ in range(2):
        shelf.reserve(4)
        shelf.keep(flow, 4)
    del flow
    gc.collect()
    assert 0 == shelf.used


def test_eviction_skips_collected_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction skips a flow that was garbage-collected in the meantime."""
    forgotten: list[http.HTTPFlow] = []
    shelf = Shelf(10, forgotten.append)
    shelf.reserve(8)
    monkeypatch.setattr(shelf, "_sizes", OrderedDict({lambda: None: 8}))  # a dead reference to a flow
    assert shelf.reserve(8)
    assert [] == forgotten


def tap(inner: bool, shelf: Shelf | None) -> Tap:
    ticks = iter(range(100))
    return Tap((lambda data: [data[:2], data[2:]] if data else []) if inner else None, shelf, 0, lambda: next(ticks) / 10)


def test_both_sides_are_kept() -> None:
    """Both bodies and the time of each chunk are stored, and the stream is unchanged."""
    one = tap(inner=True, shelf=Shelf(1000, lambda _: None))
    assert [[b"ab", b"c"], []] == [one(b"abc"), one(b"")]
    assert ((b"abc", b"abc"), [0.0, 3]) == (one.bodies(), one.chunks)


def test_an_unchanged_stream_is_stored_once() -> None:
    """A stream that is not rewritten is stored once."""
    shelf = Shelf(1000, lambda _: None)
    one = tap(inner=False, shelf=shelf)
    assert [[b"abc"], []] == [one(b"abc"), one(b"")]
    assert ((b"abc", b"abc"), one.taken) == (one.bodies(), shelf.used)


def test_one_body_takes_a_quarter_at_most() -> None:
    """A body of more than a quarter of the store is forwarded but not stored, and releases its bytes."""
    shelf = Shelf(16, lambda _: None)
    one = tap(inner=False, shelf=shelf)
    assert [[b"abc"], [b"def"], [b"g"]] == [one(b"abc"), one(b"def"), one(b"g")]
    assert (None, 0) == (one.bodies(), shelf.used)


def test_without_a_store_no_body_is_kept() -> None:
    """Without a store only the time of the first chunk is recorded."""
    one = tap(inner=False, shelf=None)
    for piece in (b"a", b"b", b""):
        one(piece)
    one.give_up()
    assert (None, [0.0, 1]) == (one.bodies(), one.chunks)


def test_each_chunk_is_measured() -> None:
    """The meter of the request gets the bytes for the client, and when their translation began."""
    meters = Meters(lambda _: None, clock=lambda: 7.0)
    meter = meters.start(http.Request.make("GET", "http://proxy/v1/models"), "")
    assert meter
    chunks: list[tuple[float, Sequence[bytes], bool]] = []
    meter.chunk = lambda began, pieces, *, last: chunks.append((began, pieces, last))  # type: ignore[method-assign]
    for tap in (Tap(lambda data: [data * 2], None, 0.0, meter=meter), Tap(None, None, 0.0, meter=meter)):
        assert [b"ab", b""] == [b"".join(tap(b"ab"))[:2], b"".join(tap(b""))]
    assert [(7.0, [b"abab"], False), (7.0, [b""], True), (7.0, [b"ab"], False), (7.0, [], True)] == chunks
