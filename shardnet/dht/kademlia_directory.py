"""The `Directory` on Kademlia: opens and ends the parts, asks the right key for each question, and sweeps.

Knows nothing of torrents, inference or the daemons: a caller tells it what to announce.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from shardnet.dht.addresses import is_loopback
from shardnet.dht.announcer import Announcement, Announcer
from shardnet.dht.directory import Address, DhtStats
from shardnet.dht.neighbourhood import Neighbourhood
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
from shardnet.dht.server import SealedServer
from shardnet.dht.settings import DhtSettings
from shardnet.dht.storage import RecordStorage, StorageLimits
from shardnet.errors import LocalProtocolError
from shardnet.log import get

log = get("dht")


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
            on_contacts=lambda: self._neighbourhood.contacts_changed(),
            revoked=revoked,
        )
        self._announcer = Announcer(settings, signer, self._storage, self._server, self._refusals, clock=clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._neighbourhood = Neighbourhood(settings, self._server, state_file, self._announcer.renew_all_now)
        self._address: Address | None = None

    # life

    async def __aenter__(self) -> Self:
        """Listen, and begin to look for peers. Raises: SettingsError if the UDP port cannot be had."""
        self._announcer.sequence = await self._neighbourhood.read()
        self._address = await self._server.open()
        log.info("dht_listening", address=f"{self._address[0]}:{self._address[1]}")
        for loop in (
            self._neighbourhood.keep_joined(self._address),
            self._keep_swept(),
            self._announcer.keep_renewed(),
        ):
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
                    if len(self._announcer):
                        log.info("dht_left_in_haste", announcements=len(self._announcer))
            if leave:
                await self._neighbourhood.remember(self._announcer.sequence)
                self._server.protocol.say_goodbye()  # last: whoever asks now must find nobody
        finally:
            self._address = None
            self._neighbourhood.has_asked.set()
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
        await self._neighbourhood.has_asked.wait()
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

    async def add_peers(self, addresses: Sequence[str]) -> int:
        """See `Directory`. Raises: UsageError if an address is not "host:port"."""
        self._check_running()
        return await self._neighbourhood.add_peers(addresses)

    # the sweep

    async def _keep_swept(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval_s * random.uniform(0.9, 1.1))
            await self.sweep()

    async def sweep(self) -> None:
        """Forget what is over, ping who was not heard, look somewhere at random for new peers, remember the peers. Runs by itself; tests call it."""
        self._storage.expire(self._clock())
        self._storage.forget_revoked()
        await self._neighbourhood.refresh()
        await self._neighbourhood.remember(self._announcer.sequence)

    # announcing

    async def announce(
        self,
        model_id: str,
        shard_id: int,
        *,
        address: Address | None,
        torrent_port: int = 0,
        memory_free_bytes: int = 0,
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

    async def announce_download(
        self, model_id: str, shard_id: int, *, address: Address | None, torrent_port: int
    ) -> int:
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

    async def announce_coordinator(self, *, address: Address | None) -> int:
        """See `Directory`."""
        return await self._announce(
            Announcement(coordinator_key(), Kind.COORDINATOR, {}, self._announcer.checked_address(address))
        )

    async def announce_manifest(self, model_id: str, *, address: Address | None) -> int:
        """See `Directory`."""
        facts: dict[str, str | int] = {"model_id": model_id}
        return await self._announce(
            Announcement(manifest_key(model_id), Kind.MANIFEST, facts, self._announcer.checked_address(address))
        )

    async def _announce(self, announcement: Announcement) -> int:
        await self._ready()
        return await self._announcer.announce(announcement)

    async def move(self, address: Address | None) -> None:
        """See `Directory`."""
        self._check_running()
        self._spawn(self._neighbourhood.show_up())
        await self._announcer.move(address)

    def hush(self) -> None:
        """See `Directory`."""
        self._check_running()
        self._announcer.hush()

    # withdrawing

    async def withdraw(self, model_id: str, shard_id: int) -> None:
        """See `Directory`."""
        await self._withdraw(provider_key(model_id, shard_id))

    async def withdraw_download(self, model_id: str, shard_id: int) -> None:
        """See `Directory`."""
        await self._withdraw(download_key(model_id, shard_id))

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
