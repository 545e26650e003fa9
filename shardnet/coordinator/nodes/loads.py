"""Carrying plans out: LOAD_SHARD to nodes, with sources, progress and outcome. And measuring the links between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from shardnet.coordinator.nodes.peers import Peers
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import Event, LinkKnown, LoadFailed, LoadMoved, LoadSent, ShardIsReady
from shardnet.coordinator.placement.law import LinkTime
from shardnet.coordinator.placement.planning import LoadOrder
from shardnet.errors import DeadlineExceeded, PeerLost, ShardnetError, UnreachableError
from shardnet.ids import new_id
from shardnet.log import get
from shardnet.messages import (
    LinkMeasured,
    LoadProgress,
    LoadShard,
    MeasureLink,
    Ping,
    ShardOptions,
    ShardReady,
    ShardSource,
)

PROGRESS_LOG_S = 5.0
MEASURE_DEADLINE_S = 10.0
MAX_SOURCES = 64

log = get("loads")

Apply = Callable[[Event], None]


def sources_of(cluster: Cluster, model_id: str, shard_id: int, without: str) -> tuple[ShardSource, ...]:
    """Returns: holders that the coordinator knows of and that can be dialled, by id."""
    return tuple(
        ShardSource(node_id=node.node_id, address=node.address, torrent_port=node.capabilities.torrent_port)
        for node in cluster.holders(model_id, shard_id)
        if node.node_id != without and node.address is not None and not node.draining
    )[:MAX_SOURCES]


class Loader:
    """Sends commands about shards and links, and feeds what becomes of them back as events."""

    def __init__(self, cluster: Cluster, peers: Peers, apply: Apply, now_s: Callable[[], float]) -> None:
        self._cluster = cluster
        self._peers = peers
        self._apply = apply
        self._now_s = now_s

    async def load(self, order: LoadOrder, options: ShardOptions, deadline_s: float) -> None:
        """Carry one order out. Never raises but when cancelled."""
        manifest = self._cluster.manifests[order.model_id]
        node = self._cluster.nodes.get(order.node_id)
        if node is None:
            return
        key = (order.model_id, order.shard_id)
        where = {"shard_id": order.shard_id, "model": manifest.name, "node": node.label}
        self._apply(LoadSent(self._now_s(), order.node_id, key, order.needed_bytes, order.keep_only, order.repack))
        logged_s = self._now_s()

        def on_progress(progress: LoadProgress) -> None:
            nonlocal logged_s
            self._apply(LoadMoved(order.node_id, key, progress))
            if self._now_s() - logged_s >= PROGRESS_LOG_S:
                logged_s = self._now_s()
                share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 0.0
                log.info("load_progress", **where, stage=progress.stage, percent=round(100 * share, 1))

        command = LoadShard(
            command_id=new_id(),
            deadline_s=deadline_s,
            model_id=order.model_id,
            shard_id=order.shard_id,
            options=options,
            manifest=manifest,
            keep_only=order.keep_only,
            sources=sources_of(self._cluster, order.model_id, order.shard_id, order.node_id),
        )
        try:
            frame = await self._peers.ask(order.node_id, command, timeout_s=deadline_s, on_progress=on_progress)
        except PeerLost:
            return  # the node is gone, and this load with it
        except ShardnetError as error:
            log.warning("load_failed", **where, code=error.code, reason=str(error))
            self._apply(LoadFailed(self._now_s(), order.node_id, key, error))
            return
        ready = cast("ShardReady", frame.message)
        log.info("load_finished", **where, source=ready.source, memory_bytes=ready.held.memory_bytes)
        self._apply(ShardIsReady(self._now_s(), order.node_id, ready.held))

    async def measure(self, source: str, target: str) -> None:
        """Measure the link between two nodes, both directions as one; from the coordinator ("") only the round trip.

        Never raises but when cancelled.
        """
        try:
            link = await (self._measure_either(source, target) if source else self._measure_own(target))
        except PeerLost:
            return  # one of the two has gone meanwhile
        except (UnreachableError, DeadlineExceeded) as error:
            if source and (source, target) not in self._cluster.unreachable:
                log.warning("link_unreachable", source=source[:12], target=target[:12], reason=str(error))
                self._apply(LinkKnown(source, target, None))
            return
        except ShardnetError as error:
            log.info("link_not_measured", source=source[:12], target=target[:12], reason=str(error))
            return
        self._apply(LinkKnown(source, target, link))
        self._apply(LinkKnown(target, source, link))

    async def _measure_either(self, source: str, target: str) -> LinkTime:
        """A link serves both directions, whoever dialled: where one cannot dial the other, the other may dial the one."""
        try:
            return await self._measure_pair(source, target)
        except PeerLost:
            raise
        except (UnreachableError, DeadlineExceeded) as error:
            try:
                return await self._measure_pair(target, source)
            except (UnreachableError, DeadlineExceeded):
                raise error from None

    async def _measure_pair(self, source: str, target: str) -> LinkTime:
        node = self._cluster.nodes.get(target)
        if node is None or node.address is None:
            raise UnreachableError(f"node {target[:12]} told no address")
        peer = ShardSource(node_id=target, address=node.address)
        command = MeasureLink(command_id=new_id(), deadline_s=MEASURE_DEADLINE_S, peer=peer)
        frame = await self._peers.ask(source, command, timeout_s=MEASURE_DEADLINE_S)
        found = cast("LinkMeasured", frame.message)
        return LinkTime(one_way_s=found.round_trip_s / 2, bytes_per_s=max(1.0, found.bytes_per_s))

    async def _measure_own(self, target: str) -> LinkTime:
        began_s = time.perf_counter()
        await self._peers.ask(target, Ping(command_id=new_id()), timeout_s=MEASURE_DEADLINE_S)
        return LinkTime(one_way_s=(time.perf_counter() - began_s) / 2)
