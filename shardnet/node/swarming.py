"""The node's `ShardExchange`: shards come by BitTorrent from whoever the DHT and the coordinator name, and go to whoever asks.

The torrent of a shard is asked of any holder over our own links, and believed only as far as hashes carry: pieces by the torrent, the whole file by
the manifest. Decides nothing about which shard is wanted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from shardnet.dht.directory import Directory
from shardnet.errors import ShardCorrupt, ShardError, ShardnetError, ShardNotFound, UsageError
from shardnet.files import write_whole
from shardnet.ids import NodeId, ShardKey
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import Address, ShardSource
from shardnet.node import torrent_files
from shardnet.node.exchange import FetchProgress, OnFetchProgress
from shardnet.node.holders import Holder, Holders
from shardnet.node.settings import NodeTorrentSettings
from shardnet.swarm.addresses import reachable
from shardnet.swarm.home import hold_lock
from shardnet.swarm.identity import Identity
from shardnet.swarm.signing import signature_is_valid
from shardnet.torrent import disk
from shardnet.torrent.eviction import StoredShard, plan_eviction
from shardnet.torrent.metainfo import MAX_TORRENT_BYTES, TorrentFacts, check_torrent
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.session import TorrentSession
from shardnet.torrent.tls import TlsMaterial

ASK_AGAIN_S = 1.0
"""While nobody is known who has a shard."""
FIRST_LOOK_S, MOST_LOOK_S = 0.25, 3.0
"""While a download runs: whoever came meanwhile helps. Those who begin together should find each other soon."""
LOCK_POLL_S = 0.5

log = get("exchange")


@dataclass(frozen=True, slots=True)
class _Offer:
    """A file that others may have."""

    info_hash: str
    path: Path
    file_bytes: int
    since_s: float


class SwarmExchange:
    """Use within `serving`. Everything belongs to one event loop.

    Args:
        state_dir: a folder of this node's own, for resume data.
        memory_free: bytes for more shards, told on the DHT.
        spawn: starts a job that lives no longer than the daemon.
        may_go, given_up: whether an offered file may be deleted to make room for another (False: it is in use), and that it is. None: nothing is.
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
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        may_go: Callable[[ShardKey], bool] = lambda _key: False,
        given_up: Callable[[ShardKey], None] = lambda _key: None,
        is_assigned: Callable[[ShardKey], bool] = lambda _key: False,
        rotted: Callable[[ShardKey, Path], None] = lambda _key, _path: None,
    ) -> None:
        self._identity = identity
        self._authority = identity.swarm.ca_pem
        self._settings = settings
        self._state_dir = state_dir
        self._holders = holders
        self._memory_free = memory_free
        self._spawn = spawn
        self._may_go = may_go
        self._given_up = given_up
        self._is_assigned = is_assigned
        self._rotted = rotted
        self._session: TorrentSession | None = None
        self._directory: Directory | None = None
        self._address: Address | None = None
        self._offered: dict[ShardKey, _Offer] = {}
        self._hashing = asyncio.Semaphore(1)
        self._seen_at: dict[NodeId, set[str]] = {}

    @asynccontextmanager
    async def serving(self, listening: Address, directory: Directory | None) -> AsyncIterator[None]:
        """Take and give shards inside.

        Args:
            listening: where this node answers questions of others.
        Raises: SettingsError if the torrent port is taken or the key cannot be read.
        """
        settings = self._settings.model_copy(update={"listen_host": self._settings.listen_host or listening.host})
        identity = self._identity
        tls = TlsMaterial(
            ca_pem=self._authority,
            cert_pem=identity.certificate_pem,
            key_pem=await asyncio.to_thread(identity.key_pem),
        )
        async with AsyncExitStack() as resources:
            self._session = await resources.enter_async_context(
                TorrentSession(settings, tls, self._state_dir, on_rotten=self._rotten)
            )
            self._directory = directory
            self._address = reachable(listening)
            unwatch = identity.watch_revocations(self._fence_off)
            try:
                yield
            finally:
                unwatch()
                stats = self.stats().values()
                sent, taken = sum(one.uploaded_bytes for one in stats), sum(one.downloaded_bytes for one in stats)
                log.info("exchange_ended", sent_bytes=sent, taken_bytes=taken)
                self._session = self._directory = None

    @property
    def torrent_port(self) -> int:
        """Returns: where other nodes' transfers connect to."""
        return self._session.port if self._session is not None else 0

    def stats(self) -> dict[str, TorrentStats]:
        """Returns: figures of every torrent, by info-hash."""
        return self._session.stats() if self._session is not None else {}

    def _fence_off(self, revoked: frozenset[str]) -> None:
        """Transfers tell members by their certificates only, which a revoked one still has: refuse the addresses where it was known to be."""
        hosts = hosts_to_block(self._seen_at, revoked, own=self._address.host if self._address else "")
        if self._session is not None:
            self._session.block(hosts)
        if hosts:
            log.warning("revoked_addresses_blocked", hosts=", ".join(hosts))

    # -- giving --------------------------------------------------------------------------------------------------------------

    async def offer(self, manifest: Manifest, shard_id: int, path: Path) -> None:
        """See `ShardExchange`. Raises: ShardCorrupt, ShardError if the file or its torrent cannot be used."""
        session, key = self._running(), ShardKey((manifest.model_id, shard_id))
        async with self._hashing:
            torrent = await asyncio.to_thread(torrent_files.read_or_make, path, manifest, shard_id, self._authority)
        facts = check_torrent(
            torrent, expect_bytes=manifest.content.shards[shard_id].bytes, root_cert_pem=self._authority
        )
        await session.seed(torrent, path, label=str(shard_id))
        self._offered[key] = _Offer(facts.info_hash, path, facts.file_bytes, asyncio.get_running_loop().time())
        await self._announce(manifest, shard_id)

    async def _announce(self, manifest: Manifest, shard_id: int) -> None:
        if self._directory is None or self._address is None:
            return
        where = (self._address.host, self._address.port)
        try:
            await self._directory.announce(
                manifest.model_id,
                shard_id,
                address=where,
                torrent_port=self.torrent_port,
                memory_free_bytes=self._memory_free(),
            )
            await self._directory.announce_manifest(manifest.model_id, address=where)
        except UsageError as error:
            log.warning("shard_not_announced", shard_id=shard_id, reason=str(error))

    async def _announce_download(self, manifest: Manifest, shard_id: int) -> None:
        if self._directory is not None and self._address is not None:
            where = (self._address.host, self._address.port)
            with suppress(UsageError):  # said when the shard is here
                await self._directory.announce_download(
                    manifest.model_id, shard_id, address=where, torrent_port=self.torrent_port
                )

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        """See `ShardExchange`."""
        offered = self._offered.pop(ShardKey((model_id, shard_id)), None)
        if offered is None or self._session is None:
            return
        await self._session.remove(offered.info_hash)
        if self._directory is not None:
            await self._directory.withdraw(model_id, shard_id)
            if not any(key[0] == model_id for key in self._offered):
                await self._directory.withdraw_manifest(model_id)

    async def torrent(self, manifest: Manifest, shard_id: int) -> bytes:
        """See `ShardExchange`."""
        offered = self._offered.get(ShardKey((manifest.model_id, shard_id)))
        if offered is None:
            raise ShardNotFound(f"shard {shard_id} of {manifest.name} is not offered by this node")
        return await asyncio.to_thread(torrent_files.read_or_make, offered.path, manifest, shard_id, self._authority)

    def _rotten(self, _label: str, path: Path) -> None:
        for key, offered in tuple(self._offered.items()):
            if disk.absolute(offered.path) == disk.absolute(path):
                log.warning("shard_rotten", shard_id=key[1], path=str(path), advice="it is no longer given to others")
                self._spawn(self.withdraw(*key), f"withdraw {key[1]}")
                self._rotted(key, offered.path)

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
        async with self._alone_with(target):
            await self._make_room(ShardKey((manifest.model_id, shard_id)), manifest.content.shards[shard_id].bytes)
            refused: set[str] = set()
            trouble: ShardCorrupt | None = None
            while True:
                torrent, facts, holders = await self._find_torrent(
                    manifest, shard_id, target.parent, sources, refused, trouble
                )
                try:
                    proved = await self._download(
                        manifest, shard_id, target, sources, torrent, facts, holders, on_progress
                    )
                    break
                except ShardCorrupt as error:  # the torrent itself may be the lie: another holder may give another one
                    trouble = error
                    refused.add(facts.info_hash)
                    await asyncio.to_thread(torrent_files.forget, target.parent, manifest, shard_id, self._authority)
        await asyncio.to_thread(torrent_files.keep, target.parent, manifest, shard_id, self._authority, torrent)
        self._spawn(self.bring_tokenizer(manifest, target.parent, holders), "tokenizer")
        return proved

    async def _make_room(self, wanted: ShardKey, needed_bytes: int) -> None:
        """Delete the least needed files where the disk budget asks for it. Raises: NoRoomError if those that may go are not enough."""
        budget = self._settings.disk_budget_bytes
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
            await self.withdraw(*key)
            await asyncio.to_thread(path.unlink, missing_ok=True)
            log.info("shard_evicted", shard_id=shard.shard_id, path=str(path), holders=shard.other_holders)

    async def manifest(self, model_id: str, sources: tuple[ShardSource, ...] = ()) -> Manifest:
        """Returns: a model's manifest, signed by the swarm's owner. Raises: ManifestError if nobody has it."""
        hints = [Holder(source.node_id, source.address) for source in sources]

        def is_signed(manifest: Manifest) -> bool:
            return signature_is_valid(manifest, self._identity.swarm.ca)

        return await self._holders.manifest(model_id, hints, is_signed, "the swarm's owner did not sign it")

    async def _find_torrent(
        self,
        manifest: Manifest,
        shard_id: int,
        folder: Path,
        sources: tuple[ShardSource, ...],
        refused: set[str],
        trouble: ShardnetError | None,
    ) -> tuple[bytes, TorrentFacts, list[Holder]]:
        """Returns: a torrent, what it says, and who is known to have the shard.

        Args:
            refused: info-hashes of torrents that were no good; `trouble` says why.
        Raises: `trouble`, if there is nothing but those; ShardNotFound if nobody gives one within `find_holders_s`.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._settings.find_holders_s
        size = manifest.content.shards[shard_id].bytes
        kept = await asyncio.to_thread(torrent_files.read_kept, folder, manifest, shard_id, self._authority)
        why = "no node that is up has it"
        told = ""
        while True:
            holders = await self._holders.of_shard(manifest.model_id, shard_id, sources)
            if kept is not None and holders:
                facts = check_torrent(kept, expect_bytes=size, root_cert_pem=self._authority)
                if facts.info_hash not in refused:
                    return kept, facts, holders
            for holder in holders:
                try:
                    torrent = await self._holders.torrent(holder, manifest, shard_id, most_bytes=MAX_TORRENT_BYTES)
                    facts = check_torrent(
                        torrent,
                        expect_bytes=size,
                        root_cert_pem=self._authority,
                        expect_open_info_hash=manifest.files[shard_id].info_hash,
                    )
                except ShardnetError as error:
                    why = str(error)
                    continue
                if facts.info_hash not in refused:
                    return torrent, facts, holders
            if trouble is not None:
                raise trouble
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

    async def _download(
        self,
        manifest: Manifest,
        shard_id: int,
        target: Path,
        sources: tuple[ShardSource, ...],
        torrent: bytes,
        facts: TorrentFacts,
        holders: list[Holder],
        on_progress: OnFetchProgress,
    ) -> disk.Stamp | None:
        loop = asyncio.get_running_loop()
        session = self._running()
        most_bytes, moved_s = -1, loop.time()

        def on_stats(stats: TorrentStats) -> None:
            nonlocal most_bytes, moved_s
            if stats.bytes_done > most_bytes:
                most_bytes, moved_s = stats.bytes_done, loop.time()
            rate = float(max(0, stats.download_bytes_per_s))
            on_progress(FetchProgress(stats.bytes_done, stats.bytes_total, rate, stats.peers))

        def peers_of(found: list[Holder]) -> list[tuple[str, int]]:
            for holder in found:
                self._seen_at.setdefault(holder.node_id, set()).add(holder.address.host)
            return _peers(found)

        async def watch() -> NoReturn:
            """Name whoever appears meanwhile, and give up where nothing comes for too long."""
            wait_s = FIRST_LOOK_S
            await self._announce_download(manifest, shard_id)
            while loop.time() - moved_s < self._settings.give_up_s:
                found = await self._holders.who_fetch(manifest.model_id, shard_id)
                found += await self._holders.of_shard(manifest.model_id, shard_id, sources)
                session.add_peers(facts.info_hash, peers_of(found))
                await asyncio.sleep(wait_s)
                wait_s = min(MOST_LOOK_S, 2 * wait_s)
            raise ShardNotFound(
                f"shard {shard_id} of {manifest.name}: nothing came for {self._settings.give_up_s:g} s, its holders are gone; "
                f"{max(0, most_bytes)} bytes are kept for when one is back",
                model_id=manifest.model_id,
                shard_id=shard_id,
            )

        fetching = asyncio.create_task(
            session.fetch(
                torrent,
                target,
                expect_sha256=manifest.files[shard_id].sha256,
                expect_bytes=facts.file_bytes,
                label=str(shard_id),
                peers=peers_of(holders),
                on_progress=on_stats,
            ),
            name=f"fetch {shard_id}",
        )
        watching = asyncio.create_task(watch(), name=f"watch fetch {shard_id}")
        try:
            await asyncio.wait({fetching, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not fetching.done():
                await watching
            return await fetching
        finally:
            for task in (fetching, watching):
                task.cancel()
            await asyncio.gather(fetching, watching, return_exceptions=True)
            if self._directory is not None:
                leaving = self._directory.withdraw_download(manifest.model_id, shard_id)
                try:
                    self._spawn(leaving, f"download {shard_id} is over")
                except RuntimeError:  # the daemon is ending, and withdraws everything
                    leaving.close()

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

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _running(self) -> TorrentSession:
        if self._session is None:
            raise ShardError("this node's transfers have ended")
        return self._session

    @asynccontextmanager
    async def _alone_with(self, target: Path) -> AsyncIterator[None]:
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


def hosts_to_block(seen_at: Mapping[NodeId, set[str]], revoked: Set[str], *, own: str) -> list[str]:
    """Returns: IP addresses at which revoked members were seen, and nobody else; never our own."""
    theirs = {host for node_id, hosts in seen_at.items() if node_id in revoked for host in hosts}
    others = {host for node_id, hosts in seen_at.items() if node_id not in revoked for host in hosts}
    return sorted(theirs - others - {own})


def _peers(holders: list[Holder]) -> list[tuple[str, int]]:
    return [(holder.address.host, holder.torrent_port) for holder in holders if holder.torrent_port]
