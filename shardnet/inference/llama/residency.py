"""Which weights stay in memory where not all of them fit, and what each pass over a model then has to read. Pure arithmetic.

A model is a row of *stages*: its layers in order, then what stands behind them (the head). Each pass needs every stage once, in order; of a cycle
like that, what was used last is what is needed last, so that keeping the most recent pages, as the kernel does, keeps none that are of use.
So a fixed part of each stage stays, and the rest is read for each pass. The rest is equally long everywhere, as far as stages are that long: so
reading is spread evenly over a pass, and what passes through at a time, the rest of one stage that computes and that of one being read,
takes less room than two whole stages would.

Knows sizes. Refuses to know files, which `read_ahead` reads.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

JOINED_BELOW_BYTES = 64 << 10
"""Extents with less than this between them are read as one."""


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


def bytes_to_keep(sizes: Sequence[int], budget: int) -> tuple[int, ...]:
    """Choose what stays in memory.

    Args:
        sizes: bytes of each stage.
        budget: bytes of weights that may be in memory at a time.

    Returns: bytes of each stage that stay; all of them if they fit, none where there is no room even for two stages to pass through, else as many as
        leave room for the rest to pass through.
    """
    if sum(sizes) <= budget:
        return tuple(sizes)
    too_few, most = -1, max(sizes, default=0)  # bytes of a stage, at most, that pass through
    if _room_for(sizes, most) > budget:
        return (0,) * len(sizes)
    while most - too_few > 1:
        middle = (too_few + most) // 2
        if _room_for(sizes, middle) <= budget:
            most = middle
        else:
            too_few = middle
    return tuple(max(0, size - most) for size in sizes)


def passing_part(extents: Sequence[Extent], kept: int) -> tuple[Extent, ...]:
    """Returns: what a stage reads for each pass where so many bytes stay, its first ones; it begins where a page does."""
    found = []
    for one in extents:
        first = max(one.offset, (one.offset + kept) // mmap.PAGESIZE * mmap.PAGESIZE) if kept else one.offset
        if kept < one.nbytes:
            found.append(Extent(one.path, first, one.end - first))
        kept = max(0, kept - one.nbytes)
    return tuple(found)


def joined(extents: Sequence[Extent]) -> tuple[Extent, ...]:
    """Returns: the same bytes in as few extents as can be, by file and offset; small gaps between them count in."""
    found: list[Extent] = []
    for extent in sorted(extents, key=lambda one: (one.path, one.offset)):
        last = found[-1] if found else None
        if last is not None and last.path == extent.path and extent.offset - last.end < JOINED_BELOW_BYTES:
            found[-1] = Extent(last.path, last.offset, max(last.end, extent.end) - last.offset)
        else:
            found.append(extent)
    return tuple(found)


def least_budget(sizes: Sequence[int]) -> int:
    """Returns: the smallest budget that the stages can pass through, one computing while the next is read; all of them where that is less."""
    return min(sum(sizes), _most_passing(sizes))


def bytes_read(sizes: Sequence[int], kept: Sequence[int], passes: int) -> int:
    """Returns: bytes that so many passes read: what stays once, all else each time."""
    return sum(stays + (size - stays) * passes for size, stays in zip(sizes, kept, strict=True))


def _room_for(sizes: Sequence[int], passing: int) -> int:
    """Returns: the budget that is needed where so many bytes of each stage pass through, and what is longer stays. The more pass, the less it is."""
    return sum(max(0, size - passing) for size in sizes) + _most_passing([min(size, passing) for size in sizes])


def _most_passing(sizes: Sequence[int]) -> int:
    """Returns: the most that two stages take which follow each other: one computes, one is being read."""
    return max(map(sum, zip(sizes, [*sizes[1:], *sizes[:1]], strict=True)), default=0)
