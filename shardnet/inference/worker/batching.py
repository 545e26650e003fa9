"""Which waiting steps form the next llama.cpp batch. Pure: plain data in, plain data out.

Decode steps, of one row each, go together where they run through one chain, as many as fit: llama.cpp keeps each sequence's KV apart. A prompt
chunk, of more rows, goes alone, since it fills the machine by itself. Where both wait they take turns, so that neither a long prompt stops the
writers nor many writers a prompt: behind a chunk every sequence that waits runs one step before the next chunk does, also where the steps go one by
one, so that no token waits for more than one chunk. Nobody lingers: what waits now is what runs now.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the choice needs to know of one step.

    Attributes:
        ticket: names the step; tickets grow in order of arrival.
        chain: steps with equal chains run through the same shards.
        sequence: steps of one sequence run in order of arrival.
        is_prompt: a prompt chunk, or a row that is read like one; else a decode step.
        max_rows: most rows in a batch of this chain.
    """

    ticket: int
    chain: Hashable
    sequence: Hashable
    is_prompt: bool
    max_rows: int


def next_batch(waiting: Iterable[Waiting], *, owed: Collection[Hashable]) -> list[Waiting]:
    """Choose the steps that run now, in order of arrival; empty only if nothing waits.

    Args:
        waiting: in order of arrival.
        owed: sequences whose next step, if it is a decode step, runs before another prompt chunk.
    """
    seen: set[Hashable] = set()
    prompt: Waiting | None = None
    decodes: dict[Hashable, list[Waiting]] = {}
    for step in waiting:
        if step.sequence in seen:
            continue  # an earlier step of this sequence comes first
        seen.add(step.sequence)
        if step.is_prompt:
            prompt = prompt or step
        else:
            decodes.setdefault(step.chain, []).append(step)
    if prompt is not None and not any(step.sequence in owed for group in decodes.values() for step in group):
        return [prompt]
    if not decodes:
        return []
    oldest = min(decodes.values(), key=lambda group: group[0].ticket)
    return oldest[: oldest[0].max_rows]
