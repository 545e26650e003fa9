"""Which of the waiting rows form the next batch, by what batches of each size took. Pure: times and slots in, a choice out.

A batch's time does not grow with its rows as one would think. Kernels take quantised rows in fours: of a 1B model in Q4_0 four rows took 62 ms on
one thread, and three took 97. A small model's batch of two took more than two batches of one. And llama.cpp computes in one piece only sequences
whose slots are neighbours: four rows of slots 0, 2, 3 and 5 took as long as three batches. So rows travel in blocks of four, eight, ... neighbours,
no larger than leaves every stage one. Larger ones are not always better: of a 1.5B model in Q4_K_M eight rows took 481 ms, and four 203. Blocks have
the size that takes least time per row; they go whole, or one by one where that takes less still. Where a whole block would take much less time per
row, and the rest of it is on its way, it pays to wait a moment.

The planner predicts many streams by the same rules (`block_sizes`, `batches`, `goes_whole`), and by the same times: each node tells it `Pacing.told`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean, median
from typing import NamedTuple

Chain = tuple[str, int, int]
"""Model, first shard, end shard."""
KERNEL_ROWS = 4
"""Rows that kernels take at once: the smallest block."""
SAMPLES = 9
"""Recent batches of a size that its time is the median of."""
TRUSTED = 2
"""A size with fewer samples is tried."""
TRY_EVERY = 1024
"""Each so many batches the size that was not tried for longest is: weather and contexts change."""
TOLD_SAMPLES = 256
"""Recent batches of a size that the planner hears the mean of: it predicts the speed of minutes, which slow batches are a part of, where a choice is
for now and not to be thrown by one."""
STALL = 4.0
"""A batch that took so many times the median says nothing of its size: memory was touched for the first time, or the machine did something else."""
TOLD_ROWS = 16
"""Every size up to this is told; of larger ones those of whole blocks."""
HOPELESS = 1.5
"""A size whose rows took so many times longer is not tried again: it tears a block apart for nothing."""
HELD_BEHIND = 2
"""Rows that each other stage has on average while one is held back here for its companion."""
WHOLE_GAINS = 0.95
"""A whole block has to take at most this share of the time that its rows take one by one, or in blocks of half the size. There are only as many of
the largest blocks as stages, so that each stage waits for the slowest one whenever they change over; single rows queue up, and no stage waits.
At equal times (SmolLM2 in Q4_1, eight streams over two stages) single rows were seen to come 1.15 times as quickly."""
WORTH_WAITING = 0.75
"""The rest of a block is waited for if a row of a whole block takes at most this share of the time that it takes otherwise."""


def block_sizes(expected: int) -> list[int]:
    """Returns: rows of whole blocks, ascending, where so many rows can be here at a time without other stages standing idle for it."""
    return [KERNEL_ROWS << power for power in range(max(1, (expected // KERNEL_ROWS).bit_length()))]


def batches(streams: int, stages: int, full: int) -> tuple[int, ...]:
    """Returns: rows of the batches in which so many streams go round through so many stages, in blocks of `full` rows, where batches are worth it."""
    if full > streams // stages:  # no block is ever whole: as many groups as stages, of what is there
        groups = min(streams, stages)
        return tuple(streams // groups + (group < streams % groups) for group in range(groups))
    rest = streams % full
    return (full,) * (streams // full) + ((rest,) if rest else ())


def goes_whole(rows: int, single_s: float, whole_s: float) -> bool:
    """True if so many rows together take less time than one after the other, by more than their change-overs cost."""
    return whole_s <= WHOLE_GAINS * rows * single_s


def may_hold(here: int, elsewhere: int, stages: int) -> bool:
    """True if a row that is done may leave with the next one: sending and waking are paid once for two, and no other stage has to wait for it.

    Args:
        here: rows that waited here, that one included.
        elsewhere: rows of the same runs that did not.
    """
    return here > 1 and elsewhere >= HELD_BEHIND * (stages - 1) > 0


class WaitingRow(NamedTuple):
    """A row of a run. `ticket` grows in order of arrival; `slot` is its sequence's."""

    ticket: int
    slot: int
    arrived_s: float


class Choice(NamedTuple):
    """Tickets of the next batch, by slot; or none, and how long to wait for more rows."""

    tickets: tuple[int, ...]
    wait_s: float = 0.0


@dataclass(slots=True)
class _Size:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=TOLD_SAMPLES))
    beside: deque[float] = field(default_factory=lambda: deque(maxlen=TOLD_SAMPLES))
    noted_at: int = 0

    @property
    def mean_s(self) -> float:
        longest_s = STALL * median(self.seconds)
        return fmean(one for one in self.seconds if one <= longest_s)

    @property
    def median_s(self) -> float:
        return median(islice(reversed(self.seconds), SAMPLES))


