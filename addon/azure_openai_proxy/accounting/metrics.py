"""The sink for Prometheus: counts records, and serves all metrics at `/metrics` on an address of its own.

Counting takes place on the event loop, in plain lists. prometheus-client renders them in a thread of its own, one scrape at a time, so
that a scrape of many series does not delay requests. There is no process-global state: each sink has its own registry.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from . import metric_names
from .label_bounds import OTHER, LabelBounds, exceeds
from .metrics_server import MetricsServer, Page
from .record import batch_of
from .sink import NOTHING_LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric as Family

    from azure_openai_proxy.config.settings import Settings

    from .metric_names import Label, Metric, Rule
    from .record import Batch, CallKind, CallRecord
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


class _SeriesRule(NamedTuple):
    """A rule, the series of its metric, and the function that returns the bucket of an amount."""

    rule: Rule
    series: Series
    bucket: Callable[[float], int] | None  # None: a counter


def _series_rule(rule: Rule, series: Series) -> _SeriesRule:
    buckets = rule.metric.buckets
    return _SeriesRule(rule, series, partial(bisect_left, buckets) if buckets else None)


class _Measurement:
    """One rule for the calls of one kind, whose labels are the same. Their cell is found with the first amount."""

    __slots__ = ("_cell", "_rule")

    def __init__(self, rule: _SeriesRule) -> None:
        self._rule = rule
        self._cell: Cell | None = None

    def add(self, calls: Batch) -> None:
        rule, series, bucket = self._rule
        found = rule.amounts(calls)
        amounts = cast("Sequence[float]", found)
        try:
            total = sum(amounts)
        except TypeError:  # some are unknown
            amounts = [amount for amount in found if amount is not None]
            if not amounts:
                return
            total = sum(amounts)
        cell = self._cell
        if cell is None:
            sample = calls.samples[0]
            cell = self._cell = series.cell(rule.labels(sample), failed=not sample.names_work)
        cell[0] += total
        if bucket:
            for index, count in Counter(map(bucket, amounts)).items():
                cell[1 + index] += count


class Prometheus:
    """A sink of usage records, with a server for scrapes."""

    def __init__(self, settings: Settings) -> None:
        assert settings.metrics
        generation = settings.semconv
        self._bounds = LabelBounds(settings.metrics_series)
        series = {metric: Series(metric, self._bounds) for metric in metric_names.metrics(generation) if metric.kind != "gauge"}
        of_state = {counter.metric for counter in metric_names.COUNTERS}
        self._counted = [made for metric, made in series.items() if metric not in of_state]
        self._rules = [_series_rule(rule, series[rule.metric]) for rule in metric_names.rules(generation)]
        self._attempts, self._repairs = series[metric_names.ATTEMPTS], series[metric_names.REPAIRS]
        self._bound: dict[CallKind, list[_Measurement]] = {}
        self._tried: dict[tuple[str, str, str], Cell] = {}  # of attempts, by their labels
        self._gauges: list[Family] = []  # of the scrape that is rendered
        self._live: Callable[[], LiveState] = lambda: NOTHING_LIVE
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self.server = MetricsServer(settings.metrics, self.page)

    def record(self, calls: Sequence[CallRecord]) -> None:
        batch = batch_of(calls)
        for some in batch.by_kind():
            self._record_kind(some)
        for labels, count in Counter([attempt[:3] for attempts in batch.column("attempts") for attempt in attempts]).items():
            self._attempts_at(labels)[0] += count

    def _record_kind(self, calls: Batch) -> None:
        """Count calls whose labels are the same."""
        sample = calls.samples[0]
        for measurement in self._measurements(sample):
            measurement.add(calls)
        for repair in sample.repairs:
            self._repairs.cell((repair,), failed=False)[0] += len(calls)

    def _measurements(self, call: CallRecord) -> list[_Measurement]:
        """The measurements of a kind."""
        kind = call.kind
        found = self._bound.get(kind) if kind else None
        if found is None:
            found = [_Measurement(one) for one in self._rules if one.rule.applies(call)]
            if kind:
                if len(self._bound) >= MOST_BOUND:
                    self._bound.clear()
                self._bound[kind] = found
        return found

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
            bounded = ((self._bounds.values(names, at, failed="client" not in names), at, value) for value, at in gauge.read(state))
            # names beyond the bound share `other`, which has no state of its own
            families.append(_gauge(gauge.metric, {labels: value for labels, at, value in bounded if not exceeds(labels, at)}))
        for counter in metric_names.COUNTERS:
            metric = counter.metric
            sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
            for value, at in counter.read(state):
                sums[self._bounds.values(metric.labels, at)] += value
            family = CounterMetricFamily(metric.family, metric.help, labels=metric.prometheus_labels)
            for labels, total in sums.items():
                family.add_metric(labels, total)
            families.append(family)
        families.append(_gauge(metric_names.BUILD_INFO, {metric_names.versions(): 1}))
        return families


def open_sink(settings: Settings) -> Prometheus:
    return Prometheus(settings)


def _gauge(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    family = GaugeMetricFamily(metric.family, metric.help, labels=metric.prometheus_labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
