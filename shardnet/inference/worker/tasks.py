"""Steps as the engine runs them: with their tensors, side by side in one batch, and what each came to. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import ShardnetError
from shardnet.inference.engine.steps import Step
from shardnet.inference.llama.batch import Rows
from shardnet.inference.worker.sequences import SequenceState
from shardnet.steps import Logprobs


@dataclass(slots=True)
class Task:
    """A step that waits, with its tensors: `tokens` int32 (n,), `hidden` float32 (n, n_embd) or None. `row`: of a run, that it is (`runs.Row`)."""

    ticket: int
    step: Step
    tokens: NDArray[np.int32]
    hidden: NDArray[np.float32] | None
    arrived_s: float
    row: object | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of a prompt's rows, as `messages.RowsRead` has it; None for what was not."""

    pooled: NDArray[np.float32] | None = None
    tokens: NDArray[np.int32] | None = None
    logprobs: NDArray[np.float32] | None = None


NOTHING_READ = Read()


@dataclass(slots=True)
class Outcome:
    """What a step came to. `hidden` float32 (n, n_embd) is a view that the next batch overwrites; `logits` float32 (1, n_vocab)."""

    task: Task
    error: ShardnetError | None = None
    hidden: NDArray[np.float32] | None = None
    token: int | None = None
    logprobs: Logprobs = ()
    logits: NDArray[np.float32] | None = None
    read: Read = NOTHING_READ
    compute_s: float = 0.0
    batch_rows: int = 0


def rows_of(ready: Sequence[tuple[Task, SequenceState]]) -> Rows:
    """Returns: the rows of one step, or of several with equally many, which stand in the order of their slots."""
    first = ready[0][0].step
    n_each = first.n_tokens
    starts = np.array([task.step.position for task, _ in ready], dtype=np.int32)
    positions = np.repeat(starts, n_each) + np.tile(np.arange(n_each, dtype=np.int32), len(ready))
    slots = np.repeat(np.array([state.slot for _, state in ready], dtype=np.int32), n_each)
    outputs = np.zeros(len(positions), dtype=np.bool_)
    outputs[n_each - 1 :: n_each] = [task.step.samples for task, _ in ready]
    if first.first_shard == 0:
        return Rows(positions, slots, outputs, tokens=_joined([task.tokens for task, _ in ready]))
    return Rows(
        positions, slots, outputs, hidden=_joined([task.hidden for task, _ in ready if task.hidden is not None])
    )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
