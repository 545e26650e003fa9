"""This node's place on the DHT: opened where the node listens, told what to announce, asked for coordinators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from shardnet.dht.directory import Directory
from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.dht.settings import DhtSettings
from shardnet.ids import NodeId
from shardnet.messages import Address
from shardnet.swarm.identity import Identity
from shardnet.swarm.signer import IdentitySigner

PEERS_FILE = "dht.json"


@asynccontextmanager
async def open_directory(
    identity: Identity, settings: DhtSettings, listening: Address, known: Iterable[Address]
) -> AsyncIterator[Directory]:
    """Take part in the DHT; on the way out everything announced is withdrawn.

    Args:
        settings: an empty `listen_host` follows the node's own.
        listening: where the node listens.
        known: places to begin, besides those of the settings.
    Raises: SettingsError if the UDP port is taken.
    """
    begin = (*settings.bootstrap, *(str(address) for address in known))
    settings = settings.model_copy(
        update={"listen_host": settings.listen_host or listening.host, "bootstrap": tuple(dict.fromkeys(begin))}
    )
    state_file = identity.key_path.parent / PEERS_FILE
    async with KademliaDirectory(
        settings, IdentitySigner(identity), identity.swarm.swarm_key, state_file, revoked=lambda: identity.revoked
    ) as directory:
        yield directory


async def find_coordinators(directory: Directory, node_id: NodeId | None = None) -> list[Address]:
    """Returns: where coordinators of this swarm say they are; with `node_id`, where that one says it is."""
    return [
        Address(host=record.address[0], port=record.address[1])
        for record in await directory.lookup_coordinators()
        if node_id in (None, record.node_id)
    ]
