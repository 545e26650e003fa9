"""EXECUTE_TASK through this node's stage: check, wait for shards, run on the engine, hand on. The path that every token takes.

It is synchronous from the frame to the engine, and from the engine's answer to the next node: the only waits are the engine's own. Steps of one
sequence keep their order, because links, engine and the queues here do. Whatever goes wrong is told to the coordinator, with the command's id.

A task with `ahead` begins a run (docs/decisions/0003-runs.md): where one node has the whole model, its engine goes on by itself; else the last stage
sends each token that it sampled to the first stage, as a `NextStep`. The coordinator gets every result, and need not be waited for. The engines hand
such rows to one another where they have links (docs/decisions/0004-row-links.md): then only the last stage's node hears of each.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from shardnet.errors import (
    Busy,
    DeadlineExceeded,
    PeerLost,
    RefusedError,
    RemoteProtocolError,
    SequenceGap,
    ShardnetError,
    UnreachableError,
)
from shardnet.ids import NodeId, short
from shardnet.inference.engine import Engine
from shardnet.inference.steps import TOKEN, RowDone, Step, StepDone
from shardnet.log import get
from shardnet.messages import (
    Address,
    AnyMessage,
    CommandFailed,
    ErrorInfo,
    ExecuteTask,
    StageRef,
)
from shardnet.node.legs import Flight, KnownSequence, Leg
from shardnet.node.timings import StepTimes
from shardnet.steps import NextStep, StageTiming, TaskResult, columns, pack_timing, row_tensors, unpack_timings
from shardnet.wire import Buffer, Frame

MAX_SEQUENCES = 4096
MAX_FREED = 4096
"""Freed sequences and cancelled commands that are remembered, so that a step that was under way cannot bring one back."""
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


WantLink = Callable[[StageRef], None]
"""The engine will have rows for this stage's engine: a link between the two would spare both daemons the work."""

Tell = Callable[[AnyMessage, Sequence[Buffer]], None]
"""Sends to the coordinator; does nothing while there is none."""


