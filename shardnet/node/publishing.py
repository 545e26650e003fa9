"""`shardnet seed --open`: give shards to anybody who has their ordinary torrents. Outside of every swarm: no identity, no directory, no TLS."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shardnet.errors import UsageError
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.node.settings import NodeSettings
from shardnet.node.weights import torrent_files
from shardnet.node.weights.store import ModelStore
from shardnet.swarm.addresses import parse_host_port
from shardnet.torrent.session import TorrentSession

log = get("sharing")


class OpenSeed:
    """Seeds every shard of a models cache, or of one model's folder, by the torrents that `shardnet torrent` writes for them.

    Args:
        settings: `node.models_cache` is what is given; peers connect to `node.listen`, or `torrent.listen_host` and `torrent.listen_port` where set.
        state_dir: a folder of our own.
    """

    def __init__(self, settings: NodeSettings, state_dir: Path) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._store = ModelStore(settings.node.models_cache)
        self._stopping = asyncio.Event()

    def stop(self, by: str = "") -> None:
        """Ask it to end."""
        self._stopping.set()

    async def run(self) -> None:
        """Seed until stop(). Raises: UsageError if there is nothing to seed; SettingsError if the port is taken."""
        host, port = parse_host_port(self._settings.node.listen, what="--listen")
        torrent = self._settings.torrent
        settings = torrent.model_copy(
            update={"listen_host": torrent.listen_host or host, "listen_port": torrent.listen_port or port}
        )
        async with TorrentSession(settings, None, self._state_dir) as session:

            async def seed(manifest: Manifest, shard_id: int, path: Path) -> None:
                torrent = await asyncio.to_thread(torrent_files.read_or_make, path, manifest, shard_id, None)
                await session.seed(torrent, path, label=str(shard_id))

            if not await self._store.offer_all(await self._store.scan(), seed):
                raise UsageError(f"there is no shard to seed in {self._settings.node.models_cache.absolute()}")
            log.warning("open_seed_listening", host=settings.listen_host, port=session.port)
            await self._stopping.wait()
