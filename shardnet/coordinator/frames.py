"""Every frame that a node sends up, each to whom it concerns. What a node may never say ends its connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from shardnet.coordinator.nodes.peers import Connection, Peers
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import (
    Event,
    HeartbeatCame,
    LinkKnown,
    ManifestKnown,
    ManifestRefused,
    NodeDrains,
)
from shardnet.coordinator.requests.driver import Requests
from shardnet.errors import PeerLost, RemoteProtocolError, ShardnetError, ShardNotFound, printable
from shardnet.ids import short
from shardnet.log import get
from shardnet.manifest import Manifest, by_claim
from shardnet.messages import (
    AnyMessage,
    CommandFailed,
    Done,
    ErrorInfo,
    ExecuteTask,
    FileIs,
    FreeSequence,
    GetFile,
    GetManifest,
    Heartbeat,
    Leaving,
    LinkMeasured,
    LoadProgress,
    LogTold,
    ManifestIs,
    ManifestOffer,
    Ping,
    Pong,
    RowsRead,
    ShardReady,
)
from shardnet.shards import Dtype, TensorSpec
from shardnet.steps import NextStep, TaskResult
from shardnet.wire import Frame

log = get("coordinator")

Spawn = Callable[[Coroutine[Any, Any, None], str], None]


class Frames:
    """The dispatch. Synchronous: what takes long is spawned."""

    def __init__(
        self,
        cluster: Cluster,
        peers: Peers,
        requests: Requests,
        apply: Callable[[Event], None],
        now_s: Callable[[], float],
        spawn: Spawn,
        *,
        fault_of: Callable[[Manifest], str | None],
        tokenizer_piece: Callable[[Manifest, int], Awaitable[tuple[int, bytes]]],
        shard_piece: Callable[[str, GetFile], Awaitable[tuple[int, bytes]]],
    ) -> None:
        self._cluster = cluster
        self._peers = peers
        self._requests = requests
        self._apply = apply
        self._now_s = now_s
        self._spawn = spawn
        self._fault_of = fault_of
        self._tokenizer_piece = tokenizer_piece
        self._shard_piece = shard_piece
        self.relayed = 0

    def take(self, node_id: str, connection: Connection, frame: Frame[AnyMessage]) -> None:
        """Handle one frame.

        Raises: RemoteProtocolError for what a node never says to a coordinator.
        """
        if self._peers.connection(node_id) is not connection:
            return  # the node dialled anew; this is what was under way on the old link
        message = frame.message
        match message:
            case TaskResult():
                self._requests.on_result(node_id, message)
            case RowsRead():
                self._requests.on_read(node_id, Frame(message, frame.payloads))
            case Heartbeat():
                self._apply(HeartbeatCame(self._now_s(), node_id, message))
            case CommandFailed():
                if not self._peers.on_answer(node_id, frame, message.command_id):
                    self._requests.on_failed(node_id, message)
            case LoadProgress():
                self._peers.on_progress(node_id, message)
            case ShardReady() | Done() | LinkMeasured() | ManifestIs() | FileIs() | Pong() | LogTold():
                self._peers.on_answer(node_id, frame, message.command_id)
            case ExecuteTask():
                if message.stage >= len(message.route):
                    raise RemoteProtocolError(f"stage {message.stage} of a route of {len(message.route)}")
                self._relay(node_id, message.route[message.stage].node_id, message, frame)
            case NextStep():
                next_id = self._requests.node_of_stage(message.command_id, message.stage)
                if next_id is not None:
                    self._relay(node_id, next_id, message, frame)
            case ManifestOffer():
                self._offered(node_id, message.manifest)
            case Leaving():
                node = self._cluster.nodes.get(node_id)
                log.info("node_leaving", node=node.label if node else short(node_id), reason=printable(message.reason))
                self._apply(NodeDrains(self._now_s(), node_id))
            case Ping():
                connection.send(Pong(command_id=message.command_id))
            case GetManifest():
                connection.send(self._manifest(message))
            case GetFile():
                self._spawn(self._file(node_id, connection, message), f"file for {short(node_id)}")
            case FreeSequence():
                pass
            case _:
                raise RemoteProtocolError(f"a node does not say {message.type} to a coordinator")

    def take_of_client(self, connection: Connection, frame: Frame[AnyMessage]) -> None:
        """Handle one frame of a member that runs nothing: it may ask for what a node may ask for.

        Raises: RemoteProtocolError for anything else.
        """
        match frame.message:
            case Ping():
                connection.send(Pong(command_id=frame.message.command_id))
            case GetManifest():
                connection.send(self._manifest(frame.message))
            case GetFile():
                self._spawn(self._file("", connection, frame.message), "file for a client")
            case _:
                raise RemoteProtocolError(f"a client does not say {frame.message.type} to a coordinator")

    def _relay(self, node_id: str, next_id: str, message: ExecuteTask | NextStep, frame: Frame[AnyMessage]) -> None:
        """Two stages cannot reach each other: pass the step on as it is."""
        try:
            self._peers.send(next_id, message, frame.payloads)
            self.relayed += 1
            if (node_id, next_id) not in self._cluster.unreachable:
                self._apply(LinkKnown(node_id, next_id, None))
        except PeerLost as error:
            failed = CommandFailed(command_id=message.command_id, error=ErrorInfo.of(error))
            self._requests.on_failed(node_id, failed)

    def _offered(self, node_id: str, manifest: Manifest) -> None:
        if manifest.model_id in self._cluster.manifests:
            return
        reason = self._fault_of(manifest)
        if reason is None:
            self._apply(ManifestKnown(manifest))
        else:
            self._apply(ManifestRefused(node_id, manifest, reason))
            log.warning("manifest_not_signed", model=manifest.name, node=short(node_id), reason=reason)

    def _manifest(self, question: GetManifest) -> ManifestIs | CommandFailed:
        found = [one for one in self._cluster.manifests.values() if question.model in (one.model_id, one.name)]
        if found:
            return ManifestIs(command_id=question.command_id, manifest=by_claim(found)[0])
        error = ShardNotFound(f"model {question.model} is not known here")
        return CommandFailed(command_id=question.command_id, error=ErrorInfo.of(error))

    async def _file(self, asker_id: str, connection: Connection, question: GetFile) -> None:
        answer: AnyMessage
        payloads: list[bytes] = []
        try:
            manifest = self._cluster.manifests.get(question.model_id)
            if manifest is None:
                raise ShardNotFound(f"model {short(question.model_id)} is not known here")
            if question.kind == "tokenizer":
                total, piece = await self._tokenizer_piece(manifest, question.offset)
            else:
                total, piece = await self._shard_piece(asker_id, question)
            padded = piece + bytes(-len(piece) % 4)
            spec = TensorSpec(name="data", dtype=Dtype.INT32, shape=(len(padded) // 4,))
            answer = FileIs(tensors=(spec,), command_id=question.command_id, total_bytes=total, piece_bytes=len(piece))
            payloads = [padded]
        except ShardnetError as error:
            answer = CommandFailed(command_id=question.command_id, error=ErrorInfo.of(error))
        try:
            connection.send(answer, payloads)
        except PeerLost:
            log.debug("file_not_sent", reason="the node has gone")
