"""What Prometheus can ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counts of one service.

    Args:
        picture: gives what ``Drift.picture`` does.
    """

    def __init__(self, picture: Callable[[], dict[str, Any]]) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("nescio_requests", "Requests for verdicts, by HTTP status.", ["status"], registry=r)
        self.seconds = Histogram(
            "nescio_request_seconds", "Time to the answer, in seconds.", buckets=SECONDS, registry=r
        )
        self.images = Counter("nescio_images", "Images, by verdict.", ["said"], registry=r)
        self.batches = Histogram("nescio_batch_images", "Images in a batch.", buckets=IMAGES, registry=r)
        for outcome in ("accepted", "rejected", "refused"):
            self.images.labels(outcome)
        self.running = Gauge("nescio_requests_running", "Requests in progress.", registry=r)
        r.register(_Picture(picture))
        ProcessCollector(registry=r)

    def request(self, status: int, seconds: float) -> None:
        """Count a request and its answer."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)


class _Picture(Collector):
    """The rolling picture of the input, made when it is asked for."""

    def __init__(self, picture: Callable[[], dict[str, Any]]) -> None:
        self.picture = picture

    def collect(self) -> Iterator[Metric]:
        p = self.picture()
        for name, description, value in (
            ("drift_evidence", "Evidence that the input has changed: at 1 an alarm is raised.", p["evidence"]),
            ("drift_alarms", "Alarms since the start.", p["alarmed"]),
            ("window_images", "Images in the window: the latest ones.", p["window"]),
            ("window_rejected", "Of these.", p["rejected"]),
            (
                "window_rejected_expected",
                "Expected number of rejected images if all were ID: an upper limit of the mean.",
                p["expected_rejected"],
            ),
        ):
            yield GaugeMetricFamily(f"nescio_{name}", description, value=value)
        by_class = {
            key: GaugeMetricFamily(
                f"nescio_window_class_{key}", f"{key} images in the window, by label.", labels=["label"]
            )
            for key in ("images", "rejected")
        }
        for c in p["classes"]:
            for key, family in by_class.items():
                family.add_metric([c["label"]], c[key])
        yield from by_class.values()
        scores = GaugeMetricFamily("nescio_score", "Quantiles of scores.", labels=["of", "quantile"])
        for of in ("window", "calibration"):
            for quantile, value in zip(p["scores"]["quantiles"], p["scores"][of] or (), strict=False):
                if value is not None:
                    scores.add_metric([of, str(quantile)], value)
        yield scores
