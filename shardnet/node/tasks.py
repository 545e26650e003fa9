"""EXECUTE_TASK through this node's stage: check, wait for shards, run on the engine, hand on. The path that every token takes.

It is synchronous from the frame to the engine, and from the engine's answer to the next node: the only waits are the engine's own. Steps of one
sequence keep their order, because links, engine and the queues here do. Whatever goes wrong is told to the coordinator, with the command's id.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from shardnet.errors import (
    Busy,
    DeadlineExceeded,
    PeerLost,
    RefusedError,
    RemoteProtocolError,
    ShardnetError,
    UnreachableError,
)
from shardnet.ids import NodeId, short
from shardnet.inference.engine import Engine
from shardnet.inference.protocol import Step, StepDone
from shardnet.log import get
from shardnet.messages import (
    Address,
    AnyMessage,
    CommandFailed,
    ErrorInfo,
    ExecuteTask,
    StageRef,
    StageTiming,
    TaskResult,
)
from shardnet.node.timings import StepTimes
from shardnet.wire import Buffer, Frame

MAX_SEQUENCES = 4096
MAX_FREED = 4096
"""Freed sequences that are remembered, so that a step that was under way cannot bring one back."""
MIN_DEADLINE_S = 1e-3
QUIET_S = 1.5
"""A draining node whose sequences see no task for so long has no one to wait for."""

log = get("node")
clock = time.perf_counter


class Peers(Protocol):
    """How tasks reach other nodes."""

    def send(
        self,
        node_id: NodeId,
        address: Address | None,
        message: AnyMessage,
        payloads: Sequence[Buffer],
        on_unreachable: Callable[[ShardnetError], None],
    ) -> None:
        """Send, dialling first where needed; `on_unreachable` is called, maybe at once, if that cannot be."""
        ...


Tell = Callable[[AnyMessage, Sequence[Buffer]], None]
"""Sends to the coordinator; does nothing while there is none."""


@dataclass(slots=True, eq=False)
class Flight:
    """One task while it is here."""

    ticket: int
    task: ExecuteTask
    payloads: Sequence[Buffer]
    deadline_at_s: float
    is_dropped: bool = False
    sent_s: float = 0.0


@dataclass(slots=True)
class _Sequence:
    """One sequence that has KV here.

    Attributes:
        relayed: nodes that its tasks go to through the coordinator; once so, always, to keep their order.
        handed: (node, command) of tasks that were sent on and may not be answered yet.
    """

    epoch: int
    relayed: set[NodeId] = field(default_factory=set)
    handed: list[tuple[NodeId, str]] = field(default_factory=list)


class TaskRunner:
    """All tasks on this node.

    Args:
        is_ready: whether all shards of `(model_id, first_shard, end_shard)` are in memory.
        wait_for_shards: called with a flight whose shards are not; ends in `run` or `fail` with its ticket.
        forget_wait: the flight of that ticket no longer waits.
        tell: sends to the coordinator.
    """

    def __init__(
        self,
        node_id: NodeId,
        engine: Engine,
        peers: Peers,
        tell: Tell,
        *,
        is_ready: Callable[[str, int, int], bool],
        wait_for_shards: Callable[[Flight, StageRef], None],
        forget_wait: Callable[[int], None],
        max_tasks: int,
    ) -> None:
        self._node_id = node_id
        self._engine = engine
        self._peers = peers
        self._tell = tell
        self._is_ready = is_ready
        self._wait_for_shards = wait_for_shards
        self._forget_wait = forget_wait
        self._max_tasks = max_tasks
        self._flights: dict[int, Flight] = {}
        self._tickets = 0
        self._sequences: OrderedDict[str, _Sequence] = OrderedDict()
        self._freed: OrderedDict[str, None] = OrderedDict()
        self._epoch = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._quiet: asyncio.TimerHandle | None = None
        self.times = StepTimes()

    # -- questions and orders ------------------------------------------------------------------------------------------------

    @property
    def n_tasks(self) -> int:
        """Returns: tasks that are here."""
        return len(self._flights)

    @property
    def n_sequences(self) -> int:
        """Returns: sequences that were begun here and not freed."""
        return len(self._sequences)

    def follow_epoch(self, epoch: int) -> None:
        """The coordinator is of this epoch: what an earlier one began is dropped, and its late tasks are refused."""
        self._epoch = max(self._epoch, epoch)
        for sequence_id in [s for s, known in self._sequences.items() if known.epoch < self._epoch]:
            self.free(sequence_id)

    def free(self, sequence_id: str) -> None:
        """Drop a sequence's KV; steps of it that are still under way are refused from now on."""
        self._sequences.pop(sequence_id, None)
        self._freed[sequence_id] = None
        if len(self._freed) > MAX_FREED:
            self._freed.popitem(last=False)
        self._engine.forget(sequence_id)
        self._look_idle()

    def cancel(self, command_id: str) -> None:
        """A task's answer is no longer wanted: it is dropped if it waits; if it runs, it is not handed on."""
        for flight in [flight for flight in self._flights.values() if flight.task.command_id == command_id]:
            flight.is_dropped = True
            if not flight.sent_s:
                self._forget_wait(flight.ticket)
                self._done(flight)

    def drop_overdue(self) -> None:
        """Answer tasks whose deadline has passed. Called now and then."""
        now_s = clock()
        for flight in [flight for flight in self._flights.values() if flight.deadline_at_s < now_s]:
            flight.is_dropped = True
            if not flight.sent_s:
                self._forget_wait(flight.ticket)
            where = "the engine was still at it" if flight.sent_s else "its shard was not in memory yet"
            error = DeadlineExceeded(f"a task was not done within its deadline: {where}")
            self._fail(flight.task.command_id, error)
            self._done(flight)

    async def drain(self) -> None:
        """Refuse new sequences, and wait until those that are here have been freed, or rest, and every task is done."""
        self._is_draining = True
        try:
            self._look_idle()
            await self._idle.wait()
        finally:
            if self._quiet is not None:
                self._quiet.cancel()

    def peer_lost(self, node_id: NodeId, error: ShardnetError) -> None:
        """The link to another node broke: tasks that were sent over it and not answered yet may be lost."""
        for sequence in self._sequences.values():
            lost = [command_id for to, command_id in sequence.handed if to == node_id]
            if lost:
                sequence.handed = [(to, command_id) for to, command_id in sequence.handed if to != node_id]
            for command_id in lost:
                self._fail(command_id, PeerLost(f"the link between two stages broke: {error}"))

    # -- the path of a task --------------------------------------------------------------------------------------------------

    def accept(self, task: ExecuteTask, payloads: Sequence[Buffer]) -> None:
        """Take in a task for this node's stage. Never raises; a refusal goes to the coordinator."""
        try:
            stage = self._check(task)
        except ShardnetError as error:
            self._fail(task.command_id, error)
            return
        self._tickets += 1
        flight = Flight(self._tickets, task, payloads, clock() + task.deadline_s)
        self._flights[flight.ticket] = flight
        if self._is_ready(task.model_id, stage.first_shard, stage.end_shard):
            self._start(flight)
        else:
            self._wait_for_shards(flight, stage)

    def run(self, ticket: int) -> None:
        """The flight's shards have come."""
        flight = self._flights.get(ticket)
        if flight is not None:
            self._start(flight)

    def fail(self, ticket: int, error: ShardnetError) -> None:
        """The flight's shards will not come."""
        flight = self._flights.get(ticket)
        if flight is not None:
            self._fail(flight.task.command_id, error)
            self._done(flight)

    def _check(self, task: ExecuteTask) -> StageRef:
        if task.stage >= len(task.route):
            raise RemoteProtocolError(f"stage {task.stage} of a route of {len(task.route)}")
        stage = task.route[task.stage]
        if stage.node_id != self._node_id:
            raise RemoteProtocolError(f"the task's stage {task.stage} is node {short(stage.node_id)}, not this one")
        if stage.end_shard <= stage.first_shard:
            raise RemoteProtocolError(f"the task's stage {task.stage} has no shards")
        if task.epoch < self._epoch:
            raise RefusedError(f"the task is of coordinator epoch {task.epoch}; this node follows epoch {self._epoch}")
        if task.sequence_id in self._freed:
            raise RefusedError("the task's sequence was freed")
        if len(self._flights) >= self._max_tasks:
            raise Busy(f"{self._max_tasks} tasks are under way on this node", retry_after_s=1)
        known = self._sequences.get(task.sequence_id)
        if known is None:
            if self._is_draining:
                raise UnreachableError("this node is leaving: take another route")
            self._sequences[task.sequence_id] = _Sequence(task.epoch)
            if len(self._sequences) > MAX_SEQUENCES:
                self.free(next(iter(self._sequences)))
        return stage

    def _start(self, flight: Flight) -> None:
        task = flight.task
        stage = task.route[task.stage]
        is_last = task.stage == len(task.route) - 1
        step = Step(
            tensors=task.tensors,
            command_id=task.command_id,
            model_id=task.model_id,
            first_shard=stage.first_shard,
            end_shard=stage.end_shard,
            sequence_id=task.sequence_id,
            position=task.position,
            n_tokens=task.n_tokens,
            sample_from=task.sample_from,
            sampling=task.sampling if is_last else None,
            return_logits=task.return_logits and is_last,
        )
        flight.sent_s = clock()
        try:
            # An engine that answers with a future spares a task here, and a round of the event loop.
            answer = asyncio.ensure_future(self._engine.step(step, flight.payloads))
        except ShardnetError as error:
            self._fail(task.command_id, error)
            self._done(flight)
            return
        answer.add_done_callback(partial(self._stepped, flight))

    def _stepped(self, flight: Flight, answer: asyncio.Future[Frame[StepDone]]) -> None:
        """The engine is done with a step."""
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        if not flight.is_dropped:
            if error is None:
                self._hand_on(flight, answer.result())
            elif isinstance(error, ShardnetError):
                self._fail(flight.task.command_id, error)
            elif not isinstance(error, asyncio.CancelledError):
                log.error("step_failed", exc_info=error)
                self._fail(flight.task.command_id, ShardnetError("an unexpected error on this node; its log says more"))
        self._done(flight)

    def _hand_on(self, flight: Flight, frame: Frame[StepDone]) -> None:
        task, done = flight.task, frame.message
        now_s = clock()
        spent_us = (now_s - flight.sent_s) * 1e6
        timing = StageTiming(
            queue_us=done.queue_us,
            compute_us=done.compute_us,
            engine_us=max(0.0, spent_us - done.queue_us - done.compute_us),
            batch_tokens=done.batch_tokens,
        )
        stage = task.route[task.stage]
        if task.n_tokens == 1:
            self.times.add((task.model_id, stage.first_shard, stage.end_shard), done.compute_us)
        if task.stage == len(task.route) - 1:
            result = TaskResult(
                tensors=done.tensors,
                command_id=task.command_id,
                sequence_id=task.sequence_id,
                position=task.position + (task.n_tokens if task.sample_from is None else task.sample_from + 1),
                tokens=done.tokens,
                logprobs=done.logprobs,
                timings=(*task.timings, timing),
            )
            self._tell(result, frame.payloads)
            return
        onward = task.model_copy(
            update={
                "stage": task.stage + 1,
                "tensors": (*(spec for spec in task.tensors if spec.name == "tokens"), *done.tensors),
                "deadline_s": max(MIN_DEADLINE_S, flight.deadline_at_s - now_s),
                "timings": (*task.timings, timing),
            }
        )
        tokens = next(data for spec, data in zip(task.tensors, flight.payloads, strict=True) if spec.name == "tokens")
        self._forward(onward, (tokens, *frame.payloads))

    def _forward(self, task: ExecuteTask, payloads: Sequence[Buffer]) -> None:
        following = task.route[task.stage]
        if following.node_id == self._node_id:
            self.accept(task, payloads)
            return
        sequence = self._sequences.get(task.sequence_id)
        if sequence is None:
            return  # freed while the step ran: nobody wants it
        if following.node_id in sequence.relayed:
            self._tell(task, payloads)
            return
        if task.sample_from is not None:
            sequence.handed.clear()  # the coordinator sends a step that is sampled when all before it were answered
        sequence.handed.append((following.node_id, task.command_id))
        self._peers.send(
            following.node_id, following.address, task, payloads, partial(self._relay, task, payloads, sequence)
        )

    def _relay(self, task: ExecuteTask, payloads: Sequence[Buffer], sequence: _Sequence, _error: ShardnetError) -> None:
        """The next node cannot be reached from here: the coordinator, which everybody is connected to, passes the task on."""
        node_id = task.route[task.stage].node_id
        sequence.relayed.add(node_id)
        if (node_id, task.command_id) in sequence.handed:
            sequence.handed.remove((node_id, task.command_id))
        self._tell(task, payloads)

    def _fail(self, command_id: str, error: ShardnetError) -> None:
        log.debug("task_failed", task=command_id, reason=str(error))
        self._tell(CommandFailed(command_id=command_id, error=ErrorInfo.of(error)), ())

    def _done(self, flight: Flight) -> None:
        self._flights.pop(flight.ticket, None)
        self._look_idle()

    def _look_idle(self) -> None:
        if not self._is_draining or self._flights:
            return
        if not self._sequences:
            self._idle.set()
            return
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._rest)

    def _rest(self) -> None:
        if not self._flights:
            self._idle.set()
