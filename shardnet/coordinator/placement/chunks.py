"""How many tokens of a prompt go through the stages at a time, by what the stages took for batches so far. Pure.

Small chunks keep every stage busy with its own; very small ones pay the way between stages too often, and kernels that take rows in fours stand half
empty. Where others decode on the same stages, their rows wait for one chunk at each stage, so it has to be small. What size is taken changes no
number of an answer (docs/decisions/0006-prompt-chunks.md), as long as no chunk has very few rows, and each begins where a block of rows ends.
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
LEAST = 8
"""llama.cpp multiplies one row by other kernels than several, and weights of some types fewer than eight rows by others than more."""
BLOCK = 4
"""Rows that kernels take at once: of some types of weights the rows that are left over at a chunk's end go through others."""
ROWS_AHEAD = 1024
"""So many tokens of a prompt may be under way, so that slow links are full of small chunks, too."""
SHORT = 64
"""Tokens of a prompt that go at once while prompts are all there is: rows of a larger chunk take less time, and the other prompts fill the stages."""


class Chunks(NamedTuple):
    """Tokens at a time: `alone`, `beside` others that decode on the same stages, and what is left of a short prompt `together` with other prompts."""

    alone: int
    beside: int
    together: int


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
    return Chunks(alone, min(alone, max(fitting, default=sizes[0])), min(SHORT, most))


def size_now(chunks: Chunks, left: int, *, are_others: bool, do_others_decode: bool) -> int:
    """Returns: how many tokens of a prompt are to go at a time now.

    Args:
        left: tokens of it that are still to go.
        are_others: other requests run on the same stages.
        do_others_decode: one of them has its first token already.
    """
    if not are_others:
        return chunks.alone
    return chunks.together if left <= SHORT and not do_others_decode else chunks.beside


def next_chunk(position: int, n_prompt: int, size: int, most: int) -> int:
    """Returns: where the chunk that begins at `position` ends: behind whole blocks, unless it is the last one, and no chunk has fewer than `LEAST`
    rows, where that can be helped; so each row's numbers are the same for every size.

    Args:
        size: tokens at a time, as wanted.
        most: that a stage takes at once.
    """
    least, block = (LEAST, BLOCK) if most >= 2 * LEAST else (2, 1)
    end = position + min(max(size, least), most)
    if end >= n_prompt:
        return n_prompt
    left = n_prompt - (end - (end - position) % block)
    if left < least:
        if n_prompt - position <= most:
            return n_prompt
        end = max(position + 1, n_prompt - least)
    return end - (end - position) % block if end - position >= block else end


def n_as_cold(n_prompt: int, begin: int, most: int) -> int:
    """Returns: how many rows of a prompt have the numbers of every cold start that begins alike, if it is run by `next_chunk` from `begin` on: those
    of whole blocks."""
    is_even = not begin % BLOCK and most >= 2 * LEAST and n_prompt - begin >= LEAST
    return n_prompt - n_prompt % BLOCK if is_even else begin
