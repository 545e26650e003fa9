"""Stages without llama.cpp, in a world with a clock of its own: what the request machine sends takes time on links and in stages.

The stages keep the engine's rules: the position rule, one row at a time, a later step takes the place of those that wait, a run ends when another
step of its sequence comes.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardnet.coordinator.requests.pipeline import Generation, Need
from shardnet.errors import EngineCrashed, SequenceGap, ShardnetError
from shardnet.messages import CommandFailed, ErrorInfo, ExecuteTask
from shardnet.steps import StageTiming, TaskResult

Script = Callable[[Sequence[int]], int]
"""What the model says behind these tokens."""


@dataclass(slots=True)
class _Row:
    task: ExecuteTask
    position: int
    tokens: list[int]
    ahead: int
    text: tuple[int, ...] = ()
    came_s: float = 0.0
    timings: tuple[StageTiming, ...] = ()


@dataclass
class TimedPipeline:
    """A pipeline for one sequence at a time.

    Attributes:
        stage_s, one_way_s: what a row takes in each stage, and each hop; the coordinator is as far away as the others.
        makes_runs: the stages go on by themselves where they are asked to.
        rewindable: the model's state can be taken back.
        crash_at: the first stage crashes at its so-many-th row.
        n_rows: rows that the first stage has run.
    """

    script: Script
    stages: int = 2
    stage_s: float = 0.003
    one_way_s: float = 0.010
    makes_runs: bool = True
    rewindable: bool = True
    crash_at: int = -1
    n_rows: int = 0
    now_s: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _kv: dict[str, list[int]] = field(default_factory=dict)
    _latest: str = ""  # the command that was begun last
    _queues: list[deque[_Row]] = field(default_factory=list)
    _is_busy: list[bool] = field(default_factory=list)

    def run(self, machine: Generation) -> list[int]:
        """Answer the machine until it is done. Returns: the tokens of the answer."""
        self._machine: Generation = machine
        self._queues = [deque() for _ in range(self.stages)]
        self._is_busy = [False] * self.stages
        answer: list[int] = []
        while not machine.is_done:
            for send in machine.take_sends():
                if isinstance(send.message, ExecuteTask):
                    assert send.payload is not None
                    tokens = array("i", send.payload).tolist()
                    assert len(tokens) == send.message.n_tokens <= send.message.options.n_batch
                    row = _Row(send.message, send.message.position, tokens, send.message.ahead)
                    self._at(self.one_way_s, self._arrive, 0, row)
            if machine.need is Need.PAUSE:
                machine.resume(self.now_s)
                continue
            assert self._events, "the machine waits for nothing"
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
            answer += [one.token for one in machine.take_emitted()]
        return answer

    def _at(self, after_s: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now_s + after_s, next(self._numbers), lambda: call(*arguments)))

    def _arrive(self, stage: int, row: _Row) -> None:
        if stage == 0:
            self._latest = row.task.command_id
            stale = [one for one in self._queues[0] if one.position >= row.position]
            self._queues[0] = deque(one for one in self._queues[0] if one not in stale)
        row.came_s = self.now_s
        self._queues[stage].append(row)
        self._begin(stage)

    def _arrive_next(self, row: _Row) -> None:
        if row.task.command_id == self._latest:  # else the run is over
            row.came_s = self.now_s
            self._queues[0].append(row)
            self._begin(0)

    def _begin(self, stage: int) -> None:
        if not self._is_busy[stage] and self._queues[stage]:
            self._is_busy[stage] = True
            row = self._queues[stage].popleft()
            takes_s = self.stage_s * len(row.tokens)
            row.timings += (StageTiming(1e6 * (self.now_s - row.came_s), 1e6 * takes_s),)
            self._at(takes_s, self._done, stage, row)

    def _done(self, stage: int, row: _Row) -> None:
        self._is_busy[stage] = False
        self._begin(stage)
        try:
            if stage == 0:
                self._keep(row)
        except ShardnetError as error:
            failed = CommandFailed(command_id=row.task.command_id, error=ErrorInfo.of(error))
            self._at(self.one_way_s, lambda: self._machine.on_failed(failed, self.now_s))
            return
        if stage + 1 < self.stages:
            self._at(self.one_way_s, self._arrive, stage + 1, row)
            return
        task, position, ahead = row.task, row.position + len(row.tokens), 0
        tokens = (self.script(row.text),) if task.samples else ()
        if tokens:
            ahead = min(row.ahead, task.options.n_ctx - position) if self.makes_runs else 0
        if ahead:
            following = _Row(task, position, list(tokens), ahead - 1)
            self._at(self.one_way_s if self.stages > 1 else 0.0, self._arrive_next, following)
        result = TaskResult(task.command_id, task.sequence_id, position, tokens, ahead=ahead, timings=row.timings)
        self._at(self.one_way_s, lambda: self._machine.on_result(result, self.now_s))

    def _keep(self, row: _Row) -> None:
        """The position rule."""
        self.n_rows += 1
        if self.n_rows == self.crash_at:
            self._kv.clear()
            raise EngineCrashed("it fell")
        kv = self._kv.setdefault(row.task.sequence_id, [])
        if row.position > len(kv):
            raise SequenceGap("gap", have=len(kv))
        if row.position < len(kv) and not self.rewindable:
            del self._kv[row.task.sequence_id]
            raise SequenceGap("cannot be rewound", have=0)
        kv[row.position :] = row.tokens
        assert len(kv) <= row.task.options.n_ctx
        row.text = tuple(kv)
