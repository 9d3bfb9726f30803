"""What shards count, as Prometheus text. No label carries a realm, a tag or a job: series stay few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "exposition"]

_COUNTERS = {
    "requests": "Requests answered.",
    "groups": "Groups committed.",
    "rows": "Rows changed by those groups.",
    "commit_seconds": "Seconds spent in commits.",
    "busy_seconds": "Seconds spent in turns, commits included.",
}
_GAUGES = {"jobs": "Jobs held.", "busy": "Share of the last seconds spent in turns."}


def exposition(reports: Iterable[dict[str, Any]]) -> bytes:
    """The metrics of these shard reports."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Reports(list(reports)))
    return generate_latest(registry)


class _Reports(Collector):
    def __init__(self, reports: list[dict[str, Any]]) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"restq_shard_{name}", text, labels=["shard"])
            for report in self._reports:
                counter.add_metric([str(report["shard"])], report[name])
            yield counter
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"restq_shard_{name}", text, labels=["shard"])
            for report in self._reports:
                gauge.add_metric([str(report["shard"])], report[name])
            yield gauge
        realms = GaugeMetricFamily("restq_shard_realms", "Realms held.", labels=["shard"])
        calls = CounterMetricFamily("restq_operations", "Calls answered.", labels=["shard", "operation"])
        seconds = CounterMetricFamily(
            "restq_operation_seconds", "Seconds from arrival to answer.", labels=["shard", "operation"]
        )
        errors = CounterMetricFamily("restq_errors", "Calls refused.", labels=["shard", "operation", "code"])
        for report in self._reports:
            shard = str(report["shard"])
            realms.add_metric([shard], len(report["realms"]))
            for operation, timing in report["operations"].items():
                calls.add_metric([shard, operation], timing["call_count"])
                seconds.add_metric([shard, operation], timing["total_time"])
            for operation, code, count in report["errors"]:
                errors.add_metric([shard, operation, code], count)
        yield from (realms, calls, seconds, errors)
