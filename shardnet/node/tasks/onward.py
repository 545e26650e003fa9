"""Where a step goes when the engine is done with it: to the next stage, back to the first one, to the coordinator. Every token passes here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from shardnet.errors import ShardnetError
from shardnet.ids import NodeId
from shardnet.inference.engine.steps import TOKEN, RowDone, StepDone
from shardnet.messages import Address, AnyMessage, ExecuteTask, RowsRead, StageRef
from shardnet.node.tasks.legs import Flight, Leg
from shardnet.node.tasks.sequences import KnownSequence, Sequences
from shardnet.node.tasks.timings import StepTimes
from shardnet.steps import NextStep, StageTiming, TaskResult, pack_timing, unpack_timings
from shardnet.wire import Buffer, Frame

MIN_DEADLINE_S = 1e-3

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


class Onward:
    """Hands steps on.

    Args:
        sequences: a step of one that is not among them goes nowhere; shared with the task runner.
        tell: sends to the coordinator.
        accept, accept_next: take in what goes to another stage on this node.
        end_run: called with a run that has had its last row here.
        times: told of every batch.
    """

    def __init__(
        self,
        node_id: NodeId,
        sequences: Sequences,
        peers: Peers,
        tell: Tell,
        *,
        accept: Callable[[ExecuteTask, Sequence[Buffer]], None],
        accept_next: Callable[[NextStep, Sequence[Buffer], NodeId], None],
        end_run: Callable[[Flight], None],
        times: StepTimes,
    ) -> None:
        self._node_id = node_id
        self._sequences = sequences
        self._peers = peers
        self._tell = tell
        self._accept = accept
        self._accept_next = accept_next
        self._end_run = end_run
        self._times = times

    def hand_on(self, flight: Flight, frame: Frame[StepDone]) -> bool:
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
        handover_us = None if leg.is_alone else engine_us
        self._times.add(leg.chain, done.batch_tokens, done.compute_us, handover_us, position=leg.task.position)
        return goes_on

    def _finish(self, flight: Flight, frame: Frame[StepDone], timing: StageTiming) -> int:
        """The last stage is done with a step: send the next one on its way, if the run goes on, and tell the coordinator.

        Returns: how many more results the run will have.
        """
        task, step, done = flight.leg.task, flight.next_step, frame.message
        ahead = min(done.ahead, flight.ahead)  # no more is wanted once the coordinator has gone
        if not ahead and not flight.leg.is_alone and done.tokens:
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
        payloads = frame.payloads
        if done.n_pooled or done.n_read:
            count = len(payloads) - len(done.read)
            read = RowsRead(
                command_id=task.command_id, sequence_id=task.sequence_id, position=task.position, tensors=done.read
            )
            self._tell(read, payloads[count:])
            payloads = payloads[:count]
        self._tell(result, payloads)
        return ahead

    def row_done(self, run: Flight, done: RowDone) -> None:
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
        self._times.add(leg.chain, done.batch_tokens, done.compute_us, None if leg.is_alone else done.engine_us)
        if not ahead:
            self._end_run(run)

    def _begin_next(self, leg: Leg, position: int, token: int, ahead: int) -> int:
        """Send a sampled token to the first stage. Returns: how many more results the run will have."""
        task = leg.task
        if ahead <= 0 or task.command_id in self._sequences.cancelled:
            return 0
        step = NextStep(task.command_id, task.sequence_id, 0, position, ahead - 1, task.ahead_deadline_s)
        return ahead if self._forward(task.sequence_id, task.route[0], step, (TOKEN.pack(token),)) else 0

    def _forward(
        self, sequence_id: str, to: StageRef, step: ExecuteTask | NextStep, payloads: Sequence[Buffer]
    ) -> bool:
        """Returns: False if the sequence was freed while the step ran: nobody wants it."""
        sequence = self._sequences.known.get(sequence_id)
        if sequence is None:
            return False
        node_id = to.node_id
        if node_id == self._node_id:
            if isinstance(step, NextStep):
                self._accept_next(step, payloads, self._node_id)
            else:
                self._accept(step, payloads)
        elif node_id in sequence.relayed:
            self._tell(step, payloads)
        else:
            if isinstance(step, NextStep) or step.samples:
                sequence.handed.clear()  # those before it are answered, or are lost with this one: the latest stands for all
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
