"""How many tokens of a prompt go through the stages at a time, by what the stages took for batches so far. Pure.

Small chunks keep every stage busy with its own; very small ones pay the way between stages too often, and kernels that take rows in fours stand half
empty. Where others decode on the same stages, their rows wait for one chunk at each stage, so it has to be small. What size is taken changes no
number of an answer (docs/decisions/0006-prompt-chunks.md), as long as no chunk has a single row.
"""

from __future__ import annotations

from typing import NamedTuple

from shardnet.coordinator.placement.law import Law

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
USUAL = 128
"""Attention computes in vain what lies behind each row within its chunk: a larger one has to be seen to be quicker, by `GAIN`."""
GAIN = 0.98
PROMPT_LOOKED_AT = 2048
"""Tokens of a longer prompt that are reckoned with."""
LEAST = 2
"""llama.cpp multiplies one row by other kernels than several."""
ROWS_AHEAD = 1024
"""So many tokens of a prompt may be under way, so that slow links are full of small chunks, too."""


class Chunks(NamedTuple):
    """Tokens at a time: `alone`, and `beside` others that decode on the same stages."""

    alone: int
    beside: int


def choose(law: Law, prompt_tokens: int, most: int) -> Chunks:
    """Returns: the sizes for a prompt.

    Args:
        law: of its pipeline.
        most: that a stage takes at once.
    """
    sizes = [size for size in SIZES if size < most] + [most]
    tokens = min(prompt_tokens, PROMPT_LOOKED_AT)
    alone, best_s = most, float("inf")
    for size in sizes:
        seconds = law.first_token_s(tokens, size)
        if seconds < best_s * (GAIN if size > max(USUAL, sizes[0]) else 1.0):
            alone, best_s = size, seconds
        if size >= tokens:
            break
    # A row that finds a chunk at every stage takes twice as long as without, or as near to that as the smallest size comes.
    fitting = [size for size in sizes if sum(law.stages_s(size)) <= law.token_s()]
    return Chunks(alone, min(alone, max(fitting, default=sizes[0])))


def next_chunk(position: int, n_prompt: int, size: int, most: int) -> int:
    """Returns: where the chunk that begins at `position` ends: no single row is left over, and none is taken alone, where that can be helped.

    Args:
        size: tokens at a time, as wanted.
        most: that a stage takes at once.
    """
    end = min(n_prompt, position + min(max(size, LEAST), most))
    if n_prompt - end == 1:
        end += 1 if end - position < most else -1 if end - position > LEAST else 0
    return end
