"""Answers to what every member may ask of a holder: is it there, a model's manifest, its tokenizer, a shard's torrent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from shardnet.errors import PeerLost, ShardnetError, ShardNotFound
from shardnet.lifecycle import Spawn
from shardnet.log import get
from shardnet.messages import (
    MAX_FILE_PIECE,
    AnyMessage,
    CommandFailed,
    ErrorInfo,
    FileIs,
    GetFile,
    GetManifest,
    ManifestIs,
    Ping,
    Pong,
)
from shardnet.node.shards.events import LocalModel
from shardnet.node.weights.exchange import ShardExchange
from shardnet.node.weights.store import ModelStore
from shardnet.shards import Dtype, TensorSpec
from shardnet.transport import Connection

MAX_QUESTIONS = 64
"""Questions for files and manifests that are worked on side by side, over all links; the others wait."""

log = get("node")


class FileAnswers:
    """Answers questions that take a while, a bounded number at a time.

    Args:
        find: the model of an id or a name. Raises: ManifestError if it is not known here.
    """

    def __init__(
        self, find: Callable[[str], LocalModel], store: ModelStore, exchange: ShardExchange | None, spawn: Spawn
    ) -> None:
        self._find = find
        self._store = store
        self._exchange = exchange
        self._spawn = spawn
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)

    def take(self, connection: Connection, message: AnyMessage) -> bool:
        """Returns: False if the message is no such question."""
        match message:
            case Ping():
                connection.send(Pong(command_id=message.command_id))
            case GetManifest():
                self.answer(connection, message.command_id, self._manifest(message))
            case GetFile():
                self.answer(connection, message.command_id, self._file(message))
            case _:
                return False
        return True

    def answer(
        self, connection: Connection, command_id: str, work: Coroutine[Any, Any, tuple[AnyMessage, list[bytes]]]
    ) -> None:
        """Send what `work` gives, or its error, once it is done."""

        async def answer() -> None:
            message: AnyMessage
            payloads: list[bytes] = []
            try:
                async with self._questions:
                    message, payloads = await work
            except ShardnetError as error:
                message = CommandFailed(command_id=command_id, error=ErrorInfo.of(error))
            try:
                connection.send(message, payloads)
            except PeerLost:
                log.debug("question_not_answered", command_id=command_id)

        self._spawn(answer(), f"answer {command_id}")

    async def _manifest(self, question: GetManifest) -> tuple[AnyMessage, list[bytes]]:
        return ManifestIs(command_id=question.command_id, manifest=self._find(question.model).manifest), []

    async def _file(self, question: GetFile) -> tuple[AnyMessage, list[bytes]]:
        model = self._find(question.model_id)
        if question.kind == "tokenizer":
            path = model.folder / model.manifest.content.tokenizer.file
            total, piece = await self._store.read_piece(path, question.offset)
        else:
            if self._exchange is None:
                raise ShardNotFound(f"this node has no torrent of shard {question.shard_id}")
            torrent = await self._exchange.torrent(model.manifest, question.shard_id)
            total, piece = len(torrent), torrent[question.offset :][:MAX_FILE_PIECE]
        padded = piece + bytes(-len(piece) % 4)
        spec = TensorSpec(name="data", dtype=Dtype.INT32, shape=(len(padded) // 4,))
        answer = FileIs(tensors=(spec,), command_id=question.command_id, total_bytes=total, piece_bytes=len(piece))
        return answer, [padded]
