"""Steps as the engine runs them: with their tensors, side by side in one batch, and what each came to. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import ShardnetError
from shardnet.inference.llama_batch import Rows
from shardnet.inference.sequences import SequenceState
from shardnet.inference.steps import Step
from shardnet.steps import TokenLogprob


@dataclass(slots=True)
class Task:
    """A step that waits, with its tensors: `tokens` int32 (n,), `hidden` float32 (n, n_embd) or None. `row`: of a run, that it is (`runs.Row`)."""

    ticket: int
    step: Step
    tokens: NDArray[np.int32]
    hidden: NDArray[np.float32] | None
    arrived_s: float
    row: object | None = None


@dataclass(slots=True)
class Outcome:
    """What a step came to. `hidden` float32 (n, n_embd) is a view that the next batch overwrites; `logits` float32 (rows, n_vocab)."""

    task: Task
    error: ShardnetError | None = None
    hidden: NDArray[np.float32] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    logits: NDArray[np.float32] | None = None
    compute_s: float = 0.0
    batch_rows: int = 0


def rows_of(ready: Sequence[tuple[Task, SequenceState]]) -> Rows:
    """Returns: the rows of all steps, which stand in the order of their slots."""
    first, n_each = ready[0][0].step, ready[0][0].step.n_tokens
    each = np.arange(n_each, dtype=np.int32)
    if len(ready) == 1:
        positions, slots = each + np.int32(first.position), np.full(n_each, ready[0][1].slot, dtype=np.int32)
    else:
        starts = np.array([task.step.position for task, _ in ready], dtype=np.int32)
        positions = (starts[:, None] + each).ravel()
        slots = np.repeat(np.array([state.slot for _, state in ready], dtype=np.int32), n_each)
    outputs = np.zeros(len(positions), dtype=np.bool_)
    for index, (task, _) in enumerate(ready):
        if task.step.sample_from is not None:
            outputs[index * n_each + task.step.sample_from : (index + 1) * n_each] = True
    if first.first_shard == 0:
        return Rows(positions, slots, outputs, tokens=_joined([task.tokens for task, _ in ready]))
    return Rows(
        positions, slots, outputs, hidden=_joined([task.hidden for task, _ in ready if task.hidden is not None])
    )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
