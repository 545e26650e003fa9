"""EXECUTE_TASK through this node's stage: check, wait for shards, run on the engine, hand on (`onward`). The path that every token takes.

It is synchronous from the frame to the engine, and from the engine's answer to the next node: the only waits are the engine's own. Steps of one
sequence keep their order, because links, engine and the queues here do. Whatever goes wrong is told to the coordinator, with the command's id.

A task with `ahead` begins a run (docs/decisions/0003-runs.md): where one node has the whole model, its engine goes on by itself; else the last stage
sends each token that it sampled to the first stage, as a `NextStep`. The coordinator gets every result, and need not be waited for. The engines hand
such rows to one another where they have links (docs/decisions/0004-row-links.md): then only the last stage's node hears of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

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
from shardnet.inference.engine.interface import Engine
from shardnet.inference.engine.steps import StepDone
from shardnet.log import get
from shardnet.messages import CommandFailed, ErrorInfo, ExecuteTask, StageRef
from shardnet.node.tasks.engine_steps import first_step, further_step
from shardnet.node.tasks.leaving import Leaving
from shardnet.node.tasks.legs import Flight, Leg
from shardnet.node.tasks.onward import Onward, Peers, Tell
from shardnet.node.tasks.sequences import Sequences
from shardnet.node.tasks.timings import StepTimes
from shardnet.steps import NextStep, columns, row_tensors
from shardnet.wire import Buffer, Frame

log = get("node")
clock = time.perf_counter

WantLink = Callable[[StageRef], None]
"""The engine will have rows for this stage's engine: a link between the two would spare both daemons the work."""


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
        self._tell = tell
        self._is_ready = is_ready
        self._wait_for_shards = wait_for_shards
        self._forget_wait = forget_wait
        self._want_link = want_link
        self._max_tasks = max_tasks
        self._flights: dict[int, Flight] = {}
        self._runs: dict[tuple[str, int], Flight] = {}  # by command and stage, once their first step is done
        self._tickets = 0
        self._sequences = Sequences()
        self._leaving = Leaving(self._flights, self._runs, self._sequences.known)
        self.times = StepTimes()
        self._onward = Onward(
            node_id,
            self._sequences,
            peers,
            tell,
            accept=self.accept,
            accept_next=self.accept_next,
            end_run=self._end_run,
            times=self.times,
        )

    # -- questions and orders ------------------------------------------------------------------------------------------------

    @property
    def n_tasks(self) -> int:
        """Returns: tasks and runs that are here."""
        return len(self._flights) + len(self._runs)

    @property
    def n_sequences(self) -> int:
        """Returns: sequences that were begun here and not freed."""
        return len(self._sequences.known)

    def follow_epoch(self, epoch: int) -> None:
        """The coordinator is of this epoch: what an earlier one began is dropped, and its late tasks are refused."""
        for sequence_id in self._sequences.follow_epoch(epoch):
            self.free(sequence_id)

    def free(self, sequence_id: str) -> None:
        """Drop a sequence's KV; steps of it that are still under way are refused from now on."""
        self._sequences.free(sequence_id)
        for flight in [one for one in self._flights.values() if one.task.sequence_id == sequence_id]:
            self._drop(flight)  # it would bring KV back, and a run would go on for nobody
            if not flight.sent_s:
                self._done(flight)
        self._end_runs(lambda run: run.task.sequence_id == sequence_id)
        self._engine.forget(sequence_id)
        self._leaving.look()

    def cancel(self, command_id: str) -> None:
        """A task's answer is no longer wanted: it is dropped if it waits; if it runs, it is not handed on; a run ends."""
        self._sequences.cancel(command_id)
        for flight in [flight for flight in self._flights.values() if flight.task.command_id == command_id]:
            self._drop(flight)
            if not flight.sent_s:
                self._done(flight)
        self._end_runs(lambda run: run.task.command_id == command_id)

    def coordinator_lost(self) -> None:
        """The coordinator is gone. It gives up what it began here, and cannot tell us so: nothing goes on, and no KV is left behind."""
        for sequence_id in list(self._sequences.known):
            self.free(sequence_id)

    def _end_runs(self, which: Callable[[Flight], bool]) -> None:
        for run in [run for run in self._runs.values() if which(run)]:
            self._end_run(run)
            self._engine.halt(run.task.command_id)

    def _end_run(self, run: Flight) -> None:
        run.is_dropped = True
        self._runs.pop((run.task.command_id, run.leg.number), None)
        self._leaving.look()

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
        await self._leaving.wait()

    def peer_lost(self, node_id: NodeId, error: ShardnetError) -> None:
        """The link to another node broke: tasks that were sent over it and not answered yet may be lost."""
        for command_id in self._sequences.take_handed(node_id):
            self._fail(command_id, PeerLost(f"the link between two stages broke: {error}"))

    # -- the path of a task --------------------------------------------------------------------------------------------------

    def accept(self, task: ExecuteTask, payloads: Sequence[Buffer]) -> None:
        """Take in a task for this node's stage. Never raises; a refusal goes to the coordinator."""
        try:
            leg = Leg(task, self._stage_of(task))
            if task.tensors != row_tensors(task.n_tokens, columns(task.tensors, "hidden")):
                raise RemoteProtocolError("a task carries tokens, then hidden states, for as many rows as it has")
            self._sequences.check(task)
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
        known = self._sequences.known.get(step.sequence_id)
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
        if command_id in self._sequences.cancelled:
            raise RefusedError("the task was cancelled")
        if len(self._flights) >= self._max_tasks:
            raise Busy(f"{self._max_tasks} tasks are under way on this node", retry_after_s=1)

    def _begin(self, leg: Leg) -> None:
        """Note the sequence and its latest command."""
        if leg.task.sequence_id not in self._sequences.known:
            if self._leaving.is_asked:
                raise UnreachableError("this node is leaving: take another route")
            oldest = self._sequences.add(leg.task)
            if oldest is not None:
                self.free(oldest)
        before = self._sequences.put(leg)
        self._end_runs(lambda run: run.leg is before)  # also of the same command, which begins anew

    def _start(self, flight: Flight) -> None:
        leg, following = flight.leg, flight.next_step
        step = first_step(leg, flight.ahead) if following is None else further_step(leg, following)
        on_row = partial(self._onward.row_done, flight) if step.begins_run else None
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
        goes_on = not flight.is_dropped and self._onward.hand_on(flight, answer)
        if flight.leg.takes_rows:
            flight.payloads = ()  # rows bring their own
            if not goes_on and not flight.is_dropped:
                self._end_run(flight)
                self._engine.halt(flight.task.command_id)
            self._done(flight)
        elif not answer.message.ahead:
            self._done(flight)

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
        self._leaving.look()
