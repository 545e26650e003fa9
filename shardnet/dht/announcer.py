"""What this node says of itself: published, renewed every third of its life, withdrawn on leaving."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kademlia.node import Node

from shardnet.dht.addresses import is_loopback, pack_host, unpack_host
from shardnet.dht.directory import Address
from shardnet.dht.records import Kind, Record, Signer, sign_record
from shardnet.dht.refusals import Refusals
from shardnet.dht.server import SealedServer
from shardnet.dht.settings import DhtSettings
from shardnet.dht.storage import RecordStorage
from shardnet.errors import RemoteProtocolError, UsageError
from shardnet.ids import short
from shardnet.lifecycle import Backoff
from shardnet.log import get

log = get("dht")


@dataclass(slots=True)
class Announcement:
    """What this node says under one key. `due_at`: loop time of the next renewal; `holders`: who keeps it, as far as known.

    `address` None: nobody could come here for it, so it is kept to itself until this node can be reached.
    """

    key: bytes
    kind: Kind
    facts: dict[str, str | int]
    address: Address | None
    torrent_port: int = 0
    memory_free_bytes: int = 0
    due_at: float = 0
    was_told: bool = False
    is_milestone: bool = True
    """People are told of it."""
    retry: Backoff = field(default_factory=Backoff)
    holders: list[Node] = field(default_factory=list)


class Announcer:
    """Keeps this node's announcements alive.

    Invariant: every announcement has its newest record in our own storage too (unless that is full), so newcomers are handed it.
    """

    def __init__(
        self,
        settings: DhtSettings,
        signer: Signer,
        storage: RecordStorage,
        server: SealedServer,
        refusals: Refusals,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._signer = signer
        self._storage = storage
        self._server = server
        self._refusals = refusals
        self._clock = clock
        self._announcements: dict[bytes, Announcement] = {}
        self._publishing = asyncio.Semaphore(settings.max_publications_at_once)
        self._renewal_wanted = asyncio.Event()
        self.sequence = 0
        """The highest sequence used; set it from the last run's, so that a clock set back does not silence us."""

    def __len__(self) -> int:
        return len(self._announcements)

    def checked_address(self, address: Address | None) -> Address | None:
        """Returns: the address, plainly written. Raises: UsageError if others could not connect to it."""
        if address is None:
            return None
        host, port = address
        try:
            plain = unpack_host(pack_host(host))
        except (ValueError, RemoteProtocolError) as error:
            raise UsageError(f"{host!r} cannot be announced: an IP address that others can reach is needed") from error
        if not 1 <= port <= 65535:
            raise UsageError(f"port {port} cannot be announced: it must be 1 to 65535")
        if is_loopback(plain) and not is_loopback(self._settings.listen_host):
            raise UsageError(
                f"{host} cannot be announced beyond this machine: announce the address that others reach it by"
            )
        return plain, port

    async def announce(self, announcement: Announcement) -> int:
        """Publish, and renew from now on.

        Returns: how many other nodes keep the record. Raises: UsageError if the torrent port is none.
        """
        if not 0 <= announcement.torrent_port <= 65535:
            raise UsageError(f"torrent port {announcement.torrent_port} cannot be announced: it must be 0 to 65535")
        known = self._announcements.get(announcement.key)
        if known is not None:
            announcement.was_told, announcement.holders = known.was_told, known.holders
        self._announcements[announcement.key] = announcement
        await self._publish(announcement)
        self._renewal_wanted.set()
        return len(announcement.holders)

    async def _publish(self, announcement: Announcement) -> None:
        """Have one announcement's newest record kept by the network. When nobody takes it, it is soon due again."""
        interval_s = self._settings.renew_every_s
        loop = asyncio.get_running_loop()
        announcement.due_at = loop.time() + interval_s * random.uniform(0.9, 1.0)
        async with self._publishing:
            if self._announcements.get(announcement.key) is not announcement or announcement.address is None:
                return  # replaced or withdrawn while it waited, or there is nowhere to come to
            record = self._sign_and_keep(announcement, announcement.address)
            announcement.holders = await self._server.publish(announcement.key, record.raw)
        if not announcement.holders:
            announcement.due_at = min(announcement.due_at, loop.time() + announcement.retry.next_delay_s())
            return
        announcement.retry.reset()
        if not announcement.was_told:
            announcement.was_told = True
            self._tell("announced", announcement)

    def _sign_and_keep(self, announcement: Announcement, address: Address, *, withdrawn: bool = False) -> Record:
        now = self._clock()
        self.sequence = max(self.sequence + 1, int(now * 1000))
        record = sign_record(
            self._signer,
            announcement.key,
            announcement.kind,
            address=address,
            sequence=self.sequence,
            expires_at=now + self._settings.record_ttl_s,
            torrent_port=announcement.torrent_port,
            memory_free_bytes=max(0, announcement.memory_free_bytes),
            withdrawn=withdrawn,
        )
        try:
            self._storage.merge(announcement.key, record.raw)
        except RemoteProtocolError as error:
            self._refusals.note("record", error, self._signer.node_id)  # our store is full; the others' may not be
        return record

    def _tell(self, what: str, announcement: Announcement) -> None:
        part = "" if announcement.kind is Kind.PROVIDER else f"{announcement.kind.name.lower()}_"
        if not announcement.is_milestone:
            return
        facts = {name: short(value) if isinstance(value, str) else value for name, value in announcement.facts.items()}
        log.info(f"dht_{part}{what}", **facts, holders=len(announcement.holders))

    def renew_all_now(self) -> None:
        """There are new peers: what failed before may work now."""
        for announcement in self._announcements.values():
            announcement.due_at = 0
        self._renewal_wanted.set()

    async def keep_renewed(self) -> None:
        """Renew what is due, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._renewal_wanted.clear()
            now = loop.time()
            due = [announcement for announcement in self._announcements.values() if announcement.due_at <= now]
            await asyncio.gather(*(self._publish(announcement) for announcement in due))
            upcoming = min((a.due_at for a in self._announcements.values()), default=now + 3600)
            try:
                async with asyncio.timeout(max(0, upcoming - loop.time())):
                    await self._renewal_wanted.wait()
            except TimeoutError:
                continue

    async def move(self, address: Address | None) -> None:
        """Everything is to be had at another address from now on; None: nowhere, until there is one again."""
        address = self.checked_address(address)
        loop = asyncio.get_running_loop()
        for announcement in tuple(self._announcements.values()):
            before, announcement.address = announcement.address, address
            announcement.due_at = loop.time()
            if address is None and before is not None:
                await self._end(announcement, before)
        self._renewal_wanted.set()

    def hush(self) -> None:
        """Say nothing of anything that was announced, not even that it is over: somebody else has this node's name, and announces for himself."""
        for announcement in self._announcements.values():
            announcement.address, announcement.holders = None, []
            self._storage.forget(announcement.key, self._signer.node_id)

    async def withdraw(self, key: bytes) -> None:
        """Replace the record by a tombstone, at those who keep it and at those who should."""
        announcement = self._announcements.pop(key, None)
        if announcement is None:
            return
        if announcement.address is not None:
            await self._end(announcement, announcement.address)
        if announcement.was_told:
            self._tell("withdrawn", announcement)

    async def _end(self, announcement: Announcement, address: Address) -> None:
        async with self._publishing:
            record = self._sign_and_keep(announcement, address, withdrawn=True)
            announcement.holders = await self._server.publish(announcement.key, record.raw, announcement.holders)

    async def withdraw_all(self) -> None:
        """Withdraw every announcement."""
        await asyncio.gather(*(self.withdraw(key) for key in list(self._announcements)))
