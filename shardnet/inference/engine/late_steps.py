"""Steps that came while the engine was down: they wait for it to be back, and may be unwanted by then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from shardnet.errors import EngineCrashed, EngineError
from shardnet.inference.engine.child import Child
from shardnet.inference.engine.interface import OnRow, OnStep
from shardnet.inference.engine.steps import Step
from shardnet.wire import Buffer


class LateSteps:
    """Sends each step once there is an engine again.

    Args:
        engine: waits for the running process. Raises: EngineCrashed if there will be none, or not soon; the step is answered so.

    Attributes:
        tasks: one for each step that waits; whoever ends the engine ends them.
    """

    def __init__(self, engine: Callable[[], Awaitable[Child]]) -> None:
        self._engine = engine
        self.tasks: set[asyncio.Task[None]] = set()
        self._wanted: dict[asyncio.Task[None], tuple[Step, OnStep, OnRow | None]] = {}  # of these

    def put(self, step: Step, payloads: Sequence[Buffer], on_answer: OnStep, on_row: OnRow | None) -> None:
        """Have a step wait."""
        task = asyncio.create_task(self._send_when_back(payloads), name="step-when-back")
        self._wanted[task] = step, on_answer, on_row
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._wanted.pop(task, None)

    async def _send_when_back(self, payloads: Sequence[Buffer]) -> None:
        child: Child | None = None
        crash = EngineCrashed("the engine is not running")
        try:
            child = await self._engine()
        except EngineCrashed as error:
            crash = error
        task = asyncio.current_task()
        wanted = None if task is None else self._wanted.pop(task, None)
        if wanted is None:
            return  # its sequence was dropped meanwhile
        step, on_answer, on_row = wanted
        if child is None:
            on_answer(crash)
        else:
            child.step(step, payloads, on_answer, on_row)

    def halt(self, command_id: str) -> None:
        """A command's step is to be run alone: nothing follows it."""
        for task, (step, on_answer, _) in self._wanted.items():
            if step.command_id == command_id:
                self._wanted[task] = step._replace(ahead=0, begins_run=False), on_answer, None

    def forget(self, sequence_id: str) -> None:
        """Answer a sequence's steps with EngineError, and run none of them."""
        for task, (step, on_answer, _) in tuple(self._wanted.items()):
            if step.sequence_id == sequence_id:
                del self._wanted[task]
                on_answer(EngineError("the sequence was dropped before this step ran"))
