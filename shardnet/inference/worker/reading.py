"""What a step tells of a prompt's own rows: log-probabilities of the tokens that follow, or final hidden states. Lives in the engine process only.

llama.cpp keeps the logits of all rows that are read, a whole vocabulary each. So the shard with the head runs such a step in pieces of a few rows,
cut where that changes no number, and what leaves it is one hidden state, or a few numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError
from shardnet.inference.engine.memory import READ_ROWS
from shardnet.inference.engine.steps import NO_TOKEN, READINGS
from shardnet.inference.llama.batch import Rows
from shardnet.inference.llama.sampling import top_logprobs
from shardnet.inference.worker.shard import Shard
from shardnet.inference.worker.tasks import NOTHING_READ, Read, Task

BLOCK = 4
"""Rows that a kernel takes at once."""


def pieces(kind: str, count: int, most: int = READ_ROWS) -> list[tuple[int, int, bool]]:
    """Cut a step's rows so that no piece that is read has more than `most`, such that the numbers are those of the step in one piece.

    Kernels take rows in blocks of four where weights were laid out anew (Q4_K and the like), so cuts are where blocks end; and one row alone is
    multiplied by others than several, so no piece has a single one (findings/llama-cpp-rows-beside-others.sh).

    Args:
        kind: one of `READINGS`.
        count: rows of the step.
        most: a multiple of four, 8 at least.

    Returns: first row, end, and whether it is read, of each piece in order.
    """
    if count <= most:
        return [(0, count, True)]
    if kind == "first":
        cut = most if count - most > 1 else most - BLOCK
        return [(0, cut, True), (cut, count, False)]
    if kind == "last":
        cut = -(-(count - most) // BLOCK) * BLOCK
        return [(0, cut, False), (cut, count, True)]
    cuts = [*range(0, count, most), count]
    if count - cuts[-2] == 1:
        cuts[-2] -= BLOCK
    return [(first, end, True) for first, end in pairwise(cuts)]


class Reader:
    """Runs one step through the shard with the head, and reads its rows.

    Attributes:
        read: what it found.
        last_row: the step's last row within the batch that ran last.
    """

    def __init__(self, task: Task) -> None:
        self._step = task.step
        self._kind = READINGS[task.step.reads]
        self._tokens = task.tokens
        self.read = NOTHING_READ
        self.last_row = 0

    def decode(self, shard: Shard, rows: Rows) -> None:
        """Run the step. Raises: as `LlamaContext.decode`; EngineError for numbers that are none."""
        if self._kind == "logprobs":
            self._read_logprobs(shard, rows)
        else:
            self._read_hidden(shard, rows)

    def _batches(self, rows: Rows) -> Iterator[tuple[int, Rows, bool]]:
        for first, end, is_read in pieces(self._kind, len(rows.positions)):
            self.last_row = end - first - 1
            yield first, _cut(rows, first, end), is_read

    def _read_hidden(self, shard: Shard, rows: Rows) -> None:
        found: NDArray[np.float64] = np.zeros(shard.model.n_embd, dtype=np.float64)
        for _, batch, is_read in self._batches(rows):
            if not is_read:
                shard.decode(batch)
                continue
            shard.decode_for_embeddings(batch)
            count = len(batch.positions)
            wanted = {"first": range(1), "last": range(count - 1, count), "sum": range(count)}[self._kind]
            for row in wanted:
                found += shard.context.embedding(row)
        if not np.isfinite(found).all():
            raise EngineError(
                "the model gave hidden states that are not numbers: its file or its arithmetic is damaged"
            )
        self.read = Read(pooled=found.astype(np.float32)[np.newaxis])

    def _read_logprobs(self, shard: Shard, rows: Rows) -> None:
        following = [*self._tokens[1:].tolist(), self._step.next_token]
        count = len(following) - (self._step.next_token == NO_TOKEN)
        tokens: NDArray[np.int32] = np.full((count, 1 + self._step.top), NO_TOKEN, dtype=np.int32)
        logprobs: NDArray[np.float32] = np.zeros(tokens.shape, dtype=np.float32)
        for first, batch, _ in self._batches(replace(rows, outputs=np.ones(len(rows.positions), dtype=np.bool_))):
            shard.decode(batch)
            for row in range(first, min(first + len(batch.positions), count)):
                found = top_logprobs(shard.context.logits(row - first), following[row], self._step.top)
                for column, one in enumerate(found):
                    tokens[row, column], logprobs[row, column] = one
        if count:
            self.read = Read(tokens=tokens, logprobs=logprobs)


def _cut(rows: Rows, first: int, end: int) -> Rows:
    return Rows(
        rows.positions[first:end],
        rows.slots[first:end],
        rows.outputs[first:end],
        tokens=None if rows.tokens is None else rows.tokens[first:end],
        hidden=None if rows.hidden is None else rows.hidden[first:end],
    )
