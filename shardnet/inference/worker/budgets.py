"""The memory that all streamed shards of an engine share. Shards come on the loader's thread and go on the engine's; pure arithmetic beside that."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from shardnet.inference.llama.read_ahead import ReadAhead
from shardnet.inference.llama.residency import least_budget


class Shared(NamedTuple):
    """What is shared out now.

    Attributes:
        total: bytes of all budgets.
        stages: bytes of each stage, of each shard.
    """

    total: int = 0
    stages: tuple[tuple[int, ...], ...] = ()

    @property
    def least(self) -> int:
        """Returns: the smallest total that would do."""
        return sum(map(least_budget, self.stages))


def share_out(total: int, shards: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Divide memory between streamed shards.

    Args:
        total: bytes, at least as many as all need at least.
        shards: bytes of each stage, of each shard.

    Returns: the budget of each: its whole weights where all fit, else the least that it needs, and of what is left a part by what it lacks.
    """
    lacking = [sum(stages) - least_budget(stages) for stages in shards]
    left = max(0, total - sum(map(least_budget, shards)))
    return tuple(
        least_budget(stages) + (lack if left >= sum(lacking) else left * lack // sum(lacking))
        for stages, lack in zip(shards, lacking, strict=True)
    )


class Budgets:
    """The streamed shards of one engine. What they have together only changes when a shard comes that finds more or less."""

    def __init__(self) -> None:
        self._shards: list[ReadAhead] = []
        self._total = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Returns: bytes of all budgets."""
        with self._lock:
            return sum(shard.budget for shard in self._shards)

    def shared(self) -> Shared:
        """Returns: what is shared out now."""
        with self._lock:
            total = max(self._total, sum(shard.budget for shard in self._shards)) if self._shards else 0
            return Shared(total, tuple(shard.stage_bytes for shard in self._shards))

    def make_room(self, budgets: Sequence[int], total: int) -> None:
        """Give each shard another budget, in the order of `shared`, before one more is opened."""
        with self._lock:
            self._total = total
            for shard, budget in zip(self._shards, budgets, strict=False):
                shard.set_budget(budget)

    def join(self, shard: ReadAhead) -> None:
        """A shard was opened, with its part."""
        with self._lock:
            self._shards.append(shard)

    def leave(self, shard: ReadAhead | None) -> None:
        """A shard has gone, or could not be opened (None); the others have its part."""
        with self._lock:
            if shard is not None:
                self._shards.remove(shard)
            for one, budget in zip(
                self._shards, share_out(self._total, [one.stage_bytes for one in self._shards]), strict=True
            ):
                one.set_budget(budget)
