"""Questions that this node asked over a link, and the one answer of each. Knows nothing of where links come from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shardnet.errors import DeadlineExceeded, ShardnetError
from shardnet.messages import AnyMessage, CommandFailed, FileIs, GetFile, GetManifest, ManifestIs, Ping, Pong
from shardnet.transport import Connection
from shardnet.wire import Buffer, Frame

Question = Ping | GetManifest | GetFile
_ANSWERS = (Pong, FileIs, ManifestIs, CommandFailed)


@dataclass(frozen=True, slots=True)
class _Waiting:
    connection: Connection
    answer: asyncio.Future[Frame[AnyMessage]]


class Questions:
    """All questions under way over one kind of links."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}

    async def ask(
        self, connection: Connection, question: Question, payloads: Sequence[Buffer] = (), *, timeout_s: float
    ) -> Frame[AnyMessage]:
        """Returns: the answer. Raises: the other side's own error; PeerLost; DeadlineExceeded."""
        answer: asyncio.Future[Frame[AnyMessage]] = asyncio.get_running_loop().create_future()
        self._waiting[question.command_id] = _Waiting(connection, answer)
        try:
            connection.send(question, payloads)
            async with asyncio.timeout(timeout_s):
                frame = await answer
        except TimeoutError:
            raise DeadlineExceeded(f"{question.type} was not answered within {timeout_s:g} s") from None
        finally:
            del self._waiting[question.command_id]
        if isinstance(frame.message, CommandFailed):
            raise frame.message.error.to_error()
        return frame

    def take(self, connection: Connection, frame: Frame[AnyMessage]) -> bool:
        """Returns: True for an answer, also for one that nobody waits for any more; False for what is none."""
        message = frame.message
        if not isinstance(message, _ANSWERS):
            return False
        waiting = self._waiting.get(message.command_id)
        if waiting is not None and waiting.connection is connection and not waiting.answer.done():
            waiting.answer.set_result(frame)
        return True

    def lost(self, connection: Connection, error: ShardnetError) -> None:
        """The link is gone: what was asked over it gets no answer."""
        for waiting in self._waiting.values():
            if waiting.connection is connection and not waiting.answer.done():
                waiting.answer.set_exception(error)
