"""Counters of a server in Prometheus' text format."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_LOG = logging.getLogger("trecvit.serve")


class Metrics:
    """All counters of one server.

    Attributes:
        frames: Frames processed, by model.
        dropped: Frames replaced by newer ones, by model.
        queue: Seconds from a frame's arrival to its step, by model.
        step: Seconds of a batch's step, by model.
        batch: Streams in a batch, by model.
        errors: Refused requests, by code.
        evicted: Sessions evicted from memory.
        uploads: Uploaded files, by route and outcome.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.frames = Counter("trecvit_frames", "Frames processed.", ["model"], registry=registry)
        self.dropped = Counter("trecvit_dropped_frames", "Frames replaced by newer ones.", ["model"], registry=registry)
        self.queue = Histogram(
            "trecvit_queue_seconds", "From arrival to step.", ["model"], buckets=_SECONDS, registry=registry
        )
        self.step = Histogram("trecvit_step_seconds", "Of a batch.", ["model"], buckets=_SECONDS, registry=registry)
        self.batch = Histogram(
            "trecvit_batch_size", "Streams in a batch.", ["model"], buckets=_SIZES, registry=registry
        )
        self.errors = Counter("trecvit_errors", "Refused requests.", ["code"], registry=registry)
        self.evicted = Counter("trecvit_evicted_sessions", "Sessions evicted from memory.", registry=registry)
        self.uploads = Counter("trecvit_uploads", "Uploaded files.", ["route", "outcome"], registry=registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a value that is read when metrics are."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def text(self) -> tuple[bytes, str]:
        """Return all metrics and their content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def unexpected(self, error: BaseException) -> None:
        """Log an error that no client caused."""
        _LOG.error("unexpected error", exc_info=error)
