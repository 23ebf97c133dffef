"""The metrics of `metric_names` over OTLP: measurements of the usage records, and the live state at each export."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader

from azure_openai_proxy.compatibility import own_version

from . import metric_names
from .label_bounds import OTHER, LabelBounds, exceeds
from .otlp_transport import SCOPE, CollectorSession
from .sink import NOTHING_LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource

    from azure_openai_proxy.config.settings import Semconv

    from .metric_names import Gauge, Label, Labels, Metric
    from .otlp_transport import Losses
    from .record import CallRecord
    from .sink import LiveState

    type Attributes = dict[str, str | int]

__all__ = ["Metrics"]

MOST_KEPT = 4096
"""Greatest number of series whose attributes are cached."""
FRESH = 0.5
"""Seconds for which the live state that was read serves the other gauges of an export."""


class _Exporter(OTLPMetricExporter):
    """Reports failed exports. They lose nothing by default, because sums are cumulative."""

    def __init__(self, url: str, losses: Losses) -> None:
        self._session = CollectorSession()
        self._losses = losses
        super().__init__(f"{url}/v1/metrics", session=self._session)

    def export(self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **kwargs)
        if result is not MetricExportResult.SUCCESS:
            self._losses.add("exports of metrics", 1, self._session.outcome)
        return result


class _Series:
    """A series of a counter or a histogram. The SDK's counters are slow, so that `flush` gives them the sums of many records at once."""

    __slots__ = ("_attributes", "_write", "amount", "histogram")

    def __init__(self, write: Callable[[float, Attributes], None], attributes: Attributes, *, histogram: bool) -> None:
        self._write, self._attributes, self.histogram = write, attributes, histogram
        self.amount: float = 0

    def record(self, amount: float) -> None:
        self._write(amount, self._attributes)

    def flush(self) -> None:
        self._write(self.amount, self._attributes)
        self.amount = 0


class Metrics:
    """`add` and `flush` are called by one thread. The SDK's reader exports in another one, and reads the live state there by `live`."""

    def __init__(
        self, url: str, generation: Semconv, series: int, resource: Resource, losses: Losses, live: Callable[[], LiveState | None]
    ) -> None:
        self._generation = generation
        self._bounds = LabelBounds(series)
        self._live = live
        self._state = NOTHING_LIVE
        self._read_at = float("-inf")
        self._reader = PeriodicExportingMetricReader(_Exporter(url, losses))
        meter = MeterProvider([self._reader], resource, shutdown_on_exit=False).get_meter(SCOPE, own_version())
        self._write = dict(self._writers(meter))
        self._series: dict[tuple[str, Labels, bool], _Series] = {}
        self._changed: dict[_Series, None] = {}
        for gauge in metric_names.GAUGES:
            metric = gauge.metric
            meter.create_observable_gauge(metric.name, [self._reading(gauge)], metric.unit, metric.help)
        info = metric_names.BUILD_INFO
        versions = Observation(1, self._attributes(info, metric_names.versions()))
        meter.create_observable_gauge(info.name, [lambda _: [versions]], info.unit, info.help)
        for counter in metric_names.COUNTERS:
            metric = counter.metric
            meter.create_observable_counter(metric.name, [self._sums(counter)], metric.unit, metric.help)

    def _writers(self, meter: Meter) -> Iterator[tuple[str, Callable[[float, Attributes], None]]]:
        of_state = {counter.metric for counter in metric_names.COUNTERS}
        for metric in metric_names.metrics(self._generation):
            if metric.kind == "histogram":
                yield (
                    metric.name,
                    meter.create_histogram(
                        metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=metric.buckets
                    ).record,
                )
            elif metric.kind == "counter" and metric not in of_state:
                yield metric.name, meter.create_counter(metric.name, metric.unit, metric.help).add

    def add(self, call: CallRecord) -> None:
        """Measure a call. Counters change with `flush`."""
        failed = not call.names_work
        for metric, labels, amount in metric_names.measurements(call, self._generation):
            key = (metric.name, labels, failed)
            series = self._series.get(key) or self._new_series(key, metric)
            if series.histogram:
                series.record(amount)
            else:
                series.amount += amount
                self._changed[series] = None

    def flush(self) -> None:
        """Add the sums of the calls to the counters."""
        for series in self._changed:
            series.flush()
        self._changed.clear()

    def _new_series(self, key: tuple[str, Labels, bool], metric: Metric) -> _Series:
        if len(self._series) >= MOST_KEPT:
            self._series.clear()
        _, labels, failed = key
        attributes = self._attributes(metric, labels, failed=failed)
        made = self._series[key] = _Series(self._write[metric.name], attributes, histogram=metric.kind == "histogram")
        return made

    def close(self, seconds: float) -> None:
        """Export once more, for at most so many seconds."""
        self._reader.shutdown(seconds * 1000)

    def _attributes(self, metric: Metric, labels: Sequence[Label], *, failed: bool = False) -> Attributes:
        """The labels as attributes. One without a value is left out."""
        values = self._bounds.values(metric.labels, labels, failed=failed)
        return {
            name: raw if name == "server.port" and isinstance(raw, int) and value != OTHER else value
            for name, raw, value in zip(metric.labels, labels, values, strict=True)
            if value
        }

    def _reading(self, gauge: Gauge) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterator[Observation]:
            for value, labels in gauge.read(self._live_state()):
                names = gauge.metric.labels
                attributes = self._attributes(gauge.metric, labels, failed="client" not in names)
                if not exceeds(map(attributes.get, names), labels):  # names beyond the bound share `other`, which has no state of its own
                    yield Observation(value, attributes)

        return read

    def _sums(self, counter: Gauge) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Read a counter. Names beyond the bound share `other`, whose value is their sum."""

        def read(_: CallbackOptions) -> Iterator[Observation]:
            sums: defaultdict[tuple[tuple[str, str | int], ...], float] = defaultdict(float)
            for value, labels in counter.read(self._live_state()):
                sums[tuple(self._attributes(counter.metric, labels).items())] += value
            for attributes, total in sums.items():
                yield Observation(total, dict(attributes))

        return read

    def _live_state(self) -> LiveState:
        if time.monotonic() - self._read_at > FRESH:
            self._state, self._read_at = self._live() or self._state, time.monotonic()
        return self._state
