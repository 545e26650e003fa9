"""Rows that leave the engine one by one: two go in one breath where nobody waits for the first, and none is kept while the engine sleeps."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from shardnet.inference.engine.steps import Step
from shardnet.inference.worker.pacing import Choice
from shardnet.inference.worker.run_rows import Row, Run
from shardnet.inference.worker.step_queue import StepQueue
from shardnet.inference.worker.tasks import Task

CHAIN = ("ab" * 32, 1, 2)


class Engine:
    """Stands for everything around the queue, and notes in what order rows run and leave.

    Args:
        runs: through the chain, of `stages` stages.
    """

    def __init__(self, runs: int, stages: int) -> None:
        self.slots, self.stages = list(range(runs)), stages
        self.story: list[str] = []
        self.runs_short = True

    def check(self, _task: Task) -> int:
        return 64

    def choose(self, _chain: object, waiting: list[Any], *_rest: object) -> Choice:
        return Choice((waiting[0].ticket,))

    def expected(self, _chain: object) -> tuple[list[int], int]:
        return self.slots, self.stages

    def run_short(self, row: Row) -> bool:
        if self.runs_short:
            self.story.append(f"run {row.position}")
        return self.runs_short

    def run(self, tasks: list[Task], _answer: object) -> None:
        self.story += [f"batch {task.step.position}" for task in tasks]

    def flush(self) -> None:
        self.story.append("send")

    def note(self, *_what: object) -> None:
        pass


def queue_of(engine: Engine, rows: int) -> StepQueue:
    fake = cast("Any", engine)
    queue = StepQueue(fake, fake, fake, fake, fake)
    queue.runs = fake
    for number in range(rows):
        step = Step(f"{number:016x}", CHAIN[0], 1, 2, f"{number:016x}", number, 1)
        run = Run(number, step, 64, is_alone=False, chain=CHAIN, slot=number)
        row = Row(run, number, 5, 9, 1.0, b"", b"", 0.0)
        queue.put(Task(0, step, np.array([5], dtype=np.int32), None, 0.0, row=row))
    return queue


def test_two_rows_leave_together_while_the_other_stage_has_others() -> None:
    engine = Engine(runs=8, stages=2)
    queue = queue_of(engine, rows=4)
    while queue.waiting:
        queue.run_batch()
    assert engine.story == ["run 0", "run 1", "send", "run 2", "run 3", "send"]


@pytest.mark.parametrize(("runs", "stages", "rows"), [(1, 2, 1), (4, 2, 3), (8, 3, 5), (8, 1, 8)])
def test_a_row_that_somebody_waits_for_leaves_at_once(runs: int, stages: int, rows: int) -> None:
    engine = Engine(runs, stages)
    queue_of(engine, rows).run_batch()
    assert engine.story == ["run 0", "send"]


def test_no_row_is_held_while_the_engine_sleeps() -> None:
    engine = Engine(runs=8, stages=2)
    queue = queue_of(engine, rows=4)
    queue.run_batch()
    for number in range(1, 4):
        queue.halt(f"{number:016x}")
        queue.waiting.pop(number)
    queue.rest()
    queue.rest()
    assert engine.story == ["run 0", "send"]


def test_a_held_row_does_not_wait_for_a_batch_of_the_general_way() -> None:
    engine = Engine(runs=8, stages=2)
    queue = queue_of(engine, rows=3)
    queue.run_batch()
    engine.runs_short = False
    queue.run_batch()
    assert engine.story == ["run 0", "send", "batch 1", "send"]
