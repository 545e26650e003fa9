"""What a node remembers of the sequences that were begun on it: who has KV here, what was freed or cancelled, which coordinator counts.

Frees nothing itself: who is told, and what is dropped with a sequence, is for `tasks`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from shardnet.errors import RefusedError
from shardnet.ids import NodeId
from shardnet.messages import ExecuteTask
from shardnet.node.tasks.legs import Leg

MAX_SEQUENCES = 4096
MAX_FREED = 4096
"""Freed sequences and cancelled commands that are remembered, so that a step that was under way cannot bring one back."""


@dataclass(slots=True)
class KnownSequence:
    """One sequence that has KV here.

    Attributes:
        legs: by number of the stage, each of the latest command that this stage saw: a node with two stages sees the next command at the
            first of them before the second one has seen the last.
        relayed: nodes that its tasks go to through the coordinator; once so, always, to keep their order.
        handed: (node, command) of tasks that were sent on and may not be answered yet.
    """

    task: ExecuteTask
    legs: dict[int, Leg] = field(default_factory=dict)
    relayed: set[NodeId] = field(default_factory=set)
    handed: list[tuple[NodeId, str]] = field(default_factory=list)


class Sequences:
    """All sequences of this node.

    Attributes:
        known: by id, those that were begun here and not freed, oldest first. Read for every token, so there is no call between.
        cancelled: commands whose steps go no further.
    """

    def __init__(self) -> None:
        self.known: OrderedDict[str, KnownSequence] = OrderedDict()
        self.cancelled: OrderedDict[str, None] = OrderedDict()
        self._freed: OrderedDict[str, None] = OrderedDict()
        self._epoch = 0

    def check(self, task: ExecuteTask) -> None:
        """Raises: RefusedError for a task of an earlier coordinator, or of a sequence that was freed."""
        if task.epoch < self._epoch:
            raise RefusedError(f"the task is of coordinator epoch {task.epoch}; this node follows epoch {self._epoch}")
        if task.sequence_id in self._freed:
            raise RefusedError("the task's sequence was freed")

    def add(self, task: ExecuteTask) -> str | None:
        """A task begins a new sequence. Returns: the oldest one, if there are too many now."""
        self.known[task.sequence_id] = KnownSequence(task)
        return next(iter(self.known)) if len(self.known) > MAX_SEQUENCES else None

    def put(self, leg: Leg) -> Leg | None:
        """Note the latest command of a known sequence at one stage. Returns: the one before."""
        known = self.known[leg.task.sequence_id]
        known.task = leg.task
        before = known.legs.get(leg.number)
        known.legs[leg.number] = leg
        return before

    def follow_epoch(self, epoch: int) -> list[str]:
        """The coordinator is of this epoch; late tasks of an earlier one are refused. Returns: sequences that an earlier one began."""
        self._epoch = max(self._epoch, epoch)
        return [sequence_id for sequence_id, known in self.known.items() if known.task.epoch < self._epoch]

    def free(self, sequence_id: str) -> None:
        """Forget a sequence, and let no late step bring it back."""
        self.known.pop(sequence_id, None)
        _remember(self._freed, sequence_id)

    def cancel(self, command_id: str) -> None:
        """Let the steps of a command go no further."""
        _remember(self.cancelled, command_id)

    def take_handed(self, node_id: NodeId) -> list[str]:
        """Returns: commands of the tasks that were sent to a node and may not be answered yet; they are not named again."""
        commands: list[str] = []
        for known in self.known.values():
            lost = [command_id for to, command_id in known.handed if to == node_id]
            if lost:
                known.handed = [(to, command_id) for to, command_id in known.handed if to != node_id]
                commands += lost
        return commands


def _remember(ids: OrderedDict[str, None], identifier: str) -> None:
    ids[identifier] = None
    if len(ids) > MAX_FREED:
        ids.popitem(last=False)