class Pacing:
    """What batches of rows in neighbouring slots took, by chain of shards and number of rows."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[Chain, int], _Size] = {}
        self._batches = 0

    def note(self, chain: Chain, rows: int, seconds: float, beside_s: float = 0.0) -> None:
        """A batch is done.

        Args:
            seconds: all that the engine spent on it: taking its rows in, sampling and handing on included.
            beside_s: the part of that which was spent on rows that come from other nodes and go to them, not on computing.
        """
        size = self._sizes.setdefault((chain, rows), _Size())
        size.seconds.append(seconds)
        size.beside.append(beside_s)
        self._batches += 1
        size.noted_at = self._batches

    def told(self) -> Iterator[tuple[Chain, int, float, float]]:
        """Yields: chain, rows, mean seconds of recent batches and what of it is usually spent beside computing, for each size that was run more than
        by chance; what ran last comes last."""
        for (chain, rows), size in sorted(self._sizes.items(), key=lambda item: item[1].noted_at):
            if len(size.seconds) >= TRUSTED and (rows <= TOLD_ROWS or not rows & (rows - 1)):
                yield chain, rows, size.mean_s, median(size.beside)

    def forget(self, model_id: str) -> None:
        """The model's chains are not what they were."""
        self._sizes = {key: size for key, size in self._sizes.items() if key[0][0] != model_id}

    def choose(
        self, chain: Chain, waiting: Sequence[WaitingRow], active: Collection[int], expected: int, now_s: float
    ) -> Choice:
        """Form the next batch of rows through a chain.

        Args:
            waiting: one of each sequence, at least one.
            active: slots of all sequences that have rows to come through this chain, those that wait included.
            expected: rows that can be here at a time without other stages standing idle for it.
        """
        full = self._full(chain, expected)
        blocks: dict[int, list[WaitingRow]] = {}
        for row in sorted(waiting):
            blocks.setdefault(row.slot // full, []).append(row)
        for number, rows in blocks.items():
            members = [slot for slot in active if slot // full == number]
            if len(rows) >= len(members):
                return self._of(chain, rows, expected)
            if len(members) == full <= expected:
                wait_s = self._wait_s(chain, len(rows), full, now_s - rows[0].arrived_s)
                if wait_s > 0:
                    whole = next((one for one in blocks.values() if len(one) == full), None)
                    return Choice((), wait_s) if whole is None else self._of(chain, whole, expected)
        return self._of(chain, next(iter(blocks.values())), expected)

    def _full(self, chain: Chain, expected: int) -> int:
        """Returns: rows of a whole block: of the sizes that fit the one that takes least time per row, or one that is to be tried."""
        sizes = block_sizes(expected)
        if len(sizes) == 1:
            return sizes[0]
        known = [(rows, size) for rows in sizes if (size := self._known(chain, rows)) is not None]
        if len(known) < len(sizes):
            return next(rows for rows in reversed(sizes) if self._known(chain, rows) is None)
        best, best_s = 0, 0.0
        for rows, size in known:
            if not best or size.median_s / rows <= WHOLE_GAINS * best_s:
                best, best_s = rows, size.median_s / rows
        if self._batches % TRY_EVERY:
            return best
        open_ones = [(size.noted_at, rows) for rows, size in known if size.median_s / rows < HOPELESS * best_s]
        return min(open_ones)[1]

    def _of(self, chain: Chain, rows: Sequence[WaitingRow], expected: int) -> Choice:
        """Returns: all rows of a block that stand beside the oldest, or that one alone."""
        oldest, by_slot = rows[0], {row.slot: row for row in rows}
        first = end = oldest.slot
        while first - 1 in by_slot:
            first -= 1
        while end in by_slot:
            end += 1
        if self._best(chain, end - first, expected) == 1:
            return Choice((oldest.ticket,))
        return Choice(tuple(by_slot[slot].ticket for slot in range(first, end)))

    def _best(self, chain: Chain, rows: int, expected: int) -> int:
        """Returns: 1 or `rows`, whichever takes less time per row.

        Of more rows than `expected` the rest is paid for by other stages, which stand idle meanwhile: they have to be worth that too.
        """
        if rows == 1:
            return 1
        whole, single = self._known(chain, rows), self._known(chain, 1)
        if whole is None:
            return rows
        if single is None:
            return 1
        single_s, whole_s = rows * single.median_s, whole.median_s
        is_open = max(single_s, whole_s) < HOPELESS * min(single_s, whole_s)
        if is_open and self._batches % TRY_EVERY == 0:
            return 1 if single.noted_at < whole.noted_at else rows
        return rows if goes_whole(min(rows, max(1, expected)), single.median_s, whole_s) else 1

    def _wait_s(self, chain: Chain, rows: int, full: int, waited_s: float) -> float:
        block = self._known(chain, full)
        here = [size.median_s / count for count in (1, rows) if (size := self._known(chain, count)) is not None]
        if block is None or not here or block.median_s / full > WORTH_WAITING * min(here):
            return 0.0
        return max(0.0, block.median_s - waited_s)

    def _known(self, chain: Chain, rows: int) -> _Size | None:
        size = self._sizes.get((chain, rows))
        return size if size is not None and len(size.seconds) >= TRUSTED else None
