"""Figures of a resource, under the names that OpenTelemetry gives them.

Source: OpenTelemetry semantic conventions, "Database client metrics", section on connection pools
(https://opentelemetry.io/docs/specs/semconv/database/database-metrics/).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import attrs

BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds of the buckets in seconds, those that the conventions advise for operations."""


class Durations:
    """A histogram of seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@attrs.frozen
class Histogram:
    """Durations, counted in buckets.

    Attributes:
        count: How many.
        sum: All together, in seconds.
        bounds: Upper bounds of the buckets in seconds; the last bucket has none.
        buckets: How many in each.
    """

    count: int
    sum: float
    bounds: tuple[float, ...]
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, durations: Durations) -> Histogram:
        """Return what was counted so far."""
        counts = tuple(durations.counts)
        return cls(sum(counts), durations.total, BOUNDS, counts)


@attrs.frozen
class Metric:
    """One figure, as OpenTelemetry has it.

    Attributes:
        name: Like `"db.client.connection.count"`.
        kind: The instrument: `"updowncounter"`, `"counter"` or `"histogram"`.
        unit: As the conventions have it: `"s"`, or what is counted in braces.
        value: The value, or the histogram.
        attributes: `db.client.connection.pool.name`, and for the count
            `db.client.connection.state`.
    """

    name: str
    kind: str
    unit: str
    value: int | Histogram
    attributes: Mapping[str, str]


@attrs.frozen
class ResourceStatistics:
    """What a resource has and has done, in all event loops of this process.

    Counting begins anew when it is opened while no event loop has a pool of it.

    Attributes:
        name: Its name.
        min_size: Connections that each loop's pool keeps.
        max_size: Connections at most, all loops together.
        idle: Connections that can be had at once.
        used: Connections in use.
        opening: Connections being opened.
        closing: Connections being reset or closed.
        pending_requests: Callers that wait for one.
        timeouts: Callers that ran out of `acquire_timeout`.
        uses: How often a connection was borrowed.
        opened: Connections opened so far.
        open_failures: Connects that failed.
        retired: Connections closed, by reason; see the pages about pools and resources.
        held_idle: Uses in which a request did something else for longer than `idle_warning`.
        deadlocks: Waits that were refused because they could never have ended.
        loops: How many event loops have a pool.
        create_time: How long connects took.
        wait_time: How long callers waited.
        use_time: How long connections were borrowed.
    """

    name: str
    min_size: int
    max_size: int
    idle: int
    used: int
    opening: int
    closing: int
    pending_requests: int
    timeouts: int
    uses: int
    opened: int
    open_failures: int
    retired: Mapping[str, int]
    held_idle: int
    deadlocks: int
    loops: int
    create_time: Histogram
    wait_time: Histogram
    use_time: Histogram

    def metrics(self) -> tuple[Metric, ...]:
        """Return the figures that OpenTelemetry has a name for."""
        pool = {"db.client.connection.pool.name": self.name}

        def state(name: str) -> dict[str, str]:
            return {**pool, "db.client.connection.state": name}

        prefix = "db.client.connection."
        many = "{connection}"
        return (
            Metric(prefix + "count", "updowncounter", many, self.idle, state("idle")),
            Metric(prefix + "count", "updowncounter", many, self.used, state("used")),
            # What is idle may be as many as there are at all.
            Metric(prefix + "idle.max", "updowncounter", many, self.max_size, pool),
            Metric(prefix + "idle.min", "updowncounter", many, self.min_size, pool),
            Metric(prefix + "max", "updowncounter", many, self.max_size, pool),
            Metric(
                prefix + "pending_requests",
                "updowncounter",
                "{request}",
                self.pending_requests,
                pool,
            ),
            Metric(prefix + "timeouts", "counter", "{timeout}", self.timeouts, pool),
            Metric(prefix + "create_time", "histogram", "s", self.create_time, pool),
            Metric(prefix + "wait_time", "histogram", "s", self.wait_time, pool),
            Metric(prefix + "use_time", "histogram", "s", self.use_time, pool),
        )
