"""Families of figures: each is declared once, with its kind, help and labels, and worded from plain numbers when somebody asks.

Names and units are by Prometheus's conventions (https://prometheus.io/docs/practices/naming/): base units, `_total` for what only grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypeVar

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from shardnet.metrics.buckets import Buckets

Labels = tuple[str, ...] | str
"""Values of a family's labels, in its order; a single one may stand by itself."""
K = TypeVar("K", bound=Labels)
PREFIX = "shardnet_"


@dataclass(frozen=True, slots=True)
class Sum:
    """How often something took place, and how much it was all together: a summary without quantiles."""

    count: int
    total: float


@dataclass(frozen=True, slots=True)
class Family:
    """Figures of one name.

    Attributes:
        name: as queries write it, `_total` included; without `_bucket`, `_sum` and `_count`.
        help: one sentence.
        labels: names of what tells its series apart; their values are few.
    """

    kind: Literal["counter", "gauge", "histogram", "summary"]
    name: str
    help: str
    labels: tuple[str, ...] = ()

    def one(self, value: float) -> Metric:
        """Returns: the family without labels, as one number."""
        return self.of({(): value})

    def of(self, values: Mapping[K, float]) -> Metric:
        """Returns: a counter or gauge. Args: values: by the labels' values."""
        made = (CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily)(
            self.name.removesuffix("_total") if self.kind == "counter" else self.name, self.help, labels=self.labels
        )
        for labels, value in values.items():
            made.add_metric(_tuple(labels), value)
        return made

    def buckets(self, values: Mapping[K, Buckets]) -> Metric:
        """Returns: a histogram."""
        made = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, one in values.items():
            made.add_metric(_tuple(labels), one.cumulative(), one.total)
        return made

    def sums(self, values: Mapping[K, Sum]) -> Metric:
        """Returns: a summary."""
        made = SummaryMetricFamily(self.name, self.help, labels=self.labels)
        for labels, one in values.items():
            made.add_metric(_tuple(labels), one.count, one.total)
        return made


def counter(name: str, what: str, *labels: str) -> Family:
    """Returns: what only grows, since the start of the daemon. `name` without prefix and `_total`."""
    return Family("counter", f"{PREFIX}{name}_total", what, labels)


def gauge(name: str, what: str, *labels: str) -> Family:
    """Returns: what is so now."""
    return Family("gauge", PREFIX + name, what, labels)


def histogram(name: str, what: str, *labels: str) -> Family:
    """Returns: how often values were how large."""
    return Family("histogram", PREFIX + name, what, labels)


def summary(name: str, what: str, *labels: str) -> Family:
    """Returns: how many values there were, and their sum."""
    return Family("summary", PREFIX + name, what, labels)


def declared(module: ModuleType) -> list[Family]:
    """Returns: the families that a module declares."""
    return [value for value in vars(module).values() if isinstance(value, Family)]


def _tuple(labels: Labels) -> tuple[str, ...]:
    return (labels,) if isinstance(labels, str) else labels
