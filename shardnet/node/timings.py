"""How long decode steps take on this node, for the coordinator's placement. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

from shardnet.ids import ShardKey

Chain = tuple[str, int, int]
"""`(model_id, first_shard, end_shard)`."""
MAX_STEPS = 64
"""Recent steps that the median is taken of."""


class StepTimes:
    """Recent decode steps of each chain of shards."""

    def __init__(self) -> None:
        self._steps: dict[Chain, deque[float]] = {}

    def add(self, chain: Chain, compute_us: float) -> None:
        """Note one step of one token."""
        steps = self._steps.get(chain)
        if steps is None:
            steps = self._steps[chain] = deque(maxlen=MAX_STEPS)
        steps.append(compute_us)

    def per_shard(self, layers: Mapping[ShardKey, int]) -> dict[ShardKey, float]:
        """Returns: median microseconds of one decode step through each shard; a chain's time is shared out by its shards' layers.

        Args:
            layers: number of layers of the shards.
        """
        found: dict[ShardKey, float] = {}
        for (model_id, first, end), steps in self._steps.items():
            keys = [ShardKey((model_id, shard_id)) for shard_id in range(first, end)]
            total = sum(layers.get(key, 0) for key in keys)
            for key in keys:
                if total and key in layers:
                    found[key] = median(steps) * layers[key] / total
        return found
