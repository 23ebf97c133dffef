"""The meters of the process: the requests that run, the records to deliver, and the memory of earlier requests."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from .call_kinds import Kinds
from .lru import Lru
from .meter import Meter
from .rate_limits import NO_REMAINING, Remaining, updated
from .record import Batch
from .usual_calls import UsualCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mitmproxy import http

    from .cost import Tariff
    from .meter import Keys
    from .rate_limits import Limits
    from .record import CallRecord, Tokens
    from .sink import Tracing

__all__ = ["NO_REMAINING", "TOGETHER", "Meters", "Remaining"]

logger = logging.getLogger(__name__)

MOST_IDS = 1 << 16
"""Number of background responses and batches that are remembered, so that their usage is counted once."""
MOST_CHAINS = 10_000
"""Number of responses of which the first one of their chain is remembered."""
MOST_DEPLOYMENTS = 256
"""Number of deployments whose rate limits are remembered. Clients may request any name."""


TOGETHER, WITHIN = 64, 0.25
"""Number of records that are made together, and the seconds after which fewer are."""


class Meters:
    """The meters of the process, and the memory of earlier requests.

    `tariff` returns the prices of calls that are of the same kind as the record; None without a price. `of_flows` returns the meters of
    the flows that exist, some of which have ended.
    """

    def __init__(
        self,
        deliver: Callable[[Sequence[CallRecord]], None],
        tariff: Callable[[CallRecord], Tariff | None] = lambda _: None,
        of_flows: Callable[[], Iterable[Meter | None]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counted: Lru[str, None] = Lru(MOST_IDS)
        self.chains: Lru[str, str] = Lru(MOST_CHAINS)
        self._remaining: Lru[tuple[str, str], Remaining] = Lru(MOST_DEPLOYMENTS)
        self._noted: dict[tuple[str, str], list[Limits]] = {}  # that are not read yet
        self.kinds = Kinds()
        self._usual = UsualCalls(self)
        self.tariff = tariff
        self.tracing: Tracing | None = None  # None: nothing exports traces
        self.clock, self.wall = clock, wall
        self._of_flows = of_flows
        self._deliver = deliver
        self._ended: list[Meter] = []  # whose records are made together
        self._timer: asyncio.TimerHandle | None = None
        self._ready: dict[Meter, None] = {}  # whose records are delivered in the next turn of the event loop
        self._pending: dict[Meter, asyncio.Handle] = {}

    def start(self, request: http.Request, client_ip: str, keys: Keys | None = None) -> Meter | None:
        """Start the measurement of a request. None if that fails."""
        try:
            return Meter(self, request, client_ip, keys)
        except Exception:
            logger.exception("A request is not accounted for")
            return None

    @property
    def running(self) -> list[Meter]:
        """The meters of requests that have not ended."""
        return [meter for meter in self._of_flows() if meter is not None and meter.runs]

    def note_limits(self, backend: str, deployment: str, limits: Limits) -> None:
        """Remember what the response of a deployment says about its rate limits. `complete` reads the values."""
        self._noted.setdefault((backend, deployment), []).append(limits)

    def price(self, call: CallRecord, tokens: Tokens) -> float | None:
        """The cost of the tokens of a call that is of the same kind as `call`, in USD. It is unknown without their input."""
        tariff = None if tokens.input is None else self.tariff(call)
        return tariff.usd(tokens) if tariff else None

    @property
    def remaining(self) -> Lru[tuple[str, str], Remaining]:
        """The rate limits that are left, by backend and deployment."""
        self._read_limits()
        return self._remaining

    def _read_limits(self) -> None:
        noted, self._noted = self._noted, {}
        for key, limits in noted.items():
            self._remaining.add(key, updated(self._remaining.get(key, NO_REMAINING), limits))

    def deployments(self, backends: Iterable[str]) -> list[tuple[str, str]]:
        """The deployments of these backends that were used recently; with the deployment "" for a backend without one."""
        used = list(self.remaining)
        return [one for backend in backends for one in ([key for key in used if key[0] == backend] or [(backend, "")])]

    def later(self, meter: Meter, delay: float = 0.0) -> None:
        """Deliver the meter's record in `delay` seconds, and not before the response was handed to the client."""
        if self._pending and (handle := self._pending.pop(meter, None)):
            handle.cancel()
        if delay:
            self._pending[meter] = asyncio.get_running_loop().call_later(delay, self._deliver_pending, meter)
            return
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._deliver_ready)
        self._ready[meter] = None

    def complete_soon(self, meter: Meter) -> None:
        """Make and deliver the meter's record with those of other requests."""
        self._ended.append(meter)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WITHIN, self.complete)
        elif len(self._ended) == TOGETHER:  # not at once, because the response was not handed to the client yet
            asyncio.get_running_loop().call_soon(self.complete)

    def complete(self) -> None:
        """Make and deliver the records of requests that have ended."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        ended, self._ended = self._ended, []
        kinds, rows = self._usual.complete(ended)
        self._read_limits()
        if kinds:
            self._deliver(Batch(kinds, rows=rows))

    def now(self, record: CallRecord) -> None:
        self.complete()  # records stay in the order in which their requests ended
        self._deliver([record])

    def _deliver_pending(self, meter: Meter) -> None:
        self._pending.pop(meter, None)
        self.complete()
        assert meter.record
        self._deliver([meter.record])

    def _deliver_ready(self) -> None:
        self.complete()
        ready, self._ready = self._ready, {}
        if records := [meter.record for meter in ready if meter.record]:
            self._deliver(records)

    def flush(self) -> None:
        """Deliver all records. Requests that still run are cut off by the end of the process."""
        for meter in self.running:
            meter.cut_off()
        self.complete()
        self._deliver_ready()
        for meter, handle in list(self._pending.items()):
            handle.cancel()
            self._deliver_pending(meter)
