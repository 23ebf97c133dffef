"""Fixtures of the tests of accounting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.metering import BACKEND, Bench, response

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.meter import Meter


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.fixture
def socket(bench: Bench) -> Meter:
    """A WebSocket of realtime that is open."""
    meter = bench.start("/v1/realtime", "GET", b"", upgrade="websocket")
    meter.attempt(BACKEND, "dep")
    meter.sending()
    head = response(101)
    meter.head(head)
    meter.stream_head(head, events=True)
    return meter
