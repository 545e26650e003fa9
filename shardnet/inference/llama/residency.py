"""Which weights stay in memory where not all of them fit, and what each pass over a model then has to read. Pure arithmetic.

A model is a row of *stages*: its layers in order, then what stands behind them (the head). Each pass needs every stage once, in order; of a cycle
like that, what was used last is what is needed last, so that keeping the most recent pages, as the kernel does, keeps none that are of use.
So some stages stay, and the others are read for each pass. Those that stay are spread through the row: while one of them computes, there is
time to read the next.

Knows sizes. Refuses to know files, which `read_ahead` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STAGES_IN_FLIGHT = 2
"""Stages that pass through memory at a time: the one that computes and the one that is being read."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a file that belong together."""

    path: Path
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """Returns: the offset behind the last byte."""
        return self.offset + self.nbytes


def stages_to_keep(sizes: Sequence[int], budget: int) -> frozenset[int]:
    """Choose the stages that stay in memory.

    Args:
        sizes: bytes of each stage.
        budget: bytes of weights that may be in memory at a time.

    Returns: numbers of stages, spread evenly; all of them if they fit, else as many as leave room for the others to pass through.
    """
    if sum(sizes) <= budget:
        return frozenset(range(len(sizes)))
    room = budget - STAGES_IN_FLIGHT * max(sizes)
    fewest, most = 0, len(sizes)  # of the numbers of stages that may stay
    while fewest < most:
        count = (fewest + most + 1) // 2
        if sum(sizes[stage] for stage in _spread(len(sizes), count)) <= room:
            fewest = count
        else:
            most = count - 1
    return frozenset(_spread(len(sizes), fewest))


def bytes_read(sizes: Sequence[int], kept: frozenset[int], passes: int) -> int:
    """Returns: bytes that so many passes read: what stays once, all else each time."""
    return sum(size if stage in kept else size * passes for stage, size in enumerate(sizes))


def _spread(n_stages: int, count: int) -> list[int]:
    """Returns: `count` numbers out of `range(n_stages)`, as far apart as can be."""
    return [stage for stage in range(n_stages) if (stage + 1) * count // n_stages > stage * count // n_stages]
