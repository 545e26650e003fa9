"""How often a value was how large: what a histogram of Prometheus is made of. Pure; belongs to one thread.

prometheus-client's own Histogram looks its labels up and takes a lock for each value, which is too much where every token comes by.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.utils import floatToGoString

TOKEN_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    1.5,
    2.5,
    10,
)
"""Between two tokens: from a small model on one machine to a large one over slow links; close together where people begin to notice."""
GAP_S = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60)
"""The longest of those of one answer."""
FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
WAIT_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ANSWER_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
LAG_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)
"""Of one batch of the engine: single rows of decode steps, then prompt chunks."""


class Buckets:
    """Counts of values by size, and their sum.

    Args:
        bounds: upper bounds, inclusive, ascending; larger values are counted above the last one.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Returns: how many values there were."""
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Returns: (upper bound, values that are no larger), as the exposition format has them; the last bound is +Inf."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, accumulate(self._counts), strict=True)]
