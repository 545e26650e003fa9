"""Weights by way of the coordinator: from a node that has a shard to one that cannot reach anybody who has it.

Piece by piece over the links that all nodes keep with the coordinator, so many at a time and so many bytes a second that tokens get through beside
them. What is passed on is proved where it arrives: pieces by the torrent's hashes, the torrent by the manifest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast

from shardnet.coordinator.nodes.peers import Peers
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.errors import Busy, ShardCorrupt, ShardnetError, ShardNotFound
from shardnet.ids import new_id, short
from shardnet.lifecycle import Pace
from shardnet.log import get
from shardnet.messages import FileIs, GetFile, ShardSource

PIECE_DEADLINE_S = 20.0
AT_ONCE = 4
"""Pieces on their way through here, for everybody together."""
MOST_WAITING = 8
"""Pieces of one asker that wait or are under way: one of many cannot take all the room."""

log = get("coordinator")


class WeightsRelay:
    """Passes questions on, and answers back.

    Args:
        bytes_per_s: through here, for everybody together; 0: nothing is passed on.

    Attributes:
        relayed_bytes: since the start.
    """

    def __init__(self, cluster: Cluster, peers: Peers, bytes_per_s: float) -> None:
        self._cluster = cluster
        self._peers = peers
        self._pace = Pace(bytes_per_s) if bytes_per_s > 0 else None
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting: Counter[str] = Counter()
        self.relayed_bytes = 0

    async def piece(self, asker_id: str, question: GetFile) -> tuple[int, bytes]:
        """Returns: bytes of the whole file, and one piece of it, from the first connected holder that gives it.

        Raises: ShardNotFound if nobody does or nothing is passed on here; Busy; ShardCorrupt if the piece is not whole.
        """
        if self._pace is None:
            raise ShardNotFound("this coordinator passes no weights on (placement.relay_bytes_per_s is 0)")
        if self._waiting[asker_id] >= MOST_WAITING:
            raise Busy("too many pieces of shards are on their way through the coordinator", retry_after_s=1.0)
        self._waiting[asker_id] += 1
        try:
            async with self._places:
                await self._pace.take(question.most_bytes if question.kind == "shard" else 0)
                return await self._ask(asker_id, question)
        finally:
            self._waiting -= Counter((asker_id,))

    async def _ask(self, asker_id: str, question: GetFile) -> tuple[int, bytes]:
        model_id, shard_id = question.model_id, question.shard_id
        last: ShardnetError = ShardNotFound(f"no connected node has shard {shard_id} of model {short(model_id)}")
        asked = question.model_copy(update={"deadline_s": PIECE_DEADLINE_S, "asker": self._asker(asker_id, question)})
        for node in self._cluster.holders(model_id, shard_id):
            if node.node_id == asker_id:
                continue
            try:
                one = asked.model_copy(update={"command_id": new_id()})
                frame = await self._peers.ask(node.node_id, one, timeout_s=PIECE_DEADLINE_S)
            except ShardnetError as error:
                last = error
                continue
            answer, data = cast("FileIs", frame.message), frame.payload("data")
            if data is None or not isinstance(answer, FileIs) or answer.piece_bytes > len(data):
                raise ShardCorrupt(f"node {node.label} sent a piece of shard {shard_id} that is not whole")
            self.relayed_bytes += answer.piece_bytes
            return answer.total_bytes, bytes(data[: answer.piece_bytes])
        raise last

    def _asker(self, asker_id: str, question: GetFile) -> ShardSource | None:
        """Returns: where a holder may dial whoever asks for a torrent: where only one of two can be dialled, the other one dials."""
        node = self._cluster.nodes.get(asker_id)
        if question.kind != "torrent" or node is None or node.address is None or not node.capabilities.torrent_port:
            return None
        return ShardSource(node_id=asker_id, address=node.address, torrent_port=node.capabilities.torrent_port)