class TaskRunner:
    """All tasks on this node.

    Args:
        is_ready: whether all shards of `(model_id, first_shard, end_shard)` are in memory.
        wait_for_shards: called with a flight whose shards are not; ends in `run` or `fail` with its ticket.
        forget_wait: the flight of that ticket no longer waits.
        tell: sends to the coordinator.
        want_link: called when a run begins.
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
        want_link: WantLink,
        max_tasks: int,
    ) -> None:
        self._node_id = node_id
        self._engine = engine
        self._peers = peers
        self._tell = tell
        self._is_ready = is_ready
        self._wait_for_shards = wait_for_shards
        self._forget_wait = forget_wait
        self._want_link = want_link
        self._max_tasks = max_tasks
        self._flights: dict[int, Flight] = {}
        self._runs: dict[tuple[str, int], Flight] = {}  # by command and stage, once their first step is done
        self._tickets = 0
        self._sequences: OrderedDict[str, KnownSequence] = OrderedDict()
        self._freed: OrderedDict[str, None] = OrderedDict()
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._epoch = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._quiet: asyncio.TimerHandle | None = None
        self.times = StepTimes()

    # -- questions and orders ------------------------------------------------------------------------------------------------

    @property
    def n_tasks(self) -> int:
        """Returns: tasks and runs that are here."""
        return len(self._flights) + len(self._runs)

    @property
    def n_sequences(self) -> int:
        """Returns: sequences that were begun here and not freed."""
        return len(self._sequences)

    def follow_epoch(self, epoch: int) -> None:
        """The coordinator is of this epoch: what an earlier one began is dropped, and its late tasks are refused."""
        self._epoch = max(self._epoch, epoch)
        for sequence_id in [s for s, known in self._sequences.items() if known.task.epoch < self._epoch]:
            self.free(sequence_id)

    def free(self, sequence_id: str) -> None:
        """Drop a sequence's KV; steps of it that are still under way are refused from now on."""
        self._sequences.pop(sequence_id, None)
        _remember(self._freed, sequence_id)
        for flight in [one for one in self._flights.values() if one.task.sequence_id == sequence_id]:
            self._drop(flight)  # it would bring KV back, and a run would go on for nobody
            if not flight.sent_s:
                self._done(flight)
        self._end_runs(lambda run: run.task.sequence_id == sequence_id)
        self._engine.forget(sequence_id)
        self._look_idle()

    def cancel(self, command_id: str) -> None:
        """A task's answer is no longer wanted: it is dropped if it waits; if it runs, it is not handed on; a run ends."""
        _remember(self._cancelled, command_id)
        for flight in [flight for flight in self._flights.values() if flight.task.command_id == command_id]:
            self._drop(flight)
            if not flight.sent_s:
                self._done(flight)
        self._end_runs(lambda run: run.task.command_id == command_id)

    def end_runs(self) -> None:
        """The coordinator is gone: what it began goes no further by itself."""
        for sequence in self._sequences.values():
            for leg in sequence.legs.values():
                _remember(self._cancelled, leg.task.command_id)
        for flight in [flight for flight in self._flights.values() if flight.ahead]:
            flight.ahead = 0
            self._engine.halt(flight.task.command_id)
        self._end_runs(lambda _: True)

    def _end_runs(self, which: Callable[[Flight], bool]) -> None:
        for run in [run for run in self._runs.values() if which(run)]:
            self._end_run(run)
            self._engine.halt(run.task.command_id)

    def _end_run(self, run: Flight) -> None:
        run.is_dropped = True
        self._runs.pop((run.task.command_id, run.leg.number), None)
        self._look_idle()

    def drop_overdue(self) -> None:
        """Answer tasks whose deadline has passed. Called now and then."""
        now_s = clock()
        for flight in [flight for flight in self._flights.values() if flight.deadline_at_s < now_s]:
            self._drop(flight)
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
            leg = Leg(task, self._stage_of(task))
            if task.tensors != row_tensors(task.n_tokens, columns(task.tensors, "hidden")):
                raise RemoteProtocolError("a task carries tokens, then hidden states, for as many rows as it has")
            if task.epoch < self._epoch:
                raise RefusedError(
                    f"the task is of coordinator epoch {task.epoch}; this node follows epoch {self._epoch}"
                )
            if task.sequence_id in self._freed:
                raise RefusedError("the task's sequence was freed")
            self._check(task.command_id)
            self._begin(leg)
        except ShardnetError as error:
            self._fail(task.command_id, error)
            return
        if leg.takes_rows and leg.onward.node_id != self._node_id:
            self._want_link(leg.onward)
        flight = self._new_flight(leg, None, payloads, task.ahead, task.deadline_s)
        if self._is_ready(*leg.chain):
            self._start(flight)
        else:
            self._wait_for_shards(flight, leg.stage)

    def accept_next(self, step: NextStep, payloads: Sequence[Buffer], sender: NodeId | None = None) -> None:
        """Take in a further step of a run. Never raises; a refusal goes to the coordinator.

        Its shards are not looked for: if they went in the middle of the run, the engine says so.

        Args:
            sender: the node that it came from; None: the coordinator, which passes steps on where nodes cannot.
        """
        known = self._sequences.get(step.sequence_id)
        leg = None if known is None else known.legs.get(step.stage)
        try:
            if leg is None or leg.task.command_id != step.command_id:
                raise SequenceGap("this node does not know the run that the step belongs to: begin it again", have=0)
            if sender is not None and sender != leg.source:
                log.warning("step_from_a_stranger", peer_id=short(sender), task=step.command_id)
                return
            self._check(step.command_id)
            if leg.takes_rows:
                if (step.command_id, step.stage) not in self._runs:
                    raise SequenceGap("the run that the step belongs to is over here: begin it again", have=0)
                self._engine.row(step, payloads)
                return
        except ShardnetError as error:
            self._fail(step.command_id, error)
            return
        self._start(self._new_flight(leg, step, payloads, step.ahead, step.deadline_s))

    def _new_flight(
        self, leg: Leg, next_step: NextStep | None, payloads: Sequence[Buffer], ahead: int, deadline_s: float
    ) -> Flight:
        self._tickets += 1
        flight = Flight(self._tickets, leg, next_step, payloads, ahead, clock() + deadline_s)
        self._flights[flight.ticket] = flight
        return flight

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

    def _stage_of(self, task: ExecuteTask) -> StageRef:
        if task.stage >= len(task.route):
            raise RemoteProtocolError(f"stage {task.stage} of a route of {len(task.route)}")
        stage = task.route[task.stage]
        if stage.node_id != self._node_id:
            raise RemoteProtocolError(f"the task's stage {task.stage} is node {short(stage.node_id)}, not this one")
        if stage.end_shard <= stage.first_shard:
            raise RemoteProtocolError(f"the task's stage {task.stage} has no shards")
        return stage

    def _check(self, command_id: str) -> None:
        if command_id in self._cancelled:
            raise RefusedError("the task was cancelled")
        if len(self._flights) >= self._max_tasks:
            raise Busy(f"{self._max_tasks} tasks are under way on this node", retry_after_s=1)

    def _begin(self, leg: Leg) -> None:
        """Note the sequence and its latest command."""
        task = leg.task
        known = self._sequences.get(task.sequence_id)
        if known is None:
            if self._is_draining:
                raise UnreachableError("this node is leaving: take another route")
            known = self._sequences[task.sequence_id] = KnownSequence(task)
            if len(self._sequences) > MAX_SEQUENCES:
                self.free(next(iter(self._sequences)))
        known.task = task
        before = known.legs.get(leg.number)
        known.legs[leg.number] = leg
        self._end_runs(lambda run: run.leg is before)  # also of the same command, which begins anew

    def _start(self, flight: Flight) -> None:
        leg, following = flight.leg, flight.next_step
        task, stage = leg.task, leg.stage
        if following is not None:
            step = Step(
                task.command_id,
                task.model_id,
                stage.first_shard,
                stage.end_shard,
                task.sequence_id,
                following.position,
                1,
                0,
                0,
                task.return_logits and leg.following is None,
                following.n_embd,
                leg.sampling,
                False,
                leg.number,
            )
        else:
            step = Step(
                command_id=task.command_id,
                model_id=task.model_id,
                first_shard=stage.first_shard,
                end_shard=stage.end_shard,
                sequence_id=task.sequence_id,
                position=task.position,
                n_tokens=task.n_tokens,
                sample_from=task.sample_from,
                ahead=flight.ahead if leg.is_alone else 0,
                return_logits=task.return_logits and leg.following is None,
                n_embd=columns(task.tensors, "hidden"),
                sampling=leg.sampling,
                begins_run=leg.takes_rows,
                stage=leg.number,
                source=leg.source,
                onward=leg.onward.node_id,
                stages=len(task.route),
            )
        on_row = partial(self._row_done, flight) if step.begins_run else None
        flight.sent_s = clock()
        self._engine.step(step, flight.payloads, partial(self._stepped, flight), on_row)

    def _stepped(self, flight: Flight, answer: Frame[StepDone] | ShardnetError) -> None:
        """The engine is done with a step, or a run has failed."""
        if isinstance(answer, ShardnetError):
            if not flight.is_dropped:
                self._fail(flight.task.command_id, answer)
            self._end_run(flight)
            self._done(flight)
            return
        if flight.leg.takes_rows and not flight.is_dropped:
            self._runs[flight.task.command_id, flight.leg.number] = flight
        goes_on = not flight.is_dropped and self._hand_on(flight, answer)
        if flight.leg.takes_rows:
            flight.payloads = ()  # rows bring their own
            if not goes_on and not flight.is_dropped:
                self._end_run(flight)
                self._engine.halt(flight.task.command_id)
            self._done(flight)
        elif not answer.message.ahead:
            self._done(flight)

    def _hand_on(self, flight: Flight, frame: Frame[StepDone]) -> bool:
        """Send a step on, or back to the first stage, before anything else is done: the next stage waits for it.

        Returns: whether there may be more steps of its run.
        """
        goes_on = flight.ahead > 0
        leg, step, done = flight.leg, flight.next_step, frame.message
        now_s = clock()
        engine_us = max(0.0, (now_s - flight.sent_s) * 1e6 - done.queue_us - done.compute_us)
        timing = StageTiming(done.queue_us, done.compute_us, engine_us, done.batch_tokens)
        if leg.following is None:
            goes_on = self._finish(flight, frame, timing) > 0
            flight.sent_s, flight.deadline_at_s = now_s, now_s + leg.task.ahead_deadline_s  # of the run's next answer
        else:
            left_s = max(MIN_DEADLINE_S, flight.deadline_at_s - now_s)
            payloads = (flight.payloads[0], *frame.payloads)
            onward: ExecuteTask | NextStep
            if step is not None:
                timings = step.timings + pack_timing(timing)
                onward = NextStep(
                    step.command_id,
                    step.sequence_id,
                    leg.number + 1,
                    step.position,
                    step.ahead,
                    left_s,
                    done.n_embd,
                    timings,
                )
            else:
                onward = leg.task.model_copy(
                    update={
                        "stage": leg.number + 1,
                        "deadline_s": left_s,
                        "timings": (*leg.task.timings, timing),
                        "tensors": (leg.task.tensors[0], *done.tensors),
                    }
                )
            self._forward(leg.task.sequence_id, leg.following, onward, payloads)
        self.times.add(leg.chain, done.batch_tokens, done.compute_us, None if leg.is_alone else engine_us)
        return goes_on

    def _finish(self, flight: Flight, frame: Frame[StepDone], timing: StageTiming) -> int:
        """The last stage is done with a step: send the next one on its way, if the run goes on, and tell the coordinator.

        Returns: how many more results the run will have.
        """
        task, step, done = flight.leg.task, flight.next_step, frame.message
        ahead = min(done.ahead, flight.ahead)  # no more is wanted once the coordinator has gone
        is_last_row = step is not None or task.sample_from == task.n_tokens - 1
        if not ahead and not flight.leg.is_alone and is_last_row and len(done.tokens) == 1:
            room = task.options.n_ctx - done.position
            ahead = self._begin_next(flight.leg, done.position, done.tokens[0], min(flight.ahead, room))
        result = TaskResult(
            command_id=task.command_id,
            sequence_id=task.sequence_id,
            position=done.position,
            tokens=done.tokens,
            logprobs=done.logprobs,
            ahead=ahead,
            n_vocab=done.n_vocab,
            timings=(*(task.timings if step is None else unpack_timings(step.timings)), timing),
        )
        self._tell(result, frame.payloads)
        return ahead

    def _row_done(self, run: Flight, done: RowDone) -> None:
        """The engine is done with a row of a run; whether it has handed it on, `done` says."""
        if run.is_dropped:
            return
        leg, ahead = run.leg, done.ahead
        timing = StageTiming(done.queue_us, done.compute_us, done.engine_us, done.batch_tokens)
        if leg.following is None:
            if not done.went_on:
                ahead = self._begin_next(leg, done.position, done.token, ahead)
            task = leg.task
            timings = (*unpack_timings(done.timings), timing)
            self._tell(
                TaskResult(task.command_id, task.sequence_id, done.position, (done.token,), (), ahead, 0, timings), ()
            )
        elif not done.went_on:
            onward = NextStep(
                done.command_id,
                leg.task.sequence_id,
                leg.number + 1,
                done.position,
                ahead,
                done.deadline_s,
                done.n_embd,
                done.timings + pack_timing(timing),
            )
            self._forward(leg.task.sequence_id, leg.following, onward, (TOKEN.pack(done.token), done.hidden))
        self.times.add(leg.chain, done.batch_tokens, done.compute_us, None if leg.is_alone else done.engine_us)
        if not ahead:
            self._end_run(run)

    def _begin_next(self, leg: Leg, position: int, token: int, ahead: int) -> int:
        """Send a sampled token to the first stage. Returns: how many more results the run will have."""
        task = leg.task
        if ahead <= 0 or task.command_id in self._cancelled:
            return 0
        step = NextStep(task.command_id, task.sequence_id, 0, position, ahead - 1, task.ahead_deadline_s)
        return ahead if self._forward(task.sequence_id, task.route[0], step, (TOKEN.pack(token),)) else 0

    def _forward(
        self, sequence_id: str, to: StageRef, step: ExecuteTask | NextStep, payloads: Sequence[Buffer]
    ) -> bool:
        """Returns: False if the sequence was freed while the step ran: nobody wants it."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        node_id = to.node_id
        if node_id == self._node_id:
            if isinstance(step, NextStep):
                self.accept_next(step, payloads, self._node_id)
            else:
                self.accept(step, payloads)
        elif node_id in sequence.relayed:
            self._tell(step, payloads)
        else:
            if isinstance(step, NextStep) or step.sample_from is not None:
                sequence.handed.clear()  # a step that is sampled is sent when all before it were answered
            sequence.handed.append((node_id, step.command_id))
            self._peers.send(
                node_id, to.address, step, payloads, partial(self._relay, node_id, step, payloads, sequence)
            )
        return True

    def _relay(
        self,
        node_id: NodeId,
        step: ExecuteTask | NextStep,
        payloads: Sequence[Buffer],
        sequence: KnownSequence,
        _error: ShardnetError,
    ) -> None:
        """The next node cannot be reached from here: the coordinator, which everybody is connected to, passes the step on."""
        sequence.relayed.add(node_id)
        if (node_id, step.command_id) in sequence.handed:
            sequence.handed.remove((node_id, step.command_id))
        self._tell(step, payloads)

    def _drop(self, flight: Flight) -> None:
        """Its answer is not wanted any more."""
        flight.is_dropped = True
        if not flight.sent_s:
            self._forget_wait(flight.ticket)
        elif flight.ahead:
            self._engine.halt(flight.task.command_id)

    def _fail(self, command_id: str, error: ShardnetError) -> None:
        log.debug("task_failed", task=command_id, reason=str(error))
        self._tell(CommandFailed(command_id=command_id, error=ErrorInfo.of(error)), ())

    def _done(self, flight: Flight) -> None:
        self._flights.pop(flight.ticket, None)
        self._look_idle()

    def _look_idle(self) -> None:
        if not self._is_draining or self._flights or self._runs:
            return
        if not self._sequences:
            self._idle.set()
            return
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self._rest)

    def _rest(self) -> None:
        if not self._flights and not self._runs:
            self._idle.set()


def _remember(ids: OrderedDict[str, None], identifier: str) -> None:
    ids[identifier] = None
    if len(ids) > MAX_FREED:
        ids.popitem(last=False)
