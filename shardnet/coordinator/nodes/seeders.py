"""Shards that no connected node holds, and who on the DHT does: those who only seed, or serve another coordinator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import Event, SeedersKnown
from shardnet.dht.directory import Directory
from shardnet.manifest import Manifest

LOOK_EVERY_S = 2.0


class Seeders:
    """Looks shards up. A record that a node left behind when it went away counts for nothing: sequences are milliseconds of the announcer's clock."""

    def __init__(self, cluster: Cluster, directory: Directory) -> None:
        self._cluster = cluster
        self._directory = directory
        self._left_ms: dict[str, int] = {}
        self._connected: set[str] = set()

    async def keep_known(self, models: Callable[[], list[Manifest]], apply: Callable[[Event], None]) -> None:
        """As long as shards are with no connected node, ask the DHT who else has them; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for manifest in models():
                apply(SeedersKnown(manifest.model_id, await self.of(manifest)))

    async def of(self, manifest: Manifest) -> frozenset[int]:
        """Returns: shards of the model that nobody connected has whole, and somebody else on the DHT does."""
        self._note_who_left()
        found = set()
        for shard in manifest.content.shards:
            if self._cluster.holders(manifest.model_id, shard.shard_id):
                continue
            for record in await self._directory.lookup(manifest.model_id, shard.shard_id):
                is_here = record.node_id in self._cluster.nodes  # it says itself what it has
                if not is_here and record.torrent_port and record.sequence > self._left_ms.get(record.node_id, 0):
                    found.add(shard.shard_id)
        return frozenset(found)

    def _note_who_left(self) -> None:
        here = set(self._cluster.nodes)
        now_ms = int(time.time() * 1000)
        self._left_ms |= dict.fromkeys(self._connected - here, now_ms)
        self._connected = here
