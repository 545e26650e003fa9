"""Asking the connected nodes for a model's tokenizer, piece by piece."""

from __future__ import annotations

from typing import cast

from shardnet.coordinator.nodes.peers import Peers
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.errors import ShardCorrupt, ShardnetError, ShardNotFound
from shardnet.ids import new_id
from shardnet.messages import FileIs, GetFile

FILE_DEADLINE_S = 30.0


async def fetch_piece(cluster: Cluster, peers: Peers, model_id: str, offset: int) -> tuple[int, bytes]:
    """Ask one holder of the model after the other. Nothing is proved here.

    Returns: bytes of the whole tokenizer, and those from `offset` on that fit into one message.
    Raises: ShardNotFound if no connected node holds the model; what the last one answered; ShardCorrupt if a piece is not whole.
    """
    manifest = cluster.manifests[model_id]
    last: ShardnetError = ShardNotFound(f"no connected node has the tokenizer of {manifest.name}")
    for node in sorted(cluster.nodes.values(), key=lambda one: one.node_id):
        if not any(model == model_id for model, _ in node.held):
            continue
        question = GetFile(
            command_id=new_id(), deadline_s=FILE_DEADLINE_S, model_id=model_id, kind="tokenizer", offset=offset
        )
        try:
            frame = await peers.ask(node.node_id, question, timeout_s=FILE_DEADLINE_S)
        except ShardnetError as error:
            last = error
            continue
        answer, data = cast("FileIs", frame.message), frame.payload("data")
        if data is None or answer.piece_bytes > len(data):
            raise ShardCorrupt(f"node {node.label} sent a piece of the tokenizer that is not whole")
        return answer.total_bytes, bytes(data[: answer.piece_bytes])
    raise last
