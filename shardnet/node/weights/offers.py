"""The files that this node gives to others: seeded, announced, handed out as torrents, and deleted where the disk budget asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardnet.errors import ShardError, ShardnetError, ShardNotFound
from shardnet.ids import ShardKey
from shardnet.lifecycle import Spawn
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.node.weights import torrent_files
from shardnet.node.weights.holders import Holders
from shardnet.node.weights.presence import Presence
from shardnet.torrent import disk
from shardnet.torrent.eviction import StoredShard, plan_eviction
from shardnet.torrent.metainfo import check_torrent

SEED_AGAIN_S = 10.0
log = get("exchange")


@dataclass(frozen=True, slots=True)
class _Offer:
    """A file that others may have."""

    info_hash: str
    path: Path
    file_bytes: int
    since_s: float
    torrent: bytes


class Offers:
    """What others may have of this node.

    Args:
        authority: the swarm's certificate authority, PEM, which every torrent names.
        holders: says how many others have a file before it is deleted.
        disk_budget_bytes: for all files that are offered; 0: no bound.
        may_go, given_up: whether an offered file may be deleted to make room for another (False: it is in use), and that it is.
        is_assigned: whether the node's user bound it to a shard.
        rotted: an offered file was found damaged; nobody is given it any more.
    """

    def __init__(
        self,
        presence: Presence,
        holders: Holders,
        authority: bytes,
        disk_budget_bytes: int,
        *,
        spawn: Spawn,
        may_go: Callable[[ShardKey], bool],
        given_up: Callable[[ShardKey], None],
        is_assigned: Callable[[ShardKey], bool],
        rotted: Callable[[ShardKey, Path], None],
    ) -> None:
        self._presence = presence
        self._holders = holders
        self._authority = authority
        self._disk_budget_bytes = disk_budget_bytes
        self._spawn = spawn
        self._may_go = may_go
        self._given_up = given_up
        self._is_assigned = is_assigned
        self._rotted = rotted
        self._offered: dict[ShardKey, _Offer] = {}
        self._hashing = asyncio.Semaphore(1)
        self._is_paused = False

    async def add(self, manifest: Manifest, shard_id: int, path: Path) -> None:
        """A proved file is here: seed it and announce it. Raises: ShardCorrupt, ShardError if the file or its torrent cannot be used."""
        session, key = self._presence.session(), ShardKey((manifest.model_id, shard_id))
        async with self._hashing:
            torrent = await asyncio.to_thread(torrent_files.read_or_make, path, manifest, shard_id, self._authority)
        facts = check_torrent(
            torrent, expect_bytes=manifest.content.shards[shard_id].bytes, root_cert_pem=self._authority
        )
        if not self._is_paused:
            await session.seed(torrent, path, label=str(shard_id))
        since_s = asyncio.get_running_loop().time()
        self._offered[key] = _Offer(facts.info_hash, path, facts.file_bytes, since_s, torrent)
        await self._presence.announce(manifest, shard_id)

    async def withdraw(self, key: ShardKey) -> None:
        """The file is no longer good. Harmless when it was not offered."""
        offered = self._offered.pop(key, None)
        if offered is not None:
            await self._presence.stop_seeding(offered.info_hash)
            await self._presence.withdraw(*key)
            if not any(other[0] == key[0] for other in self._offered):
                await self._presence.withdraw_manifest(key[0])

    async def torrent(self, manifest: Manifest, shard_id: int) -> bytes:
        """Returns: the shard's torrent file. Raises: ShardNotFound if it is not offered."""
        offered = self._offered.get(ShardKey((manifest.model_id, shard_id)))
        if offered is None or self._is_paused:
            raise ShardNotFound(f"shard {shard_id} of {manifest.name} is not offered by this node")
        return offered.torrent

    async def piece(self, key: ShardKey, offset: int, most_bytes: int) -> bytes:
        """Returns: bytes of an offered file. Raises: ShardNotFound if it is not offered; ShardError if it cannot be read."""
        offered = self._offered.get(key)
        if offered is None or self._is_paused:
            raise ShardNotFound(f"shard {key[1]} is not offered by this node")
        path = offered.path

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(most_bytes)

        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            raise ShardError(f"{path.name} cannot be read here: {error.strerror or error}") from error

    def info_hash(self, key: ShardKey) -> str | None:
        """Returns: the torrent of an offered file; None if it is not offered."""
        offered = self._offered.get(key)
        return offered.info_hash if offered is not None and not self._is_paused else None

    async def pause(self) -> None:
        """Give nothing to anybody until `resume`; what is offered stays known."""
        self._is_paused = True
        for offered in tuple(self._offered.values()):
            await self._presence.stop_seeding(offered.info_hash)

    async def resume(self) -> None:
        """Give again."""
        self._is_paused = False
        for key, offered in tuple(self._offered.items()):
            await self._presence.session().seed(offered.torrent, offered.path, label=str(key[1]))

    def on_rotten(self, _label: str, path: Path) -> None:
        """The session found a seeded file damaged."""
        for key, offered in self._offered_at(path):
            log.warning("shard_rotten", shard_id=key[1], path=str(path), advice="it is no longer given to others")
            self._spawn(self.withdraw(key), f"withdraw {key[1]}")
            self._rotted(key, offered.path)

    def on_unreadable(self, _label: str, path: Path) -> None:
        """The session could not read a seeded file: a share that was away for a moment, too many open files."""
        for key, offered in self._offered_at(path):
            log.warning("shard_unreadable", shard_id=key[1], path=str(path), advice="it is given again once it can be")
            self._spawn(self._seed_again(key, offered), f"give {key[1]} again")

    def _offered_at(self, path: Path) -> list[tuple[ShardKey, _Offer]]:
        wanted = disk.absolute(path)
        return [(key, offered) for key, offered in self._offered.items() if disk.absolute(offered.path) == wanted]

    async def _seed_again(self, key: ShardKey, offered: _Offer) -> None:
        while self._offered.get(key) is offered:
            await asyncio.sleep(SEED_AGAIN_S)
            if self._is_paused or self._offered.get(key) is not offered:
                continue
            try:
                await self._presence.session().seed(offered.torrent, offered.path, label=str(key[1]))
            except ShardnetError as error:
                log.debug("shard_unreadable_still", shard_id=key[1], reason=str(error))
            else:
                return

    async def make_room(self, wanted: ShardKey, needed_bytes: int) -> None:
        """Delete the least needed files where the disk budget asks for it. Raises: NoRoomError if those that may go are not enough."""
        budget = self._disk_budget_bytes
        if not budget:
            return
        others = {key: offer for key, offer in self._offered.items() if key != wanted}
        total = sum(offer.file_bytes for offer in others.values())
        expendable = [key for key in others if self._may_go(key)] if total + needed_bytes > budget else []
        holders = {key: len(await self._holders.of_shard(*key, ())) for key in expendable}
        stored = [
            StoredShard(
                *key,
                file_bytes=offer.file_bytes,
                is_loaded=key not in holders,
                is_assigned=self._is_assigned(key),
                other_holders=holders.get(key, 0),
                last_used_s=offer.since_s,
            )
            for key, offer in others.items()
        ]
        for shard in plan_eviction(stored, needed_bytes, budget):
            key = ShardKey((shard.model_id, shard.shard_id))
            if key not in self._offered or not self._may_go(key):
                continue  # it came into use meanwhile
            path = self._offered[key].path
            self._given_up(key)
            await self.withdraw(key)
            await asyncio.to_thread(path.unlink, missing_ok=True)
            log.info("shard_evicted", shard_id=shard.shard_id, path=str(path), holders=shard.other_holders)
