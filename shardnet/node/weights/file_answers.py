"""Answers to what every member may ask of a holder: is it there, a model's manifest, its tokenizer, a shard's torrent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from shardnet.errors import Busy, PeerLost, ShardnetError, ShardNotFound
from shardnet.lifecycle import Spawn
from shardnet.log import get
from shardnet.messages import (
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

    def take(self, connection: Connection, message: AnyMessage, *, is_coordinator: bool = False) -> bool:
        """Returns: False if the message is no such question."""
        match message:
            case Ping():
                connection.send(Pong(command_id=message.command_id))
            case GetManifest():
                self.answer(connection, message.command_id, self._manifest(message))
            case GetFile():
                self.answer(connection, message.command_id, self._file(message, is_coordinator))
            case _:
                return False
        return True

    def answer(
        self, connection: Connection, command_id: str, work: Coroutine[Any, Any, tuple[AnyMessage, list[bytes]]]
    ) -> None:
        """Send what `work` gives, or its error, once it is done."""

        def tell(message: AnyMessage, payloads: Sequence[bytes] = ()) -> None:
            try:
                connection.send(message, payloads)
            except PeerLost:
                log.debug("question_not_answered", command_id=command_id)

        def refuse(error: ShardnetError) -> None:
            tell(CommandFailed(command_id=command_id, error=ErrorInfo.of(error)))

        async def answer() -> None:
            try:
                async with self._questions:
                    message, payloads = await work
            except ShardnetError as error:
                refuse(error)
            else:
                tell(message, payloads)

        try:
            self._spawn(answer(), f"answer {command_id}")
        except Busy as error:
            work.close()
            refuse(error)

    async def _manifest(self, question: GetManifest) -> tuple[AnyMessage, list[bytes]]:
        return ManifestIs(command_id=question.command_id, manifest=self._find(question.model).manifest), []

    async def _file(self, question: GetFile, is_coordinator: bool) -> tuple[AnyMessage, list[bytes]]:
        model = self._find(question.model_id)
        total, piece = await self._piece(model, question, is_coordinator)
        padded = piece + bytes(-len(piece) % 4)
        spec = TensorSpec(name="data", dtype=Dtype.INT32, shape=(len(padded) // 4,))
        answer = FileIs(tensors=(spec,), command_id=question.command_id, total_bytes=total, piece_bytes=len(piece))
        return answer, [padded]

    async def _piece(self, model: LocalModel, question: GetFile, is_coordinator: bool) -> tuple[int, bytes]:
        """Returns: the file's length, and a piece of it."""
        shard_id, offset, most = question.shard_id, question.offset, question.most_bytes
        if question.kind == "tokenizer":
            total, piece = await self._store.read_piece(model.folder / model.manifest.content.tokenizer.file, offset)
            return total, piece[:most]
        if self._exchange is None or (question.kind == "shard" and not is_coordinator):
            raise ShardNotFound(f"this node gives no {question.kind} of shard {shard_id} this way")
        if question.kind == "shard":
            piece = await self._exchange.piece(model.manifest, shard_id, offset, most)
            return model.manifest.content.shards[shard_id].bytes, piece
        torrent = await self._exchange.torrent(model.manifest, shard_id)
        if question.asker is not None and is_coordinator:
            self._exchange.meet(model.manifest, shard_id, question.asker)
        return len(torrent), torrent[offset:][:most]
