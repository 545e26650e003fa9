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
from statistics import median

LARGE = 2
"""A stage so many times larger than the median, the head of a large vocabulary say, is kept first: passing through, it would take as much."""


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
    large = frozenset(stage for stage, size in enumerate(sizes) if size > LARGE * median(sizes))
    choices = [_most_beside(sizes, budget, first) for first in (frozenset[int](), large)]
    return max(choices, key=lambda kept: sum(sizes[stage] for stage in kept))


def least_budget(sizes: Sequence[int]) -> int:
    """Returns: the smallest budget that the stages can pass through, one computing while the next is read; all of them where that is less."""
    return min(sum(sizes), max(map(sum, zip(sizes, [*sizes[1:], *sizes[:1]], strict=True)), default=0))


def bytes_read(sizes: Sequence[int], kept: frozenset[int], passes: int) -> int:
    """Returns: bytes that so many passes read: what stays once, all else each time."""
    return sum(size if stage in kept else size * passes for stage, size in enumerate(sizes))


def _most_beside(sizes: Sequence[int], budget: int, first: frozenset[int]) -> frozenset[int]:
    """Returns: `first`, and of the other stages as many as leave room for the rest to pass through; none if `first` does not."""
    others = [stage for stage in range(len(sizes)) if stage not in first]
    if not _fits(sizes, budget, first):
        return frozenset()
    fewest, most = 0, len(others)  # of the other stages that may stay
    while fewest < most:
        count = (fewest + most + 1) // 2
        if _fits(sizes, budget, first | _spread(others, count)):
            fewest = count
        else:
            most = count - 1
    return first | _spread(others, fewest)


def _fits(sizes: Sequence[int], budget: int, kept: frozenset[int]) -> bool:
    """True if there is room for what is kept, and at a time for two of the others that follow each other: one computes, one is being read."""
    passing = [size for stage, size in enumerate(sizes) if stage not in kept]
    pairs = zip(passing, passing[1:] + passing[:1], strict=True)
    return sum(sizes[stage] for stage in kept) + max(map(sum, pairs), default=0) <= budget


def _spread(stages: Sequence[int], count: int) -> frozenset[int]:
    """Returns: `count` of the stages, as far apart as can be."""
    n = len(stages)
    return frozenset(stage for at, stage in enumerate(stages) if (at + 1) * count // n > at * count // n)
