"""Finding peers, keeping them fresh, finding them again after being alone, and remembering them for the next start."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from kademlia.node import Node

from shardnet.dht.directory import Address
from shardnet.dht.peers import MAX_PEERS, PeersFile, RememberedPeer, read_peers, write_peers
from shardnet.dht.server import SealedServer, resolve
from shardnet.dht.settings import DhtSettings, split_host_port
from shardnet.errors import UsageError
from shardnet.lifecycle import Backoff
from shardnet.log import get

log = get("dht")

SWEEP_PINGS_AT_ONCE = 16


class Neighbourhood:
    """This node's peers on the DHT.

    Args:
        state_file: JSON; the neighbours are remembered there.
        on_joined: called when there are peers again.
    """

    def __init__(
        self, settings: DhtSettings, server: SealedServer, state_file: Path, on_joined: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._server = server
        self._state_file = state_file
        self._on_joined = on_joined
        self._has_contact = asyncio.Event()
        self._is_alone = asyncio.Event()
        self.has_asked = asyncio.Event()
        """Set when the first round of greetings is over."""
        self._entries: list[str] = list(settings.bootstrap)
        self._remembered = PeersFile()
        self._address: Address | None = None

    # the way in

    def contacts_changed(self) -> None:
        """A contact came or went."""
        (self._has_contact if len(self._server.protocol.router) else self._is_alone).set()

    async def keep_joined(self, own_address: Address) -> None:
        """Find peers, and again whenever alone; with peers, still look for bootstrap entries that are not among them, lest two islands form."""
        self._address = own_address
        backoff = Backoff()
        is_told = False
        while True:
            await self._ask_everybody()
            self.has_asked.set()
            if len(self._server.protocol.router):
                log.info("dht_joined", peers=len(self._server.protocol.router))
                self._on_joined()
                backoff.reset()
                while len(self._server.protocol.router):
                    self._is_alone.clear()
                    if not await _happens(self._is_alone, self._settings.sweep_interval_s):
                        await self._ask_missing()
                is_told = False
            self._has_contact.clear()
            if not is_told and (self._entries or self._remembered.peers):
                is_told = True
                # The first daemon of a swarm is alone until others start; where somebody was named, nobody answers there.
                tell = log.warning if self._entries else log.info
                tell("dht_alone", asked=len(self._entries) + len(self._remembered.peers))
            await _happens(self._has_contact, backoff.next_delay_s())

    async def _ask_everybody(self) -> None:
        addresses = await self._bootstrap_addresses()
        addresses += [(peer.host, peer.port) for peer in self._remembered.peers]
        answered = await self._server.bootstrap(dict.fromkeys(addresses))
        if not answered and len(self._server.protocol.router):
            await self._server.near(self._server.node.id)  # somebody came to us first: look around from there

    async def _ask_missing(self) -> None:
        known = {(node.ip, node.port) for node in self._server.protocol.router.contacts()}
        missing = [address for address in await self._bootstrap_addresses() if address not in known]
        if missing:
            await self._server.bootstrap(missing)

    async def _bootstrap_addresses(self) -> list[Address]:
        return [address for address in await self._resolved(self._entries) if address != self._address]

    async def _resolved(self, entries: Sequence[str]) -> list[Address]:
        ipv6 = ":" in self._settings.listen_host
        found = await asyncio.gather(*(resolve(entry, ipv6=ipv6) for entry in entries))
        return [address for addresses in found for address in addresses]

    async def add_peers(self, addresses: Sequence[str]) -> int:
        """Ask further "host:port" addresses, now and whenever alone.

        Returns: how many proved to be members. Raises: UsageError if an address is not "host:port".
        """
        for entry in addresses:
            try:
                split_host_port(entry)
            except ValueError as error:
                raise UsageError(str(error)) from error
            if entry not in self._entries:
                self._entries.append(entry)
        return len(await self._server.bootstrap(set(await self._resolved(addresses))))

    # what is known of them

    async def read(self) -> int:
        """Read what was remembered at the last run. Returns: the highest sequence that this node's records had then."""
        self._remembered = await asyncio.to_thread(read_peers, self._state_file)
        return self._remembered.sequence

    async def refresh(self) -> None:
        """Ping who was not heard, and look somewhere at random for new peers."""
        await self._ping(self._server.protocol.quiet_contacts())
        await self._server.near(secrets.token_bytes(20))

    async def show_up(self) -> None:
        """This machine has another address: ping every contact, so that each finds out where we are now."""
        await self._ping(list(self._server.protocol.router.contacts()))

    async def _ping(self, nodes: Sequence[Node]) -> None:
        protocol = self._server.protocol
        limit = asyncio.Semaphore(SWEEP_PINGS_AT_ONCE)

        async def ping(node: Node) -> None:
            async with limit:
                await protocol.call_ping(node)

        await asyncio.gather(*(ping(node) for node in nodes))

    async def remember(self, sequence: int) -> None:
        """Write the neighbours down, with the highest sequence so far. A node that lost everybody keeps the old list: those are the ones to ask."""
        near = self._server.protocol.router.find_neighbors(self._server.node, MAX_PEERS)
        peers = tuple(RememberedPeer(node_id=n.id.hex(), host=n.ip, port=n.port) for n in near)
        peers = tuple(sorted(peers, key=lambda peer: peer.node_id)) or self._remembered.peers
        content = PeersFile(sequence=sequence, peers=peers)
        if content != self._remembered and await asyncio.to_thread(write_peers, self._state_file, content):
            self._remembered = content


async def _happens(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False
