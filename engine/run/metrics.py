"""The run's numbers for Prometheus, through Ray's own metrics (every node exports them; Ray adds the prefix `ray_`)."""

from engine.run.work import Outcome

SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]  # a stage takes from a decode's tenths to a long clip's minutes


class Metrics:
    """metaworld_units_total{status}, metaworld_bytes_total, metaworld_stage_seconds{stage},
    metaworld_queue_seconds{stage}, metaworld_peak_mb{stage}, metaworld_clips_in_flight. Needs a connected Ray."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._units = Counter("metaworld_units_total", "clips decided: done, or the reason of quarantine", ("status",))
        self._bytes = Counter("metaworld_bytes_total", "bytes of finished samples")
        self._seconds = Histogram("metaworld_stage_seconds", "wall seconds of work per clip", SECONDS, ("stage",))
        self._queue = Histogram("metaworld_queue_seconds", "seconds a clip waited for a worker", SECONDS, ("stage",))
        self._peak = Gauge("metaworld_peak_mb", "peak memory of the last clip's process, MiB", ("stage",))
        self._flying = Gauge("metaworld_clips_in_flight", "clips between decoding and spool")

    def decided(self, outcome: Outcome) -> None:
        """Count a unit."""
        self._units.inc(1, {"status": outcome.failure.reason if outcome.failure else "done"})
        if outcome.bytes:
            self._bytes.inc(outcome.bytes)
        for stage, use in outcome.stages.items():
            self._seconds.observe(use.seconds, {"stage": stage})
            self._peak.set(use.peak_mb, {"stage": stage})
            if use.queue:
                self._queue.observe(use.queue, {"stage": stage})

    def flying(self, count: int) -> None:
        """Clips in flight now."""
        self._flying.set(count)
