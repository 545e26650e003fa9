"""kademlia's server around the hardened protocol: the socket, the way in, publishing and gathering under one key."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kademlia.network import Server
from kademlia.node import Node

from shardnet.dht.crawl import BoundedCrawl, NewestRecords
from shardnet.dht.directory import Address
from shardnet.dht.protocol import HardenedProtocol, Spawn
from shardnet.dht.records import Record, RecordVerifier, Signer
from shardnet.dht.refusals import Refusals
from shardnet.dht.sealing import Sealer
from shardnet.dht.settings import DhtSettings, split_host_port
from shardnet.dht.storage import RecordStorage
from shardnet.errors import LocalProtocolError, SettingsError
from shardnet.hosts import take_both_families


class SealedServer(Server):  # type: ignore[misc]
    """The network side of the directory; knows nothing of renewal, or of what the records mean."""

    def __init__(
        self,
        settings: DhtSettings,
        signer: Signer,
        storage: RecordStorage,
        verifier: RecordVerifier,
        sealer: Sealer,
        refusals: Refusals,
        *,
        clock: Callable[[], float],
        spawn: Spawn,
        on_contacts: Callable[[], None],
        revoked: Callable[[], frozenset[str]],
    ) -> None:
        super().__init__(settings.ksize, settings.alpha, bytes.fromhex(signer.node_id))
        self.storage = storage  # not through super(): it takes an empty storage for none
        self._settings = settings
        self._signer = signer
        self._verifier = verifier
        self._sealer = sealer
        self._refusals = refusals
        self._clock = clock
        self._spawn = spawn
        self._on_contacts = on_contacts
        self._revoked = revoked

    def _create_protocol(self) -> HardenedProtocol:
        return HardenedProtocol(
            self.node,
            self.storage,
            self._settings,
            signer=self._signer,
            sealer=self._sealer,
            refusals=self._refusals,
            spawn=self._spawn,
            on_contacts=self._on_contacts,
            revoked=self._revoked,
        )

    async def open(self) -> Address:
        """Bind the socket. Returns: where it listens. Raises: SettingsError if the address cannot be had."""
        host, port = self._settings.listen_host, self._settings.listen_port
        try:
            sock = await asyncio.to_thread(_bound, host, port)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on UDP {host}:{port}: {error.strerror}; change dht.listen_host or dht.listen_port"
            ) from error
        loop = asyncio.get_running_loop()
        opened: Any = await loop.create_datagram_endpoint(self._create_protocol, sock=sock)
        self.transport, self.protocol = opened
        bound: Address = self.transport.get_extra_info("sockname")[:2]
        return bound

    def save_state(self, fname: str) -> None:
        """Refused: the stock format is a pickle. See `peers.py`."""
        raise LocalProtocolError("neighbours are kept as JSON, by shardnet.dht.peers")

    @classmethod
    async def load_state(cls, fname: str, port: int, interface: str = "0.0.0.0") -> Any:
        """Refused: the stock format is a pickle, which could run anything."""
        raise LocalProtocolError("neighbours are kept as JSON, by shardnet.dht.peers")

    async def bootstrap(self, addrs: Iterable[Address]) -> list[Node]:
        """Ask addresses who they are, and look around from those that answer. Returns: who answered."""
        asked = await asyncio.gather(*(self.protocol.ping_address(address) for address in addrs))
        nodes = [node for node in asked if node is not None]
        if nodes:
            await self.near(self.node.id)
        return nodes

    async def near(self, key: bytes) -> list[Node]:
        """Returns: the k nodes nearest to `key` that answer, without ourselves."""
        return await BoundedCrawl(self.protocol, key, self._settings, None).find()

    async def gather(self, key: bytes) -> list[Record]:
        """Returns: what all of the k nearest, and we, hold under `key`: one verified record a node, withdrawn ones left out."""
        newest = NewestRecords(
            key, self._verifier, self._refusals, now=self._clock(), most=4 * self._settings.max_holders_per_key
        )
        newest.add((record.raw for record in self.storage.records(key)), self.node.id.hex())
        await BoundedCrawl(self.protocol, key, self._settings, newest).find()
        return newest.live()

    async def publish(self, key: bytes, raw: bytes, also: Sequence[Node] = ()) -> list[Node]:
        """Have the k nearest keep a record, and `also` these. Returns: who keeps it now."""
        nodes = {node.id: node for node in (*also, *await self.near(key))}
        kept = await asyncio.gather(*(self.protocol.call_store(node, key, (raw,)) for node in nodes.values()))
        return [node for node, count in zip(nodes.values(), kept, strict=True) if count]


def _bound(host: str, port: int) -> socket.socket:
    """Returns: a UDP socket; at `::` it takes IPv4 too. Blocks while a name is looked up. Raises: OSError."""
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            take_both_families(sock, str(where[0]))
        sock.bind(where)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


async def resolve(entry: str, *, ipv6: bool) -> list[Address]:
    """Returns: the IP addresses behind "host:port"; none if the name is unknown for now. Raises: ValueError if it is not "host:port"."""
    host, port = split_host_port(entry)
    family = socket.AF_UNSPEC if ipv6 else socket.AF_INET
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, family=family)
    except (OSError, UnicodeError):  # the latter of what can be no name, as "a..b"
        return []
    return list(dict.fromkeys((str(info[4][0]), int(info[4][1])) for info in found))
