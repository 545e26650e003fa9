"""The engine as the daemon sees it: one interface, so that the node can be tested with another behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardnet.errors import ShardnetError
from shardnet.inference.engine.protocol import (
    CutRows,
    DialRows,
    Load,
    Loaded,
    Loading,
    Ready,
    Report,
    RowsLost,
    RowsMet,
    TakeRows,
)
from shardnet.inference.engine.steps import RowDone, Step, StepDone
from shardnet.steps import NextStep
from shardnet.wire import Buffer, Frame

OnProgress = Callable[[Loading], None]
OnStep = Callable[[Frame[StepDone] | ShardnetError], None]
OnRow = Callable[[RowDone], None]
OnLink = Callable[[RowsMet | RowsLost], None]


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

    @property
    def pid(self) -> int | None:
        """Returns: the engine's process id; None while it is down."""
        ...

    async def start(self) -> Ready:
        """Start the engine process. Raises: EngineError if it cannot be started."""
        ...

    async def load(self, request: Load, on_progress: OnProgress | None = None) -> LoadedShard:
        """Take a shard into memory; at once if it is there with the same options. Raises: NoRoomError, GgufError, EngineError, EngineCrashed."""
        ...

    async def unload(self, model_id: str, shard_id: int) -> None:
        """Free a shard; nothing happens if it is not loaded."""
        ...

    def step(self, step: Step, payloads: Sequence[Buffer], on_answer: OnStep, on_row: OnRow | None = None) -> None:
        """Run one step, or a run of them. Sent in this very call where the engine is up.

        Args:
            on_answer: called on the event loop with each answer, the moment it is here: no task stands between the engine and who waits. The last
                one has `ahead` 0, or is an error: ShardNotFound (not loaded), SequenceGap, ContextExceeded, Busy (no KV place), EngineError,
                EngineCrashed.
            on_row: for a step that begins a run: called with what becomes of its rows, after its own answer, until one has `ahead` 0. Should the run
                fail, `on_answer` gets the error, as it would have for the step.
        """
        ...

    def row(self, row: NextStep, payloads: Sequence[Buffer]) -> None:
        """Run a row of a run that was begun here. Payloads: the token, int32; the hidden state, where the stage is not the first."""
        ...

    def halt(self, command_id: str) -> None:
        """End a run after the step under way. That step's answer is its last; if it began rows, there is none any more."""
        ...

    def forget(self, sequence_id: str) -> None:
        """Drop a sequence's KV and state."""
        ...

    def link(self, order: DialRows | TakeRows | CutRows) -> None:
        """Make, use or end one of the engine's own links to other engines; `on_link` gets the answers."""
        ...

    def adopt(self, link_id: int, connection: socket.socket) -> None:
        """Hand over a connection that another engine dialled, with its first bytes unread. Ours is closed."""
        ...

    on_link: OnLink | None
    """Called on the event loop with news of row links. When the engine dies it takes its links along without a word."""

    async def report(self) -> Report:
        """Ask for memory and load. Raises: EngineCrashed."""
        ...

    async def close(self) -> None:
        """End the engine process."""
        ...
