"""Which waiting steps form the next llama.cpp batch. Pure: plain data and times in, plain data out.

Decode steps, of one row each, go together where they run through one chain, as many as fit: llama.cpp keeps each sequence's KV apart. A prompt
chunk, of more rows, goes alone, since it fills the machine by itself; but short last ones of equally many rows, which llama.cpp computes in one
piece, go together, a block of sequences. Where both wait they take turns, so that neither a long prompt stops the
writers nor many writers a prompt: behind a chunk every sequence that waits runs one step before the next chunk does, also where the steps go one by
one, so that no token waits for more than one chunk of long prompts. Nobody lingers: what waits now is what runs now.

Short prompts often come together. In turns with the first ones' rows, batches would have few rows, which is dear, and each of the first answers
would wait for a chunk several times. So a chunk that ends its prompt passes the rows that are owed a step, and chunks of longer prompts, for
`BURST_S` altogether; time in which none does gives as much back. Then the rows of all run together.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass

from shardnet.inference.worker.pacing import KERNEL_ROWS

BURST_S = 0.5
"""Seconds that chunks which end their prompts may put others off at once: six short prompts of a 0.5B model on one core. Whoever reads an answer
hardly minds one pause of that length."""

TOGETHER = KERNEL_ROWS
"""Last chunks that go together at most: their sequences' rows are a block of decode rows then."""
TOGETHER_ROWS = 64
"""Rows that they may have at most: more take no less time per row."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the choice needs to know of one step.

    Attributes:
        ticket: names the step; tickets grow in order of arrival.
        chain: steps with equal chains run through the same shards.
        sequence: steps of one sequence run in order of arrival.
        is_prompt: a prompt chunk, or a row that is read like one; else a decode step.
        max_rows: most rows in a batch of this chain.
        last_rows: rows of a prompt's last chunk, a token being all that is wanted of it; 0: it is another step.
    """

    ticket: int
    chain: Hashable
    sequence: Hashable
    is_prompt: bool
    max_rows: int
    last_rows: int = 0


class Turns:
    """Whose turn it is, by what ran before. Times are seconds of one clock, and grow."""

    def __init__(self) -> None:
        # Sequences whose next step, if it is a decode step, runs before another prompt chunk; None: a chunk has just run.
        self._owed: set[Hashable] | None = None
        self._burst_s = BURST_S  # what is left of it
        self._seen_s = 0.0
        self._passes = False  # what was chosen puts others off

    def choose(self, waiting: Collection[Waiting], now_s: float) -> list[Waiting]:
        """Choose the steps that run now, in order of arrival; empty only if nothing waits.

        Args:
            waiting: in order of arrival.
        """
        self._burst_s = min(BURST_S, self._burst_s + now_s - self._seen_s)
        self._seen_s = now_s
        if self._owed is None:
            self._owed = {step.sequence for step in waiting if not step.is_prompt}
        batch = next_batch(waiting, owed=self._owed, may_pass=self._burst_s > 0.0)
        self._passes = any(step.last_rows for step in batch) and batch != next_batch(waiting, owed=self._owed)
        return batch

    def ran(self, batch: Collection[Waiting], now_s: float) -> None:
        """What was chosen, or a part of it, was run, and is done now."""
        if not any(step.is_prompt for step in batch):
            if self._owed:
                self._owed.difference_update([step.sequence for step in batch])
            return
        self._owed = None
        if self._passes:
            self._burst_s -= now_s - self._seen_s
            self._seen_s = now_s


def next_batch(waiting: Iterable[Waiting], *, owed: Collection[Hashable], may_pass: bool = False) -> list[Waiting]:
    """Choose the steps that run now, in order of arrival; empty only if nothing waits.

    Args:
        waiting: in order of arrival.
        owed: sequences whose next step, if it is a decode step, runs before another prompt chunk.
        may_pass: chunks that end their prompts run before all others.
    """
    seen: set[Hashable] = set()
    prompts: list[Waiting] = []
    decodes: dict[Hashable, list[Waiting]] = {}
    for step in waiting:
        if step.sequence in seen:
            continue  # an earlier step of this sequence comes first
        seen.add(step.sequence)
        if step.is_prompt:
            prompts.append(step)
        else:
            decodes.setdefault(step.chain, []).append(step)
    last = next((step for step in prompts if step.last_rows), None)
    if may_pass and last is not None:
        return _together(last, prompts)
    if prompts and not any(step.sequence in owed for group in decodes.values() for step in group):
        return _together(prompts[0], prompts)
    if not decodes:
        return []
    oldest = min(decodes.values(), key=lambda group: group[0].ticket)
    return oldest[: oldest[0].max_rows]


def _together(first: Waiting, prompts: Iterable[Waiting]) -> list[Waiting]:
    """Returns: a chunk, and those that go with it.

    Kernels take rows in fours, and what is left over otherwise. No row of a whole block may be left over at the end of such a batch that is not alone
    (docs/decisions/0013-shared-prompts.md), wherever llama.cpp divides it between sequences: with one row behind whole blocks two would be.
    """
    if not first.last_rows or first.last_rows % KERNEL_ROWS == 1:
        return [first]
    like_it = [step for step in prompts if step.chain == first.chain and step.last_rows == first.last_rows]
    return like_it[: max(1, min(TOGETHER, min(TOGETHER_ROWS, first.max_rows) // first.last_rows))]
