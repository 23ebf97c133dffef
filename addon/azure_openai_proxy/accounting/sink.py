"""The interface of a sink, and the live state that metrics show."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence

    from mitmproxy import http

    from .ledger.state import LedgerState
    from .message_content import Content
    from .record import CallRecord
    from .trace_context import TraceContext

__all__ = ["NOTHING_LIVE", "BackendState", "BudgetLeft", "Followed", "LiveState", "Sink", "Tracing"]


class BackendState(NamedTuple):
    """The state of a deployment at a backend. `remaining_*` are Azure's rate limit headers; None if it sent none."""

    backend: str
    deployment: str
    up: bool
    remaining_tokens: int | None = None
    remaining_requests: int | None = None


class BudgetLeft(NamedTuple):
    """A budget in USD, and the rest of it."""

    owner: str  # name of a client, or "group NAME"
    limit: float
    remaining: float


class LiveState(NamedTuple):
    """The state of the process at one moment."""

    active_requests: int = 0
    active_streams: int = 0
    client_connections: int = 0
    backends: Sequence[BackendState] = ()
    ledger_lost_rows: int = 0
    budgets: Sequence[BudgetLeft] = ()
    limit_refusals: Mapping[tuple[str, str], int] = MappingProxyType({})  # by client and limit
    shared_state_up: bool | None = None  # None: there is none


NOTHING_LIVE = LiveState()


class Sink(Protocol):
    """A receiver of usage records. All methods are called on the event loop and must return at once; none raises."""

    def record(self, calls: Sequence[CallRecord]) -> None:
        """Take the records of calls that ended, in this order: at least one."""

    async def start(self, live: Callable[[], LiveState]) -> None:
        """Start the sink's tasks and servers. Called once, when the event loop runs.

        Raises:
            SettingsError: the sink cannot work, for example because its address is in use; the start stops with this line.
        """

    def reopen(self) -> None:
        """Reopen files, after SIGHUP."""

    async def close(self) -> None:
        """Write pending records, within a few seconds, and release all resources."""


@runtime_checkable
class Tracing(Protocol):
    """A sink that exports traces. While there is one, the headers of Trace Context that Azure receives are the proxy's."""

    wants_content: bool
    """Whether it also exports messages, which `keep_content` gets before `Sink.record`."""

    def begin_trace(self, headers: http.Headers) -> TraceContext:
        """The trace context of a new request, with the decision of the sampler."""

    def keep_content(self, span_id: str, content: Content) -> None:
        """Keep the bodies of a call."""


@runtime_checkable
class Followed(Protocol):
    """A sink whose database also has client keys and the sums of costs."""

    def follow(self, receive: Callable[[LedgerState], None]) -> None:
        """Pass the keys and sums to `receive` every few seconds. To be called before `Sink.start`."""

    async def spent(self, name: str, first: dt.date, last: dt.date) -> float | None:
        """The cost of a client's calls of these days, in USD; None if the database cannot be read."""
