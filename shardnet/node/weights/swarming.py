"""The node's `ShardExchange`: shards come by BitTorrent from whoever the DHT and the coordinator name, and go to whoever asks.

Composes `presence` (the session, the DHT), `offers` (giving) and `fetching` (taking). Decides nothing about which shard is wanted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path

from shardnet.dht.directory import Directory
from shardnet.errors import ShardCorrupt, ShardError, ShardnetError
from shardnet.files import write_whole
from shardnet.ids import ShardKey
from shardnet.lifecycle import Pace, Spawn
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import Address, ShardSource
from shardnet.node.weights import torrent_files
from shardnet.node.weights.exchange import OnFetchProgress
from shardnet.node.weights.fetching import ShardFetch
from shardnet.node.weights.holders import Holder, Holders
from shardnet.node.weights.offers import Offers
from shardnet.node.weights.presence import Presence
from shardnet.node.weights.settings import NodeTorrentSettings
from shardnet.swarm.home import hold_lock
from shardnet.swarm.identity import Identity
from shardnet.torrent import disk
from shardnet.torrent.progress import TorrentStats

LOCK_POLL_S = 0.5

log = get("exchange")


class SwarmExchange:
    """Use within `serving`. Everything belongs to one event loop.

    Args:
        state_dir: a folder of this node's own, for resume data.
        memory_free: bytes for more shards, told on the DHT.
        may_go, given_up: whether an offered file may be deleted to make room for another (False: it is in use), and that it is.
        is_assigned: whether the node's user bound it to a shard.
        rotted: an offered file was found damaged; nobody is given it any more.
    """

    def __init__(
        self,
        identity: Identity,
        settings: NodeTorrentSettings,
        state_dir: Path,
        holders: Holders,
        *,
        memory_free: Callable[[], int] = lambda: 0,
        spawn: Spawn,
        may_go: Callable[[ShardKey], bool] = lambda _key: False,
        given_up: Callable[[ShardKey], None] = lambda _key: None,
        is_assigned: Callable[[ShardKey], bool] = lambda _key: False,
        rotted: Callable[[ShardKey, Path], None] = lambda _key, _path: None,
    ) -> None:
        self._authority = identity.swarm.ca_pem
        self._settings = settings
        self._holders = holders
        self._spawn = spawn
        limit = settings.upload_limit_bytes_per_s
        self._upload_pace = Pace(limit) if limit else None
        self._presence = Presence(identity, settings, state_dir, memory_free)
        self._offers = Offers(
            self._presence,
            holders,
            self._authority,
            settings.disk_budget_bytes,
            spawn=spawn,
            may_go=may_go,
            given_up=given_up,
            is_assigned=is_assigned,
            rotted=rotted,
        )

    def serving(
        self, listening: Address, address: Callable[[], Address | None], directory: Directory | None
    ) -> AbstractAsyncContextManager[None]:
        """Take and give shards inside.

        Args:
            listening: where this node answers questions of others.
            address: where they dial it, now.
        Raises: SettingsError if the torrent port is taken or the key cannot be read.
        """
        return self._presence.serving(listening, address, directory, self._offers.on_rotten, self._offers.on_unreadable)

    async def move(self) -> None:
        """Others reach this node at another address now."""
        await self._presence.move()

    async def hush(self) -> None:
        """Give nothing, and say nothing, until `resume`: another node that lives goes by this one's name."""
        self._presence.hush()
        await self._offers.pause()

    async def resume(self) -> None:
        """Give again what was offered before and since `hush`."""
        await self._offers.resume()
        await self._presence.move()

    @property
    def torrent_port(self) -> int:
        """Returns: where other nodes' transfers connect to."""
        return self._presence.torrent_port

    def stats(self) -> dict[str, TorrentStats]:
        """Returns: figures of every torrent, by info-hash."""
        return self._presence.stats()

    def traffic(self) -> tuple[int, int]:
        """Returns: payload bytes of shards sent and taken since the start."""
        return self._presence.traffic()

    # -- giving --------------------------------------------------------------------------------------------------------------

    async def offer(self, manifest: Manifest, shard_id: int, path: Path) -> None:
        """See `ShardExchange`. Raises: ShardCorrupt, ShardError if the file or its torrent cannot be used."""
        await self._offers.add(manifest, shard_id, path)

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        """See `ShardExchange`."""
        await self._offers.withdraw(ShardKey((model_id, shard_id)))

    async def torrent(self, manifest: Manifest, shard_id: int) -> bytes:
        """See `ShardExchange`."""
        return await self._offers.torrent(manifest, shard_id)

    async def piece(self, manifest: Manifest, shard_id: int, offset: int, most_bytes: int) -> bytes:
        """See `ShardExchange`."""
        if self._upload_pace is not None:
            await self._upload_pace.take(most_bytes)
        return await self._offers.piece(ShardKey((manifest.model_id, shard_id)), offset, most_bytes)

    def meet(self, manifest: Manifest, shard_id: int, asker: ShardSource) -> None:
        """See `ShardExchange`."""
        info_hash = self._offers.info_hash(ShardKey((manifest.model_id, shard_id)))
        if info_hash is not None:
            peers = self._presence.peers_of([Holder(asker.node_id, asker.address, asker.torrent_port)])
            self._presence.session().add_peers(info_hash, peers)

    # -- taking --------------------------------------------------------------------------------------------------------------

    async def fetch(
        self,
        manifest: Manifest,
        shard_id: int,
        target: Path,
        sources: tuple[ShardSource, ...],
        on_progress: OnFetchProgress,
    ) -> disk.Stamp | None:
        """See `ShardExchange`. Two nodes that share a models cache take turns."""
        target = disk.absolute(target)
        fetch = ShardFetch(
            manifest,
            shard_id,
            target,
            sources,
            presence=self._presence,
            holders=self._holders,
            settings=self._settings,
            authority=self._authority,
            on_progress=on_progress,
            spawn=self._spawn,
        )
        async with alone_with(target):
            wanted = ShardKey((manifest.model_id, shard_id))
            await self._offers.make_room(wanted, manifest.content.shards[shard_id].bytes)
            proved, found = await fetch.run()
        await asyncio.to_thread(torrent_files.keep, target.parent, manifest, shard_id, self._authority, found.torrent)
        self._spawn(self.bring_tokenizer(manifest, target.parent, found.holders), "tokenizer")
        return proved

    async def manifest(self, model_id: str, sources: tuple[ShardSource, ...] = ()) -> Manifest:
        """Returns: a model's manifest, signed by the swarm's owner. Raises: ManifestError if nobody has it."""
        return await self._holders.manifest(model_id, [Holder(one.node_id, one.address) for one in sources])

    async def bring_tokenizer(self, manifest: Manifest, folder: Path, holders: Sequence[Holder] = ()) -> None:
        """Have the tokenizer beside the shards, so that this node can hand out all of the model. Failing is no harm: nodes run without it."""
        wanted = manifest.content.tokenizer
        path = folder / wanted.file
        if await asyncio.to_thread(path.exists):
            return
        try:
            holders = holders or await self._holders.of_manifest(manifest.model_id)
            data = await self._holders.tokenizer(manifest, holders)
            if hashlib.sha256(data).hexdigest() != wanted.sha256:
                raise ShardCorrupt(f"the tokenizer of {manifest.name} that was sent is damaged")
            await asyncio.to_thread(write_whole, path, data)
        except (ShardnetError, OSError) as error:
            log.info("tokenizer_not_fetched", model=manifest.name, reason=str(error))


@asynccontextmanager
async def alone_with(target: Path) -> AsyncIterator[None]:
    """Wait until no other process of this machine fetches the same file. Raises: ShardError if the folder cannot be written."""
    lock = target.parent / torrent_files.FOLDER / f"{target.name}.lock"
    try:
        await asyncio.to_thread(lock.parent.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"cannot write into {target.parent}: {error.strerror or error}") from error
    with ExitStack() as held:
        while True:
            with suppress(BlockingIOError):
                held.enter_context(hold_lock(lock, wait=False))
                break
            await asyncio.sleep(LOCK_POLL_S)
        yield
