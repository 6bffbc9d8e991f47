"""What `GET /metrics` shows, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "mmsa_requests", "requests answered", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "mmsa_request_seconds",
            "seconds from a request's head to the end of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "mmsa_batch_rows", "rows computed together", buckets=_ROWS, registry=self.registry
        )
        self._model = Gauge(
            "mmsa_model", "1 for the model in service", ["digest"], registry=self.registry
        )

    def watch(self, in_flight: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Show two numbers that are asked for when they are read."""
        for name, what, ask in (
            ("mmsa_requests_in_flight", "requests that are read or computed", in_flight),
            ("mmsa_rows_waiting", "rows that wait for a batch", waiting),
        ):
            Gauge(name, what, registry=self.registry).set_function(ask)

    def answered(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def computed(self, rows: int) -> None:
        self._batch.observe(rows)

    def in_service(self, digest: str) -> None:
        self._model.clear()
        self._model.labels(digest).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
