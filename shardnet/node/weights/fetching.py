"""One shard's way here: a torrent of it from any holder, then its pieces from all of them; through the coordinator where none can be connected to.

The torrent is asked of holders over our own links, and believed only as far as hashes carry: pieces by the torrent, the whole file by the manifest.
If the bytes that a torrent promises are not the manifest's, the torrent was the lie, and another holder is asked for another one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from shardnet.errors import ShardCorrupt, ShardnetError, ShardNotFound
from shardnet.lifecycle import Spawn
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import ShardSource
from shardnet.node.weights import torrent_files
from shardnet.node.weights.exchange import FetchProgress, OnFetchProgress
from shardnet.node.weights.holders import Holder, Holders
from shardnet.node.weights.presence import Presence
from shardnet.node.weights.relaying import RelayedPieces
from shardnet.node.weights.settings import NodeTorrentSettings
from shardnet.torrent import disk
from shardnet.torrent.metainfo import MAX_TORRENT_BYTES, TorrentFacts, check_torrent
from shardnet.torrent.progress import TorrentStats

ASK_AGAIN_S = 1.0
"""While nobody is known who has a shard."""
FIRST_LOOK_S, MOST_LOOK_S = 0.25, 3.0
"""While a download runs: whoever came meanwhile helps. Those who begin together should find each other soon."""

log = get("exchange")


@dataclass(frozen=True, slots=True)
class Found:
    """A torrent that may be good, what it says, and who is known to have the shard."""

    torrent: bytes
    facts: TorrentFacts
    holders: list[Holder]


class Patience:
    """How long a download may stand still. Pure: figures and times in.

    Before the first figures what is on the disk is hashed, and once all is here it is flushed and hashed again: that takes as long as the disk takes.
    """

    def __init__(self, give_up_s: float) -> None:
        self._give_up_s = give_up_s
        self._moved_s: float | None = None
        self._is_whole = False
        self.bytes_done = 0

    def observe(self, stats: TorrentStats, at_s: float) -> None:
        """Take in what a download tells of itself."""
        is_found_bad = self._is_whole and stats.bytes_done < stats.bytes_total
        if self._moved_s is None or stats.bytes_done > self.bytes_done or stats.is_checking or is_found_bad:
            self.bytes_done, self._moved_s = stats.bytes_done, at_s
        self._is_whole = stats.bytes_done >= stats.bytes_total

    def is_over(self, at_s: float) -> bool:
        """Returns: True if nothing came for too long."""
        return self._moved_s is not None and not self._is_whole and at_s - self._moved_s >= self._give_up_s


class ShardFetch:
    """Brings one shard to `target`, once.

    Args:
        authority: the swarm's certificate authority, PEM, which the torrent has to name.
        sources: holders that the coordinator knows of.
    """

    def __init__(
        self,
        manifest: Manifest,
        shard_id: int,
        target: Path,
        sources: tuple[ShardSource, ...],
        *,
        presence: Presence,
        holders: Holders,
        settings: NodeTorrentSettings,
        authority: bytes,
        on_progress: OnFetchProgress,
        spawn: Spawn,
    ) -> None:
        self._manifest = manifest
        self._shard_id = shard_id
        self._target = target
        self._sources = sources
        self._presence = presence
        self._holders = holders
        self._settings = settings
        self._authority = authority
        self._on_progress = on_progress
        self._spawn = spawn
        self._refused: set[str] = set()
        self._trouble: ShardCorrupt | None = None

    async def run(self) -> tuple[disk.Stamp | None, Found]:
        """Returns: the file's stamp as its hash was seen to be right (None: it was not computed), and the torrent that was good.

        Raises: ShardNotFound if nobody has it, NoRoomError, ShardCorrupt, DeadlineExceeded.
        """
        while True:
            found = await self._find_torrent()
            try:
                return await self._download(found), found
            except ShardCorrupt as error:
                self._trouble = error
                self._refused.add(found.facts.info_hash)
                await asyncio.to_thread(
                    torrent_files.forget, self._target.parent, self._manifest, self._shard_id, self._authority
                )

    # -- the torrent ---------------------------------------------------------------------------------------------------------

    async def _find_torrent(self) -> Found:
        """Raises: what was wrong with those refused, if there are no others; ShardNotFound if nobody gives one within `find_holders_s`."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._settings.find_holders_s
        manifest, shard_id = self._manifest, self._shard_id
        size = manifest.content.shards[shard_id].bytes
        kept = await asyncio.to_thread(
            torrent_files.read_kept, self._target.parent, manifest, shard_id, self._authority
        )
        why = "no node that is up has it"
        told = ""
        while True:
            holders = await self._holders.of_shard(manifest.model_id, shard_id, self._sources)
            if kept is not None and holders:
                facts = check_torrent(kept, expect_bytes=size, root_cert_pem=self._authority)
                if facts.info_hash not in self._refused:
                    return Found(kept, facts, holders)
            for holder in holders:
                try:
                    torrent = await self._holders.torrent(holder, manifest, shard_id, most_bytes=MAX_TORRENT_BYTES)
                    facts = self._checked(torrent)
                except ShardnetError as error:
                    why = str(error)
                    continue
                if facts.info_hash not in self._refused:
                    return Found(torrent, facts, holders)
            if self._trouble is not None:
                raise self._trouble
            try:  # nobody who has it can be asked: perhaps the coordinator can
                torrent = await self._holders.torrent_by_relay(manifest, shard_id, most_bytes=MAX_TORRENT_BYTES)
                facts = self._checked(torrent)
            except ShardnetError as error:
                log.debug("torrent_not_relayed", shard_id=shard_id, reason=str(error))
            else:
                if facts.info_hash not in self._refused:
                    return Found(torrent, facts, holders)
            if loop.time() >= until_s:
                raise ShardNotFound(
                    f"shard {shard_id} of {manifest.name} can be had from nobody: {why}; "
                    "start a node that has its file, and it is fetched then",
                    model_id=manifest.model_id,
                    shard_id=shard_id,
                )
            if why != told:
                told = why
                log.info("shard_has_no_holder_yet", shard_id=shard_id, model=manifest.name, reason=why)
            await asyncio.sleep(ASK_AGAIN_S)

    def _checked(self, torrent: bytes) -> TorrentFacts:
        """Raises: ManifestError, ShardCorrupt if it is not the torrent of this shard and swarm."""
        return check_torrent(
            torrent,
            expect_bytes=self._manifest.content.shards[self._shard_id].bytes,
            root_cert_pem=self._authority,
            expect_open_info_hash=self._manifest.files[self._shard_id].info_hash,
        )

    # -- the pieces ----------------------------------------------------------------------------------------------------------

    async def _download(self, found: Found) -> disk.Stamp | None:
        loop = asyncio.get_running_loop()
        manifest, shard_id = self._manifest, self._shard_id
        session = self._presence.session()
        patience, direct_s, taken_bytes = Patience(self._settings.give_up_s), loop.time(), 0

        def on_stats(stats: TorrentStats) -> None:
            nonlocal direct_s, taken_bytes
            if stats.downloaded_bytes > taken_bytes or stats.is_checking:
                taken_bytes, direct_s = stats.downloaded_bytes, loop.time()
            patience.observe(stats, loop.time())
            rate = float(max(0, stats.download_bytes_per_s))
            self._on_progress(FetchProgress(stats.bytes_done, stats.bytes_total, rate, stats.peers))

        async def watch() -> NoReturn:
            """Name whoever appears meanwhile, and give up where nothing comes for too long."""
            wait_s = FIRST_LOOK_S
            await self._presence.announce_download(manifest, shard_id)
            while not patience.is_over(loop.time()):
                others = await self._holders.who_fetch(manifest.model_id, shard_id)
                others += await self._holders.of_shard(manifest.model_id, shard_id, self._sources)
                session.add_peers(found.facts.info_hash, self._presence.peers_of(others))
                await asyncio.sleep(wait_s)
                wait_s = min(MOST_LOOK_S, 2 * wait_s)
            raise ShardNotFound(
                f"shard {shard_id} of {manifest.name}: nothing came for {self._settings.give_up_s:g} s, its holders are gone; "
                f"{patience.bytes_done} bytes are kept for when one is back",
                model_id=manifest.model_id,
                shard_id=shard_id,
            )

        fetching = asyncio.create_task(
            session.fetch(
                found.torrent,
                self._target,
                expect_sha256=manifest.sha256_of(shard_id),
                expect_bytes=found.facts.file_bytes,
                label=str(shard_id),
                peers=self._presence.peers_of(found.holders),
                on_progress=on_stats,
            ),
            name=f"fetch {shard_id}",
        )
        watching = asyncio.create_task(watch(), name=f"watch fetch {shard_id}")
        relay = RelayedPieces(
            manifest, shard_id, found.facts.info_hash, session, self._holders, lambda: loop.time() - direct_s
        )
        relaying = asyncio.create_task(relay.run(), name=f"relay of {shard_id}")
        try:
            await asyncio.wait({fetching, watching, relaying}, return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                await relaying  # it ends only by a fault of ours
            if not fetching.done():
                await watching
            return await fetching
        finally:
            for task in (fetching, watching, relaying):
                task.cancel()
            await asyncio.gather(fetching, watching, relaying, return_exceptions=True)
            leaving = self._presence.withdraw_download(manifest, shard_id)
            try:
                self._spawn(leaving, f"download {shard_id} is over")
            except RuntimeError:  # the daemon is ending, and withdraws everything
                leaving.close()
