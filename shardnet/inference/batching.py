"""Which waiting steps form the next llama.cpp batch. Pure: plain data in, plain data out.

Steps of one chain with the same number of rows are merged: llama.cpp keeps each sequence's KV apart, and computes several sequences in one
piece only if each brings equally many rows. Decode steps (one row, or a draft and its check) go together, as many as fit; a prompt chunk goes
alone, since it fills the machine by itself. Where both wait they take turns, so that neither a long prompt stops the writers nor many writers a
prompt. Nobody lingers: what waits now is what runs now.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the choice needs to know of one step.

    Attributes:
        ticket: names the step; tickets grow in order of arrival.
        chain: steps with equal chains run through the same shards.
        sequence: steps of one sequence run in order of arrival.
        n_tokens: rows.
        is_prompt: a prompt chunk; else a decode step, with or without a draft.
        max_rows: most rows in a batch of this chain.
    """

    ticket: int
    chain: Hashable
    sequence: Hashable
    n_tokens: int
    is_prompt: bool
    max_rows: int


def is_prompt_chunk(n_tokens: int, sample_from: int | None) -> bool:
    """True for a step that mostly fills KV; False for one row, and for a draft, of which every row is sampled."""
    return n_tokens > 1 and sample_from != 0


def next_batch(waiting: Iterable[Waiting], *, last_was_decode: bool) -> list[Waiting]:
    """Choose the steps that run now, in order of arrival; empty only if nothing waits.

    Args:
        waiting: in order of arrival.
        last_was_decode: the batch before this one was of decode steps: a prompt chunk is next, if there is one.
    """
    seen: set[Hashable] = set()
    prompt: Waiting | None = None
    decodes: dict[tuple[Hashable, int], list[Waiting]] = {}
    for step in waiting:
        if step.sequence in seen:
            continue  # an earlier step of this sequence comes first
        seen.add(step.sequence)
        if step.is_prompt:
            prompt = prompt or step
        else:
            decodes.setdefault((step.chain, step.n_tokens), []).append(step)
    if prompt is not None and (last_was_decode or not decodes):
        return [prompt]
    if not decodes:
        return []
    oldest = min(decodes.values(), key=lambda group: group[0].ticket)
    return oldest[: max(1, oldest[0].max_rows // oldest[0].n_tokens)]
