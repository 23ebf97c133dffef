"""The sink for Prometheus: counts records, and serves all metrics at `/metrics` on an address of its own.

Counting takes place on the event loop, in plain lists. prometheus-client renders them in a thread of its own, one scrape at a time, so
that a scrape of many series does not delay requests. There is no process-global state: each sink has its own registry.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import platform
from bisect import bisect_left
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from . import metric_names
from .label_bounds import OTHER, LabelBounds
from .metrics_server import MetricsServer, Page
from .sink import NOTHING_LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric as Family

    from azure_openai_proxy.config.settings import Settings

    from .metric_names import Label, Metric
    from .record import CallKind, CallRecord
    from .sink import LiveState

    type Cell = list[float]  # of a counter the sum; of a histogram the sum, then the count of each bucket and of the rest

__all__ = ["Prometheus", "open_sink"]

logger = logging.getLogger(__name__)

SETS_PER_VALUE = {"counter": 50, "histogram": 5}
"""A metric has at most this many combinations of labels for each value that a label may have; further ones are `other` in all labels.

A series of a histogram has about 16 lines on the page, one of a counter a single line.
"""
MOST_BOUND = 2048
"""Greatest number of kinds of calls whose series are cached."""


class Series:
    """All series of one metric."""

    def __init__(self, metric: Metric, bounds: LabelBounds) -> None:
        self.metric = metric
        self.cells: dict[tuple[str, ...], Cell] = {}
        self._bounds = bounds

    def cell(self, labels: Sequence[Label], *, failed: bool) -> Cell:
        values = self._bounds.values(self.metric.labels, labels, failed=failed)
        found = self.cells.get(values)
        if found is None:
            if len(self.cells) >= SETS_PER_VALUE[self.metric.kind] * self._bounds.limit:
                values = (OTHER,) * len(values)
            found = self.cells.setdefault(values, [0.0] * (1 + len(self.metric.buckets) + (self.metric.kind == "histogram")))
        return found

    def family(self) -> Family:
        """The series in the form of prometheus-client. Called in another thread: the copies are atomic."""
        metric, cells = self.metric, dict(self.cells)
        if metric.kind == "counter":
            counter = CounterMetricFamily(metric.family, metric.help, labels=metric.prometheus_labels)
            for labels, cell in cells.items():
                counter.add_metric(labels, cell[0])
            return counter
        histogram = HistogramMetricFamily(metric.family, metric.help, labels=metric.prometheus_labels)
        bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
        for labels, cell in cells.items():
            total, *counts = tuple(cell)
            sums, count = [], 0.0
            for bound, more in zip(bounds, counts, strict=True):
                count += more
                sums.append((bound, count))
            histogram.add_metric(labels, sums, total)
        return histogram


class Prometheus:
    """A sink of usage records, with a server for scrapes."""

    def __init__(self, settings: Settings) -> None:
        assert settings.metrics
        generation = settings.semconv
        self._bounds = LabelBounds(settings.metrics_series)
        self._rules = metric_names.rules(generation)
        series = {metric: Series(metric, self._bounds) for metric in metric_names.metrics(generation) if metric.kind != "gauge"}
        of_state = {counter.metric for counter in metric_names.COUNTERS}
        self._counted = [made for metric, made in series.items() if metric not in of_state]
        self._rows = [(rule.amount, series[rule.metric], rule.metric.buckets) for rule in self._rules]
        self._attempts, self._repairs = series[metric_names.ATTEMPTS], series[metric_names.REPAIRS]
        self._bound: dict[CallKind, list[Cell | None]] = {}
        self._tried: dict[tuple[str, str, str], Cell] = {}  # of attempts, by their labels
        self._gauges: list[Family] = []  # of the scrape that is rendered
        self._live: Callable[[], LiveState] = lambda: NOTHING_LIVE
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self.server = MetricsServer(settings.metrics, self.page)

    def record(self, calls: Sequence[CallRecord]) -> None:
        kinds: dict[object, list[CallRecord]] = {}
        for call in calls:
            kinds.setdefault(call.kind or id(call), []).append(call)
        for some in kinds.values():
            self._record_kind(some)
        for labels, count in Counter([attempt[:3] for call in calls for attempt in call.attempts]).items():
            self._attempts_at(labels)[0] += count

    def _record_kind(self, calls: Sequence[CallRecord]) -> None:
        """Count calls whose labels are the same."""
        first = calls[0]
        cells = self._cells(first.kind)
        for index, (amount_of, series, buckets) in enumerate(self._rows):
            amounts = [amount for amount in map(amount_of, calls) if amount is not None]
            if not amounts:
                continue
            cell = cells[index]
            if cell is None:
                cell = cells[index] = series.cell(self._rules[index].labels(first), failed=not first.names_work)
            cell[0] += sum(amounts)
            if buckets:
                for amount in amounts:
                    cell[1 + bisect_left(buckets, amount)] += 1
        for repair in first.repairs:
            self._repairs.cell((repair,), failed=False)[0] += len(calls)

    def _cells(self, kind: CallKind | None) -> list[Cell | None]:
        """The cells of a kind, one for each rule. A rule's cell is found with its first amount."""
        cells = self._bound.get(kind) if kind else None
        if cells is None:
            cells = [None] * len(self._rules)
            if kind:
                if len(self._bound) >= MOST_BOUND:
                    self._bound.clear()
                self._bound[kind] = cells
        return cells

    def _attempts_at(self, labels: tuple[str, str, str]) -> Cell:
        cell = self._tried.get(labels)
        if cell is None:
            if len(self._tried) >= MOST_BOUND:
                self._tried.clear()
            cell = self._tried[labels] = self._attempts.cell(labels, failed=labels[2] != "ok")
        return cell

    async def start(self, live: Callable[[], LiveState]) -> None:
        """Open the server.

        Raises:
            SettingsError: the address is in use or not one of this machine.
        """
        self._live = live
        await self.server.start()
        logger.info("Prometheus metrics: %s", self.server.url)

    def reopen(self) -> None:
        """Nothing to do, because there is no file."""

    async def close(self) -> None:
        await self.server.close()
        self._renderer.shutdown(wait=False)

    async def page(self, accept: str) -> Page:
        """All metrics, in the format that the header `Accept` asks for."""
        return await asyncio.get_running_loop().run_in_executor(self._renderer, self._render, accept, self._read(self._live()))

    def describe(self) -> Iterable[Family]:
        """Nothing, so that registering renders nothing."""
        return ()

    def collect(self) -> Iterator[Family]:
        """All metrics, for the registry."""
        for series in self._counted:
            yield series.family()
        yield from self._gauges

    def _render(self, accept: str, gauges: list[Family]) -> Page:
        self._gauges = gauges  # the executor has one thread
        encode, content_type = choose_encoder(accept)
        return Page(encode(self._registry), content_type)

    def _read(self, state: LiveState) -> list[Family]:
        families: list[Family] = []
        for gauge in metric_names.GAUGES:
            names = gauge.metric.labels
            families.append(
                _gauge(
                    gauge.metric, {self._bounds.values(names, at, failed="client" not in names): value for value, at in gauge.read(state)}
                )
            )
        for counter in metric_names.COUNTERS:
            metric = counter.metric
            family = CounterMetricFamily(metric.family, metric.help, labels=metric.prometheus_labels)
            for value, at in counter.read(state):
                family.add_metric(self._bounds.values(metric.labels, at), value)
            families.append(family)
        families.append(_gauge(metric_names.BUILD_INFO, {_versions(): 1}))
        return families


def open_sink(settings: Settings) -> Prometheus:
    return Prometheus(settings)


def _gauge(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    family = GaugeMetricFamily(metric.family, metric.help, labels=metric.prometheus_labels)
    for labels, value in values.items():
        if OTHER not in labels:  # `other` has no state of its own
            family.add_metric(labels, value)
    return family


def _versions() -> tuple[str, ...]:
    return (_version("azure-openai-proxy"), _version("mitmproxy"), platform.python_version())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
