"""The `Directory` on Kademlia: announcements that renew themselves, a table that is swept, a way back after being alone.

Knows nothing of torrents, inference or the daemons: a caller tells it what to announce.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from kademlia.node import Node

from shardnet.dht.addresses import is_loopback
from shardnet.dht.announcer import Announcement, Announcer
from shardnet.dht.directory import Address, DhtStats
from shardnet.dht.peers import MAX_PEERS, PeersFile, RememberedPeer, read_peers, write_peers
from shardnet.dht.records import (
    CoordinatorRecord,
    Kind,
    ManifestRecord,
    ProviderRecord,
    Record,
    RecordVerifier,
    Signer,
    coordinator_key,
    download_key,
    manifest_key,
    provider_key,
)
from shardnet.dht.refusals import Refusals
from shardnet.dht.sealing import Sealer
from shardnet.dht.server import SealedServer, resolve
from shardnet.dht.settings import DhtSettings, split_host_port
from shardnet.dht.storage import RecordStorage, StorageLimits
from shardnet.errors import LocalProtocolError, UsageError
from shardnet.lifecycle import Backoff
from shardnet.log import get

log = get("dht")

SWEEP_PINGS_AT_ONCE = 16


class KademliaDirectory:
    """Use as an async context manager: inside it listens, renews and sweeps; on the way out it withdraws everything it announced."""

    def __init__(
        self,
        settings: DhtSettings,
        signer: Signer,
        swarm_key: bytes,
        state_file: Path,
        *,
        previous_swarm_keys: Sequence[bytes] = (),
        clock: Callable[[], float] = time.time,
        revoked: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """
        Args:
            swarm_key: 32 bytes that every member has; `previous_swarm_keys` still open datagrams while a swarm changes its key.
            state_file: JSON; the neighbours are remembered there.
            clock: unix seconds.
            revoked: node ids that the swarm's owner revoked; asked again and again, so that a revocation counts at once.

        Raises: LocalProtocolError if the key or the identity is of the wrong kind.
        """
        self._settings = settings
        self._state_file = state_file
        self._clock = clock
        self._refusals = Refusals()
        verifier = RecordVerifier(
            max_ttl_s=settings.max_record_ttl_s,
            max_skew_s=settings.max_clock_skew_s,
            allow_loopback=is_loopback(settings.listen_host),
            revoked=revoked,
        )
        limits = StorageLimits(
            settings.max_holders_per_key, settings.max_keys, settings.max_records, settings.max_keys_per_node
        )
        self._storage = RecordStorage(verifier, limits, clock=clock)
        self._server = SealedServer(
            settings,
            signer,
            self._storage,
            verifier,
            Sealer((swarm_key, *previous_swarm_keys), clock=clock, max_skew_s=settings.max_clock_skew_s),
            self._refusals,
            clock=clock,
            spawn=self._spawn,
            on_contacts=self._contacts_changed,
            revoked=revoked,
        )
        self._announcer = Announcer(settings, signer, self._storage, self._server, self._refusals, clock=clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_contact = asyncio.Event()
        self._is_alone = asyncio.Event()
        self._has_asked = asyncio.Event()
        self._entries: list[str] = list(settings.bootstrap)
        self._remembered = PeersFile()
        self._address: Address | None = None

    # life

    async def __aenter__(self) -> Self:
        """Listen, and begin to look for peers. Raises: SettingsError if the UDP port cannot be had."""
        self._remembered = await asyncio.to_thread(read_peers, self._state_file)
        self._announcer.sequence = self._remembered.sequence
        self._address = await self._server.open()
        log.info("dht_listening", address=f"{self._address[0]}:{self._address[1]}")
        for loop in (self._keep_joined(), self._keep_swept(), self._announcer.keep_renewed()):
            self._spawn(loop)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self, *, leave: bool = True) -> None:
        """Withdraw what was announced (unless `leave` is False: gone without a word, as in a crash), remember the peers, end."""
        if self._address is None:
            return
        for task in self._tasks:
            task.cancel()
        try:
            if leave and len(self._announcer):
                try:
                    async with asyncio.timeout(self._settings.leave_timeout_s):
                        await self._announcer.withdraw_all()
                except TimeoutError:
                    log.info("dht_left_in_haste", announcements=len(self._announcer))
            if leave:
                await self._remember_peers()
                self._server.protocol.say_goodbye()  # last: whoever asks now must find nobody
        finally:
            self._address = None
            self._has_asked.set()
            self._server.stop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> Address:
        """Where it listens. Raises: LocalProtocolError when it does not."""
        return self._check_running()

    async def _ready(self) -> None:
        """Whoever announces or asks right after the start waits until the first round of greetings is over (a call's timeout at most)."""
        self._check_running()
        await self._has_asked.wait()
        self._check_running()

    def _check_running(self) -> Address:
        if self._address is None:
            raise LocalProtocolError("the DHT is not running")
        return self._address

    def stats(self) -> DhtStats:
        """Returns: figures of this moment. Raises: LocalProtocolError when the directory is not running."""
        protocol = self._server.protocol
        return DhtStats(
            address=self.address,
            contacts=len(protocol.router),
            keys=len(self._storage.held_keys()),
            records=len(self._storage),
            announcements=len(self._announcer),
            datagrams_in=protocol.datagrams_in,
            datagrams_out=protocol.datagrams_out,
            bytes_in=protocol.bytes_in,
            bytes_out=protocol.bytes_out,
            refused=self._refusals.counts(),
        )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name="dht")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("dht_task_failed", exc_info=error)

    # the way in

    def _contacts_changed(self) -> None:
        (self._has_contact if len(self._server.protocol.router) else self._is_alone).set()

    async def _keep_joined(self) -> None:
        """Find peers, and again whenever alone; with peers, still look for bootstrap entries that are not among them, lest two islands form."""
        backoff = Backoff()
        is_told = False
        while True:
            await self._ask_everybody()
            self._has_asked.set()
            if len(self._server.protocol.router):
                log.info("dht_joined", peers=len(self._server.protocol.router))
                self._announcer.renew_all_now()
                backoff.reset()
                while len(self._server.protocol.router):
                    self._is_alone.clear()
                    if not await _happens(self._is_alone, self._settings.sweep_interval_s):
                        await self._ask_missing()
                is_told = False
            self._has_contact.clear()
            if not is_told and (self._entries or self._remembered.peers):
                is_told = True
                log.warning("dht_alone", asked=len(self._entries) + len(self._remembered.peers))
            await _happens(self._has_contact, backoff.next_delay_s())

    async def _ask_everybody(self) -> int:
        addresses = await self._bootstrap_addresses()
        addresses += [(peer.host, peer.port) for peer in self._remembered.peers]
        answered = await self._server.bootstrap(dict.fromkeys(addresses))
        if not answered and len(self._server.protocol.router):
            await self._server.near(self._server.node.id)  # somebody came to us first: look around from there
        return len(answered)

    async def _ask_missing(self) -> None:
        known = {(node.ip, node.port) for node in self._server.protocol.router.contacts()}
        missing = [address for address in await self._bootstrap_addresses() if address not in known]
        if missing:
            await self._server.bootstrap(missing)

    async def _bootstrap_addresses(self) -> list[Address]:
        ipv6 = ":" in self._settings.listen_host
        found = await asyncio.gather(*(resolve(entry, ipv6=ipv6) for entry in self._entries))
        return [address for addresses in found for address in addresses if address != self._address]

    async def add_peers(self, addresses: Sequence[str]) -> int:
        """See `Directory`. Raises: UsageError if an address is not "host:port"."""
        self._check_running()
        for entry in addresses:
            try:
                split_host_port(entry)
            except ValueError as error:
                raise UsageError(str(error)) from error
            if entry not in self._entries:
                self._entries.append(entry)
        ipv6 = ":" in self._settings.listen_host
        found = await asyncio.gather(*(resolve(entry, ipv6=ipv6) for entry in addresses))
        return len(await self._server.bootstrap({address for several in found for address in several}))

    # the sweep

    async def _keep_swept(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval_s * random.uniform(0.9, 1.1))
            await self.sweep()

    async def sweep(self) -> None:
        """Forget what is over, ping who was not heard, look somewhere at random for new peers, remember the peers. Runs by itself; tests call it."""
        self._storage.expire(self._clock())
        self._storage.forget_revoked()
        protocol = self._server.protocol
        limit = asyncio.Semaphore(SWEEP_PINGS_AT_ONCE)

        async def ping(node: Node) -> None:
            async with limit:
                await protocol.call_ping(node)

        await asyncio.gather(*(ping(node) for node in protocol.quiet_contacts()))
        await self._server.near(secrets.token_bytes(20))
        await self._remember_peers()

    async def _remember_peers(self) -> None:
        """A node that lost everybody keeps the old list: those are the ones to ask."""
        near = self._server.protocol.router.find_neighbors(self._server.node, MAX_PEERS)
        peers = tuple(RememberedPeer(node_id=n.id.hex(), host=n.ip, port=n.port) for n in near)
        peers = tuple(sorted(peers, key=lambda peer: peer.node_id)) or self._remembered.peers
        content = PeersFile(sequence=self._announcer.sequence, peers=peers)
        if content != self._remembered and await asyncio.to_thread(write_peers, self._state_file, content):
            self._remembered = content

    # announcing

    async def announce(
        self, model_id: str, shard_id: int, *, address: Address, torrent_port: int = 0, memory_free_bytes: int = 0
    ) -> int:
        """See `Directory`."""
        return await self._announce(
            Announcement(
                provider_key(model_id, shard_id),
                Kind.PROVIDER,
                {"model_id": model_id, "shard_id": shard_id},
                self._announcer.checked_address(address),
                torrent_port,
                memory_free_bytes,
            )
        )

    async def announce_download(self, model_id: str, shard_id: int, *, address: Address, torrent_port: int) -> int:
        """See `Directory`."""
        return await self._announce(
            Announcement(
                download_key(model_id, shard_id),
                Kind.PROVIDER,
                {"model_id": model_id, "shard_id": shard_id},
                self._announcer.checked_address(address),
                torrent_port,
                is_milestone=False,
            )
        )

    async def announce_coordinator(self, *, address: Address) -> int:
        """See `Directory`."""
        return await self._announce(
            Announcement(coordinator_key(), Kind.COORDINATOR, {}, self._announcer.checked_address(address))
        )

    async def announce_manifest(self, model_id: str, *, address: Address) -> int:
        """See `Directory`."""
        facts: dict[str, str | int] = {"model_id": model_id}
        return await self._announce(
            Announcement(manifest_key(model_id), Kind.MANIFEST, facts, self._announcer.checked_address(address))
        )

    async def _announce(self, announcement: Announcement) -> int:
        await self._ready()
        return await self._announcer.announce(announcement)

    # withdrawing

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        """See `Directory`."""
        await self._withdraw(provider_key(model_id, shard_id))

    async def withdraw_download(self, model_id: str, shard_id: int) -> None:
        """See `Directory`."""
        await self._withdraw(download_key(model_id, shard_id))

    async def withdraw_coordinator(self) -> None:
        """See `Directory`."""
        await self._withdraw(coordinator_key())

    async def withdraw_manifest(self, model_id: str) -> None:
        """See `Directory`."""
        await self._withdraw(manifest_key(model_id))

    async def _withdraw(self, key: bytes) -> None:
        self._check_running()
        await self._announcer.withdraw(key)

    # looking up

    async def lookup(self, model_id: str, shard_id: int) -> list[ProviderRecord]:
        """See `Directory`."""
        return await self._providers(provider_key(model_id, shard_id), model_id, shard_id)

    async def lookup_downloads(self, model_id: str, shard_id: int) -> list[ProviderRecord]:
        """See `Directory`."""
        return await self._providers(download_key(model_id, shard_id), model_id, shard_id)

    async def _providers(self, key: bytes, model_id: str, shard_id: int) -> list[ProviderRecord]:
        return [
            ProviderRecord(
                record.node_id,
                (record.host, record.port),
                record.torrent_port,
                record.memory_free_bytes,
                model_id,
                shard_id,
                record.expires_at,
                record.sequence,
            )
            for record in await self._lookup(key, Kind.PROVIDER)
        ]

    async def lookup_coordinators(self) -> list[CoordinatorRecord]:
        """See `Directory`."""
        return [
            CoordinatorRecord(record.node_id, (record.host, record.port), record.expires_at, record.sequence)
            for record in await self._lookup(coordinator_key(), Kind.COORDINATOR)
        ]

    async def lookup_manifest(self, model_id: str) -> list[ManifestRecord]:
        """See `Directory`."""
        return [
            ManifestRecord(record.node_id, (record.host, record.port), model_id, record.expires_at, record.sequence)
            for record in await self._lookup(manifest_key(model_id), Kind.MANIFEST)
        ]

    async def _lookup(self, key: bytes, kind: Kind) -> Iterable[Record]:
        await self._ready()
        return (record for record in await self._server.gather(key) if record.kind is kind)


async def _happens(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False
