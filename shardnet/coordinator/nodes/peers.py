"""The coordinator's links to its nodes, and the one final answer of each command that it sent down them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardnet.errors import DeadlineExceeded, PeerLost, ShardnetError
from shardnet.ids import short
from shardnet.messages import (
    AnyMessage,
    CommandFailed,
    Done,
    FileIs,
    GetFile,
    LinkMeasured,
    LoadProgress,
    LoadShard,
    LogTold,
    ManifestIs,
    MeasureLink,
    Ping,
    Pong,
    ShardReady,
    TellLog,
    UnloadShard,
)
from shardnet.wire import Buffer, Frame

Command = LoadShard | UnloadShard | MeasureLink | GetFile | Ping | TellLog
Answer = ShardReady | Done | LinkMeasured | ManifestIs | FileIs | Pong | LogTold | CommandFailed
OnProgress = Callable[[LoadProgress], None]

GRACE_S = 2.0
"""A node keeps the deadline too; its own answer, which says more, may take so long to arrive."""


class Connection(Protocol):
    """What is needed of `shardnet.transport.Connection`."""

    @property
    def is_open(self) -> bool: ...

    def send(self, message: AnyMessage, payloads: Sequence[Buffer] = ()) -> None: ...

    def refuse(self, error: ShardnetError) -> None: ...


@dataclass(slots=True)
class _Pending:
    node_id: str
    answer: asyncio.Future[Frame[AnyMessage]]
    on_progress: OnProgress | None


class Peers:
    """All nodes that are connected now."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}
        self._pending: dict[str, _Pending] = {}

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._connections

    def connection(self, node_id: str) -> Connection | None:
        """Returns: the node's connection, None if it is not connected."""
        return self._connections.get(node_id)

    def add(self, node_id: str, connection: Connection) -> Connection | None:
        """Returns: the connection that this one takes the place of, if the node had one."""
        before = self._connections.get(node_id)
        if before is not None:
            self._forget(node_id, PeerLost(f"node {short(node_id)} connected anew"))
        self._connections[node_id] = connection
        return before

    def remove(self, node_id: str, connection: Connection, error: ShardnetError) -> bool:
        """The connection is gone. Returns: False if the node has another one by now."""
        if self._connections.get(node_id) is not connection:
            return False
        del self._connections[node_id]
        self._forget(node_id, error)
        return True

    def _forget(self, node_id: str, error: ShardnetError) -> None:
        for pending in tuple(self._pending.values()):
            if pending.node_id == node_id and not pending.answer.done():
                pending.answer.set_exception(error)

    def send(self, node_id: str, message: AnyMessage, payloads: Sequence[Buffer] = ()) -> None:
        """Send one message. Raises: PeerLost if the node is not connected."""
        connection = self._connections.get(node_id)
        if connection is None:
            raise PeerLost(f"node {short(node_id)} is not connected")
        connection.send(message, payloads)

    async def ask(
        self, node_id: str, command: Command, *, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Frame[AnyMessage]:
        """Send a command and wait for its final answer.

        Raises: the node's own error; PeerLost; DeadlineExceeded.
        """
        answer: asyncio.Future[Frame[AnyMessage]] = asyncio.get_running_loop().create_future()
        self._pending[command.command_id] = _Pending(node_id, answer, on_progress)
        try:
            self.send(node_id, command)
            async with asyncio.timeout(timeout_s + GRACE_S):
                frame = await answer
        except TimeoutError:
            raise DeadlineExceeded(
                f"node {short(node_id)} did not answer {command.type} within {timeout_s:.0f} s"
            ) from None
        finally:
            del self._pending[command.command_id]
        if isinstance(frame.message, CommandFailed):
            raise frame.message.error.to_error()
        return frame

    def on_progress(self, node_id: str, progress: LoadProgress) -> None:
        """A command makes progress."""
        pending = self._pending.get(progress.command_id)
        if pending is not None and pending.node_id == node_id and pending.on_progress is not None:
            pending.on_progress(progress)

    def on_answer(self, node_id: str, frame: Frame[AnyMessage], command_id: str) -> bool:
        """Returns: False if nobody here waits for this answer."""
        pending = self._pending.get(command_id)
        if pending is None or pending.node_id != node_id or pending.answer.done():
            return False
        pending.answer.set_result(frame)
        return True
