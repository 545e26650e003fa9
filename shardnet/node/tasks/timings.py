"""How long batches take on this node, for the coordinator's placement. Pure.

Steps of their own (prompt chunks) are timed by the tasks that bring them. Of the rows of runs most pass the daemon by, and those that do not tell the
time of their batch once for each row: there the engine, which forms the batches, says what each size took, and its word counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from shardnet.ids import ShardKey
from shardnet.inference.engine.protocol import BatchTime
from shardnet.inference.worker.pacing import Chain

MAX_STEPS = 256
"""Recent batches that a median is taken of."""

NEAR = 1024
"""Chunks of a prompt further behind than this take longer for their attention, which the law reckons with by itself."""

EXACT_ROWS = 16
"""Kernels take rows in fours: four may take less time than three."""


@dataclass(frozen=True, slots=True)
class ShardTimes:
    """Microseconds of a batch through one shard.

    Attributes:
        step_us: of one row; None: none was run yet.
        rows_us: (rows, microseconds) of larger batches, rows ascending.
    """

    step_us: float | None = None
    rows_us: tuple[tuple[int, float], ...] = ()


class StepTimes:
    """Recent batches of each chain of shards, by their size: each number of rows up to EXACT_ROWS; then 17 to 31, 32 to 63, ... rows."""

    def __init__(self) -> None:
        self._batches: dict[tuple[Chain, int], deque[tuple[int, float]]] = {}
        self._handovers: deque[float] = deque(maxlen=MAX_STEPS)
        self._told: dict[tuple[Chain, int], tuple[int, float]] = {}
        self._told_handovers: tuple[float, ...] = ()

    def take(self, batches: Iterable[BatchTime]) -> None:
        """Take in what the engine says of its batches, in place of all that it said before.

        What handing over a single row takes is told apart: a pipeline of one stage does not have it.
        """
        batches = tuple(batches)
        beside_us = {one.chain: one.beside_us for one in batches if one.rows == 1 and one.beside_us}
        self._told = {
            (one.chain, _size(one.rows)): (one.rows, max(0.0, one.us - beside_us.get(one.chain, 0.0)))
            for one in batches
        }
        self._told_handovers = tuple(beside_us.values())

    def add(
        self, chain: Chain, rows: int, compute_us: float, handover_us: float | None = None, *, position: int = 0
    ) -> None:
        """Note one batch; no chunk far behind in its prompt.

        Args:
            position: of its first row.
            handover_us: what the way from the daemon to the engine and back took, where a step went that way alone.
        """
        if rows > EXACT_ROWS and position >= NEAR:
            return
        key = (chain, _size(rows))
        batches = self._batches.pop(key, None)
        if batches is None:
            batches = deque(maxlen=MAX_STEPS)
        self._batches[key] = batches  # the one that ran last stands last
        batches.append((rows, compute_us))
        if handover_us is not None and rows == 1:
            self._handovers.append(handover_us)

    @property
    def handover_us(self) -> float | None:
        """Returns: microseconds that a step costs beside its computing, from engine to engine or else from the daemon to the engine and back;
        None: not known yet."""
        handovers = self._told_handovers or self._handovers
        return median(handovers) if handovers else None

    def per_shard(self, layers: Mapping[ShardKey, int]) -> dict[ShardKey, ShardTimes]:
        """Returns: the times of each shard that was run; a chain's time is shared out by its shards' layers.

        A shard may have run in several chains, as plans came and went. Of each size the chain counts that ran it last.

        Args:
            layers: number of layers of the shards.
        """
        found: dict[ShardKey, dict[int, tuple[int, float]]] = {}
        times = {
            key: (round(median(rows for rows, _ in each)), median(us for _, us in each))
            for key, each in self._batches.items()
            if key not in self._told
        }
        for (chain, size), (rows, compute_us) in [*times.items(), *self._told.items()]:
            model_id, first, end = chain
            keys = [ShardKey((model_id, shard_id)) for shard_id in range(first, end)]
            total = sum(layers.get(key, 0) for key in keys)
            for key in keys:
                if not total or key not in layers:
                    continue
                found.setdefault(key, {})[size] = rows, compute_us * layers[key] / total
        return {
            key: ShardTimes(
                sizes[1][1] if 1 in sizes else None, tuple(sorted(one for size, one in sizes.items() if size != 1))
            )
            for key, sizes in found.items()
        }


def _size(rows: int) -> int:
    """Returns: the same for all numbers of rows that are kept together."""
    return rows if rows <= EXACT_ROWS else EXACT_ROWS + rows.bit_length()
