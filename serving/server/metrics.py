"""Counts of a running server, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
QUESTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one application; each application has its own registry."""

    def __init__(self) -> None:
        """All counts are 0."""
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pmd_http_requests", "Requests by route, method and status.", ["route", "method", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "pmd_http_request_seconds", "From the first byte read to the last one sent.", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.questions = Counter(
            "pmd_questions", "Questions answered by a bundle, failed ones included.", ["bundle"], registry=registry
        )
        self.batch_questions = Histogram(
            "pmd_batch_questions", "Questions of one call of a bundle.", ["bundle"],
            buckets=QUESTIONS, registry=registry,
        )  # fmt: skip
        self.rejected = Counter(
            "pmd_rejected_requests", "Requests not answered, by the code of the error.", ["code"], registry=registry
        )
        self.changes = Counter(
            "pmd_entity_changes", "Entities added, updated or removed.", ["bundle", "kind"], registry=registry
        )
        self.reloads = Counter(
            "pmd_reloads", "Bundles opened afresh, or left as they were.", ["bundle", "result"], registry=registry
        )
        self.cut = Counter(
            "pmd_cut_connections", "Connections that the server closed, by the reason.", ["why"], registry=registry
        )
        self._connections = Gauge("pmd_connections", "Open connections.", registry=registry)
        self._entities = Gauge("pmd_entities", "Entities of a bundle.", ["bundle"], registry=registry)
        self._waiting = Gauge(
            "pmd_waiting_requests", "Requests that wait for a bundle.", ["bundle"], registry=registry
        )

    def watch_waiting(self, bundle: str, count: Callable[[], int]) -> None:
        """Read the number of requests that wait for `bundle` from `count` whenever the metrics are asked for."""
        self._waiting.labels(bundle).set_function(count)

    def watch_entities(self, bundle: str, count: Callable[[], int]) -> None:
        """The same for the number of its entities."""
        self._entities.labels(bundle).set_function(count)

    def watch_connections(self, count: Callable[[], int]) -> None:
        """The same for the number of open connections."""
        self._connections.set_function(count)

    def text(self) -> bytes:
        """All metrics, in prometheus_client's latest text format."""
        return generate_latest(self.registry)

    def total(self, name: str) -> int:
        """The sum of a counter over its labels; `name` as in the text, with its `_total`."""
        samples = (sample for family in self.registry.collect() for sample in family.samples)
        return int(sum(sample.value for sample in samples if sample.name == name))
