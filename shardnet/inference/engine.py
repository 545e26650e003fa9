"""The engine as the daemon sees it: one interface, so that the node can be tested with another behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardnet.errors import ShardnetError
from shardnet.inference.protocol import Load, Loaded, Ready, Report
from shardnet.inference.steps import Step, StepDone
from shardnet.wire import Buffer, Frame

OnProgress = Callable[[float], None]
OnStep = Callable[[Frame[StepDone] | ShardnetError], None]


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """A shard in the engine's memory."""

    request: Load
    answer: Loaded


def answer_of(engine: Engine, step: Step, payloads: Sequence[Buffer]) -> asyncio.Future[Frame[StepDone]]:
    """Returns: the one answer of a step that is no run; the future raises what `Engine.step` names."""
    future: asyncio.Future[Frame[StepDone]] = asyncio.get_running_loop().create_future()

    def take(answer: Frame[StepDone] | ShardnetError) -> None:
        if future.done():
            return
        if isinstance(answer, ShardnetError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    engine.step(step, payloads, take)
    return future


class Engine(Protocol):
    """Runs shards. All methods are called on the event loop and never block it."""

    async def start(self) -> Ready:
        """Start the engine process. Raises: EngineError if it cannot be started."""
        ...

    async def load(self, request: Load, on_progress: OnProgress | None = None) -> LoadedShard:
        """Take a shard into memory; at once if it is there with the same options. Raises: NoRoomError, GgufError, EngineError, EngineCrashed."""
        ...

    async def unload(self, model_id: str, shard_id: int) -> None:
        """Free a shard; nothing happens if it is not loaded."""
        ...

    def step(self, step: Step, payloads: Sequence[Buffer], on_answer: OnStep) -> None:
        """Run one step, or a run of them. Sent in this very call where the engine is up.

        Args:
            on_answer: called on the event loop with each answer, the moment it is here: no task stands between the engine and who waits. The last
                one has `ahead` 0, or is an error: ShardNotFound (not loaded), SequenceGap, ContextExceeded, Busy (no KV place), EngineError,
                EngineCrashed.
        """
        ...

    def halt(self, command_id: str) -> None:
        """End a run after the step under way; that step's answer is its last."""
        ...

    def forget(self, sequence_id: str) -> None:
        """Drop a sequence's KV and state."""
        ...

    async def report(self) -> Report:
        """Ask for memory and load. Raises: EngineCrashed."""
        ...

    async def close(self) -> None:
        """End the engine process."""
        ...
