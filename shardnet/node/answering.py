"""Frames of the coordinator and of other nodes, each to whom it concerns. Who may say what is decided here."""

from __future__ import annotations

import asyncio

from shardnet.errors import RemoteProtocolError, ShardnetError
from shardnet.ids import short
from shardnet.journal import Journal
from shardnet.lifecycle import Spawn
from shardnet.log import get
from shardnet.messages import (
    AnyMessage,
    CancelTask,
    ExecuteTask,
    FreeSequence,
    LinkMeasured,
    LoadShard,
    MeasureLink,
    Revoked,
    TellLog,
    UnloadShard,
)
from shardnet.node.links.peer_links import PeerLinks
from shardnet.node.performing import Performer
from shardnet.node.shards.events import LoadAsked, UnloadAsked
from shardnet.node.shards.machine import NodeState
from shardnet.node.tasks.runner import TaskRunner
from shardnet.node.weights.exchange import ShardExchange
from shardnet.node.weights.file_answers import FileAnswers
from shardnet.node.weights.store import ModelStore
from shardnet.steps import NextStep
from shardnet.swarm.identity import Identity
from shardnet.swarm.membership import remember_revoked
from shardnet.swarm.signing import signature_is_valid
from shardnet.transport import Connection
from shardnet.wire import Frame

log = get("node")


class Answering:
    """Takes every frame that reaches this node."""

    def __init__(
        self,
        identity: Identity,
        state: NodeState,
        store: ModelStore,
        performer: Performer,
        tasks: TaskRunner,
        links: PeerLinks,
        exchange: ShardExchange | None,
        spawn: Spawn,
        journal: Journal,
    ) -> None:
        self._journal = journal
        self._identity = identity
        self._state = state
        self._performer = performer
        self._tasks = tasks
        self._links = links
        self._exchange = exchange
        self._spawn = spawn
        self._files = FileAnswers(state.catalogue.find, store, exchange, spawn)

    def from_coordinator(self, connection: Connection, frame: Frame[AnyMessage]) -> None:
        """Handle one frame of the coordinator.

        Raises: RemoteProtocolError for what a coordinator never says to a node.
        """
        message = frame.message
        match message:
            case NextStep():
                self._tasks.accept_next(message, frame.payloads)
            case ExecuteTask():
                self._accept(message, frame)
            case FreeSequence():
                self._tasks.free(message.sequence_id)
            case CancelTask():
                self._tasks.cancel(message.command_id)
            case LoadShard() if (
                message.manifest is None and self._exchange is not None and not self._state.knows(message.model_id)
            ):
                self._spawn(self._load_unknown(self._exchange, message), f"manifest for {message.command_id}")
            case LoadShard():
                is_signed = message.manifest is not None and signature_is_valid(
                    message.manifest, self._identity.swarm.ca
                )
                self._performer.post(LoadAsked(message, is_signed, asyncio.get_running_loop().time()))
            case UnloadShard():
                self._performer.post(UnloadAsked(message, asyncio.get_running_loop().time()))
            case MeasureLink():
                self._files.answer(connection, message.command_id, self._measure(message))
            case TellLog():
                connection.send(self._journal.tell(message))
            case Revoked():
                self.revoke(frozenset(message.node_ids))
            case _:
                self._from_anybody(connection, message, is_coordinator=True)

    def from_peer(self, connection: Connection, frame: Frame[AnyMessage]) -> None:
        """Handle one frame of another node.

        Raises: RemoteProtocolError for what only a coordinator may say.
        """
        message = frame.message
        if isinstance(message, NextStep):
            self._tasks.accept_next(message, frame.payloads, connection.peer_id)
        elif isinstance(message, ExecuteTask):
            self._accept(message, frame)
        else:
            self._from_anybody(connection, message, is_coordinator=False)

    def _accept(self, task: ExecuteTask, frame: Frame[AnyMessage]) -> None:
        for stage in task.route:
            self._links.follow(stage.node_id, stage.address)
        self._tasks.accept(task, frame.payloads)

    def revoke(self, node_ids: frozenset[str]) -> None:
        """These are no longer members, from now on and after a restart too."""
        self._identity.set_revoked(node_ids)
        self._spawn(asyncio.to_thread(remember_revoked, self._identity, node_ids), "remember revocations")

    def _from_anybody(self, connection: Connection, message: AnyMessage, *, is_coordinator: bool) -> None:
        if not self._files.take(connection, message, is_coordinator=is_coordinator):
            raise RemoteProtocolError(f"a node does not take {message.type} from this peer")

    async def _load_unknown(self, exchange: ShardExchange, command: LoadShard) -> None:
        """A shard of a model that was never heard of: whoever has the manifest is asked for it first."""
        try:
            async with asyncio.timeout(command.deadline_s):
                manifest = await exchange.manifest(command.model_id, command.sources)
        except TimeoutError:
            manifest = None
        except ShardnetError as error:
            log.warning("manifest_not_fetched", model=short(command.model_id), reason=str(error))
            manifest = None
        command = command.model_copy(update={"manifest": manifest})
        self._performer.post(LoadAsked(command, manifest is not None, asyncio.get_running_loop().time()))

    async def _measure(self, question: MeasureLink) -> tuple[AnyMessage, list[bytes]]:
        peer = question.peer
        round_trip_s, bytes_per_s = await self._links.measure(peer.node_id, peer.address, timeout_s=question.deadline_s)
        answer = LinkMeasured(command_id=question.command_id, round_trip_s=round_trip_s, bytes_per_s=bytes_per_s)
        return answer, []
