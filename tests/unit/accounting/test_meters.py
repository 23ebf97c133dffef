"""The meters of the process. One request is tested in test_meter.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from mitmproxy import http

from azure_openai_proxy.accounting import meters as module
from azure_openai_proxy.accounting.meters import NO_REMAINING, TOGETHER, Meters, Remaining

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.record import CallRecord


@pytest.fixture
def meters() -> Meters:
    return Meters(lambda _: None)


def test_what_is_left_of_rate_limits(meters: Meters) -> None:
    """The last valid numbers of each deployment are kept."""
    for limits in ((b"10", b"5"), (b"-1", b"4"), (b"x", b""), (b"9" * 30, b"3")):
        meters.note_limits("b", "d", limits)
    assert Remaining(10, 3) == meters.remaining.get(("b", "d"), NO_REMAINING)


def test_deployments(meters: Meters) -> None:
    """Each backend has its deployments that were used, or one without a name; removed backends have none."""
    for backend, deployment in (("a", "x"), ("a", "y"), ("gone", "z")):
        meters.note_limits(backend, deployment, (b"", b""))
    assert [("a", "x"), ("a", "y"), ("b", "")] == meters.deployments(["a", "b"])


async def test_requests_that_run() -> None:
    """They are those of flows that exist, are measured, and have not ended."""
    of_flows: list[Meter | None] = []
    meters = Meters(lambda _: None, of_flows=lambda: of_flows)
    ended, running = [meters.start(http.Request.make("GET", "http://proxy/v1/models"), "") for _ in range(2)]
    assert ended
    ended.end(http.Response.make(200), None)
    of_flows += [None, ended, running]
    assert [running] == meters.running


async def test_the_cost_is_unknown_without_prices() -> None:
    """There is no cost by default."""
    records: list[CallRecord] = []
    meters = Meters(records.extend)
    meter = meters.start(http.Request.make("GET", "http://proxy/v1/models"), "")
    assert meter
    meter.end(http.Response.make(200), None)
    meters.flush()
    assert [None] == [meters.price(record, record.tokens) for record in records]


async def test_records_that_are_made_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes place when there are enough of them, or after a moment, and never before the response was handed to the client."""
    monkeypatch.setattr(module, "WITHIN", 0.01)
    records: list[CallRecord] = []
    meters = Meters(records.extend)

    def end() -> None:
        meter = meters.start(http.Request.make("GET", "http://proxy/v1/models"), "")
        assert meter
        meter.end_soon(http.Response.make(200), None)

    for _ in range(TOGETHER):
        end()
    assert [] == records
    await asyncio.sleep(0)
    assert TOGETHER == len(records)
    end()
    while len(records) == TOGETHER:
        await asyncio.sleep(0.001)
    assert TOGETHER + 1 == len(records)
