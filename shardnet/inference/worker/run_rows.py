"""A run as the engine knows it, and a row of it that waits. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shardnet.inference.engine.steps import Step
from shardnet.inference.worker.pacing import Chain
from shardnet.inference.worker.row_link import RowLink
from shardnet.inference.worker.rows import Lane


@dataclass(slots=True, eq=False)
class Run:
    """A run that this engine knows.

    Attributes:
        step: what each of its rows is, but for position and token.
        n_ctx: tokens that find room here.
        is_alone: its rows go on right here: the chain is the whole model.
        chain: model and shards.
        slot: of its sequence, once the step that began it is done; -1 before: it is in nobody's block.
        has_row: one of its rows waits: the next one cannot come before that has gone round.
        handed_over: the link over which its last row left.
        noted_s: when the daemon heard of it.
    """

    command: int
    step: Step
    n_ctx: int
    is_alone: bool
    chain: Chain
    lane: Lane | None = None
    slot: int = -1
    is_over: bool = False
    has_row: bool = False
    handed_over: RowLink | None = None
    noted_s: float = 0.0


class Row(NamedTuple):
    """A row that waits. `timings` of the stages before, packed; `hidden` float32 (n_embd,), empty for the first stage."""

    run: Run
    position: int
    token: int
    ahead: int
    deadline_s: float
    timings: bytes
    hidden: bytes
    arrived_s: float
