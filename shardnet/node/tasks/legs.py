"""The tasks that go through a node: a stage of one, and one step on its way. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardnet.messages import ExecuteTask, StageRef
from shardnet.steps import NextStep
from shardnet.wire import Buffer


class Leg:
    """One stage of a task's route, on this node: all that does not change from one step of a run to the next.

    Attributes:
        task: the command; a run's, as it was when it began.
        number: of the stage; `stage` is its place in the route, `following` the next one's, None for the last.
        source, onward: nodes of the stages that rows of its run come from and go to: the last stage's go to the first.
        is_alone: the whole route is this stage.
        sampling: JSON of how the last stage samples, for the engine.
        takes_rows: the steps of its run are rows of the engine (`inference.worker.runs`), which give a token or a hidden state and nothing else.
    """

    __slots__ = (
        "chain",
        "following",
        "is_alone",
        "number",
        "onward",
        "sampling",
        "source",
        "stage",
        "takes_rows",
        "task",
    )

    def __init__(self, task: ExecuteTask, stage: StageRef) -> None:
        self.task = task
        self.number = task.stage
        self.stage = stage
        self.following = task.route[task.stage + 1] if task.stage + 1 < len(task.route) else None
        self.source = task.route[task.stage - 1].node_id
        self.onward = self.following or task.route[0]
        self.is_alone = len(task.route) == 1
        self.sampling = b""
        if self.following is None and task.sampling is not None:
            self.sampling = task.sampling.model_dump_json().encode()
        wants_more = task.return_logits or (task.sampling is not None and task.sampling.top_logprobs is not None)
        self.takes_rows = task.ahead > 0 and not wants_more
        self.chain = (task.model_id, stage.first_shard, stage.end_shard)


@dataclass(slots=True, eq=False)
class Flight:
    """One step while it is here; a run, once its first step is done.

    Attributes:
        next_step: the `NextStep` that this is, None for the task itself.
        ahead: further steps that may follow unasked.
        deadline_at_s: `clock` time.
        sent_s: `clock` time when the engine got it, or gave the run's last answer; 0 before.
    """

    ticket: int
    leg: Leg
    next_step: NextStep | None
    payloads: Sequence[Buffer]
    ahead: int
    deadline_at_s: float
    is_dropped: bool = False
    sent_s: float = 0.0

    @property
    def task(self) -> ExecuteTask:
        """Returns: the command that it belongs to."""
        return self.leg.task
