"""Fixtures of the tests of accounting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting import record_making
from azure_openai_proxy.accounting.call_kinds import Kinds
from azure_openai_proxy.accounting.record import COMMON
from support.metering import BACKEND, Bench, response

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.record import CallKind, OwnValues
    from azure_openai_proxy.accounting.record_making import Outcome


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Meters whose calls have the kind that they would have if none were remembered."""
    original = record_making.kind_and_values

    def check(meter: Meter, outcome: Outcome, model: str | None = None, deployment: str | None = None) -> tuple[CallKind, OwnValues]:
        kind, own = original(meter, outcome, model, deployment)
        fresh = Kinds().add((meter.secrets,), record_making._common(meter, outcome, model, deployment))
        assert [getattr(kind.sample, name) for name in COMMON] == [getattr(fresh.sample, name) for name in COMMON]
        return kind, own

    monkeypatch.setattr(record_making, "kind_and_values", check)
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
