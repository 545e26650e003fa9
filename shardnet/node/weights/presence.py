"""This node's part in the swarm's transfers while it serves: its BitTorrent session, what it says of its shards on the DHT, and whom it keeps out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Set
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from shardnet.dht.directory import Directory
from shardnet.errors import ShardError, UsageError
from shardnet.ids import NodeId
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import Address
from shardnet.node.weights.holders import Holder
from shardnet.node.weights.settings import NodeTorrentSettings
from shardnet.swarm.identity import Identity
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.session import OnRotten, TorrentSession
from shardnet.torrent.tls import TlsMaterial

log = get("exchange")


class Presence:
    """Use within `serving`; before and after it, nothing is said and nothing travels.

    Args:
        state_dir: a folder of this node's own, for resume data.
        memory_free: bytes for more shards, told on the DHT.
    """

    def __init__(
        self, identity: Identity, settings: NodeTorrentSettings, state_dir: Path, memory_free: Callable[[], int]
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._state_dir = state_dir
        self._memory_free = memory_free
        self._session: TorrentSession | None = None
        self._directory: Directory | None = None
        self._address: Callable[[], Address | None] = lambda: None
        self._is_hushed = False
        self._seen_at: dict[NodeId, set[str]] = {}

    @asynccontextmanager
    async def serving(
        self,
        listening: Address,
        address: Callable[[], Address | None],
        directory: Directory | None,
        on_rotten: OnRotten,
        on_unreadable: OnRotten,
    ) -> AsyncIterator[None]:
        """Take part inside.

        Args:
            listening: where this node answers questions of others.
            address: where others dial it, now.
            on_rotten, on_unreadable: as `TorrentSession` has them.
        Raises: SettingsError if the torrent port is taken or the key cannot be read.
        """
        settings = self._settings.model_copy(update={"listen_host": self._settings.listen_host or listening.host})
        identity = self._identity
        tls = TlsMaterial(
            ca_pem=identity.swarm.ca_pem,
            cert_pem=identity.certificate_pem,
            key_pem=await asyncio.to_thread(identity.key_pem),
        )
        async with TorrentSession(
            settings, tls, self._state_dir, on_rotten=on_rotten, on_unreadable=on_unreadable
        ) as session:
            self._session = session
            self._directory = directory
            self._address = address
            unwatch = identity.watch_revocations(self._fence_off)
            try:
                yield
            finally:
                unwatch()
                sent, taken = self.traffic()
                log.info("exchange_ended", sent_bytes=sent, taken_bytes=taken)
                self._session = self._directory = None

    # -- transfers -----------------------------------------------------------------------------------------------------------

    def session(self) -> TorrentSession:
        """Returns: what moves the bytes. Raises: ShardError if this node does not take part any more."""
        if self._session is None:
            raise ShardError("this node's transfers have ended")
        return self._session

    @property
    def torrent_port(self) -> int:
        """Returns: where other nodes' transfers connect to; 0 while nowhere."""
        if self._session is None:
            return 0
        return self._settings.advertise_port or self._session.port

    def stats(self) -> dict[str, TorrentStats]:
        """Returns: figures of every torrent, by info-hash."""
        return self._session.stats() if self._session is not None else {}

    def traffic(self) -> tuple[int, int]:
        """Returns: payload bytes sent and taken since the start."""
        return self._session.traffic() if self._session is not None else (0, 0)

    async def stop_seeding(self, info_hash: str) -> None:
        """Give a torrent's file to nobody any more. Harmless after the end."""
        if self._session is not None:
            await self._session.remove(info_hash)

    # -- the DHT -------------------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> tuple[str, int] | None:
        address = None if self._is_hushed else self._address()
        return (address.host, address.port) if address is not None else None

    async def announce(self, manifest: Manifest, shard_id: int) -> None:
        """Say that the shard, and the model's manifest, can be had here."""
        if self._directory is None:
            return
        try:
            await self._directory.announce(
                manifest.model_id,
                shard_id,
                address=self._where,
                torrent_port=self.torrent_port,
                memory_free_bytes=self._memory_free(),
            )
            await self._directory.announce_manifest(manifest.model_id, address=self._where)
        except UsageError as error:
            log.warning("shard_not_announced", shard_id=shard_id, reason=str(error))

    async def move(self) -> None:
        """This node is reached somewhere else now: say so of all that was announced, and let transfers begin anew from here."""
        self._is_hushed = False
        if self._session is not None:
            self._session.redial()
        if self._directory is not None:
            try:
                await self._directory.move(self._where)
            except UsageError as error:
                log.warning("shards_not_announced", reason=str(error))

    def hush(self) -> None:
        """Announce nothing until `move`: another node that lives goes by this one's name."""
        self._is_hushed = True
        if self._directory is not None:
            self._directory.hush()

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        """The shard cannot be had here any more."""
        if self._directory is not None:
            await self._directory.withdraw(model_id, shard_id)

    async def withdraw_manifest(self, model_id: str) -> None:
        """Nothing of the model can be had here any more."""
        if self._directory is not None:
            await self._directory.withdraw_manifest(model_id)

    async def announce_download(self, manifest: Manifest, shard_id: int) -> None:
        """Say that the shard is on its way here: others who fetch it can have what is there."""
        if self._directory is not None:
            with suppress(UsageError):  # said when the shard is here
                await self._directory.announce_download(
                    manifest.model_id, shard_id, address=self._where, torrent_port=self.torrent_port
                )

    async def withdraw_download(self, manifest: Manifest, shard_id: int) -> None:
        """The download is over."""
        if self._directory is not None:
            await self._directory.withdraw_download(manifest.model_id, shard_id)

    # -- who is kept out -----------------------------------------------------------------------------------------------------

    def peers_of(self, holders: Iterable[Holder]) -> list[tuple[str, int]]:
        """Returns: where the transfers of `holders` listen. That they were seen there is remembered."""
        found = list(holders)
        for holder in found:
            self._seen_at.setdefault(holder.node_id, set()).add(holder.address.host)
        return [(holder.address.host, holder.torrent_port) for holder in found if holder.torrent_port]

    def _fence_off(self, revoked: frozenset[str]) -> None:
        """Transfers tell members by their certificates only, which a revoked one still has: refuse the addresses where it was known to be."""
        hosts = hosts_to_block(self._seen_at, revoked, own=address.host if (address := self._address()) else "")
        if self._session is not None:
            self._session.block(hosts)
        if hosts:
            log.warning("revoked_addresses_blocked", hosts=", ".join(hosts))


def hosts_to_block(seen_at: Mapping[NodeId, set[str]], revoked: Set[str], *, own: str) -> list[str]:
    """Returns: IP addresses at which revoked members were seen, and nobody else; never our own."""
    theirs = {host for node_id, hosts in seen_at.items() if node_id in revoked for host in hosts}
    others = {host for node_id, hosts in seen_at.items() if node_id not in revoked for host in hosts}
    return sorted(theirs - others - {own})
