"""Copies of shard files beyond what pipelines need: idle nodes fetch the rarest, so that losing a node loses no weights. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.node_view import NodeView, is_whole
from shardnet.coordinator.placement.planning import LoadOrder
from shardnet.manifest import Manifest

AT_ONCE = 1
"""Copies under way on one node: more would only share its line."""


def spread(cluster: Cluster, models: Iterable[Manifest], copies: int) -> list[LoadOrder]:
    """Decide which nodes shall fetch which files, to be kept and not loaded, until every shard has `copies` holders.

    The rarest shard goes first, to the node with the fewest bytes; a node that refused (a full disk) is left alone until its time has come.
    """
    if copies <= 1:
        return []
    nodes = [node for node in cluster.nodes.values() if not node.draining and node.capabilities.torrent_port > 0]
    stored = {node.node_id: _stored_bytes(cluster, node) for node in nodes}
    busy = {node.node_id: sum(load.keep_only for load in node.loads.values()) for node in nodes}
    wanted = []
    for manifest in models:
        for shard in manifest.content.shards:
            key = (manifest.model_id, shard.shard_id)
            holders = sum(
                (key in node.held and is_whole(node.held[key])) or key in node.loads for node in cluster.nodes.values()
            )
            if 0 < holders < copies and cluster.holders(*key):
                wanted.append((holders, manifest.name, manifest, shard))
    orders = []
    for holders, _, manifest, shard in sorted(wanted, key=lambda one: (one[0], one[1], one[3].shard_id)):
        key = (manifest.model_id, shard.shard_id)
        free = [node for node in nodes if busy[node.node_id] < AT_ONCE and _may_fetch(node, manifest, key)]
        for node in sorted(free, key=lambda one: (stored[one.node_id], one.node_id))[: copies - holders]:
            orders.append(LoadOrder(node.node_id, *key, needed_bytes=0, keep_only=True))
            busy[node.node_id] += 1
            stored[node.node_id] += shard.bytes
    return orders


def _stored_bytes(cluster: Cluster, node: NodeView) -> int:
    total = 0
    for model_id, shard_id in node.held.keys() | node.loads.keys():
        manifest = cluster.manifests.get(model_id)
        if manifest is not None and shard_id < manifest.n_shards:
            total += manifest.content.shards[shard_id].bytes
    return total


def _may_fetch(node: NodeView, manifest: Manifest, key: tuple[str, int]) -> bool:
    allowed = node.allowed(manifest.model_id, manifest.name)
    refusal = node.refusals.get(key)
    return (
        key not in node.held
        and key not in node.loads
        and not (refusal is not None and refusal.waits)
        and (allowed is None or key[1] in allowed)
    )
