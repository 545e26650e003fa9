"""Steps that wait in the engine for their batch, the choice of the next one, and the answers. Lives in the engine process only."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from shardnet.errors import EngineError, RefusedError, ShardnetError
from shardnet.inference.engine.protocol import FromEngine
from shardnet.inference.engine.steps import NO_SEQUENCE, Step, StepDone
from shardnet.inference.worker.batching import Turns, Waiting
from shardnet.inference.worker.busy_time import BusyTime
from shardnet.inference.worker.chains import Chains
from shardnet.inference.worker.pacing import Pacing, WaitingRow, may_hold
from shardnet.inference.worker.run_rows import Row
from shardnet.inference.worker.runs import Runs
from shardnet.inference.worker.tasks import Outcome, Task
from shardnet.wire import Buffer


class StepQueue:
    """Steps, and rows of runs that go the general way.

    Args:
        tell: sends to the daemon.
        fail: tells the daemon that a command failed, and ends its run.

    Attributes:
        waiting: by ticket. Read for every token, so there is no call between.
        runs: who answers rows; set before the first one.
    """

    def __init__(
        self,
        chains: Chains,
        pacing: Pacing,
        busy: BusyTime,
        tell: Callable[[FromEngine, list[Buffer]], None],
        fail: Callable[[str, ShardnetError], None],
    ) -> None:
        self._chains = chains
        self._pacing = pacing
        self._busy = busy
        self._tell = tell
        self._fail = fail
        self.runs: Runs
        self.waiting: dict[int, tuple[Waiting, Task]] = {}
        self._tickets = 0
        self._turns = Turns()
        self._holds = False  # a row is done and not sent yet

    def put(self, task: Task) -> None:
        """Have a step wait for its batch; one that cannot be is answered now."""
        step = task.step
        is_prompt = step.n_tokens > 1 or step.reads > 0
        try:
            max_rows = self._chains.check(task)
        except ShardnetError as error:
            self._fail(step.command_id, error)
            return
        task.ticket = self._tickets
        waiting = Waiting(
            ticket=task.ticket,
            chain=(step.model_id, step.first_shard, step.end_shard),
            sequence=(step.model_id, step.sequence_id),
            is_prompt=is_prompt,
            max_rows=max_rows,
            last_rows=step.n_tokens if is_prompt and step.samples and not step.reads else 0,
        )
        self.waiting[task.ticket] = (waiting, task)
        self._tickets += 1

    def run_batch(self) -> float | None:
        """Run one batch of what waits. Returns: None; seconds to wait for more rows, if that pays: then nothing was run."""
        began_s = time.perf_counter()
        chosen = self._turns.choose([w for w, _ in self.waiting.values()], began_s)
        tickets: tuple[int, ...] = tuple(w.ticket for w in chosen)
        rows = {ticket: row for ticket in tickets if isinstance(row := self.waiting[ticket][1].row, Row)}
        are_rows = are_neighbours = len(rows) == len(tickets)
        if are_rows:
            chain = rows[tickets[0]].run.chain
            waiting = [WaitingRow(ticket, row.run.slot, row.arrived_s) for ticket, row in rows.items()]
            slots, stages = self.runs.expected(chain)
            choice = self._pacing.choose(chain, waiting, slots, len(slots) // stages, began_s)
            if not choice.tickets and len(self.waiting) == len(rows):
                return choice.wait_s
            are_neighbours = bool(choice.tickets)
            tickets = choice.tickets or tickets
        batch, tasks = zip(*(self.waiting.pop(ticket) for ticket in tickets), strict=True)
        if are_rows and len(tasks) == 1 and self.runs.run_short(rows[tickets[0]]):
            self._holds = not self._holds and may_hold(len(waiting), len(slots) - len(waiting), stages)
        else:
            if self._holds:
                self.runs.flush()  # this batch may take long
                self._holds = False
            self._chains.run(tasks, lambda outcome: self._answer(outcome, began_s))
        if not self._holds:
            self.runs.flush()
        self._turns.ran(batch, time.perf_counter())
        self._busy.note(rows[tickets[0]].run if are_neighbours else None, len(tasks))
        return None

    def rest(self) -> None:
        """The engine is about to sleep: nothing is held meanwhile."""
        if self._holds:
            self.runs.flush()
            self._holds = False

    def _answer(self, outcome: Outcome, began_s: float) -> None:
        step = outcome.task.step
        if outcome.error is not None:
            self._fail(step.command_id, outcome.error)
            return
        if isinstance(outcome.task.row, Row):
            self.runs.answer(outcome.task.row, outcome, began_s)
            return
        read = outcome.read
        tensors = (outcome.hidden, outcome.logits, read.pooled, read.tokens, read.logprobs)
        payloads: list[Buffer] = [rows.data for rows in tensors if rows is not None]
        self._tell(
            StepDone(
                command_id=step.command_id,
                position=step.position + (step.n_tokens if step.samples else 0),
                tokens=() if outcome.token is None else (outcome.token,),
                logprobs=outcome.logprobs,
                ahead=(self.runs.begun if step.begins_run else self._go_ahead)(step, outcome.token),
                queue_us=max(0.0, (began_s - outcome.task.arrived_s) * 1e6),
                compute_us=outcome.compute_s * 1e6,
                batch_tokens=outcome.batch_rows,
                rows=0 if outcome.hidden is None else len(outcome.hidden),
                n_embd=0 if outcome.hidden is None else outcome.hidden.shape[1],
                n_vocab=0 if outcome.logits is None else outcome.logits.shape[1],
                n_pooled=0 if read.pooled is None else read.pooled.shape[1],
                n_read=0 if read.tokens is None else read.tokens.shape[0],
                read_width=0 if read.tokens is None else read.tokens.shape[1],
            ),
            payloads,
        )

    def _go_ahead(self, step: Step, token: int | None) -> int:
        """Let a run's next step wait, with the token that this one sampled. Returns: how many more answers the run will have."""
        if not step.ahead or token is None:
            return 0
        position = step.position + step.n_tokens
        room = self._chains.room(step, position)
        if not room:
            return 0
        ahead = min(step.ahead, room) - 1
        following = step._replace(position=position, n_tokens=1, ahead=ahead, n_embd=0, reads=0, copy_from=NO_SEQUENCE)
        self.put(Task(0, following, np.array([token], dtype=np.int32), None, arrived_s=time.perf_counter()))
        return following.ahead + 1

    def drop_superseded(self, step: Step) -> None:
        """A step goes back to where others of its sequence still wait: what they would compute is not wanted any more."""
        self._drop(
            lambda waits: (
                waits.sequence_id == step.sequence_id
                and waits.stage == step.stage
                and waits.position >= step.position
                and waits.command_id != step.command_id
            ),
            RefusedError("a later step of the sequence takes its place"),
        )

    def halt(self, command_id: str) -> None:
        """Of this command, no step is wanted that would follow unasked."""
        for _, task in self.waiting.values():
            if task.step.command_id == command_id:
                task.step = task.step._replace(ahead=0)

    def forget(self, sequence_id: str) -> None:
        """Fail what waits of a sequence: its KV goes."""
        error = EngineError("the sequence was dropped before this step ran")
        self._drop(lambda waits: waits.sequence_id == sequence_id, error)

    def _drop(self, is_stale: Callable[[Step], bool], error: ShardnetError) -> None:
        """Fail the waiting steps that are not to run."""
        for ticket in [ticket for ticket, (_, task) in self.waiting.items() if is_stale(task.step)]:
            _, task = self.waiting.pop(ticket)
            self._fail(task.step.command_id, error)
